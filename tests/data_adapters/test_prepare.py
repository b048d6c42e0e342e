import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Orientation, ResizeWithPadOrCrop, Spacing

from data_adapters.errors import DataError
from data_adapters.grids import grid_of, reach_of
from data_adapters.inputs import PatchInput, SliceInput, VolumeInput
from data_adapters.prepare import Wanted, prepare_patch, prepare_scan, require_axes
from tests.data_adapters.scans import cached, random_scan, voxels
from tests.data_adapters.test_marker import grids

CPU = torch.device("cpu")
SAME = torch.arange(3, dtype=torch.uint8)
SLICES = SliceInput(shape_yx=(9, 8), spacing_mm_yx=(1.5, 2.0))
VOLUME = VolumeInput(shape_zyx=(6, 7, 8), spacing_mm_zyx=(1.5, 1.5, 2.0))
PLAIN = np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]


def as_it_was(scan, inputs, class_map):
    """Slices and volumes as the first version prepared them; the README's figures rest on it."""

    def oriented(array, mode):
        tensor = MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(scan.affine_ras))
        tensor = Orientation(axcodes="SAR", labels=(("L", "R"), ("P", "A"), ("I", "S")))(tensor)
        present = np.linalg.norm(np.asarray(tensor.affine)[:3, :3], axis=0)
        if isinstance(inputs, SliceInput):
            wanted = np.array((float(present[0]), *inputs.spacing_mm_yx))
        else:
            wanted = np.array(inputs.spacing_mm_zyx)
        if np.allclose(present, wanted, rtol=0.01):
            return tensor.as_tensor()
        return Spacing(pixdim=wanted, mode=mode, padding_mode="border")(tensor).as_tensor()

    def on_grid(tensor):
        depth = tensor.shape[1:2] if isinstance(inputs, SliceInput) else ()
        return torch.as_tensor(ResizeWithPadOrCrop((*depth, *inputs.shape))(tensor))

    image = oriented(scan.image()[0], "bilinear")
    labels = oriented(scan.labels().astype(np.float32), "nearest")
    image = (image - image.mean()) / image.std().clamp(min=1e-6)
    classes = class_map[on_grid(labels).long()]
    if isinstance(inputs, SliceInput):
        return on_grid(image).movedim(1, 0).contiguous(), classes[0]
    return on_grid(image)[None], classes


@settings(max_examples=25, deadline=None)
@given(affine=grids(), inputs=st.sampled_from([SLICES, VOLUME]), seed=st.integers(0, 99))
def test_slices_and_volumes_of_one_channel_are_bit_for_bit_what_they_were(affine, inputs, seed):
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    affine[:3, :3] *= np.clip(spacing, 0.8, 3.0) / spacing
    scan = random_scan((5, 6, 7), affine, seed=seed)
    class_map = torch.tensor([0, 2, 1], dtype=torch.uint8)
    images, labels = as_it_was(scan, inputs, class_map)
    try:
        record = prepare_scan(scan, Wanted(inputs, class_map))
    except DataError as error:
        assert "fills" in str(error)
        return
    assert torch.equal(record.images, images) and torch.equal(record.labels, labels)


def test_each_channel_is_normalised_by_itself_and_prepared_as_if_alone():
    scan = random_scan(channels=2)
    both = prepare_scan(scan, Wanted(SLICES, SAME)).images
    for channel in (0, 1):
        alone = cached(scan.stored_czyx.array[channel], scan.affine_ras, scan.labels())
        assert torch.equal(
            both[:, channel : channel + 1], prepare_scan(alone, Wanted(SLICES, SAME)).images
        )


def test_a_planar_scan_is_neither_turned_nor_sliced_and_resampled_in_its_plane_only():
    upside_down = np.diag([-1.0, -4.0, -4.0, 1.0])[[1, 0, 2, 3]]
    random = np.random.default_rng(0)
    plane = random.integers(0, 255, (1, 8, 6)).astype(np.uint8)
    scan = cached(plane, upside_down, planar=True, target=1.0)
    same = SliceInput(shape_yx=(8, 6), spacing_mm_yx=(4.0, 4.0))
    record = prepare_scan(scan, Wanted(same, SAME, "targets"))
    values = torch.from_numpy(plane.astype(np.float32))
    expected = (values - values.mean()) / values.std()
    assert torch.allclose(record.images[0], expected, atol=1e-6)
    assert record.labels.tolist() == [1]
    coarser = SliceInput(shape_yx=(4, 3), spacing_mm_yx=(8.0, 8.0))
    assert prepare_scan(scan, Wanted(coarser, SAME, "targets")).images.shape == (1, 1, 4, 3)


@pytest.mark.parametrize(
    "inputs", [VOLUME, PatchInput(shape_zyx=(2, 4, 4), spacing_mm_zyx=(1, 1, 1))]
)
def test_volumes_of_planar_scans_are_refused_with_what_would_do(inputs):
    scan = cached(np.zeros((1, 8, 6), np.uint8), planar=True, target=0.0)
    with pytest.raises(DataError, match=r"planar images .*kind: slices"):
        require_axes(scan, inputs)


def test_a_microscopes_spacing_is_resampled_though_monai_would_take_it_for_equal():
    affine = np.diag([2e-3, 5e-4, 5e-4, 1.0])[[2, 1, 0, 3]]
    scan = random_scan((4, 16, 16), affine)
    inputs = SliceInput(shape_yx=(8, 8), spacing_mm_yx=("1 um", "1 um"))
    record = prepare_scan(scan, Wanted(inputs, SAME))
    scaled = random_scan((4, 16, 16), affine * np.array([1000, 1000, 1000, 1])[:, None])
    coarse = SliceInput(shape_yx=(8, 8), spacing_mm_yx=(1.0, 1.0))
    expected = prepare_scan(scaled, Wanted(coarse, SAME))
    assert torch.allclose(record.images, expected.images, atol=1e-4)
    assert (record.images[0] != 0).all()


# Patches

HALVES = np.array([[-2.0, 0, 0, 0], [0, 0, -1, 0], [0, -3, 0, 0], [0, 0, 0, 1]])


@st.composite
def signed_permutations(draw):
    """Affines whose axes lie along the world's, in any order and direction; anisotropic."""
    order = draw(st.permutations([0, 1, 2]))
    spacing = [draw(st.sampled_from([0.5, 1.0, 1.5, 3.0])) for _ in range(3)]
    signs = [draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * signs * spacing
    affine[:3, 3] = [draw(st.floats(-100, 100)) for _ in range(3)]
    return affine


@settings(max_examples=40, deadline=None)
@given(affine=signed_permutations(), data=st.data())
def test_a_marked_point_of_the_world_is_at_the_right_place_in_a_patch(affine, data):
    shape = (7, 8, 9)
    marker = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    image, labels = np.zeros(shape, np.int16), np.zeros(shape, np.uint8)
    image[marker], labels[marker] = 1000, 2
    scan = cached(image, affine, labels)
    present = np.linalg.norm(affine[:3, :3], axis=1)[::-1]  # along S, A, R
    inputs = PatchInput(shape_zyx=(5, 4, 3), spacing_mm_zyx=tuple(present))
    grid = grid_of(scan, inputs.spacing_mm_zyx)
    origin = tuple(
        data.draw(st.integers(0, max(n - p, 0))) for n, p in zip(grid.shape, (5, 4, 3), strict=True)
    )
    record = prepare_patch(scan, Wanted(inputs, SAME), grid, origin, CPU)
    # From the world: the voxel's distance in S, A and R from the lowest corner of the scan.
    corners = [
        (affine @ [*np.multiply(c, np.subtract(shape, 1)), 1])[:3] for c in np.ndindex(2, 2, 2)
    ]
    steps = ((affine @ [*marker, 1])[:3] - np.min(corners, axis=0))[::-1] / present
    place = tuple(round(step) - start for step, start in zip(steps, origin, strict=True))
    inside = all(0 <= p < n for p, n in zip(place, (5, 4, 3), strict=True))
    assert (record.labels[0] == 2).sum() == inside
    if inside:
        assert record.labels[(0, *place)] == 2
        assert record.images[0, 0].argmax() == np.ravel_multi_index(place, (5, 4, 3))


def test_a_grid_that_ends_half_way_is_rounded_as_the_whole_scans():
    scan = random_scan((7, 8, 9), HALVES)
    whole = VolumeInput(shape_zyx=(12, 9, 13), spacing_mm_zyx=(2.0, 1.0, 1.0))
    assert grid_of(scan, (2.0, 1.0, 1.0)).shape == resampled(scan, whole).shape == (12, 9, 13)


@settings(max_examples=40, deadline=None)
@given(affine=grids(), spacing=st.tuples(*[st.floats(0.7, 3.0)] * 3), data=st.data())
def test_a_patch_is_the_same_place_of_the_whole_prepared_scan(affine, spacing, data):
    present = np.linalg.norm(affine[:3, :3], axis=0)
    affine[:3, :3] *= np.clip(present, 0.8, 3.0) / present
    scan = random_scan((7, 8, 9), affine)
    grid = grid_of(scan, spacing)
    whole = VolumeInput(shape_zyx=grid.shape, spacing_mm_zyx=spacing)
    before = resampled(scan, whole)
    if tuple(before.shape) != grid.shape:  # half a voxel is rounded up or down
        assert any(
            abs((n - 1) / s % 1 - 0.5) < 1e-6 for n, s in zip(grid.sizes, grid.steps, strict=True)
        )
        return
    expected = prepare_scan(scan, Wanted(whole, SAME))
    shape = tuple(data.draw(st.integers(1, n)) for n in grid.shape)
    inputs = PatchInput(shape_zyx=shape, spacing_mm_zyx=spacing)
    origin = tuple(data.draw(st.integers(0, n - p)) for n, p in zip(grid.shape, shape, strict=True))
    record = prepare_patch(scan, Wanted(inputs, SAME), grid, origin, CPU)
    there = tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))
    # The whole is normalised by what it is after resampling, a patch by the scan as stored.
    restored = record.images.reshape(shape) * scan.deviations[0] + scan.means[0]
    assert torch.allclose(restored, before[there], atol=0.5)
    # Half way between two voxels both are nearest.
    reaches = [reach_of(grid, axis, origin[axis], shape[axis]) for axis in range(3)]
    if all((abs(reach.weights - 0.5) > 1e-3).all() for reach in reaches):
        assert torch.equal(record.labels.reshape(shape), expected.labels[(0, *there)])


@pytest.mark.parametrize("unit_mm", [1.0, 1e-3])
def test_an_axis_that_differs_by_a_hair_is_kept_as_monai_keeps_it(unit_mm):
    affine = np.diag([2.0, 1.0, 0.9993, 1.0])[[2, 1, 0, 3]] * [unit_mm, unit_mm, unit_mm, 1]
    scan = random_scan((5, 4, 800), affine)  # 0.07 % of a voxel, 800 times
    spacing = tuple(np.array([1.0, 1.0, 1.0]) * unit_mm)
    grid = grid_of(scan, spacing)
    assert grid.shape == (9, 4, 800) and grid.steps == (0.5, 1.0, 1.0)
    whole = prepare_scan(
        scan, Wanted(VolumeInput(shape_zyx=grid.shape, spacing_mm_zyx=spacing), SAME)
    )
    inputs = PatchInput(shape_zyx=(1, 4, 8), spacing_mm_zyx=spacing)
    record = prepare_patch(scan, Wanted(inputs, SAME), grid, (4, 0, 790), CPU)
    assert torch.equal(record.labels[0], whole.labels[0, 4, :, 790:798])


def resampled(scan, whole):
    """The whole scan before it is normalised."""
    tensor = MetaTensor(torch.from_numpy(scan.image()), affine=torch.from_numpy(scan.affine_ras))
    tensor = Orientation(axcodes="SAR", labels=(("L", "R"), ("P", "A"), ("I", "S")))(tensor)
    present = np.linalg.norm(np.asarray(tensor.affine)[:3, :3], axis=0)
    if np.allclose(present, whole.spacing_mm_zyx, rtol=0.01):
        return tensor.as_tensor()[0]
    pixdim = np.array(whole.spacing_mm_zyx)
    return Spacing(pixdim=pixdim, mode="bilinear", padding_mode="border")(tensor).as_tensor()[0]


def test_only_the_region_that_a_patch_covers_is_read():
    scan = random_scan((40, 40, 40))
    stored = PatchInput(shape_zyx=(8, 8, 8), spacing_mm_zyx=(1, 1, 1))
    wanted = Wanted(stored, SAME)
    prepare_patch(scan, wanted, grid_of(scan, (1, 1, 1)), (3, 30, 11), CPU)
    assert scan.stored_czyx.reads == [8**3] and scan.labels_on_disk.reads == [8**3]
    finer = PatchInput(shape_zyx=(8, 8, 8), spacing_mm_zyx=(0.5, 0.5, 0.5))
    prepare_patch(scan, Wanted(finer, SAME), grid_of(scan, (0.5,) * 3), (3, 30, 11), CPU)
    assert scan.stored_czyx.reads[-1] <= 5**3


def test_outside_a_small_scan_a_patch_is_zero_and_background():
    scan = random_scan((4, 8, 8))
    inputs = PatchInput(shape_zyx=(8, 8, 8), spacing_mm_zyx=(1, 1, 1))
    grid = grid_of(scan, inputs.spacing_mm_zyx)
    record = prepare_patch(scan, Wanted(inputs, SAME), grid, (-2, 0, 0), CPU)
    image, labels = record.images[0, 0], record.labels[0]
    assert not image[:2].any() and not image[6:].any() and image[2:6].all()
    assert not labels[:2].any() and not labels[6:].any() and labels[2:6].any()


def test_patches_are_normalised_by_their_scans_own_stored_figures():
    scan = random_scan((8, 8, 8), channels=2)
    inputs = PatchInput(shape_zyx=(2, 2, 2), spacing_mm_zyx=(1, 1, 1))
    grid = grid_of(scan, inputs.spacing_mm_zyx)
    record = prepare_patch(scan, Wanted(inputs, SAME), grid, (1, 2, 3), CPU)
    part = scan.image((slice(1, 3), slice(2, 4), slice(3, 5)))
    for channel in (0, 1):
        expected = (part[channel] - scan.means[channel]) / scan.deviations[channel]
        assert torch.allclose(record.images[0, channel], torch.from_numpy(expected), atol=1e-5)


def test_patches_of_one_plane_are_two_dimensional():
    scan = random_scan((6, 20, 20))
    inputs = PatchInput(shape_zyx=(1, 8, 8), spacing_mm_zyx=(1, 1, 1))
    record = prepare_patch(scan, Wanted(inputs, SAME), grid_of(scan, (1, 1, 1)), (2, 3, 4), CPU)
    assert record.images.shape == (1, 1, 8, 8) and record.labels.shape == (1, 8, 8)
    assert scan.stored_czyx.reads == [voxels((8, 8))]


def test_a_region_that_would_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr("data_adapters.prepare._MOST_VOXELS", 1000)
    scan = random_scan((20, 20, 20))
    inputs = PatchInput(shape_zyx=(4, 4, 4), spacing_mm_zyx=(5, 5, 5))
    with pytest.raises(DataError, match="more than 1,000 voxels"):
        prepare_patch(scan, Wanted(inputs, SAME), grid_of(scan, (5, 5, 5)), (0, 0, 0), CPU)
    assert scan.stored_czyx.reads == []


def test_a_scan_too_large_to_be_read_whole_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr("data_adapters.prepare._MOST_READ", 1000)
    scan = random_scan((20, 20, 20))
    with pytest.raises(DataError, match="kind: patches"):
        prepare_scan(scan, Wanted(VOLUME, SAME))
    assert scan.stored_czyx.reads == []
