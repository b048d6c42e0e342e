"""DICOM and OME-Zarr to checked, pseudonymised scans with axes and millimetres.

Importing this package loads neither torch nor MONAI; ``DicomReader`` and ``OmeZarrReader`` do,
when first used.
"""

from typing import TYPE_CHECKING, Any

from data_adapters.errors import DataError
from data_adapters.splits import split_subjects

if TYPE_CHECKING:
    from data_adapters.monai_readers import DicomReader, OmeZarrReader

__all__ = ["DataError", "DicomReader", "OmeZarrReader", "split_subjects"]


def __getattr__(name: str) -> Any:
    if name in {"DicomReader", "OmeZarrReader"}:
        from data_adapters import monai_readers

        return getattr(monai_readers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
