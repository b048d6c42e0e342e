"""A marked point of the world is the same point through every format and any slice order."""

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_adapters.cache import open_scan
from data_adapters.discover import locate
from data_adapters.geometry import zyx_affine
from data_adapters.ingest import ingest
from data_adapters.sources import DicomSource, NiftiSource, OmeZarrSource
from data_adapters.writing import write_dicom_scan, write_ome_zarr_scan
from tests.data_adapters.conftest import pseudonymise
from tests.data_adapters.dicom_forms import enhance, outline

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
    (entry,) = ingest(source, cache, pseudonymise=pseudonymise).manifest.scans
    scan = open_scan(cache, entry, locate([source], pseudonymise))
    return SimpleNamespace(
        image_zyx=scan.image()[0], labels_zyx=scan.labels(), affine_ras=scan.affine_ras
    )


def write_nifti_scan(folder, *, image_zyx, labels_zyx, affine_ras):
    """Axes x, y, z as NIfTI has them, by nibabel alone."""
    import nibabel

    folder.mkdir(parents=True)
    affine = affine_ras[:, [2, 1, 0, 3]]
    for name, array in (("a_T1w", image_zyx), ("a_dseg", labels_zyx)):
        image = nibabel.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, folder / f"{name}.nii.gz")


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


@settings(max_examples=30, deadline=None)
@given(affine=grids(), marker=MARKERS, reverse=st.booleans(), enhanced=st.booleans())
def test_a_structure_set_keeps_the_point_on_slices_and_on_one_enhanced_file(
    affine, marker, reverse, enhanced
):
    image, labels, points = marked(marker)
    names = {1: "one", 2: "two"}
    root = Path(tempfile.mkdtemp())
    try:
        write_dicom_scan(
            root / "in",
            image_zyx=image,
            labels_zyx=labels,
            affine_ras=affine,
            segment_labels=names,
            patient_id="P-1",
            reverse_files=reverse,
        )
        outline(root / "in", labels, affine, names)
        if enhanced:
            enhance(root / "in")
        source = DicomSource(path=root / "in", classes={"one": "a", "two": "b"})
        check_points(ingested(source, root / "cache"), affine, points)
    finally:
        shutil.rmtree(root)


@settings(max_examples=20, deadline=None)
@given(affine=grids(), marker=MARKERS)
def test_nifti_keeps_the_point_on_any_grid(affine, marker):
    image, labels, points = marked(marker)
    root = Path(tempfile.mkdtemp())
    try:
        write_nifti_scan(root / "in" / "P-1", image_zyx=image, labels_zyx=labels, affine_ras=affine)
        source = NiftiSource(path=root / "in", labels="_dseg", classes={1: "a", 2: "b"})
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
def test_every_format_puts_the_marker_on_one_world_point(tmp_path, reverse):
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
    write_nifti_scan(tmp_path / "nifti" / "P-1", **common)
    scans = [
        ingested(
            DicomSource(path=tmp_path / "dicom", classes={"one": "a", "two": "b"}),
            tmp_path / "cache-1",
        ),
        ingested(
            OmeZarrSource(path=tmp_path / "zarr", labels="parts", classes={1: "a", 2: "b"}),
            tmp_path / "cache-2",
        ),
        ingested(
            NiftiSource(path=tmp_path / "nifti", labels="_dseg", classes={1: "a", 2: "b"}),
            tmp_path / "cache-3",
        ),
    ]
    for label in (1, 2):
        one, *others = (s.affine_ras @ [*np.argwhere(s.labels_zyx == label)[0], 1] for s in scans)
        for other in others:
            np.testing.assert_allclose(one, other, atol=1e-5)
    # Written out once by hand: x = 70 + 4 * 1.25, y = 15 + 1 * 2.5, z = -40 + 3 * 6.
    np.testing.assert_allclose(
        scans[0].affine_ras @ [*np.argwhere(scans[0].image_zyx == 900)[0], 1], [75, 17.5, -22, 1]
    )
