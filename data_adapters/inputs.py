"""What one subject's record is, as an experiment declares it. Torch-free."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_adapters.lengths import LengthMm

Size = Annotated[int, Field(ge=1, le=1024)]
# Classes of voxels, or a class or a value of each scan, from a table.
Learns = Literal["voxels", "targets", "values"]
ChannelName = Annotated[str, Field(min_length=1, max_length=64)]


class _Input(BaseModel):
    """What every kind of input can say.

    Attributes:
        channels: Names of the channels that the model sees, in its order. A site's data must have
            them; it may have more. Left out: the site's images have one channel.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    channels: Annotated[tuple[ChannelName, ...], Field(min_length=1, max_length=64)] | None = None

    @property
    def num_channels(self) -> int:
        """Return how many channels one image has."""
        return len(self.channels) if self.channels else 1

    @model_validator(mode="after")
    def _channels_differ(self) -> Self:
        if self.channels and len(set(self.channels)) != len(self.channels):
            raise ValueError("two of the channels have the same name; name each once")
        return self


class SliceInput(_Input):
    """Two-dimensional images: ``cap`` of them, drawn from all of a subject's scans.

    Axial slices of volumes; of planar scans (radiographs, 2-D microscopy) the plane as it is.

    Attributes:
        shape_yx: Grid after centre crop or zero padding, voxels.
        spacing_mm_yx: In-plane distance between voxel centres that scans are resampled to: mm, or
            text with a unit (``0.65 um``).
        cap: Slices that form one subject's record; the record is one privacy unit.
    """

    kind: Literal["slices"] = "slices"
    shape_yx: tuple[Size, Size]
    spacing_mm_yx: tuple[LengthMm, LengthMm]
    cap: Annotated[int, Field(ge=1, le=64)] = 2

    @property
    def spatial_dims(self) -> int:
        """Return 2."""
        return 2

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the grid of one image."""
        return self.shape_yx


class VolumeInput(_Input):
    """Whole scans: ``cap`` of a subject's scans, each on one fixed grid.

    Attributes:
        shape_zyx: Grid after centre crop or zero padding, voxels.
        spacing_mm_zyx: Distance between voxel centres that scans are resampled to: mm, or text
            with a unit.
        cap: Scans that form one subject's record; the record is one privacy unit.
    """

    kind: Literal["volume"] = "volume"
    shape_zyx: tuple[Size, Size, Size]
    spacing_mm_zyx: tuple[LengthMm, LengthMm, LengthMm]
    cap: Annotated[int, Field(ge=1, le=64)] = 1

    @property
    def spatial_dims(self) -> int:
        """Return 3."""
        return 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the grid of one image."""
        return self.shape_zyx


class PatchInput(_Input):
    """Patches: ``cap`` of them, each from one of a subject's scans, drawn afresh at each step.

    Only the part of a scan that a patch covers is read. Patches lie uniformly over a scan; scans
    smaller than a patch are padded with zero, which is the scan's mean after normalisation.

    Attributes:
        shape_zyx: Of a patch, voxels. With one along z, patches are two-dimensional: of axial
            slices, or of planar scans.
        spacing_mm_zyx: Distance between voxel centres that scans are resampled to: mm, or text
            with a unit. Of planar scans, the one along z means nothing.
        cap: Patches that form one subject's record; the record is one privacy unit.
        aligned: Patches start where stored chunks do, in scans that need no resampling: fewer
            chunks are decoded, from fewer places.
        foreground: Probability that the centre of a patch is a labelled voxel of its scan.

    >>> PatchInput(shape_zyx=(1, 256, 256), spacing_mm_zyx=(1, "0.65 um", "0.65 um")).shape
    (256, 256)
    """

    kind: Literal["patches"] = "patches"
    shape_zyx: tuple[Size, Size, Size]
    spacing_mm_zyx: tuple[LengthMm, LengthMm, LengthMm]
    cap: Annotated[int, Field(ge=1, le=64)] = 4
    aligned: bool = False
    foreground: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0

    @property
    def spatial_dims(self) -> int:
        """Return 2 for patches of one plane, else 3."""
        return 2 if self.shape_zyx[0] == 1 else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the grid of one patch."""
        return self.shape_zyx[-self.spatial_dims :]

    @model_validator(mode="after")
    def _one_rule_for_places(self) -> Self:
        if self.aligned and self.foreground:
            raise ValueError(
                "patches cannot both start at chunks (aligned) and be centred on labelled voxels "
                "(foreground); choose one"
            )
        return self


AnyInput = SliceInput | VolumeInput | PatchInput
InputSpec = Annotated[AnyInput, Field(discriminator="kind")]
