"""File formats that hold other data: archives, databases, arrays, tables."""

import contextlib
import io
import itertools
import json
import math
import sqlite3
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.leaks.streams import check

Piece = tuple[str, bytes]

_SQLITE = b"SQLite format 3\0"
_NPY = b"\x93NUMPY"
_MOST_BLOCK_BYTES = 1 << 26


def formats(data: bytes, limit: int) -> Iterator[Piece]:
    """Yield the contents of whatever format ``data`` is in."""
    if b"PK\x05\x06" in data:
        yield from _archive("zip", data, limit)
    elif data[257:262] == b"ustar":
        yield from _archive("tar", data, limit)
    elif data.startswith(_SQLITE):
        yield from sqlite_contents(data, b"")
    elif data[:4] == b"PAR1":
        yield from _parquet(data)
    elif data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        yield from _safetensors(data)
    elif data[128:132] == b"DICM":
        yield from _dicom(data)
    if _NPY in data:
        yield from _npy(data)


def is_sqlite(data: bytes) -> bool:
    return data.startswith(_SQLITE)


def _archive(kind: str, data: bytes, limit: int) -> Iterator[Piece]:
    """Yield names, comments and members; a Zarr store inside is also decoded."""
    try:
        members = dict(_zip_members(data, limit) if kind == "zip" else _tar_members(data, limit))
    except (zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError, OSError):
        return
    yield f"{kind} names", "\n".join(members).encode("utf-8", "surrogateescape")
    yield from ((f"{kind}:{name}", content) for name, content in members.items())
    if any(name.endswith(("zarr.json", ".zarray")) for name in members):
        yield from _stored(members)


def _zip_members(data: bytes, limit: int) -> Iterator[Piece]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        check(sum(info.file_size for info in archive.infolist()), limit)
        for info in archive.infolist():
            yield info.filename, archive.read(info)


def _tar_members(data: bytes, limit: int) -> Iterator[Piece]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        check(sum(info.size for info in archive), limit)
        for info in archive:
            file = archive.extractfile(info) if info.isfile() else None
            yield f"{info.name}>{info.linkname}", file.read() if file else b""


def _stored(members: dict[str, bytes]) -> Iterator[Piece]:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in members.items():
            path = (Path(folder) / name.split(">")[0]).resolve()
            if path.is_relative_to(Path(folder).resolve()) and not name.endswith("/"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        for found in Path(folder).rglob("*"):
            yield from zarr_contents(found)


def zarr_contents(folder: Path) -> Iterator[Piece]:
    """Yield the decoded chunks of the Zarr array that ``folder`` is, if it is one."""
    if not _is_zarr_array(folder):
        return
    import zarr

    array = zarr.open_array(str(folder), mode="r")
    yield "zarr attributes", json.dumps(array.attrs.asdict(), ensure_ascii=False).encode()
    blocks = getattr(array, "shards", None) or array.chunks
    starts = (range(0, size, max(1, b)) for size, b in zip(array.shape, blocks, strict=True))
    for place in itertools.product(*starts):
        region = tuple(slice(p, p + b) for p, b in zip(place, blocks, strict=True))
        with contextlib.suppress(RuntimeError, ValueError, OSError):  # damaged: searched as it is
            yield from array_contents(f"zarr{list(place)}", np.asarray(array[region]))


def _is_zarr_array(folder: Path) -> bool:
    if (folder / ".zarray").is_file():
        return True
    metadata = folder / "zarr.json"
    try:
        return metadata.is_file() and json.loads(metadata.read_bytes())["node_type"] == "array"
    except (ValueError, KeyError, TypeError):
        return False


def array_contents(name: str, values: np.ndarray) -> Iterator[Piece]:
    """Yield the bytes of an array, its text, and its numbers read as characters."""
    if values.dtype.kind in "OUST":
        yield f"{name} text", "\n".join(map(str, values.ravel().tolist())).encode()
        return
    yield name, np.ascontiguousarray(values).tobytes()
    if values.dtype.kind in "iuf" and values.dtype.itemsize > 1:
        inside = (values >= 1) & (values < 256)
        characters = np.where(inside, values, 0).astype(np.uint8)
        if np.count_nonzero(characters):
            yield f"{name} as characters", characters.tobytes()


def _npy(data: bytes) -> Iterator[Piece]:
    start = data.find(_NPY)
    while start >= 0:
        try:
            file = io.BytesIO(data[start:])
            yield from array_contents("npy", np.lib.format.read_array(file, allow_pickle=False))
        except (ValueError, EOFError, SyntaxError):
            pass  # objects are pickled: their bytes are searched as they are
        start = data.find(_NPY, start + len(_NPY))


def _safetensors(data: bytes) -> Iterator[Piece]:
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
    except ValueError:
        return
    yield "safetensors header", data[8 : 8 + size]
    kinds = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in kinds and math.prod(entry["shape"]):
            first, last = entry["data_offsets"]
            content = data[8 + size + first : 8 + size + last]
            values = np.frombuffer(content, kinds[entry["dtype"]])
            yield from array_contents(f"safetensors:{name}", values)


def _parquet(data: bytes) -> Iterator[Piece]:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(io.BytesIO(data))
    except ArrowException:
        return
    yield "parquet schema", str(table.schema).encode()
    for key, value in (table.schema.metadata or {}).items():
        yield "parquet metadata", key + b"\n" + value
    for name, column in zip(table.column_names, table.columns, strict=True):
        yield f"parquet:{name}", b"\n".join(map(_as_bytes, column.to_pylist()))


def sqlite_contents(database: bytes, wal: bytes) -> Iterator[Piece]:
    """Yield every value of every table, index definitions too, with what the WAL adds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "copy.db"
        path.write_bytes(database)
        if wal:
            Path(f"{path}-wal").write_bytes(wal)
        connection = sqlite3.connect(path)
        connection.text_factory = bytes
        try:
            yield from _tables(connection)
        except sqlite3.DatabaseError:
            return
        finally:
            connection.close()


def _tables(connection: sqlite3.Connection) -> Iterator[Piece]:
    listed = connection.execute("select name, sql from sqlite_master").fetchall()
    yield "sqlite schema", b"\n".join(_as_bytes(v) for row in listed for v in row)
    tables = connection.execute("select name from sqlite_master where type = 'table'")
    for (name,) in tables.fetchall():
        quoted = name.decode().replace('"', '""')
        for row in connection.execute(f'select * from "{quoted}"'):
            yield f"sqlite:{quoted}", b"\n".join(map(_as_bytes, row))
            # A value alone is what was packed: a compressed stream, JSON.
            yield from ((f"sqlite:{quoted}", v) for v in row if isinstance(v, bytes) and len(v) > 5)


def _as_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


def _dicom(data: bytes) -> Iterator[Piece]:
    """Deflated transfer syntaxes hide the header: yield it as text, nested items too."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        yield "dicom", b"\n".join(_as_bytes(e.value) for e in header.iterall() if e.VR != "SQ")
    except (InvalidDicomError, ValueError, KeyError, EOFError, NotImplementedError):
        return
