"""What is trained: three networks of the house, and subjects whose images are noise."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from monai.networks.nets.resnet import ResNetBlock
from torch import nn

from data_adapters.prepare import Record
from federation.experiment import Experiment
from models.build import build_network
from tests.experiments import demo_values

IMAGE_COUNTS = (1, 4, 8)
CLASSES = ("a", "b", "c")


@dataclass(frozen=True)
class Case:
    """One network on one shape, and how many subjects with how many images a step has.

    Args:
        shape: Voxels of an image along each axis.
        width: Feature maps of the first layer.
        num_images: Of each subject.
    """

    kind: str
    shape: tuple[int, ...]
    width: int
    num_subjects: int = 8
    num_images: int = 1

    @property
    def title(self) -> str:
        """Return what the tables call it."""
        sides = " x ".join(map(str, self.shape))
        return f"{self.kind} on {sides}, {self.num_subjects} subjects a step"

    def with_images(self, num_images: int) -> "Case":
        """Return the same with another number of images a subject."""
        return replace(self, num_images=num_images)

    def with_subjects(self, num_subjects: int) -> "Case":
        """Return the same with another number of subjects a step."""
        return replace(self, num_subjects=num_subjects)

    def experiment(self, clip_norm: float | None = None) -> Experiment:
        """Return an experiment of one step; without a clip norm it is one without privacy."""
        privacy = {"sampling_rate": 0.02, "expected_batch": self.num_subjects}
        private = {"kind": "subject_dp", "epsilon": 8.0, "delta": 1e-5, "clip_norm": clip_norm}
        values = demo_values() | {
            "name": "bench",
            "task": {"kind": self._task, "classes": CLASSES},
            "input": self._input(),
            "model": self._model(),
            "loss": {"kind": "dice_ce" if self._labels_voxels else "cross_entropy"},
            "optimizer": {"kind": "sgd", "learning_rate": 1e-3},
            "algorithm": {"kind": "fedavg", "rounds": 1, "steps_per_round": 1},
            "privacy": privacy | (private if clip_norm else {"kind": "none"}),
        }
        return Experiment.model_validate(values)

    def network(self) -> nn.Module:
        """Return the network, with the same weights at each call, so that Opacus takes it too.

        Opacus's backward hooks refuse what overwrites a layer's output: activations in place, and
        ``out += residual`` in MONAI's ResNet.
        """
        network = build_network(self.experiment().model, num_classes=len(CLASSES))
        for layer in network.modules():
            if getattr(layer, "inplace", False):
                layer.inplace = False
            if type(layer) is ResNetBlock:
                layer.__class__ = AddingBlock
        return network.train()

    def records(self) -> list[Record]:
        """Return a step's subjects; they are the same at each call."""
        generator = torch.Generator().manual_seed(0)
        return [self._record(generator, contrast=1.0 + i) for i in range(self.num_subjects)]

    def _record(self, generator: torch.Generator, contrast: float) -> Record:
        images = contrast * torch.randn((self.num_images, 1, *self.shape), generator=generator)
        size = (self.num_images, *(self.shape if self._labels_voxels else ()))
        labels = torch.randint(len(CLASSES), size, generator=generator, dtype=torch.uint8)
        return Record(images, labels)

    @property
    def _labels_voxels(self) -> bool:
        return self.kind == "unet"

    @property
    def _task(self) -> str:
        return "segmentation" if self._labels_voxels else "classification"

    def _input(self) -> dict[str, Any]:
        kind, axes = ("slices", "yx") if len(self.shape) == 2 else ("volume", "zyx")
        grid = {f"shape_{axes}": self.shape, f"spacing_mm_{axes}": (1.0,) * len(self.shape)}
        return {"kind": kind, "cap": self.num_images} | grid

    def _model(self) -> dict[str, Any]:
        levels = tuple(self.width * 2**level for level in range(4))
        numbers = {
            "resnet": {"channels": levels},
            "densenet": {"init_features": self.width, "growth": max(8, self.width // 2)},
            # As in configs/hippocampus.yaml; its InstanceNorm has no weights.
            "unet": {"channels": levels[:3], "strides": (2, 2), "num_res_units": 1},
        }
        return {"kind": self.kind, "spatial_dims": len(self.shape)} | numbers[self.kind]


class AddingBlock(ResNetBlock):
    """MONAI's block with ``out + residual``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        out = self.act(self.bn1(self.conv1(x)))
        return self.act(self.bn2(self.conv2(out)) + residual)


FULL = {
    "resnet": Case("resnet", (64, 64), width=16),
    "densenet": Case("densenet", (64, 64), width=32),
    "unet": Case("unet", (32, 32, 32), width=16),
}
TINY = {
    "resnet": Case("resnet", (16, 16), width=8, num_subjects=3),
    "densenet": Case("densenet", (32, 32), width=16, num_subjects=3),
    "unet": Case("unet", (8, 8, 8), width=4, num_subjects=3),
}
