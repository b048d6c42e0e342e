"""Pictures show an image that somebody declares public, or noise; never a path, never a site's."""

import base64
import re

import nibabel
import numpy as np
import pytest
import yaml

from federation.errors import FederationError
from federation.export import card
from federation.export.about import load_about
from federation.export.pictures import in_words, plane_of, shown

SHOWS, WHO = "a ball that a program drew", "Dr A. Example"


@pytest.fixture
def ball(finished, tmp_path):
    """A bright ball on the experiment's own grid, 6 slices; stored as (R, A, S)."""
    y, x = finished.record.experiment.input.shape
    step = finished.record.experiment.input.spacing_mm_yx
    zyx = np.indices((6, y, x)) - np.array([2, y // 2, x // 2])[:, None, None, None]
    image = (np.square(zyx).sum(axis=0) < 9).astype(np.float32) * 100 + 7
    folder = tmp_path / "secret-folder"
    folder.mkdir()
    path = folder / "ball.nii.gz"
    nibabel.save(nibabel.Nifti1Image(image.T, np.diag([step[1], step[0], 4.0, 1.0])), path)
    return image, path


@pytest.fixture
def about_ball(about_file, ball):
    assert ball[1].parent.parent == about_file.parent
    values = yaml.safe_load(about_file.read_text())
    picture = {"shows": SHOWS, "declared_by": WHO, "paths": ["secret-folder/ball.nii.gz"]}
    about_file.write_text(yaml.safe_dump(values | {"picture": picture}))
    return load_about(about_file)


def test_the_network_sees_it_as_a_site_would_have_shown_it(finished, about_ball, ball):
    image, _ = ball
    example = shown(finished.record.experiment, about_ball)
    wanted = (image - image.mean()) / image.std(ddof=1)
    assert not example.is_noise and example.turned
    assert example.images.shape == (6, 1, *image.shape[1:])
    np.testing.assert_allclose(example.images[:, 0], wanted, atol=1e-5)


def test_the_plane_with_most_in_it_is_shown():
    image = np.random.default_rng(0).normal(size=(5, 4, 4)).astype(np.float32)
    classes = np.zeros((5, 4, 4), dtype=np.int64)
    np.testing.assert_array_equal(plane_of(image, classes)[0], image[2])
    classes[4, :2], classes[1, 0, 0] = 1, 2
    plane, found = plane_of(image, classes)
    np.testing.assert_array_equal(plane, image[4])
    assert found.sum() == 8
    np.testing.assert_array_equal(plane_of(image[None], classes[None])[0], image[4])


def test_a_card_shows_it_says_whose_word_it_is_and_keeps_the_path(finished, about_ball, tmp_path):
    folder = tmp_path / "card"
    folder.mkdir()
    card.write(finished, about_ball, folder)
    html = (folder / "card.html").read_text()
    (coded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert base64.b64decode(coded) == (folder / card.COVER).read_bytes()
    assert "default-src 'none'" in html and "img-src data:;" in html
    for told in (html, (folder / "README.md").read_text()):
        assert SHOWS in told and WHO in told
        assert "secret-folder" not in told and "noise from" not in told


def test_without_one_it_is_noise_and_says_so(finished, about):
    example = shown(finished.record.experiment, about)
    assert example.is_noise and "noise" in example.title and "shows no one" in in_words(about)
    assert abs(float(example.images.mean())) < 1e-3


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"paths": ["nowhere.nii"]}, "no image at"),
        ({"paths": ["secret-folder/ball.nii.gz"] * 2}, "2 paths for 1 channels"),
    ],
)
def test_what_cannot_be_shown_is_said(finished, about_ball, about_file, change, why):
    values = yaml.safe_load(about_file.read_text())
    values["picture"] |= change
    about_file.write_text(yaml.safe_dump(values))
    with pytest.raises(FederationError, match=f"'picture' in the file of --about: .*{why}"):
        shown(finished.record.experiment, load_about(about_file))


def test_an_image_that_is_hardly_on_the_grid_is_refused(finished, about_ball, ball):
    _, path = ball
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), path)
    with pytest.raises(FederationError, match="asks for a grid"):
        shown(finished.record.experiment, about_ball)
