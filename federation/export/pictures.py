"""What a cover shows the network: an image that may be seen by anybody, or else smoothed noise."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from data_adapters.errors import DataError
from data_adapters.prepare import prepare_image
from data_adapters.single_image import read_image
from federation.errors import FederationError
from federation.experiment import Experiment
from federation.export.about import About
from federation.export.examples import example_input


@dataclass(frozen=True)
class Shown:
    """Images as the network sees them.

    Attributes:
        images: float32 (images, channels, *shape): of slices all, else one.
        title: Above the picture.
        turned: Rows run to anterior and columns to the right: a picture turns both round, and shows
            a patient as radiologists do.
    """

    images: npt.NDArray[np.float32]
    title: str
    is_noise: bool = False
    turned: bool = False


def shown(experiment: Experiment, about: About) -> Shown:
    """Return what ``about`` names, prepared as a site prepares its images; noise if it names none.

    Raises:
        FederationError: The image cannot be read, or does not fit the experiment.
    """
    picture = about.picture
    if picture is None:
        return Shown(smoothed_noise(experiment), "Input: noise, smoothed", is_noise=True)
    given = experiment.input
    try:
        image, affine, planar = read_image(picture.paths, given.num_channels)
        images = prepare_image(image, affine, given, planar=planar).numpy()
    except DataError as error:
        raise FederationError(f"'picture' in the file of --about: {error}") from error
    return Shown(images, f"Input: {_short(picture.shows)}", turned=not planar)


def in_words(about: About) -> str:
    """Return what pictures show, and who says that it may be seen."""
    if about.picture is None:
        return "smoothed noise from the experiment's seed, which shows no one"
    return f"{about.picture.shows}, declared public by {about.picture.declared_by}"


def smoothed_noise(experiment: Experiment) -> npt.NDArray[np.float32]:
    """Return ``example_input`` with structures of a twelfth of the grid, mean 0, deviation 1."""
    noise = example_input(experiment)
    sigma = (0, 0, *(size / 24 for size in experiment.input.shape))
    smooth = gaussian_filter(noise, sigma, mode="nearest")
    scaled: npt.NDArray[np.float32] = (smooth - smooth.mean()) / smooth.std().clip(1e-6)
    return scaled


def plane_of(
    image: npt.NDArray[np.float32], classes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the plane (y, x) on which most is found, of the image and of the classes.

    Args:
        image, classes: (images, *shape). Class 0 is background. The middle one where all are alike.
    """
    planes = image.reshape(-1, *image.shape[-2:])
    found = classes.reshape(-1, *classes.shape[-2:])
    counts = (found > 0).sum(axis=(1, 2))
    middle = len(planes) // 2
    best = middle if counts.max() == counts[middle] else int(counts.argmax())
    return planes[best], found[best]


def _short(text: str) -> str:
    return text if len(text) <= 22 else f"{text[:21]}…"
