"""OME-Zarr 0.5 groups on disk: metadata built by ome-zarr-models, chunks by tensorstore.

ome_zarr's writers go through dask and build pyramids, which costs more than the data of a small
scan; here one scan is one chunk, and the metadata still passes the models' validation.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

LEVEL = "0"
OME_VERSION = "0.5"
MAX_CHUNK_VOXELS = 64**3


@dataclass(frozen=True)
class ZarrImage:
    """Where an array lies: axis names, one unit, and scale and translation in that unit."""

    axes: tuple[str, ...]
    unit: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


def write_zarr_image(  # noqa: PLR0913
    path: Path,
    image: NDArray[Any],
    geometry: ZarrImage,
    *,
    name: str,
    labels: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write an image group with a labels group inside, both at one resolution.

    Args:
        path: Must not exist.
        name: Of the image, in its metadata.
        attributes: JSON written beside the OME metadata, under keys of the caller's own.

    Raises:
        FileExistsError: ``path`` exists.
    """
    path.mkdir(parents=True)
    ome = {"version": OME_VERSION, "multiscales": [_multiscale(geometry, name)]}
    _write_group(path, {"ome": ome, **(attributes or {})})
    _write_array(path / LEVEL, image, geometry.axes)
    listing = {"ome": {"version": OME_VERSION, "labels": sorted(labels)}}
    _write_group(path / "labels", listing)
    for label_name, array in labels.items():
        _write_labels(path / "labels" / label_name, array, geometry)


def _write_labels(path: Path, array: NDArray[Any], geometry: ZarrImage) -> None:
    path.mkdir()
    ome = {
        "version": OME_VERSION,
        "multiscales": [_multiscale(geometry, path.name)],
        "image-label": {"source": {"image": "../../"}},
    }
    _write_group(path, {"ome": ome})
    _write_array(path / LEVEL, array, geometry.axes)


def _multiscale(geometry: ZarrImage, name: str) -> dict[str, Any]:
    from ome_zarr_models.v05.axes import Axis
    from ome_zarr_models.v05.multiscales import Dataset, Multiscale

    multiscale = Multiscale(
        name=name,
        axes=[Axis(name=axis, type="space", unit=geometry.unit) for axis in geometry.axes],
        datasets=(
            Dataset.build(path=LEVEL, scale=geometry.scale, translation=geometry.translation),
        ),
    )
    dumped: dict[str, Any] = multiscale.model_dump(mode="json", exclude_none=True)
    return dumped


def _write_group(path: Path, attributes: Mapping[str, Any]) -> None:
    """Zarr v3 core: a group is its zarr.json."""
    path.mkdir(exist_ok=True)
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (path / "zarr.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


def _write_array(path: Path, array: NDArray[Any], axes: tuple[str, ...]) -> None:
    import tensorstore

    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path), "file_io_sync": False},
        "metadata": {
            "shape": list(array.shape),
            "data_type": array.dtype.name,
            "dimension_names": list(axes),
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": chunk_shape(array.shape)},
            },
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "zstd", "configuration": {"level": 1}},
            ],
            "fill_value": 0,
        },
        "create": True,
    }
    tensorstore.open(spec).result().write(array).result()


def chunk_shape(shape: tuple[int, ...]) -> list[int]:
    """Return one chunk for a small scan, and chunks of at most 64 along an axis for a large one.

    >>> chunk_shape((8, 64, 80)), chunk_shape((200, 512, 512))
    ([8, 64, 80], [64, 64, 64])
    """
    if int(np.prod(shape)) <= MAX_CHUNK_VOXELS:
        return list(shape)
    return [min(size, 64) for size in shape]


def open_array(path: Path, zarr_format: Literal[2, 3] = 3) -> Any:
    """Return a tensorstore of an existing array.

    tensorstore is imported here and not above: it starts threads, and aborts in a forked child.
    """
    import tensorstore

    driver = "zarr3" if zarr_format == 3 else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec, open=True, read=True).result()


def group_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of a Zarr v3 group. Raises OSError, or ValueError if damaged."""
    document = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    attributes: dict[str, Any] = document["attributes"]
    return attributes
