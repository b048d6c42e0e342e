"""What each DICOM class is to us: a kind of image, labels, or something to pass over.

The class decides, never the header's own Modality: that is free text in practice.
"""

from enum import Enum


class Kind(Enum):
    """How an object's pixels are laid out."""

    SLICES = "one slice a file"
    FRAMES = "several slices a file"
    PLANAR = "one projection a file"
    SLIDE = "tiles of one large plane"
    SEGMENTATION = "voxel labels"
    CONTOURS = "contours"
    DIRECTORY = "an index of files"
    OTHER = "anything else"


_STORAGE = "1.2.840.10008.5.1.4.1.1."
DICOMDIR = "1.2.840.10008.1.3.10"
SLIDE_STORAGE = _STORAGE + "77.1.6"

# PS3.4 B.5. Public modality of each class whose images are read.
_IMAGES = {
    "2": ("CT", Kind.SLICES),
    "4": ("MR", Kind.SLICES),
    "128": ("PT", Kind.SLICES),
    "2.1": ("CT", Kind.FRAMES),  # Enhanced CT
    "2.2": ("CT", Kind.FRAMES),  # Legacy Converted Enhanced CT
    "4.1": ("MR", Kind.FRAMES),  # Enhanced MR
    "4.4": ("MR", Kind.FRAMES),  # Legacy Converted Enhanced MR
    "130": ("PT", Kind.FRAMES),  # Enhanced PET
    "128.1": ("PT", Kind.FRAMES),  # Legacy Converted Enhanced PET
    "1": ("CR", Kind.PLANAR),
    "1.1": ("DX", Kind.PLANAR),  # for presentation
    "1.1.1": ("DX", Kind.PLANAR),  # for processing
    "1.2": ("MG", Kind.PLANAR),
    "1.2.1": ("MG", Kind.PLANAR),
    "1.3": ("IO", Kind.PLANAR),
    "1.3.1": ("IO", Kind.PLANAR),
    "12.1": ("XA", Kind.PLANAR),
    "12.2": ("RF", Kind.PLANAR),
    "77.1.6": ("SM", Kind.SLIDE),
}
_LABELS = {
    "66.4": Kind.SEGMENTATION,
    "66.7": Kind.SEGMENTATION,  # Label Map Segmentation
    "481.3": Kind.CONTOURS,  # RT Structure Set
}
MODALITY_OF = {_STORAGE + uid: modality for uid, (modality, _) in _IMAGES.items()}
KIND_OF = {
    **{_STORAGE + uid: kind for uid, (_, kind) in _IMAGES.items()},
    **{_STORAGE + uid: kind for uid, kind in _LABELS.items()},
    DICOMDIR: Kind.DIRECTORY,
}
# Stored values that stand for something physical, so that a greyscale is never turned round
# (PS3.3 C.11.1.1.2 Hounsfield units, C.8.9.1.1.3 units of PET).
PHYSICAL = frozenset({"CT", "PT"})
LABEL_KINDS = frozenset({Kind.SEGMENTATION, Kind.CONTOURS})


def object_name(sop_class: str) -> str:
    """Return a class's name in PS3.6, such as ``MR Image Storage``.

    >>> object_name("1.2.840.10008.5.1.4.1.1.4"), object_name("")
    ('MR Image Storage', 'An object without a class')
    """
    from pydicom.uid import UID

    if not sop_class:
        return "An object without a class"
    name = UID(sop_class).name
    # A UID that is not in PS3.6 is its own name, and could be anything.
    return "An object of an unknown class" if name == sop_class else name
