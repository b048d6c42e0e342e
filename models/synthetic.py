"""Made-up subjects of a declared shape, extremes among them: what guards try networks on.

Nothing here has ever seen a patient, so what a network does with it may be said aloud.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch

Fill = Callable[[tuple[int, ...], torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Declared:
    """What an experiment says in public about its inputs.

    Attributes:
        image_shape: Voxels along (z,) y, x.
        classifies: Labels are one class an image, else one a voxel.
        cap: Most images of one subject.
        values: Labels are one number an image.
    """

    image_shape: tuple[int, ...]
    num_channels: int
    num_classes: int
    classifies: bool
    cap: int
    values: bool = False


@dataclass(frozen=True)
class MadeUp:
    """One made-up subject.

    Attributes:
        images: float32 (images, channels, *shape).
        labels: uint8 class indices: (images, *shape) of voxels, or (images,); float32 values.
    """

    images: torch.Tensor
    labels: torch.Tensor


def _gaussian(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def _constant(value: float) -> Fill:
    return lambda shape, _: torch.full(shape, value)


def _scaled(factor: float, shift: float = 0.0) -> Fill:
    return lambda shape, generator: factor * _gaussian(shape, generator) + shift


def _spike(value: float) -> Fill:
    """One voxel of each image, at a drawn place, in an image of zeros."""

    def fill(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        flat = torch.zeros(shape[0], prod(shape[1:]))
        places = torch.randint(flat.shape[1], (shape[0], 1), generator=generator)
        return flat.scatter_(1, places, value).reshape(shape)

    return fill


def _ramp(shape: tuple[int, ...], _: torch.Generator) -> torch.Tensor:
    return torch.linspace(-2, 2, shape[-1]).expand(shape).clone()


# Neighbours in this list meet in a batch: an extreme beside what is usual.
KINDS: tuple[tuple[str, Fill], ...] = (
    ("gaussian", _gaussian),
    ("zeros", _constant(0.0)),
    ("gaussian x 1e4", _scaled(1e4)),
    ("gaussian", _gaussian),
    ("constant 1e4", _constant(1e4)),
    ("one voxel 1e4", _spike(1e4)),
    ("gaussian", _gaussian),
    ("constant -3", _constant(-3.0)),
    ("gaussian + 100", _scaled(1.0, 100.0)),
    ("ramp", _ramp),
    ("gaussian x 1e-4", _scaled(1e-4)),
    ("constant 1", _constant(1.0)),
    ("one voxel -1", _spike(-1.0)),
    ("gaussian", _gaussian),
    ("constant -1e4", _constant(-1e4)),
    ("gaussian - 5", _scaled(1.0, -5.0)),
    ("gaussian x 100", _scaled(100.0)),
)


# What tables hold after scaling, and what a slip of the pen makes of it.
_VALUES: tuple[Callable[[torch.Generator, int], torch.Tensor], ...] = (
    lambda generator, number: torch.randn(number, generator=generator),
    lambda _, number: torch.zeros(number),
    lambda generator, number: 1e4 * torch.randn(number, generator=generator),
    lambda _, number: torch.full((number,), -3.0),
)


def make_up(declared: Declared, number: int, num_images: int) -> MadeUp:
    """Return made-up subject ``number``: always the same one, of the kind that its number names.

    >>> make_up(Declared((4, 4), 1, 3, classifies=True, cap=2), 1, 2).images.abs().sum().item()
    0.0
    """
    generator = torch.Generator().manual_seed(number)
    shape = (num_images, declared.num_channels, *declared.image_shape)
    images = KINDS[number % len(KINDS)][1](shape, generator)
    if declared.values:
        return MadeUp(images, _VALUES[number % len(_VALUES)](generator, num_images))
    labelled = (num_images,) if declared.classifies else (num_images, *declared.image_shape)
    labels = torch.randint(declared.num_classes, labelled, generator=generator)
    if number % 4 == 3:  # Images of one class alone, as a scan without a lesion is.
        labels = torch.full_like(labels, number % declared.num_classes)
    return MadeUp(images, labels.to(torch.uint8))
