"""Simulated subjects: the same from the same seed, different from each other, labels in place."""

from itertools import pairwise

import numpy as np
import pytest

from federation.demo import simulate
from federation.demo.simulate import AFFINE_RAS, LAB, NORTH, SHAPE_ZYX, SITE_STYLES, SOUTH
from federation.errors import FederationError

STYLES = pytest.mark.parametrize("style", SITE_STYLES.values(), ids=SITE_STYLES)


def dice(first: np.ndarray, second: np.ndarray, value: int) -> float:
    one, two = first == value, second == value
    return float(2 * (one & two).sum() / (one.sum() + two.sum()))


def test_the_same_seed_gives_the_same_bytes() -> None:
    first = simulate.simulate_subject(7, SOUTH, 2)
    again = simulate.simulate_subject(7, SOUTH, 2)
    for (image, labels), (image_again, labels_again) in zip(first, again, strict=True):
        assert image.tobytes() == image_again.tobytes()
        assert labels.tobytes() == labels_again.tobytes()


def test_the_first_scan_does_not_depend_on_whether_there_is_a_second() -> None:
    alone = simulate.simulate_subject(7, NORTH, 1)[0]
    first_of_two = simulate.simulate_subject(7, NORTH, 2)[0]
    np.testing.assert_array_equal(alone[0], first_of_two[0])


@STYLES
def test_a_scan_is_a_thick_slice_volume_of_native_integers(style: simulate.SiteStyle) -> None:
    (image, labels), *_ = simulate.simulate_subject(3, style)
    assert image.shape == labels.shape == SHAPE_ZYX
    assert image.dtype == np.int16 and labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1, 2}
    assert image.min() >= 0


@STYLES
def test_white_matter_is_brighter_than_grey_and_grey_than_background(
    style: simulate.SiteStyle,
) -> None:
    for seed in range(5):
        (image, labels), *_ = simulate.simulate_subject(seed, style)
        background, grey, white = (image[labels == value].mean() for value in range(3))
        assert white > 1.15 * grey > 1.15 * background


def test_labels_line_up_with_the_image_better_than_when_moved() -> None:
    image, labels = simulate.simulate_subject(5, NORTH)[0]
    contrast = {
        shift: image[moved == 2].mean() - image[moved == 1].mean()
        for shift in (-2, -1, 0, 1, 2)
        for moved in [np.roll(labels, shift, axis=2)]
    }
    assert max(contrast, key=lambda shift: contrast[shift]) == 0


def test_every_slice_shows_brain_that_fits_the_field_of_view() -> None:
    for seed in range(10):
        _, labels = simulate.simulate_subject(seed, NORTH)[0]
        share = (labels > 0).mean(axis=(1, 2))
        assert share.min() > 0.1
        border = np.concatenate([labels[:, [0, -1], :].ravel(), labels[:, :, [0, -1]].ravel()])
        assert (border > 0).mean() < 0.05


def test_subjects_differ_more_than_scans_of_one_subject() -> None:
    subjects = [simulate.simulate_subject(seed, NORTH, 2) for seed in range(6)]
    within = [dice(scans[0][1], scans[1][1], 2) for scans in subjects]
    between = [dice(a[0][1], b[0][1], 2) for a, b in pairwise(subjects)]
    assert np.mean(between) < np.mean(within)
    assert np.mean(between) < 0.7
    assert not np.array_equal(subjects[0][0][0], subjects[0][1][0])


def test_sites_show_the_same_anatomy_with_their_own_contrast() -> None:
    scans = {style.name: simulate.simulate_subject(4, style)[0] for style in (NORTH, SOUTH, LAB)}
    labels = [labels for _, labels in scans.values()]
    assert all(np.array_equal(labels[0], other) for other in labels[1:])
    ratios = [image[lab == 2].mean() / image[lab == 1].mean() for image, lab in scans.values()]
    assert np.ptp(ratios) > 0.2


def test_the_affine_has_scanner_axes_and_the_stated_spacing() -> None:
    np.testing.assert_allclose(np.linalg.norm(AFFINE_RAS[:3, :3], axis=0), simulate.SPACING_MM_ZYX)
    assert AFFINE_RAS[2, 0] > 0  # z runs upwards
    assert AFFINE_RAS[1, 1] < 0  # rows run to the back
    assert AFFINE_RAS[0, 2] < 0  # columns run to the subject's left
    middle = AFFINE_RAS @ [*((np.array(SHAPE_ZYX) - 1) / 2), 1]
    np.testing.assert_allclose(middle[:3], simulate.CENTRE_RAS_MM)


def test_without_deformation_voxels_fall_on_the_template_where_the_affine_says() -> None:
    """The ventricles of the undeformed brain are where MNI space has them, in front of the back."""
    nothing = simulate.Anatomy(
        np.eye(3, dtype=np.float32), 0.0, np.zeros((3, *simulate.BEND_SHAPE), np.float32), 0.0
    )
    fluid, grey, white = simulate._tissue_fractions(nothing, simulate._voxel_points())

    def at(ras_mm: tuple[float, float, float], tissue: np.ndarray) -> float:
        z, y, x = np.rint(np.linalg.inv(AFFINE_RAS) @ [*ras_mm, 1])[:3].astype(int)
        return float(tissue[z, y, x])

    assert at((-14, 24, 2), fluid + white + grey) > 0.9
    assert at((-13, 14, 10), grey) > 0.5  # head of the caudate
    assert at((0, 80, 2), fluid + white + grey) < 0.1  # in front of the brain


def test_a_missing_template_is_one_sentence_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simulate, "find_spec", lambda name: None)
    with pytest.raises(FederationError, match=r"cohortium\[demo\]"):
        simulate._load_map("t1")
