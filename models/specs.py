"""Networks by name and numbers. A spec is data: it can never name code.

Torch-free, so that an experiment can be read where no torch is installed.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

Count = Annotated[int, Field(ge=1, le=4096)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class UNetSpec(_Spec):
    """MONAI ``UNet`` (Kerfoot et al. 2019).

    Attributes:
        channels: Feature maps per level, top first.
        strides: Downsampling between levels; one fewer than ``channels``.
        norm: ``instance`` (no learnt scale), ``group`` or ``batch``. Under privacy ``batch`` is
            refused: it mixes subjects.
    """

    kind: Literal["unet"] = "unet"
    spatial_dims: Literal[2, 3]
    in_channels: Count = 1
    channels: tuple[Count, ...] = Field(min_length=2, max_length=8)
    strides: tuple[Count, ...] = Field(min_length=1, max_length=7)
    num_res_units: Annotated[int, Field(ge=0, le=8)] = 0
    norm: Literal["instance", "group", "batch"] = "instance"

    @model_validator(mode="after")
    def _one_stride_between_levels(self) -> "UNetSpec":
        if len(self.strides) != len(self.channels) - 1:
            raise ValueError(
                f"strides has {len(self.strides)} entries for {len(self.channels)} channels; "
                f"give {len(self.channels) - 1}, one between each two levels"
            )
        return self


class SegResNetSpec(_Spec):
    """MONAI ``SegResNet`` (Myronenko 2018, arXiv 1810.11654), GroupNorm throughout."""

    kind: Literal["segresnet"] = "segresnet"
    spatial_dims: Literal[2, 3]
    in_channels: Count = 1
    init_filters: Annotated[int, Field(ge=8, le=256, multiple_of=8)] = 8
    blocks_down: tuple[Count, ...] = Field(default=(1, 2, 2, 4), min_length=2, max_length=6)
    blocks_up: tuple[Count, ...] = Field(default=(1, 1, 1), min_length=1, max_length=5)

    @model_validator(mode="after")
    def _one_up_block_between_levels(self) -> "SegResNetSpec":
        if len(self.blocks_up) != len(self.blocks_down) - 1:
            raise ValueError(
                f"blocks_up has {len(self.blocks_up)} entries for {len(self.blocks_down)} "
                f"blocks_down; give {len(self.blocks_down) - 1}"
            )
        return self


class DenseNetSpec(_Spec):
    """MONAI ``DenseNet`` (Huang et al. 2017, arXiv 1608.06993), a classifier, with GroupNorm.

    The first layers halve the grid twice, and each block but the last halves it again.

    Attributes:
        block_layers: Layers in each block.
        growth: Feature maps that each layer adds.
    """

    kind: Literal["densenet"] = "densenet"
    spatial_dims: Literal[2, 3]
    in_channels: Count = 1
    init_features: Annotated[int, Field(ge=8, le=256, multiple_of=8)] = 16
    growth: Annotated[int, Field(ge=8, le=128, multiple_of=8)] = 8
    block_layers: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        default=(2, 4, 4), min_length=1, max_length=6
    )

    @model_validator(mode="after")
    def _features_divide_into_groups(self) -> "DenseNetSpec":
        features = self.init_features
        for number, layers in enumerate(self.block_layers[:-1], start=1):
            features = (features + layers * self.growth) // 2
            if features % 4:
                raise ValueError(
                    f"block {number} ends with {features} feature maps, which GroupNorm cannot "
                    "divide into 4 groups. Let init_features and growth be multiples of "
                    f"{4 * 2 ** len(self.block_layers)}, or change block_layers"
                )
        return self


AnyModel = UNetSpec | SegResNetSpec | DenseNetSpec
ModelSpec = Annotated[AnyModel, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[AnyModel] = TypeAdapter(ModelSpec)


def parse_model_spec(values: dict[str, Any]) -> AnyModel:
    """Validate JSON values.

    Raises:
        pydantic.ValidationError: An unknown kind or key, or a value out of range.
    """
    return _ADAPTER.validate_python(values)
