import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_adapters.grids import grid_of
from data_adapters.inputs import PatchInput
from data_adapters.patches import (
    MOST_SCORED,
    aligned_starts,
    draw_origin,
    find_foreground,
    tiles,
)
from tests.data_adapters.scans import cached, random_scan
from tests.data_adapters.test_prepare import signed_permutations

SHAPES = st.tuples(*[st.integers(1, 12)] * 3)
RANDOM = np.random.default_rng(0)


def inputs(shape, **options):
    return PatchInput(shape_zyx=shape, spacing_mm_zyx=(1, 1, 1), **options)


def test_every_place_inside_a_scan_is_equally_likely():
    scan = random_scan((3, 4, 5))
    grid, wanted = grid_of(scan, (1, 1, 1)), inputs((2, 2, 2))
    drawn = [draw_origin(scan, grid, wanted, RANDOM.random(5)) for _ in range(6000)]
    places, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(places) == 2 * 3 * 4
    assert places.min() == 0 and (places.max(0) == [1, 2, 3]).all()
    expected = 6000 / 24
    assert ((counts - expected) ** 2 / expected).sum() < 60  # chi-square, 23 degrees: p = 4e-5


@settings(max_examples=60, deadline=None)
@given(
    shape=SHAPES, patch=SHAPES, uniforms=st.lists(st.floats(1e-9, 1 - 1e-9), min_size=5, max_size=5)
)
def test_patches_lie_inside_a_scan_or_around_it_in_the_middle(shape, patch, uniforms):
    scan = random_scan(shape)
    origin = draw_origin(scan, grid_of(scan, (1, 1, 1)), inputs(patch), np.array(uniforms))
    for start, size, length in zip(origin, shape, patch, strict=True):
        if size >= length:
            assert 0 <= start <= size - length
        else:
            assert start == -((length - size) // 2)


@settings(max_examples=40, deadline=None)
@given(affine=signed_permutations(), seed=st.integers(0, 999))
def test_aligned_patches_touch_as_few_chunks_as_can_be_whatever_the_axes(affine, seed):
    scan = random_scan((16, 24, 32), affine, chunk=(4, 8, 16))
    present = tuple(np.linalg.norm(affine[:3, :3], axis=1)[::-1])
    grid = grid_of(scan, present)
    patch = grid.along_grid((4, 8, 16))
    wanted = PatchInput(shape_zyx=patch, spacing_mm_zyx=present, aligned=True)
    origin = draw_origin(scan, grid, wanted, np.random.default_rng(seed).random(5))
    for start, length, size, flipped in zip(origin, patch, grid.sizes, grid.flipped, strict=True):
        stored = size - length - start if flipped else start
        assert stored % length == 0


@given(size=st.integers(1, 300), chunk=st.integers(1, 80), length=st.integers(1, 100))
def test_aligned_places_reach_both_ends_and_stay_inside(size, chunk, length):
    starts = aligned_starts(size, chunk, length)
    if size < length:
        assert len(starts) == 1
    else:
        assert starts[0] == 0 and starts[-1] == size - length
        assert list(starts) == sorted(set(starts))


def test_alignment_means_nothing_where_voxels_are_made():
    scan = random_scan((16, 16, 16), chunk=(8, 8, 8))
    wanted = PatchInput(shape_zyx=(4, 4, 4), spacing_mm_zyx=(0.5,) * 3, aligned=True)
    grid = grid_of(scan, wanted.spacing_mm_zyx)
    assert not grid.is_stored
    assert len({draw_origin(scan, grid, wanted, RANDOM.random(5)) for _ in range(50)}) > 40


def labelled(monkeypatch, affine=None):
    monkeypatch.setattr("data_adapters.patches._LABEL_PART_ZYX", (4, 4, 4))
    labels = np.zeros((9, 10, 11), np.uint8)
    for place in ((0, 0, 0), (4, 5, 6), (4, 5, 7), (8, 9, 10)):
        labels[place] = 2
    return cached(np.zeros((9, 10, 11), np.int16), affine, labels)


def test_every_labelled_voxel_is_equally_likely_and_few_labels_are_read(monkeypatch):
    scan = labelled(monkeypatch)
    foreground = find_foreground(scan)
    assert foreground.total == 4 and max(scan.labels_on_disk.reads) <= 64
    scan.labels_on_disk.reads.clear()
    drawn = [foreground.voxel(scan, u) for u in (0.1, 0.3, 0.6, 0.9)]
    assert sorted(drawn) == [(0, 0, 0), (4, 5, 6), (4, 5, 7), (8, 9, 10)]
    assert max(scan.labels_on_disk.reads) <= 64


def test_a_patch_around_a_label_has_it_in_the_middle_where_the_scan_allows(monkeypatch):
    affine = np.diag([-1.0, 1.0, -1.0, 1.0])[[2, 1, 0, 3]]
    scan = labelled(monkeypatch, affine)
    grid, wanted = grid_of(scan, (1, 1, 1)), inputs((3, 3, 3), foreground=1.0)
    uniforms = np.array([0.5, 0, 0, 0, 0.3])
    stored = find_foreground(scan).voxel(scan, 0.3)
    middle = grid.from_stored(stored)
    origin = draw_origin(scan, grid, wanted, uniforms, find_foreground(scan))
    assert origin == tuple(
        min(max(m - 1, 0), n - 3) for m, n in zip(middle, grid.shape, strict=True)
    )


def test_the_declared_share_of_patches_is_around_labels(monkeypatch):
    scan = labelled(monkeypatch)
    foreground = find_foreground(scan)
    grid, wanted = grid_of(scan, (1, 1, 1)), inputs((1, 1, 1), foreground=0.25)
    drawn = [draw_origin(scan, grid, wanted, RANDOM.random(5), foreground) for _ in range(2000)]
    share = np.mean([scan.labels_on_disk.array[origin] > 0 for origin in drawn])
    assert 0.2 < share < 0.3


def test_a_scan_without_labelled_voxels_is_drawn_from_everywhere():
    scan = cached(np.zeros((4, 4, 4), np.int16), labels=np.zeros((4, 4, 4), np.uint8))
    foreground = find_foreground(scan)
    grid, wanted = grid_of(scan, (1, 1, 1)), inputs((2, 2, 2), foreground=1.0)
    assert foreground.total == 0
    assert (
        len({draw_origin(scan, grid, wanted, RANDOM.random(5), foreground) for _ in range(99)}) > 9
    )


def test_patches_are_aligned_or_centred_but_not_both():
    with pytest.raises(ValueError, match="choose one"):
        inputs((2, 2, 2), aligned=True, foreground=0.5)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, patch=st.tuples(*[st.integers(3, 9)] * 3))
def test_tiles_count_every_voxel_of_a_scan_once(shape, patch):
    counts = np.zeros(shape, int)
    found = tiles(shape, patch)
    for tile in found:
        here = tuple(
            slice(start + part.start, start + part.stop)
            for start, part in zip(tile.origin, tile.counted, strict=True)
        )
        assert all(part.start >= 0 for part in here)
        counts[here] += 1
    assert (counts == 1).all()


def test_of_a_huge_scan_the_same_bounded_number_of_tiles_is_scored():
    found = tiles((1, 100_000, 100_000), (1, 256, 256))
    assert len(found) == MOST_SCORED and found == tiles((1, 100_000, 100_000), (1, 256, 256))
    assert found[0].origin == (0, 0, 0) and found[-1].origin == (0, 99_744, 99_744)
