"""Part 2a: reading a DICOM series, geometry and pixels, from its folder."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from time import perf_counter
from typing import Any

import numpy as np

from tests.benchmarks.dicom_series import INTERCEPT, SLOPE, SPACING_MM, SYNTAXES, Series, source_of
from tests.benchmarks.processes import evict, in_fresh_process, warm
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.tables import Section, seconds, verdict

# Of issue 3: times faster than MONAI's PydicomReader.
LEAST, HELD_TO_IT = 3.0, ("raw", "RLE")
# (z, y, x) and (array, affine to RAS+ mm or None), in real values or as stored.
Read = Callable[[], tuple[Any, Any]]
Record = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """One row: a way to read a series.

    Args:
        open: Called before the clock starts; what it returns is timed.
        transposed: To (z, y, x), from what is returned.
        stored: Values are as stored, without slope and intercept.
    """

    name: str
    open: Callable[[Series], Read]
    packages: tuple[str, ...]
    transposed: tuple[int, int, int] = (0, 1, 2)
    stored: bool = False
    syntaxes: tuple[str, ...] = tuple(SYNTAXES)
    is_limit: bool = False
    has_cold: bool = True


def from_file(series: Series) -> Read:
    """np.fromfile of the very bytes, which are a file's last."""
    shape, files = np.load(series.npy, mmap_mode="r").shape, series.files
    size = 2 * shape[1] * shape[2]

    def read() -> tuple[Any, Any]:
        volume = np.empty(shape, np.int16)
        for place, file in zip(volume, files, strict=True):
            offset = file.stat().st_size - size
            place.ravel()[:] = np.fromfile(file, np.int16, offset=offset)
        return volume, None

    return read


def decoder_alone(series: Series) -> Read:
    """The fastest of the listed decoders, on frames that are in memory already."""
    from pydicom import dcmread
    from pydicom.encaps import get_frame

    shape = np.load(series.npy, mmap_mode="r").shape
    frames = [get_frame(dcmread(f).PixelData, 0, number_of_frames=1) for f in series.files]
    decode = _decoder(series.syntax, shape[1] * shape[2])

    def read() -> tuple[Any, Any]:
        volume = np.empty(shape, np.int16)
        for place, frame in zip(volume, frames, strict=True):
            place.ravel()[:] = np.frombuffer(decode(frame), np.int16)
        return volume, None

    return read


def _decoder(syntax: str, num_pixels: int) -> Callable[[bytes], Any]:
    if syntax == "RLE":
        from rle.utils import decode_frame

        return lambda frame: decode_frame(frame, num_pixels, 16, "<")
    if syntax == "JPEG-LS":
        from jpeg_ls import decode_buffer

        return lambda frame: decode_buffer(frame)[0]
    from openjpeg import decode_pixel_data

    return lambda frame: decode_pixel_data(frame, version=2)


def ours(series: Series) -> Read:
    """The public reader: real values, float32."""
    from data_adapters.monai_readers import DicomReader

    def read() -> tuple[Any, Any]:
        reader = DicomReader()
        array, meta = reader.get_data(reader.read(series.folder))
        return array, meta["affine"]

    return read


def ours_for_ingest(series: Series) -> Read:
    """What ingest does: discovery with the gate of all subjects, then one of them."""
    from data_adapters.dicom import discover_dicom

    def read() -> tuple[Any, Any]:
        candidates = discover_dicom(source_of(series)).candidates
        scan = min(candidates, key=lambda candidate: candidate.subject).read()
        return scan.image_czyx[0], scan.affine_ras

    return read


def monai(series: Series) -> Read:
    """MONAI as it comes: float64, (x, y, z)."""
    return _monai(series, {})


def monai_unswapped(series: Series) -> Read:
    """Its fastest setting: axes as they are in the files, (y, x, z)."""
    return _monai(series, {"swap_ij": False})


def _monai(series: Series, settings: dict[str, Any]) -> Read:
    from monai.data import PydicomReader

    def read() -> tuple[Any, Any]:
        reader = PydicomReader(**settings)
        array, meta = reader.get_data(reader.read(str(series.folder)))
        affine = meta["affine"]
        return array, affine[:, [2, 1, 0, 3]] if not settings else None

    return read


OURS = (
    "data_adapters.monai_readers",
    "data_adapters.dicom",
    "highdicom.spatial",
    "pydicom.pixels.decoders",
)
DECODERS = ("rle.utils", "jpeg_ls", "openjpeg", "pydicom.encaps")
WAYS = (
    Way("np.fromfile", from_file, (), stored=True, syntaxes=("raw",), is_limit=True),
    Way(
        "decoder alone, frames in memory",
        decoder_alone,
        DECODERS,
        stored=True,
        syntaxes=("RLE", "JPEG-LS", "J2K"),
        is_limit=True,
        has_cold=False,
    ),
    Way("ours, DicomReader (float32 real values)", ours, OURS),
    Way("ours, gate of both subjects + read of one", ours_for_ingest, OURS, stored=True),
    Way("MONAI PydicomReader", monai, ("monai.data", "pydicom.pixels"), transposed=(2, 1, 0)),
    Way(
        "MONAI PydicomReader, swap_ij=False",
        monai_unswapped,
        ("monai.data", "pydicom.pixels"),
        transposed=(2, 0, 1),
    ),
)


def measure_reading(all_series: list[Series], sizes: Sizes) -> Section:
    """Return the table of all ways and syntaxes."""
    records = [_record(way, all_series, sizes) for way in WAYS]
    limits = {
        name: record[name]["warm"]
        for record, way in zip(records, WAYS, strict=True)
        for name in way.syntaxes
        if way.is_limit
    }
    ratios = ", ".join(f"{series.syntax} {series.ratio():.1f}x" for series in all_series)
    z, y, x = sizes.series_zyx
    return Section(
        title=f"Reading a CT series of {z} x {y} x {x} int16: seconds (and times the raw limit)",
        columns=("geometry and pixels", *_columns()),
        records=tuple(records),
        lines=tuple(_line(record, limits) for record in records),
        notes=(
            f"Compressed: {ratios}. Best of several readings in a fresh process.",
            "cold: the first one after the files were dropped from the page cache; not measured "
            "where decoding hides it.",
            "Every row was compared with the array that was written; ours and MONAI's default "
            "affines, with the one that was written.",
            *_verdicts(records),
        ),
    )


def _columns() -> list[str]:
    return [f"{name}, {state}" for name in SYNTAXES for state in _states(name)]


def _states(syntax: str) -> tuple[str, ...]:
    return ("warm", "cold") if syntax in HELD_TO_IT else ("warm",)


def _record(way: Way, all_series: list[Series], sizes: Sizes) -> Record:
    record: Record = {"name": way.name}
    for series in all_series:
        if series.syntax not in way.syntaxes:
            continue
        warm(series.source)
        times = {"warm": in_fresh_process(warm_seconds, way, series, sizes)}
        if way.has_cold and "cold" in _states(series.syntax):
            times["cold"] = in_fresh_process(cold_seconds, way, series)
        record[series.syntax] = times
    return record


def warm_seconds(way: Way, series: Series, sizes: Sizes) -> float:
    """Return the best time of a reading, after one look at what it gives."""
    read = _opened(way, series)
    start = perf_counter()
    array, affine = read()
    best = perf_counter() - start
    check(way, series, array, affine)
    del array
    began = perf_counter()
    while perf_counter() - began < sizes.least_s:
        start = perf_counter()
        read()
        best = min(best, perf_counter() - start)
    return best


def cold_seconds(way: Way, series: Series) -> float:
    """Return the time of the first reading."""
    read = _opened(way, series)
    evict(series.source)
    start = perf_counter()
    read()
    return perf_counter() - start


def _opened(way: Way, series: Series) -> Read:
    for package in way.packages:
        import_module(package)
    return way.open(series)


def check(way: Way, series: Series, array: Any, affine: Any) -> None:
    """Compare with what was written; a reader may run from head to foot or back."""
    stored = np.load(series.npy, mmap_mode="r")
    values = np.asarray(array).transpose(way.transposed)
    z_mm, y_mm, x_mm = SPACING_MM
    first, step = np.array([180.0, 180.0, 0.0]), np.array([0.0, 0.0, z_mm])
    if affine is not None:
        if affine[2, 0] < 0:
            values = values[::-1]
            first, step = first + step * (len(stored) - 1), -step
        # LPS to RAS turns the signs of x and y.
        columns = [step, [0, -y_mm, 0], [-x_mm, 0, 0], first]
        np.testing.assert_allclose(affine[:3], np.transpose(columns), atol=1e-5)
    expected = stored if way.stored else stored * np.float32(SLOPE) + np.float32(INTERCEPT)
    np.testing.assert_array_equal(values, expected)


def _line(record: Record, limits: dict[str, float]) -> tuple[str, ...]:
    cells = [record["name"]]
    for name in SYNTAXES:
        for state in _states(name):
            limit = limits[name] if state == "warm" else None
            cells.append(seconds(record.get(name, {}).get(state), limit))
    return tuple(cells)


def _verdicts(records: list[Record]) -> list[str]:
    named = {record["name"]: record for record in records}
    reader, usual, best = named[WAYS[2].name], named[WAYS[4].name], named[WAYS[5].name]
    lines = []
    for names, least in ((HELD_TO_IT, LEAST), (("JPEG-LS", "J2K"), None)):
        for other in (usual, best):
            what = f"{reader['name']}: times faster than {other['name']}, {' and '.join(names)}"
            values = [other[name]["warm"] / reader[name]["warm"] for name in names]
            lines.append(verdict(what, values, least if other is usual else None))
    return lines
