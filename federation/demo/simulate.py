"""Simulated subjects: brains deformed from a population average, so that nobody's scan is in them.

The MNI152 template (ICBM 2009a, nonlinear, symmetric) is the average of 152 adults. The nilearn
wheel carries it brain-extracted, with maps of grey and white matter (see NOTICE). A simulated
subject is that average, bent; a simulated scan is that subject in a pose, seen by a scanner:

    anatomy   per subject: scaling, shear, growth of the ventricles, folds and lobes moved by
              several millimetres, cortex thickness
    pose      per scan: rotation and shift of the head
    scanner   per site: brightness of each tissue, smooth shading, blur, Rician noise

Labels come from the same deformed tissue maps as the image, so they line up by construction.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from federation.errors import FederationError

Float = npt.NDArray[np.float32]
Scan = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]

CLASSES = ("background", "grey matter", "white matter")
"""Index = value in the labels."""

SHAPE_ZYX = (8, 80, 64)
SPACING_MM_ZYX = (6.0, 2.75, 2.75)
"""Distance between voxel centres: thick axial slices, as clinical protocols take them."""

CENTRE_RAS_MM = (0.0, -18.0, 17.0)
"""Middle of the volume in MNI space: the slices run from midbrain to above the ventricles."""

TEMPLATE_MM = 2.0
"""Grid on which the tissue maps are kept; finer would be lost in the voxels of the scan."""

TEMPLATE_ORIGIN_MM = np.array([-98.0, -134.0, -72.0], np.float32)
"""RAS millimetres of the template's first voxel, as in the affine of nilearn's files."""

SHARPNESS = 2.5
"""Power of the tissue maps: an average brain is blurred, a person's voxel is mostly one tissue."""

VENTRICLES_RAS_MM = (0.0, -10.0, 14.0)
VENTRICLES_REACH_MM = 26.0

# Bends: lobes and folds move by these standard deviations along each axis, over these lengths.
LOBES_MM, LOBES_STDDEV_MM = 28.0, 3.2
FOLDS_MM, FOLDS_STDDEV_MM = 12.0, 1.6
BEND_MM = 6.0
BEND_SHAPE = (26, 40, 34)
BEND_ORIGIN_MM = np.array([-(n - 1) / 2 * BEND_MM for n in reversed(BEND_SHAPE)], np.float32)


@dataclass(frozen=True)
class SiteStyle:
    """How one site's scanner shows a brain.

    Attributes:
        scale: Stored value of a signal of 1.
        fluid: Signal of cerebrospinal fluid, as ``grey`` and ``white`` are of theirs.
        noise_stddev: Of each of the two receiver channels, in units of signal.
        shading: Standard deviation of the smooth log gain over the image.
        blur_voxels: Standard deviation of the in-plane point spread.
    """

    name: str
    scale: float
    fluid: float
    grey: float
    white: float
    noise_stddev: float
    shading: float
    blur_voxels: float


NORTH = SiteStyle("north-hospital", 900, 0.22, 0.62, 1.00, 0.060, 0.12, 0.40)
SOUTH = SiteStyle("south-hospital", 310, 0.36, 0.68, 0.95, 0.065, 0.16, 0.50)
LAB = SiteStyle("bio-lab", 2400, 0.12, 0.54, 1.05, 0.070, 0.12, 0.35)
SITE_STYLES = {style.name: style for style in (NORTH, SOUTH, LAB)}


@dataclass(frozen=True)
class Anatomy:
    """One subject: how a point of that subject's head is found in the template.

    Attributes:
        stretch: 3x3, head millimetres to template millimetres.
        ventricles: Growth around the ventricles; 0.3 shows them 1 / (1 - 0.3) times larger.
        bend_mm: (3, z, y, x) displacement on the coarse grid of ``BEND_MM``, in RAS order.
        thickness: Added to the logarithm of grey against white: above 0 the cortex is thicker.
    """

    stretch: Float
    ventricles: float
    bend_mm: Float
    thickness: float


def affine_ras(
    shape_zyx: tuple[int, int, int] = SHAPE_ZYX,
    spacing_mm_zyx: tuple[float, float, float] = SPACING_MM_ZYX,
) -> npt.NDArray[np.float64]:
    """Return the 4x4 map from array indices (z, y, x) to RAS+ millimetres of the scanner.

    Axial as scanners store it: z runs upwards, rows to the back, columns to the subject's left.
    """
    affine = np.eye(4)
    dz, dy, dx = spacing_mm_zyx
    affine[:3, :3] = [[0, 0, -dx], [0, -dy, 0], [dz, 0, 0]]
    middle = (np.array(shape_zyx) - 1) / 2
    affine[:3, 3] = np.array(CENTRE_RAS_MM) - affine[:3, :3] @ middle
    return affine


AFFINE_RAS = affine_ras()


def simulate_subject(seed: int, style: SiteStyle, num_scans: int = 1) -> list[Scan]:
    """Return the scans of one simulated subject; the same arguments give the same bytes.

    Scans of a subject share the anatomy and differ in pose, shading and noise.

    Returns:
        For each scan the image (z, y, x) int16 and its labels (z, y, x) uint8, see ``CLASSES``.
        ``AFFINE_RAS`` is the geometry of all of them.
    """
    anatomy = draw_anatomy(np.random.default_rng([seed, 0]))
    generators = (np.random.default_rng([seed, 1 + number]) for number in range(num_scans))
    return [_scan(anatomy, style, rng) for rng in generators]


def _scan(anatomy: Anatomy, style: SiteStyle, rng: np.random.Generator) -> Scan:
    tissue = _tissue_fractions(anatomy, _posed_points(rng))
    fluid, grey, white = tissue
    labels = np.where(grey > white, 1, 2).astype(np.uint8)
    labels[grey + white < 0.5] = 0
    signal = style.fluid * fluid + style.grey * grey + style.white * white
    return _through_scanner(signal, style, rng), labels


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one subject. Spreads are chosen so that the average brain fits nobody well."""
    stretch = np.diag(1 / rng.normal(1.0, 0.06, 3)) + rng.normal(0, 0.03, (3, 3))
    bend_mm = _smooth_field(rng, LOBES_MM, LOBES_STDDEV_MM)
    bend_mm += _smooth_field(rng, FOLDS_MM, FOLDS_STDDEV_MM)
    ventricles, thickness = rng.uniform(-0.2, 0.45), rng.normal(0, 0.25)
    return Anatomy(stretch.astype(np.float32), float(ventricles), bend_mm, float(thickness))


def _smooth_field(rng: np.random.Generator, wavelength_mm: float, stddev_mm: float) -> Float:
    """White noise blurred to a length, then scaled back to the spread asked for."""
    noise = rng.standard_normal((3, *BEND_SHAPE)).astype(np.float32)
    sigma = wavelength_mm / 2 / BEND_MM
    smooth = ndimage.gaussian_filter(noise, (0, sigma, sigma, sigma), mode="wrap")
    field: Float = smooth * np.float32(stddev_mm / smooth.std())
    return field


@cache
def _voxel_points() -> Float:
    """RAS millimetres of every voxel from the middle of the volume, (3, number of voxels)."""
    index_zyx = np.indices(SHAPE_ZYX).reshape(3, -1)
    points = AFFINE_RAS[:3, :3] @ index_zyx + AFFINE_RAS[:3, 3:]
    centred: Float = (points - np.array(CENTRE_RAS_MM)[:, None]).astype(np.float32)
    return centred


def _posed_points(rng: np.random.Generator) -> Float:
    """Where each voxel lies in the head, millimetres from the head's middle."""
    nod, tilt, turn = np.deg2rad(rng.normal(0, (4.0, 3.0, 6.0)))
    rotation = _rotation(0, nod) @ _rotation(1, tilt) @ _rotation(2, turn)
    shift_mm = rng.normal(0, (4.0, 5.0, 4.0))
    posed: Float = (rotation @ _voxel_points() + shift_mm[:, None]).astype(np.float32)
    return posed


def _rotation(axis: int, angle: float) -> npt.NDArray[np.float64]:
    rotation = np.eye(3)
    first, second = [other for other in range(3) if other != axis]
    rotation[first, first] = rotation[second, second] = np.cos(angle)
    rotation[first, second], rotation[second, first] = -np.sin(angle), np.sin(angle)
    return rotation


def _tissue_fractions(anatomy: Anatomy, points: Float) -> Float:
    """Fluid, grey and white in each voxel, (3, z, y, x); what is left to 1 is outside the brain."""
    maps = _sample(template(), _template_points(anatomy, points), TEMPLATE_MM, TEMPLATE_ORIGIN_MM)
    maps[1] *= np.exp(anatomy.thickness)
    outside = np.clip(1 - maps.sum(axis=0), 0, 1)
    sharp = np.concatenate([maps, outside[None]]) ** SHARPNESS
    fractions: Float = sharp[:3] / np.maximum(sharp.sum(axis=0), 1e-6)
    return fractions.reshape(3, *SHAPE_ZYX)


def _template_points(anatomy: Anatomy, points: Float) -> Float:
    """Template millimetres of points of this subject's head."""
    bent: Float = points + _sample(anatomy.bend_mm, points, BEND_MM, BEND_ORIGIN_MM)
    stretched = anatomy.stretch @ bent + np.array(CENTRE_RAS_MM, np.float32)[:, None]
    away = stretched - np.array(VENTRICLES_RAS_MM, np.float32)[:, None]
    near = np.exp(-(away**2).sum(axis=0) / (2 * VENTRICLES_REACH_MM**2))
    moved: Float = stretched - anatomy.ventricles * near * away
    return moved


def _sample(maps: Float, points_mm: Float, spacing_mm: float, origin_mm: Float) -> Float:
    """Read maps (n, z, y, x) at RAS points (3, m), linearly; outside their grid they are 0."""
    index_xyz = (points_mm - origin_mm[:, None]) / spacing_mm
    values = [ndimage.map_coordinates(each, index_xyz[::-1], order=1) for each in maps]
    return np.stack(values).astype(np.float32)


def _through_scanner(
    signal: Float, style: SiteStyle, rng: np.random.Generator
) -> npt.NDArray[np.int16]:
    """Blur, shade, and take the magnitude of a signal with noise in both receiver channels."""
    blurred = ndimage.gaussian_filter(signal, (0, style.blur_voxels, style.blur_voxels))
    shaded = blurred * np.exp(style.shading * _shading(rng))
    noise = rng.normal(0, style.noise_stddev, (2, *SHAPE_ZYX))
    magnitude = np.hypot(shaded + noise[0], noise[1])  # Rician: Gudbjartsson and Patz, 1995
    stored: npt.NDArray[np.int16] = np.clip(np.rint(magnitude * style.scale), 0, 32767).astype(
        np.int16
    )
    return stored


def _shading(rng: np.random.Generator) -> Float:
    """A smooth field over the volume with mean 0 and standard deviation 1 (coil sensitivity)."""
    coarse = ndimage.gaussian_filter(rng.standard_normal((4, 5, 5)), 0.7)
    zoom = [full / small for full, small in zip(SHAPE_ZYX, coarse.shape, strict=True)]
    field = ndimage.zoom(coarse, zoom, order=3, mode="nearest")
    standard: Float = ((field - field.mean()) / field.std()).astype(np.float32)
    return standard


@cache
def template() -> Float:
    """Return maps of fluid, grey and white matter of the average brain, (3, z, y, x) in 0..1.

    Axes run upwards, to the front and to the right in steps of ``TEMPLATE_MM`` from
    ``TEMPLATE_ORIGIN_MM``. Slices are blurred to what a thick slice averages.
    """
    t1, grey, white = (_load_map(kind) for kind in ("t1", "gm", "wm"))
    fluid = np.clip((t1 > 0.1) - grey - white, 0, 1)
    thick = [
        ndimage.gaussian_filter(each, (1.2, 0.7, 0.7))[::2, ::2, ::2]
        for each in (fluid, grey, white)
    ]
    return np.stack(thick).astype(np.float32)


def _load_map(kind: str) -> Float:
    from nibabel.nifti1 import Nifti1Image

    path = _template_folder() / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.is_file():
        raise FederationError(
            f"{path} is missing: this nilearn does not carry the MNI152 template that the demo "
            "bends into subjects. Install the version that the demo was built on: "
            "pip install nilearn==0.13.1"
        )
    volume_xyz: Float = np.asarray(Nifti1Image.from_filename(path).dataobj, np.float32)
    scaled: Float = np.ascontiguousarray(volume_xyz.T) / volume_xyz.max()
    return scaled


def _template_folder() -> Path:
    """Find nilearn's data without importing it (2 s, and it brings scikit-learn along)."""
    found = find_spec("nilearn")
    if found is None or not found.submodule_search_locations:
        raise FederationError(
            "The demo's subjects are bent from the MNI152 template in the nilearn package, "
            "which is not installed. Install the demo's extra: pip install 'cohortium[demo]'"
        )
    return Path(found.submodule_search_locations[0]) / "datasets" / "data"
