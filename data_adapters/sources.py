"""Where a site keeps its images: pydantic specs for the site's own YAML. No torch, no readers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

BACKGROUND = "background"
# Class indices are stored as uint8, and 0 is background.
MAX_CLASSES = 255

ClassName = Annotated[str, Field(min_length=1, max_length=64)]


class DicomSource(BaseModel):
    """A folder of single-frame DICOM series with DICOM SEG labels, in any arrangement.

    Args:
        path: Searched with all its subfolders.
        classes: SegmentLabel to class name. Several labels may become one class.

    >>> source = DicomSource(path=Path("scans"), classes={"Anterior": "head", "Posterior": "tail"})
    >>> source.class_names()
    ('background', 'head', 'tail')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["dicom"] = "dicom"
    path: Path
    classes: dict[str, ClassName] = Field(min_length=1)

    def class_names(self) -> tuple[str, ...]:
        """Return the classes; a class's place is its value in cached labels."""
        return _class_names(self.classes.values())

    @field_validator("classes")
    @classmethod
    def _usable_classes(cls, classes: dict[str, str]) -> dict[str, str]:
        _check_classes(classes.values())
        return classes


class OmeZarrSource(BaseModel):
    """A folder of OME-Zarr 0.4 or 0.5 images: ``<path>/<subject>/<anything>.ome.zarr``.

    Args:
        path: Its subfolders name the subjects.
        labels: The name of the labels group inside each image.
        classes: Label value to class name. 0 is background and may be left out.
        channel: Which channel of a (c, z, y, x) image is read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ome_zarr"] = "ome_zarr"
    path: Path
    labels: str = Field(min_length=1)
    classes: dict[int, ClassName] = Field(min_length=1)
    channel: int = Field(default=0, ge=0)

    def class_names(self) -> tuple[str, ...]:
        """Return the classes; a class's place is its value in cached labels."""
        return _class_names(self.classes.values())

    @field_validator("classes")
    @classmethod
    def _usable_classes(cls, classes: dict[int, str]) -> dict[int, str]:
        if 0 in classes and classes[0] != BACKGROUND:
            raise ValueError(f"label value 0 is always {BACKGROUND!r}")
        _check_classes(classes.values())
        return classes

    @field_validator("labels")
    @classmethod
    def _one_path_part(cls, labels: str) -> str:
        if "/" in labels or "\\" in labels or labels in {".", ".."}:
            raise ValueError("labels is the name of a group inside each image, not a path")
        return labels


Source = Annotated[DicomSource | OmeZarrSource, Field(discriminator="kind")]


def _class_names(names: Iterable[str]) -> tuple[str, ...]:
    unique = set(names) - {BACKGROUND}
    return (BACKGROUND, *sorted(unique))


def _check_classes(names: Iterable[str]) -> None:
    num_classes = len(_class_names(names)) - 1
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ValueError(
            f"{num_classes} classes beside {BACKGROUND!r}; between 1 and {MAX_CLASSES} are possible"
        )
