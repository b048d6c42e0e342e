"""Where a site keeps its images: pydantic specs for the site's own YAML. No torch, no readers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data_adapters.lengths import MILLIMETRES_IN, LengthMm

BACKGROUND = "background"
COLOURS = ("red", "green", "blue")
# Class indices are stored as uint8, and 0 is background.
MAX_CLASSES = 255

# A name the experiment declares ("liver"), or a coded concept ("SCT:10200004").
ClassName = Annotated[str, Field(min_length=1, max_length=64)]
Text = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Targets(_Strict):
    """A table that gives each scan a class or a value: CSV or Parquet.

    Args:
        path: The table.
        key: What ``id_column`` holds: the raw subject identifier, a DICOM study's or series' UID,
            or the image's path below the source's folder.
        column: Holds the class or the value.
        classes: What the column holds to class name. Without it the column holds numbers.

    >>> Targets(path="t.csv", key="subject", id_column="id", column="finding",
    ...         classes={"0": "normal", "1": "pneumonia"}).names()
    ('normal', 'pneumonia')
    """

    path: Path
    key: Literal["subject", "study", "series", "image"] = "subject"
    id_column: Text
    column: Text
    classes: dict[str, ClassName] | None = None

    def names(self) -> tuple[str, ...]:
        """Return the classes, sorted; empty where the column holds values."""
        return tuple(sorted(set((self.classes or {}).values())))


class SubjectRule(_Strict):
    """How raw identifiers become subjects.

    Args:
        issuer: Who assigned the identifiers of this source, where the files do not say.
        crosswalk: A table of identifier and person, for people known under several identifiers.
        id_column: Of the crosswalk: identifiers as in the files (with ``^^^issuer`` or without).
        subject_column: Of the crosswalk: the person.
    """

    issuer: Text | None = None
    crosswalk: Path | None = None
    id_column: Text = "id"
    subject_column: Text = "subject"


class Select(_Strict):
    """Which image series of a DICOM study is meant. Every given key must match.

    Args:
        description: SeriesDescription; ``*`` and ``?`` as in file names, any case.
        image_type: Values that ImageType must contain, such as ORIGINAL and PRIMARY; of a slide,
            that of any one of its levels.
        min_slices: Series with fewer are passed over.
    """

    modality: Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")] | None = None
    description: Text | None = None
    image_type: tuple[Text, ...] = ()
    min_slices: Annotated[int, Field(ge=1)] = 1


class Channel(_Strict):
    """One of several series of a study that form the channels of one image."""

    name: ClassName
    select: Select


class _Source(_Strict):
    """What every source can say.

    Args:
        targets: A table of classes or values, one for each scan.
        subjects: How raw identifiers become subjects.

    Attributes:
        needs_codecs: Its images are decoded from foreign bytes, in a process of its own.
    """

    needs_codecs: ClassVar[bool] = True

    path: Path
    targets: Targets | None = None
    subjects: SubjectRule = SubjectRule()

    def class_names(self) -> tuple[str, ...]:
        """Return the voxel classes; a class's place is its value in cached labels."""
        names = self._voxel_classes()
        return (BACKGROUND, *sorted(names - {BACKGROUND})) if names else ()

    def target_names(self) -> tuple[str, ...]:
        """Return the classes of ``targets``; a class's place is a scan's target."""
        return self.targets.names() if self.targets else ()

    def channel_names(self) -> tuple[str, ...]:
        """Return the channels in order; one without a name for single-channel sources."""
        return ("",)

    def located(self, home: Path) -> Self:
        """Return the source with its relative paths starting at ``home``."""
        return _located(self, home)

    def _voxel_classes(self) -> set[str]:
        raise NotImplementedError

    @model_validator(mode="after")
    def _labelled(self) -> Self:
        names = self._voxel_classes() - {BACKGROUND}
        if len(names) > MAX_CLASSES:
            raise ValueError(f"{len(names)} classes; at most {MAX_CLASSES} are possible")
        if not names and self.targets is None:
            raise ValueError(
                f"no class beside {BACKGROUND!r} and no table of targets: there is nothing to "
                "learn. Map the labels under 'classes', or name a table under 'targets'"
            )
        return self


class DicomSource(_Source):
    """DICOM images with DICOM SEG, RTSTRUCT or table labels, in any arrangement of folders.

    Args:
        path: A folder, searched with all its subfolders, or a DICOMDIR file.
        classes: SegmentLabel, ROIName, or a segment's coded type (``SCT:10200004``) to class name.
            Several labels may become one class.
        labels: Which labels count; ``any`` takes the one object that belongs to the series.
        overlaps: Where two classes claim a voxel: leave the scan out, or let the class that stands
            later under ``classes`` win.
        select: Which series of each study; exactly one must match.
        channels: Several series of each study, one image; the first is the grid of all.
        clean_modalities: Modalities such as CR and DX whose pixels the operator has checked for
            burned-in text.
        spacing: Of planar images whose header has none. Of slides, what training needs: the
            coarsest level that is still finer is read, the finest without it.
        colour: Slides in colour, whose channels are red, green and blue.

    >>> source = DicomSource(path=Path("scans"), classes={"Anterior": "head", "Posterior": "tail"})
    >>> source.class_names()
    ('background', 'head', 'tail')
    """

    kind: Literal["dicom"] = "dicom"
    classes: dict[str, ClassName] = Field(default_factory=dict)
    labels: Literal["any", "seg", "rtstruct"] = "any"
    overlaps: Literal["refuse", "last_wins"] = "refuse"
    select: Select | None = None
    channels: tuple[Channel, ...] = ()
    clean_modalities: tuple[Annotated[str, Field(pattern=r"^[A-Z]{2}$")], ...] = ()
    spacing: LengthMm | None = None
    colour: bool = False

    def channel_names(self) -> tuple[str, ...]:
        """Return the channels in order."""
        if self.colour:
            return COLOURS
        return tuple(channel.name for channel in self.channels) or ("",)

    def _voxel_classes(self) -> set[str]:
        return set(self.classes.values())

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.select and self.channels:
            raise ValueError("give 'select' for one series, or 'channels' for several, not both")
        if self.colour and self.channels:
            raise ValueError("give 'channels' for several series, or 'colour' for one, not both")
        _check_different([channel.name for channel in self.channels], "channels")
        return self


class DicomWebSource(DicomSource):
    """A PACS that speaks DICOMweb (PS3.18); what the query finds is mirrored at the site first.

    Credentials come from the environment: COHORTIUM_DICOMWEB_TOKEN (bearer), or
    COHORTIUM_DICOMWEB_USER and COHORTIUM_DICOMWEB_PASSWORD (basic).

    Args:
        path: The mirror: an empty folder at the site, kept between ingests.
        url: The DICOMweb root, ``https://pacs.example/dicom-web``. Plain http only to this machine.
        modality: Of the studies' image series, such as MR.
        study_dates: First and last day, ``YYYYMMDD``.
        study_description: ``*`` and ``?`` as in file names, any case.
        limit: Most studies that are taken.
        connections: Requests at a time.
        ca_file: Certificates to trust beside the system's.
    """

    kind: Literal["dicomweb"] = "dicomweb"  # type: ignore[assignment]
    url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")]
    modality: Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")] | None = None
    study_dates: (
        tuple[Annotated[str, Field(pattern=r"^\d{8}$")], Annotated[str, Field(pattern=r"^\d{8}$")]]
        | None
    ) = None
    study_description: Text | None = None
    limit: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    connections: Annotated[int, Field(ge=1, le=16)] = 4
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        if self.study_dates and self.study_dates[0] > self.study_dates[1]:
            raise ValueError("study_dates: the first day is after the last")
        if self.targets and self.targets.key == "image":
            raise ValueError("files of a PACS have no paths: 'key' is subject, study or series")
        return self


class Instances(_Strict):
    """How an instance mask (each object a number of its own) becomes semantic classes.

    Args:
        interior: The class of every voxel that belongs to an object.
    """

    interior: ClassName


class OmeZarrSource(_Source):
    """OME-Zarr 0.4 or 0.5 images, 2-D to 5-D: ``<path>/<subject>/<anything>.ome.zarr``.

    HCS plates and bioformats2raw collections are found in the same place; each field or series in
    them is one image.

    Args:
        path: Its subfolders name the subjects, unless ``images`` does.
        images: A table of images: ``path`` (below ``path``, or an http(s) or s3 URL) and
            ``subject``. Remote stores cannot be listed, so they need one.
        labels: The name of the labels group inside each image.
        classes: Label value to class name. 0 is background and may be left out.
        instances: In place of ``classes`` for instance masks.
        channels: By name (omero metadata) or index, in the order that the experiment has.
        time: Which time point of an image with several.
        spacing: What training needs: the coarsest level that is still finer is read. The finest
            level without it.
        unit: Of spatial axes that state none; without it such images are left out.
        wells: A table ``well`` (such as ``B/3``), ``subject`` for plates: one donor is one subject.
        rechunk: Copy into the cache in chunks of 64. Else a valid image is read where it lies.
        modality: Public name of the kind of image; OME-Zarr does not say it.
    """

    needs_codecs: ClassVar[bool] = False

    kind: Literal["ome_zarr"] = "ome_zarr"
    images: Path | None = None
    labels: Annotated[str, Field(min_length=1)] | None = None
    classes: dict[int, ClassName] = Field(default_factory=dict)
    instances: Instances | None = None
    channels: tuple[int | str, ...] = (0,)
    time: Annotated[int, Field(ge=0)] | None = None
    spacing: LengthMm | None = None
    unit: str | None = None
    wells: Path | None = None
    rechunk: bool = False
    modality: Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")] = "OT"

    def channel_names(self) -> tuple[str, ...]:
        """Return the channels in order."""
        if len(self.channels) == 1:
            return ("",)
        return tuple(str(channel) for channel in self.channels)

    def _voxel_classes(self) -> set[str]:
        return {self.instances.interior} if self.instances else set(self.classes.values())

    @field_validator("classes")
    @classmethod
    def _zero_is_background(cls, classes: dict[int, str]) -> dict[int, str]:
        if 0 in classes and classes[0] != BACKGROUND:
            raise ValueError(f"label value 0 is always {BACKGROUND!r}")
        return classes

    @field_validator("labels")
    @classmethod
    def _one_path_part(cls, labels: str | None) -> str | None:
        if labels and ("/" in labels or "\\" in labels or labels in {".", ".."}):
            raise ValueError("labels is the name of a group inside each image, not a path")
        return labels

    @field_validator("unit")
    @classmethod
    def _known_unit(cls, unit: str | None) -> str | None:
        if unit is not None and unit not in MILLIMETRES_IN:
            raise ValueError(f"unit is one of {', '.join(MILLIMETRES_IN)}")
        return unit

    @field_validator("channels")
    @classmethod
    def _usable_channels(cls, channels: tuple[int | str, ...]) -> tuple[int | str, ...]:
        if not channels or any(isinstance(c, int) and c < 0 for c in channels):
            raise ValueError("channels are names, or indices from 0; at least one")
        _check_different(channels, "channels")
        return channels

    @model_validator(mode="after")
    def _voxel_labels(self) -> Self:
        if self.classes and self.instances:
            raise ValueError("give 'classes' for semantic labels or 'instances', not both")
        if bool(self.labels) != bool(self.classes or self.instances):
            raise ValueError("'labels' names the group that 'classes' or 'instances' explains")
        return self


class NiftiSource(_Source):
    """NIfTI-1 and -2 files: a BIDS data set, or ``<path>/<subject>/<image>.nii.gz``.

    Args:
        path: A BIDS root (``dataset_description.json``), or a folder of subject folders.
        image: Which files are images: the end of their name, such as ``_T1w`` or ``_FLAIR``. Empty
            for every file that is not labels.
        labels: The end of the name of the labels that lie beside an image or below
            ``derivatives/``, such as ``_dseg``.
        classes: Label value to class name. 0 is background and may be left out.
        modality: Public name of the kind of image; NIfTI does not say it.
    """

    kind: Literal["nifti"] = "nifti"
    image: Annotated[str, Field(max_length=200)] = "_T1w"
    labels: Text | None = None
    classes: dict[int, ClassName] = Field(default_factory=dict)
    modality: Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")] = "MR"

    def _voxel_classes(self) -> set[str]:
        return set(self.classes.values())

    @field_validator("classes")
    @classmethod
    def _zero_is_background(cls, classes: dict[int, str]) -> dict[int, str]:
        if 0 in classes and classes[0] != BACKGROUND:
            raise ValueError(f"label value 0 is always {BACKGROUND!r}")
        return classes

    @model_validator(mode="after")
    def _voxel_labels(self) -> Self:
        if bool(self.labels) != bool(self.classes):
            raise ValueError("'labels' names the files that 'classes' explains; give both")
        if self.targets and self.targets.key not in {"subject", "image"}:
            raise ValueError("'key' of targets is 'subject' or 'image': NIfTI has no studies")
        return self


AnySource = DicomSource | DicomWebSource | OmeZarrSource | NiftiSource
Source = Annotated[AnySource, Field(discriminator="kind")]


def class_values(source: AnySource, classes: Mapping[Any, str]) -> dict[Any, int]:
    """Return what each key of ``classes`` is stored as in cached labels.

    >>> source = OmeZarrSource(path="x", labels="l", classes={1: "tail", 2: "head"})
    >>> class_values(source, source.classes)
    {1: 2, 2: 1}
    """
    names = source.class_names()
    return {key: names.index(name) for key, name in classes.items()}


def _check_different(values: Iterable[Any], what: str) -> None:
    values = list(values)
    if len(set(values)) != len(values):
        raise ValueError(f"two of the {what} have the same name; give each its own")


def _located(model: Any, home: Path) -> Any:
    """Make every path in a model absolute; tables named in models inside it, too."""
    changes: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Path):
            changes[name] = home / value
        elif isinstance(value, BaseModel):
            changes[name] = _located(value, home)
    return model.model_copy(update=changes)
