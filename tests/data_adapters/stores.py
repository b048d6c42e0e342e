"""OME-Zarr written with zarr-python alone, so that what reads it is not what wrote it."""

import json

import zarr

from data_adapters.ome_zarr import discover_ome_zarr
from data_adapters.reasons import REASONS, Unusable

KINDS = {"t": "time", "c": "channel"}


def write_image(
    path,
    levels,
    axes="zyx",
    *,
    version="0.5",
    scales=None,
    translations=None,
    unit="micrometer",
    omero=None,
    **layout,
):
    """Write one group with an array for each level.

    Args:
        levels: Arrays, finest first.
        axes: A letter an axis.
        scales: Of each level, along all axes; 1 without.
        unit: Of the spatial axes; None for none.
        omero: Names of the channels.
        layout: For ``zarr.create_array``: chunks, shards, compressors, chunk_key_encoding.
    """
    scales = scales or [[1.0] * len(axes)] * len(levels)
    group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3, overwrite=True)
    set_ome(group, multiscales=[multiscale(axes, scales, translations, unit, version)])
    if omero:
        window = {"min": 0, "max": 1, "start": 0, "end": 1}
        named = [{"label": name, "color": "FFFFFF", "window": window} for name in omero]
        set_ome(group, omero={"channels": named})
    for index, array in enumerate(levels):
        names = {} if version == "0.4" else {"dimension_names": list(axes)}
        group.create_array(str(index), data=array, **names, **layout)
    return path


def write_labels(path, name, levels, axes="zyx", **options):
    """Write a labels group into an image that is there."""
    version = options.get("version", "0.5")
    labels = zarr.create_group(path / "labels", zarr_format=2 if version == "0.4" else 3)
    set_ome(labels, labels=[name])
    write_image(path / "labels" / name, levels, axes, **options)
    set_ome(zarr.open_group(path / "labels" / name), **{"image-label": {}})


def multiscale(axes, scales, translations=None, unit="micrometer", version="0.5"):
    datasets = []
    for index, scale in enumerate(scales):
        transforms = [{"type": "scale", "scale": list(scale)}]
        if translations:
            transforms.append({"type": "translation", "translation": list(translations[index])})
        datasets.append({"path": str(index), "coordinateTransformations": transforms})
    found = {"axes": [axis(name, unit) for name in axes], "datasets": datasets}
    return found | ({"version": "0.4"} if version == "0.4" else {})


def axis(name, unit):
    found = {"name": name, "type": KINDS.get(name, "space")}
    return found | ({"unit": unit} if unit and name in "zyx" else {})


def set_ome(group, **values):
    """Add OME metadata where its version has it."""
    if group.metadata.zarr_format == 2:
        group.attrs.update(values)
    else:
        ome = {"version": "0.5", **group.attrs.get("ome", {}), **values}
        group.attrs.update({"ome": ome})


def write_plate(path, wells, *, version="0.5", put_field):
    """Write an HCS plate.

    Args:
        wells: Path of a well to the names of its fields.
        put_field: Called with the folder of each field.
    """
    zarr_format = 2 if version == "0.4" else 3
    rows = sorted({well.split("/")[0] for well in wells})
    columns = sorted({well.split("/")[1] for well in wells})
    plate = zarr.create_group(path, zarr_format=zarr_format)
    listed = [
        {
            "path": well,
            "rowIndex": rows.index(well.split("/")[0]),
            "columnIndex": columns.index(well.split("/")[1]),
        }
        for well in wells
    ]
    document = {
        "version": version,
        "rows": [{"name": row} for row in rows],
        "columns": [{"name": column} for column in columns],
        "wells": listed,
        "name": "a plate",
    }
    set_ome(plate, plate=document)
    for well, fields in wells.items():
        group = zarr.create_group(path / well, zarr_format=zarr_format)
        set_ome(group, well={"images": [{"path": field} for field in fields]})
        for field in fields:
            put_field(path / well / field)


def edit_ome(group, change):
    """Apply ``change`` to the OME metadata of a group, whatever becomes of it."""
    new = group / "zarr.json"
    path = new if new.is_file() else group / ".zattrs"
    document = json.loads(path.read_text())
    change(document["attributes"]["ome"] if new.is_file() else document)
    path.write_text(json.dumps(document))


def whole(voxels):
    """Return all of a lazy array."""
    return voxels[tuple(slice(0, size) for size in voxels.shape)]


def read_one(source):
    (candidate,) = discover_ome_zarr(source).candidates
    return candidate.read()


def reason(source):
    """Return the code for which the one candidate of a source is left out, or None."""
    try:
        read_one(source)
    except Unusable as refused:
        assert refused.code in REASONS
        assert "{" not in refused.at("").sentence
        return refused.code
    return None
