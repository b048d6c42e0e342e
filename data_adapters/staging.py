"""One candidate to one staged scan: read, measured and written beside the cache, not yet in it.

This is what worker processes do. Nothing here knows a pseudonym or writes a final name.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from data_adapters.blocks import Region
from data_adapters.cache import (
    LABELS,
    StoredArray,
    copied_path,
    facts,
    in_place_document,
    in_place_path,
    temporary_path,
    write_pixels,
)
from data_adapters.decoding import DECODERS, USUAL, Limits, NeedsCodecs
from data_adapters.digests import Block, Measured, Names, measure
from data_adapters.errors import CacheError, DataError
from data_adapters.geometry import axis_steps
from data_adapters.reasons import Unusable
from data_adapters.types import Candidate, Quarantined, Reopenable, Scan, Voxels
from data_adapters.zarr_store import LEVEL, open_array

BLOCKS = "blocks"
# Spacing is shown and compared, not computed with: the affine is exact.
SPACING_DIGITS = 9


@dataclass(frozen=True)
class Task:
    """One candidate to be staged.

    Args:
        location: Keyed name of the candidate, safe to write down.
        limits: Of the process that decodes it, if it is one that needs codecs.
    """

    candidate: Candidate
    location: str
    names: Names
    cache_dir: Path
    limits: Limits = USUAL


@dataclass(frozen=True)
class Staged:
    """A scan that is measured and, unless the cache has it, written under a temporary name.

    Args:
        path: Its place in the cache, relative; also of ``temporary`` once it is published.
    """

    digest: str
    image: str
    shape_czyx: tuple[int, int, int, int]
    spacing_mm_zyx: tuple[float, float, float]
    modality: str
    planar: bool
    target: float | None
    path: str
    temporary: Path | None


def stage(task: Task) -> Staged | Quarantined:
    """Read, measure and write one candidate. One bad scan never stops the others.

    Raises:
        CacheError: The cache cannot be written, or memory ran out: no fault of the scan's, and
            leaving it out would change the data set without a word.
        DataError: A protection that is required of decoders is missing here.
    """
    try:
        return _stage(task, _read(task))
    except DataError:
        raise
    except MemoryError:
        raise CacheError(
            "Memory ran out while a scan was read. Use fewer --workers, and ingest again."
        ) from None
    except Unusable as reason:
        return reason.at(task.candidate.where)
    except Exception as error:  # its text may quote a header
        return Unusable("UNEXPECTED", type(error).__name__).at(task.candidate.where)


def _read(task: Task) -> Scan:
    """Of labels that were measured before, those that have not changed are not looked at again."""
    if isinstance(task.candidate, NeedsCodecs):
        return DECODERS.read(task.candidate, task.names, task.limits)
    known = _read_lines(_label_blocks(task))
    if known and isinstance(task.candidate, Reopenable):
        return task.candidate.read_again({number: stamp for number, (stamp, _) in known.items()})
    return task.candidate.read()


def _image_blocks(task: Task) -> Path:
    return task.cache_dir / BLOCKS / f"{task.location}.jsonl"


def _label_blocks(task: Task) -> Path:
    return task.cache_dir / BLOCKS / f"{task.location}.labels.jsonl"


@contextmanager
def _writing(cache_dir: Path) -> Iterator[None]:
    """Tell trouble of the cache from trouble of the scan: tensorstore has ValueError for both."""
    try:
        yield
    except Unusable:
        raise
    except Exception as error:
        raise CacheError(
            f"The cache {cache_dir} cannot be written ({type(error).__name__}). See that there is "
            "space left and that the folder may be written to, and ingest again; what is there is "
            "kept."
        ) from error


def _stage(task: Task, scan: Scan) -> Staged:
    if len(scan.slopes) != len(task.names.channels):  # the surplus would never be looked at
        raise ValueError("a reader gave other channels than its source names")
    if scan.in_place:
        return _stage_in_place(task, scan)
    if isinstance(scan.image_czyx, np.ndarray):
        measured = measure(scan, task.names)
        final = task.cache_dir / copied_path(measured.digest)
        temporary = None if final.exists() else temporary_path(task.cache_dir)
        if temporary:
            with _writing(task.cache_dir):
                write_pixels(temporary, scan, task.names, measured)
        return _staged(scan, measured, copied_path(measured.digest), temporary)
    return _stage_copy(task, scan)


def _stage_copy(task: Task, scan: Scan) -> Staged:
    """Copy what lies elsewhere first, block by block, and measure the copy: one pass over it."""
    temporary = temporary_path(task.cache_dir)
    unknown = (0.0,) * len(scan.slopes)
    with _writing(task.cache_dir):
        write_pixels(temporary, scan, task.names, Measured("", "", unknown, unknown))
    copy = replace(scan, image_czyx=StoredArray(open_array(temporary / LEVEL)))
    if scan.labels_zyx is not None:
        labels = StoredArray(open_array(temporary / "labels" / LABELS / LEVEL))
        copy = replace(copy, labels_zyx=labels)
    measured = measure(copy, task.names)
    with _writing(task.cache_dir):
        _set_facts(temporary / "zarr.json", facts(scan, task.names, measured))
    return _staged(scan, measured, copied_path(measured.digest), temporary)


def _set_facts(path: Path, values: dict[str, object]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    document["attributes"]["cohortium"] = values
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _stage_in_place(task: Task, scan: Scan) -> Staged:
    labels = scan.labels_zyx
    measured = measure(
        scan,
        task.names,
        known_image=BlockFile(_image_blocks(task), scan.image_czyx),
        known_labels=None if labels is None else BlockFile(_label_blocks(task), labels),
    )
    document = in_place_document(task.location, scan.stamp, facts(scan, task.names, measured))
    temporary = temporary_path(task.cache_dir)
    with _writing(task.cache_dir):
        temporary.write_text(document, encoding="utf-8")
    return _staged(scan, measured, in_place_path(measured.digest), temporary)


def _staged(scan: Scan, measured: Measured, path: str, temporary: Path | None) -> Staged:
    spacing_mm, _ = axis_steps(scan.affine_ras)
    c, z, y, x = scan.image_czyx.shape
    dz, dy, dx = (round(float(step), SPACING_DIGITS) for step in spacing_mm)
    return Staged(
        digest=measured.digest,
        image=measured.image,
        shape_czyx=(c, z, y, x),
        spacing_mm_zyx=(dz, dy, dx),
        modality=scan.modality,
        planar=scan.planar,
        target=scan.target,
        path=path,
        temporary=temporary,
    )


class BlockFile:
    """What was measured of one array that stays where it is, chunk by chunk; survives a kill.

    A line is read back only if the files behind its block are as they were.
    """

    def __init__(self, path: Path, voxels: Voxels) -> None:
        self._path = path
        self._stamp: Callable[[Region], str] = getattr(voxels, "region_stamp", lambda _: "")
        self._known = _read_lines(path)
        self._now = ""

    def recall(self, number: int, region: Region) -> Block | None:
        """Return a block that has not changed since it was measured."""
        # Taken before the block is read: a file that changes meanwhile is then read again later.
        self._now = self._stamp(region)
        stamp, block = self._known.get(number, ("", None))
        return block if stamp and stamp == self._now else None

    def remember(self, number: int, block: Block) -> None:
        """Append the block last asked for; a line cut short by a kill is passed over when read."""
        if not self._now:
            return
        line = json.dumps({"number": number, "stamp": self._now, **asdict(block)})
        with _writing(self._path.parent):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(b"\n" + line.encode("ascii"))


def _read_lines(path: Path) -> dict[int, tuple[str, Block]]:
    known: dict[int, tuple[str, Block]] = {}
    if not path.is_file():
        return known
    for line in path.read_bytes().splitlines():
        try:
            fields = json.loads(line)
            number, stamp = int(fields.pop("number")), str(fields.pop("stamp"))
            known[number] = (stamp, Block(**fields))
        except (ValueError, KeyError, TypeError):
            continue
    return known
