"""Part 2a: reading a DICOM series, geometry and pixels, from its folder."""

from collections.abc import Callable, Sequence
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
STATES = ("warm", "cold")
# (z, y, x) and (array, affine to RAS+ mm or None), in real values or as stored.
Read = Callable[[], tuple[Any, Any]]
# A data set with encoded pixels to the decoded ones.
Decode = Callable[[Any], Any]
NUM_TRIED = 5
# A reading that takes longer is not repeated.
LONG_S = 3.0
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
    """The fastest of the listed decoders on a few frames, then all frames, from memory."""
    from pydicom import dcmread

    shape = np.load(series.npy, mmap_mode="r").shape
    datasets = [dcmread(file) for file in series.files]
    decoders = _decoders(series.syntax, shape[1] * shape[2])
    middle = datasets[len(datasets) // 2 :][:NUM_TRIED]
    decode = min(decoders, key=lambda decoder: _seconds(decoder, middle))

    def read() -> tuple[Any, Any]:
        volume = np.empty(shape, np.int16)
        for place, dataset in zip(volume, datasets, strict=True):
            place.ravel()[:] = np.frombuffer(decode(dataset), np.int16)
        return volume, None

    return read


def _seconds(decode: Decode, datasets: list[Any]) -> float:
    start = perf_counter()
    for dataset in datasets:
        decode(dataset)
    return perf_counter() - start


def _decoders(syntax: str, num_pixels: int) -> list[Decode]:
    """Return pydicom's plugins, and the same packages without pydicom around them."""
    from jpeg_ls import decode_buffer
    from openjpeg import decode_pixel_data
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder
    from rle.utils import decode_frame

    bare: dict[str, Callable[[bytes], Any]] = {
        "RLE": lambda frame: decode_frame(frame, num_pixels, 16, "<"),
        "JPEG-LS": lambda frame: decode_buffer(frame)[0],
        "J2K": lambda frame: decode_pixel_data(frame, version=2),
    }
    decoder, alone = get_decoder(SYNTAXES[syntax]), bare[syntax]

    def through(plugin: str) -> Decode:
        return lambda dataset: decoder.as_array(dataset, index=0, raw=True, decoding_plugin=plugin)[
            0
        ]

    return [
        lambda dataset: alone(get_frame(dataset.PixelData, 0, number_of_frames=1)),
        *(through(plugin) for plugin in decoder.available_plugins),
    ]


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
DECODERS = ("rle.utils", "jpeg_ls", "openjpeg", "pydicom.pixels.decoders")
WAYS = (
    Way("np.fromfile", from_file, (), stored=True, syntaxes=("raw",), is_limit=True),
    Way(
        "fastest decoder alone, files in memory",
        decoder_alone,
        DECODERS,
        stored=True,
        syntaxes=("RLE", "JPEG-LS", "J2K"),
        is_limit=True,
        has_cold=False,
    ),
    Way("ours, DicomReader (float32 real values)", ours, OURS),
    Way(
        "ours, gate of both subjects + read of one",
        ours_for_ingest,
        OURS,
        stored=True,
        syntaxes=HELD_TO_IT,
    ),
    Way("MONAI PydicomReader", monai, ("monai.data", "pydicom.pixels"), transposed=(2, 1, 0)),
    Way(
        "MONAI PydicomReader, swap_ij=False",
        monai_unswapped,
        ("monai.data", "pydicom.pixels"),
        transposed=(2, 0, 1),
        syntaxes=HELD_TO_IT,
        has_cold=False,
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
            "cold: the first one after the files were dropped from the page cache.",
            "Every row was compared with the array that was written; ours and MONAI's default "
            "affines, with the one that was written.",
            *_verdicts(records),
        ),
    )


def _columns() -> list[str]:
    return [f"{name}, {state}" for name in SYNTAXES for state in STATES]


def _record(way: Way, all_series: list[Series], sizes: Sizes) -> Record:
    record: Record = {"name": way.name}
    for series in all_series:
        if series.syntax not in way.syntaxes:
            continue
        warm(series.source)
        times = {"warm": in_fresh_process(warm_seconds, way, series, sizes)}
        if way.has_cold:
            times["cold"] = in_fresh_process(cold_seconds, way, series)
        record[series.syntax] = times
    return record


def warm_seconds(way: Way, series: Series, sizes: Sizes) -> float:
    """Return the best time of a reading, after one look at what it gives."""
    read = _opened(way, series)
    start = perf_counter()
    array, affine = read()
    passed = perf_counter() - start
    check(way, series, array, affine)
    del array
    # The first one also made the process larger; beside a long one that is little.
    best = passed if passed > LONG_S else float("inf")
    while best == float("inf") or passed < sizes.least_s:
        start = perf_counter()
        read()
        taken = perf_counter() - start
        best, passed = min(best, taken), passed + taken
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
    if not np.array_equal(values, expected):
        raise AssertionError(f"{way.name} gives other voxels for {series.syntax}")


def _line(record: Record, limits: dict[str, float]) -> tuple[str, ...]:
    cells = [record["name"]]
    for name in SYNTAXES:
        for state in STATES:
            limit = limits[name] if state == "warm" else None
            cells.append(seconds(record.get(name, {}).get(state), limit))
    return tuple(cells)


def _verdicts(records: list[Record]) -> list[str]:
    named = {record["name"]: record for record in records}
    reader, usual, best = (named[WAYS[number].name] for number in (2, 4, 5))
    decoding = tuple(name for name in SYNTAXES if name not in HELD_TO_IT)
    return [
        _faster(reader, usual, HELD_TO_IT, LEAST),
        _faster(reader, best, HELD_TO_IT, None),
        _faster(reader, usual, decoding, None),
    ]


def _faster(one: Record, other: Record, syntaxes: Sequence[str], least: float | None) -> str:
    values = [other[name]["warm"] / one[name]["warm"] for name in syntaxes]
    what = f"{one['name']}: times faster than {other['name']}, {' and '.join(syntaxes)}, warm"
    return verdict(what, values, least)
