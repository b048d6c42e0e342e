"""A marked point of the world is the same point through every format and any slice order."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_adapters.cache import read_scan
from data_adapters.geometry import zyx_affine
from data_adapters.ingest import ingest
from data_adapters.sources import DicomSource, OmeZarrSource
from data_adapters.writing import write_dicom_scan, write_ome_zarr_scan

SHAPE = (4, 5, 6)
BACKGROUND = 10


@st.composite
def grids(draw):
    """Any orthogonal grid: anisotropic, permuted, flipped, oblique, far from the origin."""
    spacing = [draw(st.floats(0.3, 8.0)) for _ in range(3)]
    origin = [draw(st.floats(-300.0, 300.0)) for _ in range(3)]
    order = draw(st.permutations([0, 1, 2]))
    signs = [draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    axis = np.array([draw(st.floats(-1.0, 1.0)) for _ in range(3)])
    angle = draw(st.sampled_from([0.0, 0.02, 0.4, 1.1]))
    affine = np.eye(4)
    affine[:3, :3] = _rotation(axis, angle) @ np.eye(3)[:, order] * signs * spacing
    affine[:3, 3] = origin
    return affine


def _rotation(axis, angle):
    """Rodrigues' formula."""
    norm = np.linalg.norm(axis)
    if norm < 1e-3:
        return np.eye(3)
    x, y, z = axis / norm
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def marked(marker):
    image = np.full(SHAPE, BACKGROUND, dtype=np.int16)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    image[marker], labels[marker] = 900, 2
    other = tuple((m + 1) % size for m, size in zip(marker, SHAPE, strict=True))
    image[other], labels[other] = 500, 1
    return image, labels, [(marker, 900, 2), (other, 500, 1)]


def ingested(source, cache):
    (entry,) = ingest(source, cache, pseudonymise=lambda _: "someone").manifest.scans
    return read_scan(cache, entry)


def check_points(scan, affine, points):
    for index, pixel, label in points:
        (found,) = np.argwhere(scan.image_zyx == pixel)
        (labelled,) = np.argwhere(scan.labels_zyx == label)
        np.testing.assert_array_equal(found, labelled)
        np.testing.assert_allclose(scan.affine_ras @ [*found, 1], affine @ [*index, 1], atol=1e-3)


MARKERS = st.tuples(*(st.integers(0, size - 1) for size in SHAPE))


@settings(max_examples=30, deadline=None)
@given(affine=grids(), marker=MARKERS, reverse=st.booleans())
def test_dicom_and_seg_keep_the_point_on_any_grid_in_both_orders(affine, marker, reverse):
    image, labels, points = marked(marker)
    root = Path(tempfile.mkdtemp())
    try:
        write_dicom_scan(
            root / "in",
            image_zyx=image,
            labels_zyx=labels,
            affine_ras=affine,
            segment_labels={1: "one", 2: "two"},
            patient_id="P-1",
            reverse_files=reverse,
        )
        source = DicomSource(path=root / "in", classes={"one": "a", "two": "b"})
        check_points(ingested(source, root / "cache"), affine, points)
    finally:
        shutil.rmtree(root)


@settings(max_examples=20, deadline=None)
@given(
    spacing=st.tuples(*[st.floats(0.3, 8.0)] * 3),
    origin=st.tuples(*[st.floats(-300.0, 300.0)] * 3),
    marker=MARKERS,
    unit=st.sampled_from(["micrometer", "millimeter"]),
)
def test_ome_zarr_keeps_the_point_in_both_units(spacing, origin, marker, unit):
    affine = zyx_affine(spacing, origin)
    image, labels, points = marked(marker)
    root = Path(tempfile.mkdtemp())
    try:
        write_ome_zarr_scan(
            root / "in" / "P-1" / "scan.ome.zarr",
            image_zyx=image,
            labels_zyx=labels,
            affine_ras=affine,
            labels_name="parts",
            unit=unit,
        )
        source = OmeZarrSource(path=root / "in", labels="parts", classes={1: "a", 2: "b"})
        check_points(ingested(source, root / "cache"), affine, points)
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("reverse", [False, True])
def test_both_formats_put_the_marker_on_one_world_point(tmp_path, reverse):
    affine = zyx_affine((6.0, 2.5, 1.25), (-40.0, 15.0, 70.0))
    image, labels, _ = marked((3, 1, 4))
    common = {"image_zyx": image, "labels_zyx": labels, "affine_ras": affine}
    write_dicom_scan(
        tmp_path / "dicom",
        **common,
        segment_labels={1: "one", 2: "two"},
        patient_id="P-1",
        reverse_files=reverse,
    )
    write_ome_zarr_scan(tmp_path / "zarr" / "P-1" / "a.ome.zarr", **common, labels_name="parts")
    scans = [
        ingested(
            DicomSource(path=tmp_path / "dicom", classes={"one": "a", "two": "b"}),
            tmp_path / "cache-1",
        ),
        ingested(
            OmeZarrSource(path=tmp_path / "zarr", labels="parts", classes={1: "a", 2: "b"}),
            tmp_path / "cache-2",
        ),
    ]
    for label in (1, 2):
        one, other = (s.affine_ras @ [*np.argwhere(s.labels_zyx == label)[0], 1] for s in scans)
        np.testing.assert_allclose(one, other, atol=1e-6)
    # Written out once by hand: x = 70 + 4 * 1.25, y = 15 + 1 * 2.5, z = -40 + 3 * 6.
    np.testing.assert_allclose(
        scans[0].affine_ras @ [*np.argwhere(scans[0].image_zyx == 900)[0], 1], [75, 17.5, -22, 1]
    )
