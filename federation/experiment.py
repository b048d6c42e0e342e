"""The experiment: everything about a run that is public. It travels, and its digest names it."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from data_adapters.inputs import InputSpec, Learns, PatchInput
from federation.canonical import digest
from federation.cohort import CohortPolicy
from federation.data_use import DataUse
from federation.documents import Strict, load_document
from models.specs import ModelSpec

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Probability = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
NameStart = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.]+$")]
Trainable = Literal["all", "head"] | tuple[NameStart, ...]


class _Task(Strict):
    """What every task can say.

    Attributes:
        classes: Names, or coded concepts (``SCT:10200004``); each site maps its own to these.
        meanings: What coded concepts mean, for people; part of the digest, nothing else.
    """

    classes: tuple[Name, ...] = Field(min_length=2, max_length=256)
    meanings: dict[Name, Name] = Field(default_factory=dict)

    @property
    def lower_is_better(self) -> bool:
        """Tell whether less of the score is more."""
        return False

    @property
    def num_outputs(self) -> int:
        """Return how many numbers a network gives, of each voxel or each image."""
        return len(self.classes)

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

    @property
    def learns(self) -> Learns:
        """Return that labels are voxels."""
        return "voxels"


class ClassificationTask(_Task):
    """Give each image one of ``classes``; sites have them in a table (``targets``)."""

    kind: Literal["classification"] = "classification"

    @property
    def score(self) -> str:
        """Return the name of the score that sums a model up: area under the ROC curve."""
        return "auc"

    @property
    def learns(self) -> Learns:
        """Return that each scan has a class from a table."""
        return "targets"


class RegressionTask(Strict):
    """Give each image one number; sites have them in a table (``targets`` without ``classes``).

    The network learns (value - offset) / scale. Both are public and declared beforehand, such as
    the middle and half of the range that is known from the literature: the mean and deviation of
    protected subjects would tell of every one of them.

    Attributes:
        value: What the number is, with its unit, for people: ``age at scan, years``.
    """

    kind: Literal["regression"] = "regression"
    value: Name
    offset: Annotated[float, Field(allow_inf_nan=False)]
    scale: Positive

    @property
    def score(self) -> str:
        """Return the name of the score that sums a model up: mean absolute error, in the unit."""
        return "mae"

    @property
    def lower_is_better(self) -> bool:
        """Tell that less of the score is more."""
        return True

    @property
    def classes(self) -> tuple[str, ...]:
        """Return none."""
        return ()

    @property
    def num_outputs(self) -> int:
        """Return 1."""
        return 1

    @property
    def learns(self) -> Learns:
        """Return that each scan has a value from a table."""
        return "values"


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


class MeanSquaredError(Strict):
    """Square of the error of each image, in units of ``task.scale``."""

    kind: Literal["mean_squared_error"] = "mean_squared_error"


class SmoothL1(Strict):
    """Half the square of an error up to 1, in units of ``task.scale``, its size beyond.

    Far-off values then pull no harder than others (arXiv 1504.08083, equation 3).
    """

    kind: Literal["smooth_l1"] = "smooth_l1"


class _Grown(Strict):
    """A value that got settings after experiments had been signed.

    At their defaults the new ones are left out when it is written, so that the digest of an
    experiment from before is what it was.
    """

    added: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_added_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = write(self)
        fields = type(self).model_fields
        usual = [name for name in self.added if getattr(self, name) == fields[name].default]
        return {name: value for name, value in values.items() if name not in usual}


class _Optimizer(_Grown):
    """What every optimiser can say.

    Attributes:
        weight_decay: Added to the gradient, times the weights, after noise; off the weights
            themselves in ``dp_adam``.
    """

    added: ClassVar[tuple[str, ...]] = ("weight_decay",)
    learning_rate: Positive
    weight_decay: NotNegative = 0.0


class Sgd(_Optimizer):
    """Stochastic gradient descent; momentum sums what has been noised already."""

    added: ClassVar[tuple[str, ...]] = ("momentum", "weight_decay")
    kind: Literal["sgd"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0


class Adam(_Optimizer):
    """Adam (arXiv 1412.6980) at its usual betas; its state starts afresh each round."""

    kind: Literal["adam"] = "adam"


class DpAdam(_Optimizer):
    """Adam whose second moment is freed of the noise in it: DP-AdamBC (arXiv 2312.14334).

    Attributes:
        floor: Least value of the corrected second moment, gamma' in the paper. The largest
            step is learning_rate / sqrt(floor) times the first moment.
    """

    kind: Literal["dp_adam"] = "dp_adam"
    floor: Positive = 1e-8


class Augment(Strict):
    """Versions of each image inside its subject's mean gradient, at no cost in privacy.

    Attributes:
        copies: Versions of each image (augmentation multiplicity, arXiv 2204.13650).
        flips: Axes along which a version is flipped by a fair coin.
        shift_voxels: Furthest shift along each axis, either way, and at most half of it; what
            comes in is zero.
        intensity: Values are multiplied by 1 + u and moved by v; u and v are within this.
    """

    copies: Annotated[int, Field(ge=1, le=64)] = 1
    flips: tuple[Literal["z", "y", "x"], ...] = ()
    shift_voxels: Annotated[int, Field(ge=0, le=64)] = 0
    intensity: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def changes_anything(self) -> bool:
        """Tell whether a version can differ from its image."""
        return bool(self.flips or self.shift_voxels or self.intensity)

    @model_validator(mode="after")
    def _copies_differ(self) -> Self:
        if self.copies > 1 and not self.changes_anything:
            raise ValueError(
                "copies of an image are all the same; give flips, shift_voxels or "
                "intensity, or leave copies out"
            )
        return self


class FedAvg(_Grown):
    """Federated averaging (arXiv 1602.05629) with equal weights for sites.

    Attributes:
        steps_per_round: Optimiser steps at each site in each round.
        retries: Repeats of lost rounds that each site pays for beforehand: a repeat draws fresh
            noise, so that it costs what a round costs.
        ema_decay: The model of a run is the exponential moving average of its rounds' models, each
            older one counting this much less. Training goes on from the newest. 0: the newest.
        min_sites: A round with fewer valid updates is never completed: see ``cohort``.
    """

    added: ClassVar[tuple[str, ...]] = ("retries", "ema_decay")
    kind: Literal["fedavg"] = "fedavg"
    rounds: Annotated[int, Field(ge=1, le=10_000)]
    retries: Annotated[int, Field(ge=0, le=1_000)] = 0
    ema_decay: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    steps_per_round: Annotated[int, Field(ge=1, le=100_000)]
    min_sites: Annotated[int, Field(ge=1, le=1_000)] = 1

    @property
    def charges(self) -> int:
        """Return the most rounds that a site may be asked to pay for, repeats included."""
        return self.rounds + self.retries

    def foresees(self, round_number: int, attempt: int) -> bool:
        """Tell whether a hub may ask for this attempt at this round; both are counted from 1.

        >>> FedAvg(rounds=3, retries=1, steps_per_round=1).foresees(3, 2)
        True
        """
        return 1 <= round_number <= self.rounds and 1 <= attempt <= 1 + self.retries


class InitialWeights(Strict):
    """Weights that a run starts from instead of drawn ones. They are public: the author says so.

    Nobody's ledger pays for what they were learnt from, so that no subject of a site of this
    federation may be in it, unless it was learnt under that site's budget.

    Attributes:
        file: A safetensors file beside the experiment's, by its name alone.
        sha256: Of the file's bytes, as ``sha256sum`` prints it.
    """

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    public: Literal[True]


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
    # Far below, what the second clip adds to a norm (1e-6, Opacus) would shrink everybody.
    clip_norm: Annotated[float, Field(ge=1e-4, allow_inf_nan=False)] = 1.0


class NoPrivacy(Strict):
    """No protection: epsilon is infinite. A site's policy forbids it unless it says otherwise."""

    kind: Literal["none"] = "none"
    sampling_rate: Probability
    expected_batch: Positive


AnyTask = SegmentationTask | ClassificationTask | RegressionTask
Task = Annotated[AnyTask, Field(discriminator="kind")]
AnyLoss = DiceCrossEntropy | ForegroundDice | CrossEntropy | MeanSquaredError | SmoothL1
Loss = Annotated[AnyLoss, Field(discriminator="kind")]
Optimizer = Annotated[Sgd | Adam | DpAdam, Field(discriminator="kind")]
Privacy = Annotated[SubjectDP | NoPrivacy, Field(discriminator="kind")]


_FITTING = {
    "segmentation": ("unet", "segresnet", "dynunet", "attention_unet"),
    "classification": ("densenet", "resnet"),
    "regression": ("densenet", "resnet"),
}
_LOSSES = {
    "segmentation": ("dice_ce", "foreground_dice", "cross_entropy"),
    "classification": ("cross_entropy",),
    "regression": ("smooth_l1", "mean_squared_error"),
}


class Experiment(_Grown):
    """One federated experiment. See ``configs/demo.yaml`` for a commented one.

    Attributes:
        initial_weights: What to start from; drawn from ``seed`` where none are given.
        trainable: Which parameters are trained: ``all``, ``head`` (the last layer that has
            weights; it needs ``initial_weights``) or a list of how their names begin. The others
            stay as they arrive.
        cohort: Which sites should take part in a round, and what becomes of one with too few.
    """

    added: ClassVar[tuple[str, ...]] = ("augment", "initial_weights", "trainable", "cohort")
    format: Literal["cohortium-experiment/1"]
    name: Identifier
    purpose: Annotated[str, Field(min_length=1, max_length=1_000)]
    data_use: DataUse = DataUse()
    task: Task
    input: InputSpec
    model: ModelSpec
    augment: Augment = Augment()
    loss: Loss = DiceCrossEntropy()
    optimizer: Optimizer
    initial_weights: InitialWeights | None = None
    trainable: Trainable = "all"
    algorithm: FedAvg
    cohort: CohortPolicy = CohortPolicy()
    privacy: Privacy
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def digest(self) -> str:
        """Return ``"sha256:<hex>"`` over every field, defaults written out.

        Not so the defaults of settings that came later: see ``_Grown``.
        """
        return digest(self.model_dump(mode="json"))

    @model_validator(mode="before")
    @classmethod
    def _usual_loss(cls, values: Any) -> Any:
        """Take the task's first loss where none is given."""
        task = values.get("task") if isinstance(values, dict) else None
        kind = task.get("kind") if isinstance(task, dict) else None
        if kind in _LOSSES:
            return {"loss": {"kind": _LOSSES[kind][0]}, **values}
        return values

    @model_validator(mode="after")
    def _model_fits_task(self) -> Self:
        of_images = self.task.learns != "voxels"
        if of_images != self.model.classifies:
            raise ValueError(
                f"model kind '{self.model.kind}' does not fit a task of {self.task.kind}; "
                f"use {' or '.join(_FITTING[self.task.kind])}"
            )
        fitting = _LOSSES[self.task.kind]
        if self.loss.kind not in fitting:
            raise ValueError(
                f"loss '{self.loss.kind}' does not fit a task of {self.task.kind}; "
                f"use {' or '.join(fitting)}"
            )
        if of_images and isinstance(self.input, PatchInput) and self.input.foreground:
            raise ValueError("input.foreground needs labelled voxels; leave it out")
        return self

    @model_validator(mode="after")
    def _enough_sites_are_declared(self) -> Self:
        declared = self.cohort.num_sites
        if declared is not None and declared < self.algorithm.min_sites:
            raise ValueError(
                f"algorithm.min_sites is {self.algorithm.min_sites} but cohort.sites declares "
                f"{declared}; no round could ever have enough"
            )
        return self

    @model_validator(mode="after")
    def _augment_fits_input(self) -> Self:
        axes = ("z", "y", "x")[-self.input.spatial_dims :]
        if not set(self.augment.flips) <= set(axes):
            raise ValueError(f"augment.flips may name {', '.join(axes)} on this input")
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
        factor = self.model.downsampling
        if any(size % factor for size in self.input.shape):
            raise ValueError(
                f"the input shape {self.input.shape} must divide by {factor}, what the model "
                "downsamples by, along every axis"
            )
        return self


def load_experiment(path: Path) -> Experiment:
    """Read an experiment file.

    Raises:
        FederationError: Missing or invalid; says which key and what would do.
    """
    return load_document(path, Experiment, "experiment")
