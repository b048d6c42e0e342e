"""One NIfTI-1 or -2 file: its grid from the header alone, and its voxels as they are stored.

Header fields are those of nifti1.h: ``dim``, ``datatype``, ``scl_slope``, ``qform_code``,
``sform_code`` and ``xyzt_units``.
"""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.geometry import axis_steps
from data_adapters.reasons import Unusable

SUFFIXES = (".nii.gz", ".nii")
# xyzt_units, its lowest three bits: millimetres in one unit.
UNITS_MASK = 7
MILLIMETRES_IN_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}
KEPT_TYPES = {
    "uint8": np.uint8,
    "int8": np.int16,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.float32,
    "uint32": np.float32,
    "int64": np.float32,
    "uint64": np.float32,
    "float32": np.float32,
    "float64": np.float32,
}
# Whole numbers up to here are kept by float32 exactly.
LARGEST_EXACT = 1 << 24
# sizeof_hdr of NIfTI-2, in either byte order; NIfTI-1 has 348 (nifti2.h).
NIFTI2_HEADER_BYTES = 540
# Of the extender that follows a header (nifti1.h): its first byte says whether extensions do.
EXTENDER_BYTES = 4
# Extensions are passed over unread. What gzip unpacks to costs nothing to write, so neither they
# nor what follows the voxels may be much.
MAX_OFFSET_BYTES = 16 * 2**20
MAX_TRAILING_BYTES = 2**20
MAX_VOLUME_BYTES = 8 * 2**30
CHUNK_BYTES = 1 << 20
GRID_TOLERANCE_VOXELS = 0.05


@dataclass(frozen=True)
class NiftiVolume:
    """What a header says.

    Args:
        shape_zyx: Voxels; a plane has z = 1.
        offset_bytes: Where the voxels begin.
        affine_ras: Array indices (z, y, x) of voxel centres to RAS+ millimetres.
        slope: Real value = stored * slope + intercept; 1 and 0 where the header scales nothing.
        planar: The file has two dimensions only.
    """

    path: Path
    shape_zyx: tuple[int, int, int]
    stored_type: np.dtype[Any]
    offset_bytes: int
    affine_ras: NDArray[np.float64]
    slope: float
    intercept: float
    planar: bool

    def image(self) -> NDArray[Any]:
        """Return stored values (z, y, x) in a type that loses nothing visible.

        Raises:
            Unusable: UNDECODABLE_PIXELS, UNPACKS_TOO_LARGE, NOT_FINITE or UNSUPPORTED_PIXELS.
        """
        kept = KEPT_TYPES[self.stored_type.name]
        stored = self._stored()
        whole = self.stored_type.kind in "iu"
        if whole and kept is np.float32 and _largest(stored) > LARGEST_EXACT:
            raise Unusable("UNSUPPORTED_PIXELS", f"{self.stored_type.name}, beyond 2^24")
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, refused below
            image = np.ascontiguousarray(stored, dtype=kept)
        if not whole and not np.all(np.isfinite(image)):
            raise Unusable("NOT_FINITE")
        return image

    def label_values(self) -> NDArray[Any]:
        """Return label values (z, y, x). Floats are taken where all of them are whole numbers.

        Raises:
            Unusable: UNDECODABLE_PIXELS, UNPACKS_TOO_LARGE, NOT_FINITE or FRACTIONAL_LABELS.
        """
        stored = self._stored()
        if self.slope == 1 and self.intercept == 0 and stored.dtype.kind in "iu":
            return stored
        values = stored.astype(np.float64) * self.slope + self.intercept
        if not np.all(np.isfinite(values)):
            raise Unusable("NOT_FINITE")
        whole = np.round(values)
        # Scaled labels come back with the rounding of float32 factors.
        if np.abs(values - whole).max() > 1e-3 or np.abs(whole).max() > 2**53:
            raise Unusable("FRACTIONAL_LABELS")
        return whole.astype(np.int64)

    def _stored(self) -> NDArray[Any]:
        """Decode the voxels, reading a compressed file to its end: there its checksum is."""
        from nibabel.volumeutils import array_from_file

        x_y_z = self.shape_zyx[::-1]
        with _opened(self.path, "UNDECODABLE_PIXELS") as file:
            voxels = array_from_file(x_y_z, self.stored_type, file, self.offset_bytes, mmap=False)
            _drain(file)
        return np.asarray(voxels).T


def read_header(path: Path, *, placed: bool = True) -> NiftiVolume:
    """Return what the header says; no voxel is read.

    Args:
        placed: False for who wants values alone; the grid is then in no units and nowhere.

    Raises:
        Unusable: UNREADABLE_FILE, UNSUPPORTED_OBJECT, SEVERAL_TIME_POINTS, UNSUPPORTED_AXES,
            NO_PIXELS, COLOUR_IMAGE, UNSUPPORTED_PIXELS, TOO_LARGE, UNPACKS_TOO_LARGE, NOT_FINITE,
            NO_GEOMETRY, UNKNOWN_UNIT or SHEARED_GEOMETRY.
    """
    with _opened(path, "UNREADABLE_FILE") as file:
        header, _ = _header_in(file)
        offset_bytes = _offset(header)
    shape_xyz, planar = _shape(header)
    stored_type = _stored_type(header)
    if int(np.prod(shape_xyz, dtype=object)) * stored_type.itemsize > MAX_VOLUME_BYTES:
        raise Unusable("TOO_LARGE", f"{MAX_VOLUME_BYTES / 2**30:.0f} GiB")
    slope, intercept = _scaling(header)
    affine = _affine(header, planar) if placed else np.eye(4)
    return NiftiVolume(
        path=path,
        shape_zyx=(shape_xyz[2], shape_xyz[1], shape_xyz[0]),
        stored_type=stored_type,
        offset_bytes=offset_bytes,
        # The array is turned from (x, y, z) to (z, y, x), and its affine's columns with it.
        affine_ras=affine[:, [2, 1, 0, 3]],
        slope=slope,
        intercept=intercept,
        planar=planar,
    )


def header_notes(path: Path) -> tuple[bool, tuple[str, ...]]:
    """Return whether a unit of length is stated, and the header's free text fields that are used.

    A file that cannot be read says nothing; reading it will say why.
    """
    try:
        with _opened(path, "UNREADABLE_FILE") as file:
            header, extended = _header_in(file)
            has_unit = bool(int(header["xyzt_units"]) & UNITS_MASK)
            fields = ["descrip", "db_name", "aux_file", "intent_name"]
            used = [field for field in fields if field in header and header[field].item().strip()]
            # Extension 2 is a DICOM header, whole or in part.
            used += ["extension"] * extended
    except Unusable:
        return True, ()
    return has_unit, tuple(used)


def matched_labels(labels: NiftiVolume, image: NiftiVolume) -> NDArray[Any] | None:
    """Return label values on the image's grid, or None where the labels' grid is another.

    Axes that are stored in another order or direction are turned; nothing is resampled.

    Raises:
        Unusable: As ``NiftiVolume.label_values``.
    """
    turn = _turn(labels, image)
    if turn is None:
        return None
    order, flips = turn
    values = labels.label_values().transpose(order)
    return np.ascontiguousarray(np.flip(values, tuple(np.flatnonzero(flips))))


def same_grid(labels: NiftiVolume, image: NiftiVolume) -> bool:
    """Return whether the same points are sampled: all corners to a fraction of a voxel."""
    return _turn(labels, image) is not None


def _turn(labels: NiftiVolume, image: NiftiVolume) -> tuple[list[int], list[bool]] | None:
    """Return how the labels' axes become the image's: their order, and which are reversed."""
    to_image = np.linalg.inv(image.affine_ras) @ labels.affine_ras
    order = [int(np.argmax(np.abs(row))) for row in to_image[:3, :3]]
    shape = tuple(labels.shape_zyx[axis] for axis in order) if len({*order}) == 3 else ()
    if shape != image.shape_zyx:
        return None
    flips = [bool(to_image[axis, order[axis]] < 0) for axis in range(3)]
    expected = np.zeros((3, 4))
    for axis, (start, flip) in enumerate(zip(order, flips, strict=True)):
        expected[axis, start] = -1.0 if flip else 1.0
        expected[axis, 3] = shape[axis] - 1 if flip else 0.0
    last = np.subtract(labels.shape_zyx, 1)
    corners = np.array(np.meshgrid(*zip((0, 0, 0), last, strict=True), [1])).reshape(4, -1)
    apart = np.abs((to_image[:3] - expected) @ corners)
    return (order, flips) if apart.max() <= GRID_TOLERANCE_VOXELS else None


@contextmanager
def _opened(path: Path, code: str) -> Iterator[BufferedIOBase]:
    """Open a file, decompressing; whatever goes wrong inside becomes ``code``."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except Unusable:
        raise
    except Exception as error:  # zlib, OS and nibabel each have their own; the text quotes paths
        raise Unusable(code, type(error).__name__) from None


def _header_in(file: BufferedIOBase) -> tuple[Any, bool]:
    """Return the header, and whether extensions follow it; nibabel would read those, too."""
    import nibabel

    size = file.read(4)
    second = NIFTI2_HEADER_BYTES in (int.from_bytes(size, "little"), int.from_bytes(size, "big"))
    kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
    header = kind(size + file.read(kind.template_dtype.itemsize - len(size)))
    return header, file.read(EXTENDER_BYTES)[:1] not in (b"", b"\0")


def _offset(header: Any) -> int:
    """Return where the voxels begin; 0 stands for right after the header (nifti1.h, vox_offset)."""
    offset = int(header.get_data_offset()) or int(header.single_vox_offset)
    if offset > MAX_OFFSET_BYTES:
        raise Unusable("UNPACKS_TOO_LARGE", f"{MAX_OFFSET_BYTES // 2**20} MiB before its voxels")
    return offset


def _drain(file: BufferedIOBase) -> None:
    """Read on to the end, which is not far; a file that is not compressed has it within reach."""
    left = MAX_TRAILING_BYTES
    while isinstance(file, gzip.GzipFile) and (piece := file.read(CHUNK_BYTES)):
        left -= len(piece)
        if left < 0:
            raise Unusable("UNPACKS_TOO_LARGE", f"{MAX_TRAILING_BYTES // 2**20} MiB too much")


def _shape(header: Any) -> tuple[tuple[int, int, int], bool]:
    shape = [int(size) for size in header.get_data_shape()]
    if not shape or min(shape) < 1:
        raise Unusable("NO_PIXELS")
    if any(size > 1 for size in shape[4:]):
        raise Unusable("UNSUPPORTED_AXES", "more than four of them")
    if len(shape) > 3 and shape[3] > 1:
        raise Unusable("SEVERAL_TIME_POINTS", str(shape[3]))
    x, y, z = (*shape[:3], 1, 1)[:3]
    return (x, y, z), len(shape) <= 2


def _stored_type(header: Any) -> np.dtype[Any]:
    stored: np.dtype[Any] = header.get_data_dtype()
    if stored.fields:
        raise Unusable("COLOUR_IMAGE")
    if stored.name not in KEPT_TYPES:
        raise Unusable("UNSUPPORTED_PIXELS", stored.name)
    return stored


def _scaling(header: Any) -> tuple[float, float]:
    from nibabel.spatialimages import HeaderDataError

    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError:
        raise Unusable("NOT_FINITE") from None
    return (1.0, 0.0) if slope is None else (float(slope), float(intercept or 0.0))


def _affine(header: Any, planar: bool) -> NDArray[np.float64]:
    """Return array indices (x, y, z) to RAS+ millimetres: sform first, as nibabel and others."""
    unit = int(header["xyzt_units"]) & UNITS_MASK
    if unit not in MILLIMETRES_IN_UNIT:
        raise Unusable("UNKNOWN_UNIT", f"number {unit}")
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        raise Unusable("NO_GEOMETRY")
    try:
        affine = np.array(header.get_best_affine(), dtype=np.float64)
        affine[:3] *= MILLIMETRES_IN_UNIT[unit]
        if planar and not affine[:3, 2].any():
            normal = np.cross(affine[:3, 0], affine[:3, 1])
            affine[:3, 2] = normal / np.linalg.norm(normal)
        steps_mm = np.linalg.norm(affine[:3, :3], axis=0)
    except Exception:  # quaternions that are none raise several types
        raise Unusable("NO_GEOMETRY") from None
    if not np.all(np.isfinite(affine)) or not np.all(steps_mm > 0):
        raise Unusable("NO_GEOMETRY")
    try:
        axis_steps(affine)
    except ValueError:
        raise Unusable("SHEARED_GEOMETRY") from None
    return affine


def _largest(whole_numbers: NDArray[Any]) -> int:
    return max(abs(int(whole_numbers.min())), abs(int(whole_numbers.max())))
