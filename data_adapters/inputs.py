"""What one subject's record is, as an experiment declares it. Torch-free."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Size = Annotated[int, Field(ge=1, le=1024)]
SpacingMm = Annotated[float, Field(gt=0, le=100)]


class SliceInput(BaseModel):
    """Two-dimensional axial slices: ``cap`` of them, drawn from all of a subject's scans.

    Attributes:
        shape_yx: Grid after centre crop or zero padding, voxels.
        spacing_mm_yx: In-plane distance between voxel centres that scans are resampled to, mm.
        cap: Slices that form one subject's record; the record is one privacy unit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["slices"] = "slices"
    shape_yx: tuple[Size, Size]
    spacing_mm_yx: tuple[SpacingMm, SpacingMm]
    cap: Annotated[int, Field(ge=1, le=64)] = 2

    @property
    def spatial_dims(self) -> int:
        """Return 2."""
        return 2

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the grid of one image."""
        return self.shape_yx


class VolumeInput(BaseModel):
    """Whole scans: ``cap`` of a subject's scans, each on one fixed grid.

    Attributes:
        shape_zyx: Grid after centre crop or zero padding, voxels.
        spacing_mm_zyx: Distance between voxel centres that scans are resampled to, mm.
        cap: Scans that form one subject's record; the record is one privacy unit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["volume"] = "volume"
    shape_zyx: tuple[Size, Size, Size]
    spacing_mm_zyx: tuple[SpacingMm, SpacingMm, SpacingMm]
    cap: Annotated[int, Field(ge=1, le=64)] = 1

    @property
    def spatial_dims(self) -> int:
        """Return 3."""
        return 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the grid of one image."""
        return self.shape_zyx


InputSpec = Annotated[SliceInput | VolumeInput, Field(discriminator="kind")]
