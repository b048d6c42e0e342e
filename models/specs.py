"""Networks by name and numbers. A spec is data: it can never name code.

Torch-free, so that an experiment can be read where no torch is installed.
"""

from abc import ABC, abstractmethod
from math import prod
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    model_serializer,
    model_validator,
)

Count = Annotated[int, Field(ge=1, le=4096)]


Blocks = Annotated[int, Field(ge=1, le=64)]
Levels = Annotated[tuple[Count, ...], Field(min_length=2, max_length=8)]
Strides = Annotated[tuple[Count, ...], Field(min_length=1, max_length=7)]


class _Spec(BaseModel, ABC):
    """What every network can say.

    Attributes:
        weight_standardisation: Convolutions with weights of mean 0 and fixed deviation
            (arXiv 1903.10520), which helps small noisy batches. Written out only where it is on,
            so that the digests of experiments from before it stay what they were.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    weight_standardisation: bool = False

    @property
    def classifies(self) -> bool:
        """Tell whether there is one output an image; else there is one a voxel."""
        return False

    @property
    @abstractmethod
    def downsampling(self) -> int:
        """Return what every axis of a grid must divide by; 1: any grid not too small."""

    @model_serializer(mode="wrap")
    def _without_unused_options(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = plain(self)
        if not self.weight_standardisation:
            values.pop("weight_standardisation", None)
        return values


def _require_strides_between(channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
    if len(strides) != len(channels) - 1:
        raise ValueError(
            f"strides has {len(strides)} entries for {len(channels)} channels; "
            f"give {len(channels) - 1}, one between each two levels"
        )


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
    channels: Levels
    strides: Strides
    num_res_units: Annotated[int, Field(ge=0, le=8)] = 0
    norm: Literal["instance", "group", "batch"] = "instance"

    @model_validator(mode="after")
    def _one_stride_between_levels(self) -> "UNetSpec":
        _require_strides_between(self.channels, self.strides)
        return self

    @property
    def downsampling(self) -> int:
        """Return the product of the strides."""
        return prod(self.strides)


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

    @property
    def downsampling(self) -> int:
        """Return 2 for each level but the first."""
        return int(2 ** (len(self.blocks_down) - 1))


class DynUNetSpec(_Spec):
    """MONAI ``DynUNet``, the network of nnU-Net (arXiv 1809.10486), kernels of 3 voxels.

    Attributes:
        channels: Feature maps per level, top first.
        strides: Downsampling between levels; one fewer than ``channels``.
        res_block: Residual blocks instead of plain ones.
        norm: ``instance`` with learnt scale, as nnU-Net has it, or ``group``.
    """

    kind: Literal["dynunet"] = "dynunet"
    spatial_dims: Literal[2, 3]
    in_channels: Count = 1
    channels: Annotated[
        tuple[Annotated[int, Field(ge=4, le=4096, multiple_of=4)], ...],
        Field(min_length=3, max_length=8),
    ]
    strides: Strides
    res_block: bool = False
    norm: Literal["instance", "group"] = "instance"

    @model_validator(mode="after")
    def _one_stride_between_levels(self) -> "DynUNetSpec":
        _require_strides_between(self.channels, self.strides)
        return self

    @property
    def downsampling(self) -> int:
        """Return the product of the strides."""
        return prod(self.strides)


class AttentionUnetSpec(_Spec):
    """MONAI ``AttentionUnet`` (arXiv 1804.03999), its BatchNorm replaced by GroupNorm.

    Attributes:
        channels: Feature maps per level, top first.
        strides: Downsampling between levels; one fewer than ``channels``.
    """

    kind: Literal["attention_unet"] = "attention_unet"
    spatial_dims: Literal[2, 3]
    in_channels: Count = 1
    channels: Levels
    strides: Strides

    @model_validator(mode="after")
    def _one_stride_between_levels(self) -> "AttentionUnetSpec":
        _require_strides_between(self.channels, self.strides)
        return self

    @property
    def downsampling(self) -> int:
        """Return the product of the strides."""
        return prod(self.strides)


class _Classifier(_Spec):
    @property
    def classifies(self) -> bool:
        """Tell that there is one output an image."""
        return True

    @property
    def downsampling(self) -> int:
        """Return 1: pooling takes any grid that is not too small."""
        return 1


class DenseNetSpec(_Classifier):
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
    block_layers: tuple[Blocks, ...] = Field(default=(2, 4, 4), min_length=1, max_length=6)

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


class ResNetSpec(_Classifier):
    """MONAI ``ResNet`` (arXiv 1512.03385), a classifier, its BatchNorm replaced by GroupNorm.

    Four stages; each but the first halves the grid.

    Attributes:
        channels: Feature maps of each stage; the last layer of a bottleneck block has four times
            as many.
        blocks: Residual blocks of each stage.
        first_kernel: Voxels along each axis of the first convolution.
        first_stride: By which it divides the grid.
        max_pool: Halve the grid once more before the first stage.
    """

    kind: Literal["resnet"] = "resnet"
    spatial_dims: Literal[2, 3]
    in_channels: Count = 1
    block: Literal["basic", "bottleneck"] = "basic"
    channels: tuple[Count, Count, Count, Count] = (16, 32, 64, 128)
    blocks: tuple[Blocks, Blocks, Blocks, Blocks] = (1, 1, 1, 1)
    first_kernel: Literal[3, 5, 7] = 3
    first_stride: Literal[1, 2] = 1
    max_pool: bool = False


AnyModel = UNetSpec | SegResNetSpec | DynUNetSpec | AttentionUnetSpec | DenseNetSpec | ResNetSpec
ModelSpec = Annotated[AnyModel, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[AnyModel] = TypeAdapter(ModelSpec)


def parse_model_spec(values: dict[str, Any]) -> AnyModel:
    """Validate JSON values.

    Raises:
        pydantic.ValidationError: An unknown kind or key, or a value out of range.
    """
    return _ADAPTER.validate_python(values)
