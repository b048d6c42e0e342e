"""From a cached scan to what a network sees: oriented, resampled, normalised, on a fixed grid.

A volume's axes end up along (superior, anterior, right); a planar scan keeps its own. Nothing here
looks at more than one scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, ResizeWithPadOrCrop, Spacing

from data_adapters.cache import CachedScan
from data_adapters.errors import DataError
from data_adapters.grids import (
    SAME_SPACING,
    Grid,
    Index,
    Reach,
    magnification,
    reach_of,
    stored_region,
)
from data_adapters.inputs import AnyInput, Learns, PatchInput, SliceInput, VolumeInput

Whole = SliceInput | VolumeInput

_LEAST_COVERAGE = 0.25
# What resampling would blow up beyond this many voxels is refused before it is made.
_MOST_VOXELS = 1 << 28
# Whole scans beyond this many voxels are refused before they are read: 2 GiB of float32.
_MOST_READ = 1 << 29


@dataclass(frozen=True)
class Record:
    """Images of one subject.

    Attributes:
        images: float32 (images, channels, *shape), zero mean and unit deviation in each scan.
        labels: uint8, the experiment's class indices: (images, *shape) of voxels, or (images,).
            float32 (images,) where values are learned, as ``ValueScale`` has them.
        counted: bool (images, *shape), False where scoring must not look: padding, and voxels
            that another image of the scan shows. None: everything counts.
    """

    images: torch.Tensor
    labels: torch.Tensor
    counted: torch.Tensor | None = None


@dataclass(frozen=True)
class ValueScale:
    """How a table's values become numbers around zero: by constants that an experiment declares.

    Never by the data's own mean and deviation, which would tell of every subject.

    >>> ValueScale(offset=60, scale=20).scaled(70)
    0.5
    """

    offset: float = 0.0
    scale: float = 1.0

    def scaled(self, value: float) -> float:
        """Return what a network is to say for ``value``."""
        return (value - self.offset) / self.scale


@dataclass(frozen=True)
class Wanted:
    """What an experiment wants of a site's scans.

    Attributes:
        class_map: uint8, for each class index of the site the experiment's.
        learns: Whether labels are a scan's voxels, or its class or value from a table.
        values: Where values are learned.
    """

    inputs: AnyInput
    class_map: torch.Tensor
    learns: Learns = "voxels"
    values: ValueScale = ValueScale()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on ``device``; to a GPU through pinned memory, beside running kernels."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def target_of(scan: CachedScan, wanted: Wanted) -> torch.Tensor:
    """Return the experiment's class of one scan, uint8, or its scaled value, float32; shape ().

    Raises:
        DataError: The scan has no target.
    """
    if scan.target is None:
        raise DataError(
            "This data set has no table of targets; neither classification nor regression can be "
            "learned from it. Name one under 'targets' in the site file."
        )
    if wanted.learns == "values":
        return torch.tensor(wanted.values.scaled(scan.target), dtype=torch.float32)
    return wanted.class_map[int(scan.target)]


def require_axes(scan: CachedScan, inputs: AnyInput) -> None:
    """Refuse volumes of what is a plane.

    Raises:
        DataError: Says which inputs are possible.
    """
    if scan.planar and inputs.spatial_dims > 2:
        raise DataError(
            f"The experiment's input is of kind '{inputs.kind}' with three axes, but this data set "
            "has planar images (radiographs, 2-D microscopy). Use kind: slices, or kind: patches "
            "with a shape_zyx that starts with 1."
        )


def require_coverage(shape: Sequence[int], inputs: AnyInput) -> None:
    """Refuse a grid that a scan hardly fills.

    Raises:
        DataError: Names both grids.
    """
    present = tuple(shape)[-len(inputs.shape) :]
    covered = float(np.prod([min(p, w) / w for p, w in zip(present, inputs.shape, strict=True)]))
    if covered < _LEAST_COVERAGE:
        raise DataError(
            f"The experiment asks for a grid of {inputs.shape} voxels, of which a scan of "
            f"{present} voxels at that spacing fills {covered:.0%}. Use a smaller shape or a "
            "finer spacing in the experiment's input."
        )


def require_bounded(shape: npt.NDArray[np.float64]) -> None:
    """Refuse what would not fit into memory.

    Raises:
        DataError: Says what to change.
    """
    if float(np.prod(shape)) > _MOST_VOXELS:
        raise DataError(
            f"At the experiment's spacing a scan would have more than {_MOST_VOXELS:,} voxels. "
            "Use a coarser spacing in the experiment's input."
        )


def prepare_scan(scan: CachedScan, wanted: Wanted) -> Record:
    """Orient to (superior, anterior, right), resample, crop or pad, and normalise one scan.

    Raises:
        DataError: The experiment's grid is mostly outside this scan, the scan is planar and the
            grid is not, or it lacks the labels.
    """
    inputs = wanted.inputs
    if isinstance(inputs, PatchInput):
        raise ValueError("patches are prepared one by one, by patches.prepare_patch")
    require_axes(scan, inputs)
    _require_readable(scan)
    images = prepare_image(scan.image(), scan.affine_ras, inputs, planar=scan.planar)
    return Record(images, _labels(scan, inputs, wanted, num_images=len(images)))


def prepare_image(
    image_czyx: npt.NDArray[np.float32],
    affine_ras: npt.NDArray[np.float64],
    inputs: AnyInput,
    *,
    planar: bool,
) -> torch.Tensor:
    """Return what a network sees of an image: float32 (images, channels, *shape).

    Of patches that is the one in the middle, with the statistics of the image as it was given.

    Args:
        affine_ras: Columns z, y, x, to RAS+ millimetres.
        planar: Its plane is neither turned nor resliced.

    Raises:
        DataError: The experiment's grid is mostly outside this image.
    """
    if isinstance(inputs, PatchInput):
        image_czyx = _normalised(torch.from_numpy(image_czyx)).numpy()
    image = _oriented(image_czyx, affine_ras, inputs, "bilinear", planar=planar)
    require_coverage(image.shape[1:], inputs)
    if isinstance(inputs, PatchInput):
        return _fitted(image, inputs.shape_zyx).reshape(1, -1, *inputs.shape)
    image = _on_grid(_normalised(image), inputs)
    return image.movedim(1, 0).contiguous() if isinstance(inputs, SliceInput) else image[None]


def _labels(scan: CachedScan, inputs: Whole, wanted: Wanted, *, num_images: int) -> torch.Tensor:
    if wanted.learns != "voxels":
        return target_of(scan, wanted).repeat(num_images)
    stored = scan.labels().astype(np.float32)[None]
    turned = _oriented(stored, scan.affine_ras, inputs, "nearest", planar=scan.planar)
    labels = _on_grid(turned, inputs)
    classes = wanted.class_map[labels.long()]
    return classes[0] if isinstance(inputs, SliceInput) else classes


def _normalised(image: torch.Tensor) -> torch.Tensor:
    """Give each channel (c, z, y, x) zero mean and unit deviation."""
    # One channel at a time: reductions over some axes round differently from those over all.
    parts = [(part - part.mean()) / part.std().clamp(min=1e-6) for part in image.split(1)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _oriented(
    array_czyx: npt.NDArray[np.float32],
    affine_ras: npt.NDArray[np.float64],
    inputs: AnyInput,
    mode: str,
    *,
    planar: bool,
) -> torch.Tensor:
    """Return (c, z, y, x) at the experiment's spacing; axes along S, A, R, or a plane's own."""
    scale = magnification(affine_ras)
    affine = own_axes(affine_ras) if planar else affine_ras
    tensor = MetaTensor(
        torch.from_numpy(array_czyx),
        affine=torch.from_numpy(affine * np.array([scale, scale, scale, 1.0])[:, None]),
    )
    if not planar:
        tensor = Orientation(axcodes="SAR", labels=(("L", "R"), ("P", "A"), ("I", "S")))(tensor)
    present = np.linalg.norm(np.asarray(tensor.affine)[:3, :3], axis=0)
    wanted = _spacing_zyx(inputs, scale, float(present[0]))
    if np.allclose(present, wanted, rtol=SAME_SPACING):
        return tensor.as_tensor()
    require_bounded(np.array(tensor.shape[1:]) * present / wanted)
    resampled: MetaTensor = Spacing(pixdim=wanted, mode=mode, padding_mode="border")(tensor)
    return resampled.as_tensor()


def own_axes(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the affine of the same grid with its own axes taken for (S, A, R): spacing alone."""
    own: npt.NDArray[np.float64] = np.diag([*np.linalg.norm(affine[:3, :3], axis=0), 1.0])
    return own


def _spacing_zyx(inputs: AnyInput, scale: float, present_z: float) -> npt.NDArray[np.float64]:
    if isinstance(inputs, SliceInput):
        return np.array([present_z, *(step * scale for step in inputs.spacing_mm_yx)])
    z, y, x = np.array(inputs.spacing_mm_zyx) * scale
    return np.array([z if inputs.spatial_dims == 3 else present_z, y, x])


def _on_grid(tensor: torch.Tensor, inputs: Whole) -> torch.Tensor:
    depth = tensor.shape[1:2] if isinstance(inputs, SliceInput) else ()
    return _fitted(tensor, (*depth, *inputs.shape))


def _fitted(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    fitted: torch.Tensor = ResizeWithPadOrCrop(tuple(shape))(tensor)
    return fitted.as_tensor() if isinstance(fitted, MetaTensor) else fitted


def _require_readable(scan: CachedScan) -> None:
    voxels = int(np.prod(scan.stored_czyx.shape, dtype=np.int64))
    if voxels > _MOST_READ:
        raise DataError(
            f"A scan has {voxels:,} voxels; whole scans are read up to {_MOST_READ:,}. "
            "Use kind: patches in the experiment's input."
        )


def prepare_patch(
    scan: CachedScan,
    wanted: Wanted,
    grid: Grid,
    origin: Index,
    device: torch.device,
) -> Record:
    """Read, orient, resample, normalise and pad one patch; only what it covers is read.

    Values are normalised with the mean and deviation of the whole scan as stored.

    Args:
        origin: The patch's first voxel on ``grid``; negative where padding is in front.
        device: Where the work on voxels is done, and where the record ends up.

    Returns:
        A record of one image.

    Raises:
        DataError: The scan lacks the labels, or the part to be read is too large.
    """
    inputs = wanted.inputs
    if not isinstance(inputs, PatchInput):
        raise ValueError("the experiment's input is not of kind: patches")
    window = _Window(grid, origin, inputs.shape_zyx, device)
    require_bounded(np.array([part.stop - part.start for part in window.region], dtype=float))
    stored = window.turned(torch.from_numpy(scan.image(window.region)))
    image = window.padded(_scaled(_between(stored, window.reaches), scan))
    return Record(image.reshape(1, -1, *inputs.shape), _patch_labels(scan, wanted, window))


class _Window:
    """One patch's place: what it needs of the stored array, and how to turn that."""

    def __init__(self, grid: Grid, origin: Index, shape: Index, device: torch.device) -> None:
        s, a, r = (reach_of(grid, axis, origin[axis], shape[axis]) for axis in range(3))
        self.reaches = (s, a, r)
        self.region = stored_region(grid, self.reaches)
        self.grid = grid
        self.device = device

    def turned(self, stored: torch.Tensor) -> torch.Tensor:
        """Return (c, S, A, R) on the device, from (c, *the scan's own axes)."""
        turned = to_device(stored, self.device).permute(0, *(axis + 1 for axis in self.grid.axes))
        flips = [axis for axis, flipped in enumerate(self.grid.flipped, start=1) if flipped]
        return turned.flip(flips) if flips else turned

    def padded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Surround (c, S, A, R) with zeros where the patch lies outside the scan."""
        widths = [
            width for reach in reversed(self.reaches) for width in (reach.before, reach.after)
        ]
        return torch.nn.functional.pad(tensor, widths) if any(widths) else tensor


def _patch_labels(scan: CachedScan, wanted: Wanted, window: _Window) -> torch.Tensor:
    if wanted.learns != "voxels":
        return target_of(scan, wanted).to(window.device).repeat(1)
    classes = wanted.class_map.to(window.device)
    labels = window.turned(torch.from_numpy(scan.labels(window.region))[None])
    if not window.grid.is_stored:
        for axis, reach in enumerate(window.reaches, start=1):
            labels = labels.index_select(axis, torch.from_numpy(reach.nearest).to(window.device))
    return window.padded(_mapped(labels, classes)).reshape(1, *wanted.inputs.shape)


def _mapped(labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the experiment's classes; index_select takes a quarter of the time of indexing."""
    return classes.index_select(0, labels.reshape(-1).int()).reshape(labels.shape)


def _between(image: torch.Tensor, reaches: tuple[Reach, Reach, Reach]) -> torch.Tensor:
    """Interpolate linearly along one axis after another, which is trilinear interpolation."""
    for axis, reach in enumerate(reaches, start=1):
        if not reach.weights.any() and len(reach.low) == image.shape[axis]:
            continue
        low, high = torch.from_numpy(reach.low), torch.from_numpy(reach.high)
        shape = [-1 if other == axis else 1 for other in range(image.ndim)]
        weights = torch.from_numpy(reach.weights.astype(np.float32)).reshape(shape)
        image = torch.lerp(
            image.index_select(axis, low.to(image.device)),
            image.index_select(axis, high.to(image.device)),
            weights.to(image.device),
        )
    return image


def _scaled(image: torch.Tensor, scan: CachedScan) -> torch.Tensor:
    means = torch.tensor(scan.means, dtype=torch.float32, device=image.device)
    deviations = torch.tensor(scan.deviations, dtype=torch.float32, device=image.device)
    per_channel = (-1, 1, 1, 1)
    return (image - means.reshape(per_channel)) / deviations.clamp(min=1e-6).reshape(per_channel)
