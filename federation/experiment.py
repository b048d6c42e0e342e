"""The experiment: everything about a run that is public. It travels, and its digest names it."""

from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data_adapters.inputs import InputSpec, PatchInput
from federation.canonical import digest
from federation.data_use import DataUse
from federation.documents import Strict, load_document
from models.specs import AnyModel, DenseNetSpec, ModelSpec, UNetSpec

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Probability = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Task(Strict):
    """What every task can say.

    Attributes:
        classes: Names, or coded concepts (``SCT:10200004``); each site maps its own to these.
        meanings: What coded concepts mean, for people; part of the digest, nothing else.
    """

    classes: tuple[Name, ...] = Field(min_length=2, max_length=256)
    meanings: dict[Name, Name] = Field(default_factory=dict)

    def shown(self, name: str) -> str:
        """Return a class as people read it."""
        return self.meanings.get(name, name)

    @model_validator(mode="after")
    def _classes_differ(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name; give each its own")
        unknown = sorted(self.meanings.keys() - set(self.classes))
        if unknown:
            raise ValueError(f"meanings explains {unknown[0]!r}, which is none of the classes")
        if len({self.shown(name) for name in self.classes}) != len(self.classes):
            raise ValueError("two classes have the same meaning; give each its own")
        return self


class SegmentationTask(_Task):
    """Give each voxel one of ``classes``; the first is the background."""

    kind: Literal["segmentation"] = "segmentation"

    @property
    def score(self) -> str:
        """Return the name of the score that sums a model up: mean Dice without background."""
        return "dice"


class ClassificationTask(_Task):
    """Give each image one of ``classes``; sites have them in a table (``targets``)."""

    kind: Literal["classification"] = "classification"

    @property
    def score(self) -> str:
        """Return the name of the score that sums a model up: area under the ROC curve."""
        return "auc"


class DiceCrossEntropy(Strict):
    """Soft Dice over all classes plus cross-entropy, equal weights, mean over a subject."""

    kind: Literal["dice_ce"] = "dice_ce"


class ForegroundDice(Strict):
    """Soft Dice over all classes but the background, mean over a subject.

    Where the foreground is a few percent of an image, cross-entropy first teaches "all
    background", and under privacy the noise then hides the way out of it.
    """

    kind: Literal["foreground_dice"] = "foreground_dice"


class CrossEntropy(Strict):
    """Cross-entropy, mean over a subject: of images, or of all voxels of its images."""

    kind: Literal["cross_entropy"] = "cross_entropy"


class Sgd(Strict):
    """Plain stochastic gradient descent, no momentum."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: Positive


class Adam(Strict):
    """Adam (arXiv 1412.6980) at its usual betas; its state starts afresh each round."""

    kind: Literal["adam"] = "adam"
    learning_rate: Positive


class FedAvg(Strict):
    """Federated averaging (arXiv 1602.05629) with equal weights for sites.

    Attributes:
        steps_per_round: Optimiser steps at each site in each round.
        min_sites: A round with fewer valid updates ends the run with an error.
    """

    kind: Literal["fedavg"] = "fedavg"
    rounds: Annotated[int, Field(ge=1, le=10_000)]
    steps_per_round: Annotated[int, Field(ge=1, le=100_000)]
    min_sites: Annotated[int, Field(ge=1, le=1_000)] = 1


class SubjectDP(Strict):
    """Differential privacy of each site's subjects, for the whole run.

    Attributes:
        unit: What one privacy unit is: a subject with all of its images.
        adjacency: Neighbouring data sets differ by one subject added or removed.
        sampling_rate: Probability with which each subject enters a step, independently.
        expected_batch: Public constant that the noised sum is divided by, subjects.
        clip_norm: Largest L2 norm of one subject's gradient.
    """

    kind: Literal["subject_dp"] = "subject_dp"
    unit: Literal["subject"] = "subject"
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"
    epsilon: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
    delta: Annotated[float, Field(gt=0, lt=0.1, allow_inf_nan=False)]
    sampling_rate: Probability
    expected_batch: Positive
    clip_norm: Positive = 1.0


class NoPrivacy(Strict):
    """No protection: epsilon is infinite. A site's policy forbids it unless it says otherwise."""

    kind: Literal["none"] = "none"
    sampling_rate: Probability
    expected_batch: Positive


Task = Annotated[SegmentationTask | ClassificationTask, Field(discriminator="kind")]
AnyLoss = DiceCrossEntropy | ForegroundDice | CrossEntropy
Loss = Annotated[AnyLoss, Field(discriminator="kind")]
Optimizer = Annotated[Sgd | Adam, Field(discriminator="kind")]
Privacy = Annotated[SubjectDP | NoPrivacy, Field(discriminator="kind")]


class Experiment(Strict):
    """One federated experiment. See ``configs/demo.yaml`` for a commented one."""

    format: Literal["cohortium-experiment/1"]
    name: Identifier
    purpose: Annotated[str, Field(min_length=1, max_length=1_000)]
    data_use: DataUse = DataUse()
    task: Task
    input: InputSpec
    model: ModelSpec
    loss: Loss = DiceCrossEntropy()
    optimizer: Optimizer
    algorithm: FedAvg
    privacy: Privacy
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def digest(self) -> str:
        """Return ``"sha256:<hex>"`` over every field, defaults written out."""
        return digest(self.model_dump(mode="json"))

    @model_validator(mode="before")
    @classmethod
    def _usual_loss(cls, values: Any) -> Any:
        """Take cross-entropy for classification where no loss is given."""
        task = values.get("task") if isinstance(values, dict) else None
        if isinstance(task, dict) and task.get("kind") == "classification":
            return {"loss": {"kind": "cross_entropy"}, **values}
        return values

    @model_validator(mode="after")
    def _model_fits_task(self) -> Self:
        classifies = isinstance(self.task, ClassificationTask)
        if classifies != isinstance(self.model, DenseNetSpec):
            fitting = "densenet" if classifies else "unet or segresnet"
            raise ValueError(
                f"model kind '{self.model.kind}' does not fit a task of {self.task.kind}; "
                f"use {fitting}"
            )
        if classifies and not isinstance(self.loss, CrossEntropy):
            raise ValueError(f"loss '{self.loss.kind}' is for voxels; use cross_entropy")
        if classifies and isinstance(self.input, PatchInput) and self.input.foreground:
            raise ValueError("input.foreground needs labelled voxels; leave it out")
        return self

    @model_validator(mode="after")
    def _model_fits_input(self) -> Self:
        if self.model.spatial_dims != self.input.spatial_dims:
            raise ValueError(
                f"model.spatial_dims is {self.model.spatial_dims} but input kind "
                f"'{self.input.kind}' gives {self.input.spatial_dims}-D images"
            )
        if self.model.in_channels != self.input.num_channels:
            raise ValueError(
                f"model.in_channels is {self.model.in_channels} but images have "
                f"{self.input.num_channels} (named under input.channels; one if none is named)"
            )
        factor = _downsampling(self.model)
        if any(size % factor for size in self.input.shape):
            raise ValueError(
                f"the input shape {self.input.shape} must divide by {factor}, what the model "
                "downsamples by, along every axis"
            )
        return self


def _downsampling(model: AnyModel) -> int:
    """Return what a grid must divide by; classifiers take any that is not too small."""
    if isinstance(model, DenseNetSpec):
        return 1
    if isinstance(model, UNetSpec):
        return prod(model.strides)
    return int(2 ** (len(model.blocks_down) - 1))


def load_experiment(path: Path) -> Experiment:
    """Read an experiment file.

    Raises:
        FederationError: Missing or invalid; says which key and what would do.
    """
    return load_document(path, Experiment, "experiment")
