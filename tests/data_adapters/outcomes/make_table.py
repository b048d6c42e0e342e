"""Write the table of expected outcomes: ``python -m tests.data_adapters.outcomes.make_table``.

From the project's root, with the three origins present. ``data_adapters`` is not imported: the
rows come from the headers, the standards' equations and pydicom's pixels.
"""

import csv
import logging
import sys
import warnings
from pathlib import Path

import numpy as np

from tests.data_adapters.outcomes.make_dicom import decodes, expect_file, expect_series, opened
from tests.data_adapters.outcomes.make_geometry import RefusedError
from tests.data_adapters.outcomes.make_ome_zarr import levels_of
from tests.data_adapters.outcomes.origins import files_of, folder_of

HERE = Path(__file__).parent
COLUMNS = [
    "origin",
    "path",
    "form",
    "kind",
    "pydicom_decodes",
    "outcome",
    "or_code",
    "shape",
    "rule",
    "affine",
    "probes",
    "mean",
]
SERIES = {
    "shared": ("dcmqi/23x38x3/image", "dcmqi/ct-3slice", "rtstruct"),
    "pydicom": tuple(
        f"test_files/dicomdirtests/{name}"
        for name in (
            "77654033/CR1",
            "77654033/CT2",
            "98892001/CT2N",
            "98892001/CT5N",
            "98892003/MR1",
            "98892003/MR2",
            "98892003/MR700",
            "TINY_ALPHA/PT000000/ST000000/SE000000",
        )
    ),
    "pydicom-data": (),
}
ZARRS = ("dsb2018_nuclei.ome.zarr", "dsb2018_nuclei.ome.zarr/labels/nuclei")


def main():
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    rows = []
    for origin, folders in SERIES.items():
        rows += [file_row(origin, path) for path in files_of(origin)]
        rows += [series_row(origin, name) for name in folders]
    write(HERE / "dicom.csv", COLUMNS, rows)
    write(HERE / "ome_zarr.csv", ("level", *COLUMNS), ome_zarr_rows())
    sys.stderr.write(f"{len(rows)} rows\n")


def write(path, columns, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)


def file_row(origin, path):
    row = {"origin": origin, "path": path.relative_to(folder_of(origin)).as_posix()}
    row |= {"form": "file", "kind": kind_of(path)}
    row["pydicom_decodes"] = "yes" if decodes(path) else "no"
    return row | outcome(lambda: expect_file(path))


def series_row(origin, name):
    paths = sorted(p for p in (folder_of(origin) / name).iterdir() if p.is_file())
    row = {"origin": origin, "path": name, "form": "series", "kind": kind_of(paths[0])}
    row["pydicom_decodes"] = "yes" if all(map(decodes, paths)) else "no"
    return row | outcome(lambda: series_or_file(paths))


def series_or_file(paths):
    return expect_file(paths[0]) if len(paths) == 1 else expect_series(paths)


def kind_of(path):
    try:
        return str(opened(path).get("Modality") or "-")
    except RefusedError:
        return "-"


def outcome(expect):
    try:
        expected = expect()
    except RefusedError as refused:
        return {"outcome": refused.codes}
    return {"outcome": "read", "or_code": expected.or_code, "rule": expected.rule} | facts(
        expected.image, expected.affine
    )


def facts(image, affine):
    return {
        "shape": " ".join(map(str, image.shape)),
        "affine": " ".join(f"{value:.7g}" for value in affine[:3].ravel()),
        "probes": "; ".join(probe(image, place) for place in probe_places(image)),
        "mean": f"{image.mean(dtype=np.float64):.7g}",
    }


def probe_places(image):
    """Return the first brightest voxel and the middle one."""
    brightest = np.unravel_index(int(image.argmax()), image.shape)
    return [tuple(map(int, brightest)), tuple(size // 2 for size in image.shape)]


def probe(image, place):
    return f"{' '.join(map(str, place))} = {float(image[place]):.7g}"


def ome_zarr_rows():
    microscopy = folder_of("shared") / "microscopy"
    for name in ZARRS:
        for level, image, affine in levels_of(microscopy / name):
            yield {
                "level": level,
                "origin": "shared",
                "path": f"microscopy/{name}",
                "form": "file",
                "kind": "OME-Zarr",
                "outcome": "read",
                "rule": "full",
            } | facts(image, affine)


if __name__ == "__main__":
    main()
