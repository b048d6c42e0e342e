import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data_adapters.prepare import Record
from federation.experiment import Augment
from federation.privacy.augmentation import augmented
from tests.federation.privacy.randomness import SeededRandomness


class Fixed:
    """Gives the same value again and again, and counts."""

    def __init__(self, value):
        self.value, self.drawn = value, 0

    def uniforms(self, count):
        self.drawn += count
        return np.full(count, self.value)


def record(shape=(6, 8), voxels=True, num_images=2):
    values = torch.arange(num_images * int(np.prod(shape))).reshape(num_images, 1, *shape)
    labels = values[:, 0] % 7 if voxels else torch.tensor([1, 2][:num_images])
    return Record(values.float(), labels.to(torch.uint8))


EVERYTHING = Augment(copies=3, flips=("y", "x"), shift_voxels=2, intensity=0.2)


def test_nothing_asked_is_nothing_done_and_nothing_drawn():
    source = Fixed(0.1)
    original = record()
    assert augmented(original, Augment(), source.uniforms) is original
    assert source.drawn == 0


def test_each_image_has_its_copies_and_the_same_randomness_gives_the_same_ones():
    found = [augmented(record(), EVERYTHING, SeededRandomness(s).uniforms) for s in (1, 1, 2)]
    assert found[0].images.shape == (6, 1, 6, 8) and found[0].labels.shape == (6, 6, 8)
    assert torch.equal(found[0].images, found[1].images)
    assert torch.equal(found[0].labels, found[1].labels)
    assert not torch.equal(found[0].images, found[2].images)


@pytest.mark.parametrize("shape", [(6, 8), (4, 6, 8)])
def test_labels_of_voxels_move_with_their_image(shape):
    augment = Augment(copies=8, flips=("y", "x"), shift_voxels=2)
    found = augmented(record(shape), augment, SeededRandomness(0).uniforms)
    inside = found.images[:, 0] > 0
    # A voxel's label is its value modulo seven: still so wherever it went.
    assert torch.equal((found.images[:, 0] % 7).byte()[inside], found.labels[inside])
    assert not found.labels[found.images[:, 0] == 0].any()
    assert len({tuple(image.flatten().tolist()) for image in found.images}) > 8


def test_a_class_of_an_image_stays_what_it_is():
    found = augmented(record(voxels=False), EVERYTHING, SeededRandomness(0).uniforms)
    assert found.labels.tolist() == [1, 1, 1, 2, 2, 2]


def test_flips_are_along_the_named_axes():
    original = record(num_images=1)
    for name, axis in (("y", 2), ("x", 3)):
        flipped = augmented(original, Augment(flips=(name,)), Fixed(0.4).uniforms)
        assert torch.equal(flipped.images, original.images.flip(axis))
        assert augmented(original, Augment(flips=(name,)), Fixed(0.6).uniforms).images.equal(
            original.images
        )


@pytest.mark.parametrize(("value", "step"), [(0.0, -2), (0.5, 0), (0.999, 2)])
def test_shifts_reach_both_ways_and_zeros_come_in(value, step):
    original = record(num_images=1)
    moved = augmented(original, Augment(shift_voxels=2), Fixed(value).uniforms).images[0, 0]
    expected = torch.zeros(6, 8)
    whole = original.images[0, 0]
    if step > 0:
        expected[step:, step:] = whole[:-step, :-step]
    elif step < 0:
        expected[:step, :step] = whole[-step:, -step:]
    else:
        expected = whole
    assert torch.equal(moved, expected)


def test_no_axis_is_shifted_by_more_than_half():
    plane = record((1, 8), num_images=1)
    moved = augmented(plane, Augment(shift_voxels=64), Fixed(1 - 1e-12).uniforms).images[0, 0]
    assert moved[0].tolist() == [0, 0, 0, 0, *plane.images[0, 0, 0, :4].tolist()]


def test_intensity_is_a_factor_and_an_offset_within_bounds():
    original = record(num_images=1)
    brighter = augmented(original, Augment(intensity=0.2), Fixed(1 - 1e-12).uniforms)
    assert torch.allclose(brighter.images, original.images * 1.2 + 0.2)
    unmoved = augmented(original, Augment(intensity=0.2), Fixed(0.5).uniforms)
    assert torch.allclose(unmoved.images, original.images)


def test_as_many_uniforms_are_drawn_whatever_is_asked_for():
    for augment in (EVERYTHING, Augment(copies=3, flips=("x",)), Augment(copies=3, intensity=0.1)):
        source = Fixed(0.3)
        augmented(record(), augment, source.uniforms)
        assert source.drawn == 2 * 3 * (2 * 2 + 2)


def test_copies_that_would_be_all_the_same_are_refused():
    with pytest.raises(ValidationError, match="all the same"):
        Augment(copies=4)
