"""Where a Zarr group or array is: a folder of this machine, or a URL; metadata is read from it."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from data_adapters import zarr_remote
from data_adapters.reasons import Unusable
from data_adapters.zarr_store import file_store

ZarrFormat = Literal[2, 3]
# Of one metadata document; plates with thousands of wells stay far below.
MAX_METADATA_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Place:
    """A group or array of a store.

    Args:
        root: Folder or URL that nothing may lead out of: an image, a plate, a collection.
        below: Path from ``root``, with forward slashes; empty for ``root`` itself.
    """

    root: str
    below: str = ""

    @property
    def remote(self) -> bool:
        """Say whether it is behind a URL."""
        return zarr_remote.is_url(self.root)

    @property
    def folder(self) -> Path:
        """Return the folder of a place on this machine."""
        return Path(self.root, self.below)

    def child(self, path: str) -> "Place":
        """Return what metadata calls ``path``.

        Raises:
            Unusable: PATH_OUTSIDE, also where a link leads out; INVALID_METADATA.
        """
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts or "\\" in path:
            raise Unusable("PATH_OUTSIDE")
        if not parts or not path.isprintable():
            raise Unusable("INVALID_METADATA")
        place = Place(self.root, str(PurePosixPath(self.below, *parts)))
        if not place.remote and not place._is_inside():
            raise Unusable("PATH_OUTSIDE")
        return place

    def _is_inside(self) -> bool:
        try:
            return self.folder.resolve().is_relative_to(Path(self.root).resolve())
        except (OSError, RuntimeError):  # links in a circle, names that are too long
            return False

    def kvstore(self) -> dict[str, Any]:
        """Return tensorstore's description of this place."""
        if self.remote:
            return zarr_remote.kvstore_spec(self.root, self.below)
        return file_store(self.folder)

    def read(self, name: str) -> bytes | None:
        """Return a metadata document, or None where there is none.

        Raises:
            Unusable: UNREACHABLE, or INVALID_METADATA for a document of absurd size.
            OSError: A file of this machine cannot be read.
        """
        data = self._fetched(name) if self.remote else self._from_disk(name)
        if data is not None and len(data) > MAX_METADATA_BYTES:
            raise Unusable("INVALID_METADATA")
        return data

    def _from_disk(self, name: str) -> bytes | None:
        path = self.folder / name
        if not path.is_file():
            return None
        if not path.resolve().is_relative_to(Path(self.root).resolve()):
            raise Unusable("PATH_OUTSIDE")
        with path.open("rb") as file:
            return file.read(MAX_METADATA_BYTES + 1)

    def _fetched(self, name: str) -> bytes | None:
        import tensorstore

        try:
            timeout = zarr_remote.METADATA_TIMEOUT_S
            store = tensorstore.KvStore.open(self.kvstore()).result(timeout=timeout)
            found = store.read(name).result(timeout=timeout)
        except (ValueError, OSError) as error:
            raise zarr_remote.unreachable(error) from None
        return bytes(found.value) if found.state == "value" else None


def read_attributes(place: Place) -> tuple[ZarrFormat, dict[str, Any]] | None:
    """Return the Zarr format and the attributes of a group; None where there is no group.

    Raises:
        Unusable: INVALID_METADATA, PATH_OUTSIDE or UNREACHABLE.
    """
    try:
        document = place.read("zarr.json")
        if document is not None:
            return 3, dict(json.loads(document).get("attributes", {}))
        document = place.read(".zattrs")
        if document is not None:
            return 2, dict(json.loads(document))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        raise Unusable("INVALID_METADATA") from None
    return None


def ome_attributes(place: Place) -> tuple[ZarrFormat, dict[str, Any]]:
    """Return what OME-Zarr says about a group: below ``ome`` in 0.5, at the top in 0.4.

    Raises:
        Unusable: INVALID_METADATA, MISSING_IMAGE, PATH_OUTSIDE or UNREACHABLE.
    """
    found = read_attributes(place)
    if found is None:
        if place.remote:
            raise Unusable("UNREACHABLE", "there is no Zarr group at this address")
        raise Unusable("INVALID_METADATA" if place.folder.is_dir() else "MISSING_IMAGE")
    zarr_format, attributes = found
    if zarr_format == 2:
        return 2, attributes
    if not isinstance(attributes.get("ome"), dict):
        raise Unusable("INVALID_METADATA")
    return 3, attributes["ome"]
