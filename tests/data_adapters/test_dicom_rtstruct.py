"""Contours on the image's grid: a voxel is in where its centre is."""

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_adapters.dicom_rtstruct import inside
from data_adapters.geometry import zyx_affine
from data_adapters.sources import DicomSource
from tests.data_adapters.dicom_files import (
    SLICES,
    STORAGE,
    edit,
    item,
    only,
    reason,
    save,
    structures,
)

LPS = np.diag([-1.0, -1.0, 1.0])


@pytest.fixture
def put(put_dicom):
    """Write a series of 4 slices, 5 mm apart, and contours given in array indices (z, y, x)."""

    def put(regions, *, shape=(4, 60, 50), spacing=(5.0, 2.0, 1.5), **options):
        image = np.zeros(shape, np.int16)
        affine = zyx_affine(spacing, (-20.0, 10.0, 30.0))
        folder = put_dicom(image_zyx=image, labels_zyx=image.astype(np.uint8), affine_ras=affine)
        (folder / "seg.dcm").unlink()
        world = {
            name: [(c @ affine[:3, :3].T + affine[:3, 3]) @ LPS for c in map(np.asarray, contours)]
            for name, contours in regions.items()
        }
        images = [pydicom.dcmread(folder / name) for name in SLICES]
        save(structures(images, world, **options), folder / "rt.dcm")
        return DicomSource(path=folder, classes={name: f"c{name}" for name in regions})

    return put


def disc(z, y, x, radius_mm, spacing=(2.0, 1.5), num_points=400):
    angle = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    points = [np.full(num_points, z), y + radius_mm * np.sin(angle) / spacing[0]]
    return np.stack([*points, x + radius_mm * np.cos(angle) / spacing[1]], axis=1)


def square(z, low, high):
    return [(z, low, low), (z, low, high), (z, high, high), (z, high, low)]


def labels_of(source):
    """Return labels in the order in which ``put`` counts slices: highdicom's is the reverse."""
    return only(source).read().labels_zyx[::-1]


def test_an_analytic_disc_on_pixels_that_are_not_square(put):
    """rt-utils makes 646 of these 1257 mm2 at a spacing of 1 x 0.5 mm: it swaps the two."""
    labels = labels_of(put({"A": [disc(1, 30.2, 24.7, 20.0)]}))
    assert labels.shape == (4, 60, 50)
    assert np.flatnonzero(labels.any(axis=(1, 2))).tolist() == [1]
    area_mm2 = (labels[1] > 0).sum() * 2.0 * 1.5
    assert area_mm2 == pytest.approx(np.pi * 20.0**2, rel=0.01)
    y, x = np.argwhere(labels[1]).T
    assert (y.mean(), x.mean()) == pytest.approx((30.2, 24.7), abs=0.1)
    inside_mm = np.hypot((y - 30.2) * 2.0, (x - 24.7) * 1.5)
    assert inside_mm.max() <= 20.0


def test_a_ring_is_two_contours_or_one_with_a_keyhole(put):
    outer, inner = disc(1, 30.2, 24.7, 24.0), disc(1, 30.2, 24.7, 10.0)
    two = labels_of(put({"A": [outer, inner]}))
    keyhole = np.concatenate([outer, outer[:1], inner[:1], inner[::-1], outer[:1]])
    one = labels_of(put({"A": [keyhole]}))
    assert two[1, 30, 25] == 0
    # The channel itself has no width; pixels whose centre it passes may go either way.
    assert (one != two).sum() <= 6
    area_mm2 = (two[1] > 0).sum() * 3.0
    assert area_mm2 == pytest.approx(np.pi * (24.0**2 - 10.0**2), rel=0.01)


def test_each_region_has_its_class_on_its_slices(put):
    source = put({"B": [square(0, 9.5, 19.5), square(3, 9.5, 19.5)], "A": [square(0, 29.5, 39.5)]})
    labels = labels_of(source)
    assert (labels[0, 10:20, 10:20] == 2).all()
    assert (labels[3, 10:20, 10:20] == 2).all()
    assert (labels[0, 30:40, 30:40] == 1).all()
    assert (labels > 0).sum() == 300


def test_overlapping_regions_follow_the_same_rule_as_segments(put):
    source = put({"A": [square(0, 9.5, 19.5)], "B": [square(0, 14.5, 24.5)]})
    assert reason(source) == "OVERLAPPING_LABELS"
    later = source.model_copy(update={"overlaps": "last_wins"})
    assert (labels_of(later)[0, 15:20, 15:20] == 2).all()
    ignored = source.model_copy(update={"classes": {"A": "a", "B": "background"}})
    assert (labels_of(ignored) > 0).sum() == 100


def test_contours_beyond_the_edge_are_cut_there(put):
    labels = labels_of(put({"A": [square(2, -30.5, 4.5)]}))
    assert (labels > 0).sum() == 25


@pytest.mark.parametrize(
    ("expected", "contour"),
    [
        ("LABEL_GRID", square(1.5, 9.5, 19.5)),
        ("LABEL_GRID", [(0, 10, 10), (1, 20, 10), (2, 20, 20)]),
        ("MISSING_SLICES", square(4, 9.5, 19.5)),
        ("MISSING_SLICES", square(-1, 9.5, 19.5)),
    ],
)
def test_contours_must_lie_on_slices_that_are_there(put, expected, contour):
    assert reason(put({"A": [contour]})) == expected


def test_a_region_without_closed_contours_is_named(put):
    source = put({"A": [square(0, 9.5, 19.5)], "B": []})
    with pytest.raises(Exception, match="NO_CONTOURS") as caught:
        only(source).read()
    assert "('B')" in caught.value.at("x").sentence
    without = source.model_copy(update={"classes": {"A": "a", "B": "background"}})
    assert reason(without) is None


def test_points_and_lines_are_no_regions(put):
    source = put({"A": [square(0, 9.5, 19.5)]})
    path = source.path / "rt.dcm"
    dataset = pydicom.dcmread(path)
    dataset.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "OPEN_PLANAR"
    dataset.save_as(path)
    assert reason(source) == "NO_CONTOURS"


@pytest.mark.parametrize("data", [["1", "2"], ["1", "2", "nan"]])
def test_contours_that_are_no_points_are_damaged(put, data):
    source = put({"A": [square(0, 9.5, 19.5)]})
    path = source.path / "rt.dcm"
    dataset = pydicom.dcmread(path)
    tag = 0x30060050
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    contour[tag] = pydicom.DataElement(tag, "DS", data, already_converted=True)
    dataset.save_as(path)
    assert reason(source) == "UNREADABLE_FILE"


def test_contours_in_another_frame_of_reference_are_refused(put):
    assert reason(put({"A": [square(0, 9.5, 19.5)]}, frame="1.2.3.4")) == "FRAME_OF_REFERENCE"


def test_an_unmapped_region_is_refused_with_its_name(put):
    source = put({"Liver": [square(0, 9.5, 19.5)]}).model_copy(update={"classes": {"liver": "x"}})
    with pytest.raises(Exception, match="UNMAPPED_LABEL") as caught:
        only(source).read()
    assert caught.value.detail == "'Liver' (nearest: 'liver')"


def test_a_segmentation_beside_a_structure_set_needs_a_choice(put_dicom, dicom_source):
    folder = put_dicom()
    images = [pydicom.dcmread(folder / name) for name in SLICES]
    contour = [(x, y, images[0].ImagePositionPatient[2]) for x, y in ((-40, -20), (0, -20), (0, 0))]
    save(structures(images, {"Left part": [contour]}), folder / "rt.dcm")
    assert reason(dicom_source) == "SEVERAL_SEGMENTATIONS"
    for kind in ("seg", "rtstruct"):
        assert reason(dicom_source.model_copy(update={"labels": kind})) is None


def test_a_structure_set_of_an_oblique_series_lands_on_it(put_dicom):
    """Rows, columns and slices along no axis of the patient."""
    angle = 0.4
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = zyx_affine((5.0, 2.0, 1.5), (-20.0, 10.0, 30.0))
    affine[:3, :3] = turn @ affine[:3, :3]
    image = np.zeros((4, 30, 40), np.int16)
    folder = put_dicom(image_zyx=image, labels_zyx=image.astype(np.uint8), affine_ras=affine)
    (folder / "seg.dcm").unlink()
    contour = np.array(square(2, 9.5, 19.5)) @ affine[:3, :3].T + affine[:3, 3]
    images = [pydicom.dcmread(folder / name) for name in SLICES]
    save(structures(images, {"A": [contour @ LPS]}), folder / "rt.dcm")
    labels = labels_of(DicomSource(path=folder, classes={"A": "a"}))
    expected = np.zeros_like(labels)
    expected[2, 10:20, 10:20] = 1
    np.testing.assert_array_equal(labels, expected)


coordinate = st.floats(-3, 12, allow_nan=False, width=32)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=12))
def test_inside_agrees_with_matplotlib(corners):
    """Centres that are not on the outline, of polygons that do not cross themselves."""
    path = pytest.importorskip("matplotlib.path")
    polygon = np.array(corners, float)
    # Sorted by angle about their mean, so that no two edges cross.
    polygon -= polygon.mean(axis=0)
    polygon = polygon[np.argsort(np.arctan2(*polygon.T))] + 4.537
    mine = inside([polygon], (10, 11))
    centres = np.stack(np.meshgrid(range(10), range(11), indexing="ij"), axis=-1).reshape(-1, 2)
    theirs = path.Path(polygon).contains_points(centres)
    certain = distance_to_outline(centres, polygon) > 1e-6
    np.testing.assert_array_equal(mine.ravel()[certain], theirs[certain])


def distance_to_outline(points, polygon):
    """Return the distance of each point from the nearest edge."""
    start, along = polygon[:, None], (np.roll(polygon, -1, axis=0) - polygon)[:, None]
    length = np.maximum((along**2).sum(axis=-1), 1e-30)
    share = np.clip(((points - start) * along).sum(axis=-1) / length, 0, 1)
    return np.linalg.norm(points - start - share[..., None] * along, axis=-1).min(axis=0)


@pytest.mark.real_data
def test_a_real_structure_set(real_data, tmp_path):
    """rt-utils gave its file a frame of reference of its own: as written it is refused."""
    if not (real_data / "rtstruct").is_dir():
        pytest.skip("the real data has no rtstruct")
    for path in (real_data / "rtstruct").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    source = DicomSource(path=tmp_path, classes={"ROI-1": "roi"})
    assert reason(source) == "FRAME_OF_REFERENCE"
    frame = pydicom.dcmread(tmp_path / "ct_1.dcm").FrameOfReferenceUID
    rois = pydicom.dcmread(tmp_path / "rt.dcm")
    rois.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = frame
    rois.save_as(tmp_path / "rt.dcm")
    scan = only(source).read()
    z, y, x = np.argwhere(scan.labels_zyx).T
    world = scan.affine_ras @ [z, y, x, np.ones(len(z))]
    assert set(np.round(world[2])) == {60.0}
    # A square of 24 mm with the second contour cut out of it or added.
    contours = [
        np.reshape(c.ContourData, (-1, 3)).astype(float)
        for c in rois.ROIContourSequence[0].ContourSequence
    ]
    pixels = [(c[:, :2] + 125.0)[:, ::-1] / 0.488281 for c in contours]
    skimage = pytest.importorskip("skimage.draw")
    theirs = np.zeros((512, 512), bool)
    for polygon in pixels:
        theirs ^= skimage.polygon2mask((512, 512), polygon)
    assert (scan.labels_zyx.any(axis=0) != theirs).sum() <= 0.02 * theirs.sum()


def test_the_frame_may_be_named_only_beside_the_images(put):
    """And then the series is found by it where no series is named."""
    source = put({"A": [square(0, 9.5, 19.5)]})
    path = source.path / "rt.dcm"
    dataset = pydicom.dcmread(path)
    frame = dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID
    dataset.ReferencedFrameOfReferenceSequence = item(FrameOfReferenceUID=frame)
    dataset.save_as(path)
    assert reason(source) is None


def test_a_structure_set_on_ct_is_read_as_on_mr(put):
    source = put({"A": [square(0, 9.5, 19.5)]})
    for name in SLICES:
        edit(source.path / name, SOPClassUID=STORAGE + "2", Modality="CT")
    assert only(source).read().modality == "CT"
