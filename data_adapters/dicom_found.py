"""A walk over a source's files: what is kept of each, and what is wrong with the rest."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_adapters.dicom_directory import named_files
from data_adapters.dicom_headers import Instance, instance_of, read_header
from data_adapters.dicom_objects import MODALITY_OF, Kind
from data_adapters.gate import RARELY_ANNOTATED, identifying_keywords
from data_adapters.reasons import Unusable
from data_adapters.sources import DicomSource
from data_adapters.types import Quarantined, relative


def source_files(path: Path) -> tuple[Path, tuple[Path, ...], tuple[str, ...]]:
    """Return the folder that names start from, the files to look at, and names without a file.

    Args:
        path: A folder, all of which is looked at, or a DICOMDIR, of which only what it names is.

    Raises:
        DataError: ``path`` is a file and no DICOMDIR.
    """
    if path.is_dir():
        return path, tuple(_files(path)), ()
    files, missing = named_files(path)
    return path.parent, files, missing


def _files(root: Path) -> list[Path]:
    found = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return sorted(path for path in found if path.is_file())


@dataclass
class Found:
    """Tally of a walk."""

    quarantined: list[Quarantined] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    identifiers: Counter[str] = field(default_factory=Counter)
    num_foreign: int = 0
    num_indexes: int = 0

    def look_at(self, path: Path, root: Path) -> None:
        """Keep what is needed of one file."""
        from pydicom.errors import InvalidDicomError

        try:
            header, pixels_at = read_header(path)
            instance = instance_of(path, header, pixels_at)
            identifiers = identifying_keywords(header)
        except Unusable as reason:
            self.quarantined.append(reason.at(relative(path, root)))
            return
        except InvalidDicomError:
            # Files that say they are DICOM, and are not, may have been images.
            if path.suffix.casefold() in {".dcm", ".dicom"}:
                self.quarantined.append(Unusable("UNREADABLE_FILE").at(relative(path, root)))
            else:
                self.num_foreign += 1
            return
        except Exception:  # a damaged header can raise anything, and the text may quote it
            self.quarantined.append(Unusable("UNREADABLE_FILE").at(relative(path, root)))
            return
        if instance.kind is Kind.DIRECTORY:
            self.num_indexes += 1
            return
        self.identifiers.update(identifiers)
        self.instances.append(instance)

    def notes(self, source: DicomSource, num_labels_left_out: int) -> Iterator[str]:
        """Say what was passed over, and what was taken on trust."""
        for number, text in (
            (self.num_foreign, "files are not DICOM and were passed over."),
            (self.num_indexes, "DICOMDIR files were passed over; the folders were searched."),
            (num_labels_left_out, "label objects mean a series that the rule leaves out."),
        ):
            if number:
                yield f"{number} {text}"
        yield from self._on_trust(source)

    def _on_trust(self, source: DicomSource) -> Iterator[str]:
        silent = Counter(
            instance.public_modality
            for instance in self.instances
            if instance.sop_class in MODALITY_OF and not instance.burned_in
        )
        for modality, number in sorted(silent.items()):
            text = f"{number} {modality} files do not say whether text is burned in; accepted, as "
            if modality in RARELY_ANNOTATED:
                yield f"{text}{modality} images rarely carry any."
            elif modality in source.clean_modalities:
                yield f"{text}the site file declares {modality} clean."
