"""Several versions of a subject's images inside that subject's mean gradient.

Augmentation multiplicity (De et al. 2022, arXiv 2204.13650): however many versions there are, they
are one subject's gradient, clipped once, so they cost no privacy.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from data_adapters.prepare import Record
from federation.experiment import Augment

Uniforms = Callable[[int], npt.NDArray[np.float64]]
_AXES = ("z", "y", "x")


def augmented(record: Record, augment: Augment, uniforms: Uniforms) -> Record:
    """Return ``copies`` versions of each image, and of its labels alike where they are voxels.

    Args:
        record: images (images, channels, *shape).
        uniforms: Gives that many independent uniforms in (0, 1); as many are drawn for every image.
    """
    if not augment.changes_anything:
        return record
    num_axes = record.images.ndim - 2
    draws = uniforms(len(record.images) * augment.copies * (2 * num_axes + 2))
    rows = draws.reshape(len(record.images), augment.copies, -1)
    versions = [
        _version(image, labels, augment, row)
        for image, labels, of_image in zip(record.images, record.labels, rows, strict=True)
        for row in of_image
    ]
    images, labels = zip(*versions, strict=True)
    return Record(torch.stack(images), torch.stack(labels))


def _version(
    image: torch.Tensor, labels: torch.Tensor, augment: Augment, row: npt.NDArray[np.float64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one version of an image (channels, *shape) and of its labels, (*shape) or ()."""
    num_axes = image.ndim - 1
    flips = _flips(augment, row[:num_axes])
    steps = _steps(augment, row[num_axes : 2 * num_axes], image.shape[1:])
    scale, offset = (1 + augment.intensity * (2 * value - 1) for value in row[-2:])
    image = _moved(image, flips, steps) * scale + (offset - 1)
    return image, _moved(labels, flips, steps) if labels.ndim == num_axes else labels


def _flips(augment: Augment, coins: npt.NDArray[np.float64]) -> list[int]:
    """Return the axes to flip, counted from the last: -1 is x."""
    named = zip(_AXES[-len(coins) :], range(-len(coins), 0), coins, strict=True)
    return [axis for name, axis, coin in named if name in augment.flips and coin < 0.5]


def _steps(augment: Augment, coins: npt.NDArray[np.float64], shape: Sequence[int]) -> list[int]:
    reaches = [min(augment.shift_voxels, size // 2) for size in shape]
    return [int(coin * (2 * r + 1)) - r for coin, r in zip(coins, reaches, strict=True)]


def _moved(tensor: torch.Tensor, flips: Sequence[int], steps: Sequence[int]) -> torch.Tensor:
    """Flip, then shift along the last axes; what comes in from outside is zero, background."""
    tensor = tensor.flip(tuple(flips)) if flips else tensor
    if not any(steps):
        return tensor
    moved = torch.zeros_like(tensor)
    target, source = moved, tensor
    for axis, step in enumerate(steps, start=-len(steps)):
        size = tensor.shape[axis] - abs(step)
        target = target.narrow(axis, max(0, step), size)
        source = source.narrow(axis, max(0, -step), size)
    target.copy_(source)
    return moved
