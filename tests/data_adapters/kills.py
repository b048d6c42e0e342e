"""Runs ingest again and again in forked children and kills them; a program of its own.

It forks from a process that has imported everything but never opened tensorstore, which does not
survive a fork. ``python -m tests.data_adapters.kills FOLDER HOW`` prints JSON; HOW is ``points``,
or of ``KILLS``, which are at random times.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

from data_adapters import cache, ingest, ingest_index, staging
from data_adapters.geometry import zyx_affine
from data_adapters.sources import DicomSource, OmeZarrSource, SubjectRule
from data_adapters.writing import write_dicom_scan, write_ome_zarr_scan

AFFINE = zyx_affine((5.0, 2.0, 1.5), (-20.0, 10.0, 30.0))
RULE = SubjectRule(issuer="HERE")
# Kills at random times: everything as usual, all scans copied, worker processes, a decoder process.
KILLS = {"random": 50, "rechunk": 8, "workers": 4, "decoder": 8}
# A decoder takes a second and more to start, for each of a hundred children that are killed: these
# two have one, the others read in the process that is killed.
WITH_DECODERS = ("workers", "decoder")


def pseudonymise(text):
    return hashlib.sha256(b"a key" + text.encode()).hexdigest()[:32]


def write_sources(folder):
    for number in range(6):
        generator = np.random.default_rng(number)
        image = generator.integers(0, 999, (3, 8, 9)).astype(np.int16)
        labels = (image > 500).astype(np.uint8)
        common = {"image_zyx": image, "labels_zyx": labels, "affine_ras": AFFINE}
        if number % 2:
            path = folder / "zarr" / f"P-{number}" / "a.ome.zarr"
            write_ome_zarr_scan(path, **common, labels_name="parts")
        else:
            write_dicom_scan(
                folder / "dicom" / str(number),
                **common,
                segment_labels={1: "Part"},
                patient_id=f"P-{number}",
            )

    # Two studies of one patient with the same pixels: one scan.
    shutil.copytree(folder / "zarr" / "P-1" / "a.ome.zarr", folder / "zarr" / "P-1" / "b.ome.zarr")


def sources(folder, *, rechunk):
    copied = {"labels": "parts", "classes": {1: "part"}, "rechunk": rechunk}
    return [
        DicomSource(path=folder / "dicom", classes={"Part": "part"}, subjects=RULE),
        OmeZarrSource(path=folder / "zarr", subjects=RULE, **copied),
    ]


class Here:
    """In place of a decoder process."""

    def warm(self, limits):
        """Nothing is to be started."""

    def read(self, candidate, names, limits):
        return candidate.read()


def take_in(folder, where, how="points"):
    ingest.BATCH = 2
    if how not in WITH_DECODERS:
        ingest.DECODERS = staging.DECODERS = Here()
    wanted = sources(folder, rechunk=how == "rechunk")
    workers = 2 if how == "workers" else 1
    ingest.ingest(wanted, where, pseudonymise=pseudonymise, workers=workers)


def tree(where):
    """Return each file's digest by its path; the lock file is empty."""
    return {
        path.relative_to(where).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(where.rglob("*"))
        if path.is_file()
    }


def in_child(work, patience=None):
    """Run ``work`` in a fork; kill it after ``patience`` seconds. Returns whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    if patience is not None:
        time.sleep(patience)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if status and not killed:
        raise SystemExit(f"ingest failed by itself, wait status {status}")
    return killed


def at_random(folder, how):
    """Kill at random times until enough children died; a cache is killed five times, then
    finished."""
    started = time.monotonic()
    in_child(lambda: take_in(folder, folder / "reference", how))
    seconds = time.monotonic() - started
    expected, kills, number, wrong = tree(folder / "reference"), 0, 0, []
    generator = random.Random(0)
    while kills < KILLS[how] and number < 40:
        where = folder / f"cache-{number}"
        for _ in range(min(5, KILLS[how] - kills)):
            patience = generator.uniform(0, seconds)
            kills += in_child(lambda w=where: take_in(folder, w, how), patience)
        in_child(lambda w=where: take_in(folder, w, how))
        wrong += [] if tree(where) == expected else [where.name]
        number += 1
    return {"kills": kills, "caches": number, "wrong": wrong, "files": len(expected)}


def at_every_point(folder):
    """Kill before each call that makes something durable or visible, one after another."""
    in_child(lambda: take_in(folder, folder / "reference"))
    expected, point, wrong = tree(folder / "reference"), 0, []
    while point < 1000:
        where = folder / f"point-{point}"
        if not in_child(lambda w=where, p=point: _take_in_until(folder, w, p)):
            break
        in_child(lambda w=where: take_in(folder, w))
        wrong += [] if tree(where) == expected else [point]
        point += 1
    return {"points": point, "wrong": wrong}


def _take_in_until(folder, where, point):
    calls = [0]

    def counted(function):
        def call(*args, **kwargs):
            if calls[0] == point:
                os.kill(os.getpid(), signal.SIGKILL)
            calls[0] += 1
            return function(*args, **kwargs)

        return call

    for owner, name in (
        (os, "sync"),
        (os, "fsync"),
        (os, "open"),
        (Path, "replace"),
        (Path, "rename"),
        (Path, "unlink"),
        (cache, "write_zarr_image"),
        (cache.shutil, "rmtree"),
        (ingest_index, "write_atomically"),
    ):
        setattr(owner, name, counted(getattr(owner, name)))
    take_in(folder, where)


def main():
    folder, how = Path(sys.argv[1]), sys.argv[2]
    in_child(lambda: write_sources(folder))
    # Imported before the first fork: children then start at once.
    import highdicom
    import ome_zarr_models

    assert highdicom.__name__ and ome_zarr_models.__name__
    result = at_random(folder, how) if how in KILLS else at_every_point(folder)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
