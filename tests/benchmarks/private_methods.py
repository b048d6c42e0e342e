"""One step of training in several ways: without privacy, ours, and what Opacus offers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter, process_time
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import nn

from data_adapters.prepare import Record
from federation import steps
from federation.experiment import AnyLoss, Experiment
from federation.privacy.engine import SubjectOptimizer
from federation.privacy.gradients import subjects_at_a_time
from federation.privacy.plan import make_plan
from federation.privacy.random import SecureRandomness
from federation.steps import LocalWork, stepper
from tests.benchmarks.batched_gradients import Path, batched, layer_gradients, vmap_gradients
from tests.benchmarks.private_networks import Case

_gradients_of = steps.gradients_of
CLOCKS = {"wall": perf_counter, "processor": process_time}
BASELINE, SHIPPED = "without privacy", "ours: as shipped"
NOT_SHIPPED = "(not shipped: see docs/decisions/0009)"


@dataclass
class Watch:
    """Reads the clock within a step, and copies what is summed when it is asked to.

    Args:
        middle_s: When the sum was complete and the noise began; before a step's end.
        sums: The clipped sum of the last step that was to be copied, float64.
    """

    device: str
    clock: str = "wall"
    copies: bool = False
    middle_s: float | None = None
    sums: torch.Tensor | None = None

    def now(self) -> float:
        """Return seconds, after what the GPU still has to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return CLOCKS[self.clock]()

    def before_noise(self, parameters: Iterable[nn.Parameter]) -> None:
        """Note that the clipped sum stands."""
        self.middle_s = self.now()
        if self.copies:
            self.sums = flat(parameter.summed_grad for parameter in parameters)


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return all numbers one after another, float64 on the CPU."""
    return torch.cat([tensor.detach().double().flatten().cpu() for tensor in tensors])


@dataclass(frozen=True)
class Setting:
    """A network and a step's subjects; every row gets the same.

    Args:
        records: Already on the device.
    """

    case: Case
    clip_norm: float
    network: nn.Module
    records: list[Record]
    loss: AnyLoss
    watch: Watch

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained."""
        return list(self.network.parameters())

    def losses(self, network: nn.Module, records: Sequence[Record]) -> torch.Tensor:
        """Return the loss of each image, (images,)."""
        return steps.loss_per_image(network, records, loss=self.loss)


def make_setting(
    case: Case, clip_norm: float, watch: Watch, dtype: torch.dtype = torch.float32
) -> Setting:
    """Put a case on the device of the watch."""
    network, device = case.network().to(watch.device, dtype), watch.device
    records = [Record(r.images.to(device, dtype), r.labels.to(device)) for r in case.records()]
    return Setting(case, clip_norm, network, records, case.experiment().loss, watch)


Step = Callable[[], None]


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        start: Returns what takes a step.
        clips: What is clipped: ``subjects``, ``images`` or ``nothing``.
    """

    name: str
    start: Callable[[Setting], Step]
    clips: str = "subjects"


@dataclass(frozen=True)
class _Subjects:
    """Stands for a data set whose records are in memory."""

    records: list[Record]

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int, _uniforms: object) -> Record:
        return self.records[index]


def _without_privacy(setting: Setting) -> Step:
    """All images in one pass."""
    return _shipped_step(setting, setting.case.experiment())


def _ours(setting: Setting, path: Path | None = None) -> Step:
    """The engine's own step; with gradients of several subjects at once if a path is given."""

    class Watched(SubjectOptimizer):
        def add_noise(self) -> None:
            setting.watch.before_noise(self.params)
            super().add_noise()

    # This process measures one row and ends.
    steps.SubjectOptimizer = Watched
    at_a_time = subjects_at_a_time(setting.parameters)
    steps.gradients_of = _gradients_of if path is None else batched(_strictly(path), at_a_time)
    return _shipped_step(setting, setting.case.experiment(setting.clip_norm))


class PathFailedError(BaseException):
    """A path failed. No ``Exception``: it would go on, subject by subject, unnoticed."""


def _strictly(path: Path) -> Path:
    def strictly(*asks: Any) -> list[torch.Tensor]:
        try:
            return path(*asks)
        except Exception as error:
            raise PathFailedError(f"{path.__name__} failed: {error}") from error

    return strictly


def _shipped_step(setting: Setting, experiment: Experiment) -> Step:
    plan, randomness = make_plan(experiment), SecureRandomness()
    work = LocalWork(experiment, plan, setting.network, randomness, _fail)
    step, dataset = stepper(work), _Subjects(setting.records)
    return lambda: step(dataset, range(len(dataset)))


def _fail(what: str) -> None:
    """Where a site would go on: a row that skips subjects must not be measured."""
    raise  # noqa: PLE0704 - it is called inside an except


def _opacus_images(setting: Setting, *, functorch: bool = False) -> Step:
    """A gradient for each image, then the mean of each subject's; Opacus does the rest."""
    module = GradSampleModule(setting.network, loss_reduction="sum", force_functorch=functorch)
    optimizer = _opacus_optimizer(DPOptimizer, setting, len(setting.records))

    def step() -> None:
        setting.losses(module, setting.records).sum().backward()
        counts = [len(record.images) for record in setting.records]
        for parameter in optimizer.params:
            parameter.grad_sample = segment_means(parameter.grad_sample, counts)
        optimizer.clip_and_accumulate()
        _opacus_release(optimizer, setting.watch)

    return step


def segment_means(of_images: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Return each subject's mean: (images, *shape) to (subjects, *shape).

    >>> segment_means(torch.tensor([1.0, 3.0, 5.0]), [2, 1]).tolist()
    [2.0, 5.0]
    """
    sizes = torch.tensor(counts, device=of_images.device)
    owners = torch.repeat_interleave(torch.arange(len(counts), device=of_images.device), sizes)
    sums = of_images.new_zeros((len(counts), *of_images.shape[1:]))
    sums.index_add_(0, owners, of_images)
    return sums.div_(sizes.view(-1, *[1] * (of_images.ndim - 1)))


def _opacus_ghost(setting: Setting) -> Step:
    module = GradSampleModuleFastGradientClipping(
        setting.network, max_grad_norm=setting.clip_norm, use_ghost_clipping=True
    )
    num_images = sum(len(record.images) for record in setting.records)
    optimizer = _opacus_optimizer(DPOptimizerFastGradientClipping, setting, num_images)

    def step() -> None:
        losses = setting.losses(module, setting.records)
        DPTensorFastGradientClipping(module, optimizer, losses).backward()
        optimizer.accumulate()
        _opacus_release(optimizer, setting.watch)

    return step


def _opacus_optimizer(
    kind: type[DPOptimizer], setting: Setting, expected_batch: int
) -> DPOptimizer:
    experiment = setting.case.experiment(setting.clip_norm)
    return kind(
        torch.optim.SGD(setting.parameters, lr=experiment.optimizer.learning_rate),
        noise_multiplier=make_plan(experiment).noise_multiplier,
        max_grad_norm=setting.clip_norm,
        expected_batch_size=expected_batch,
    )


def _opacus_release(optimizer: DPOptimizer, watch: Watch) -> None:
    """Do what ``DPOptimizer.step`` does after clipping."""
    watch.before_noise(optimizer.params)
    optimizer.add_noise()
    optimizer.scale_grad()
    optimizer.original_optimizer.step()
    optimizer.zero_grad(set_to_none=True)


METHODS = (
    Method(BASELINE, _without_privacy, clips="nothing"),
    Method(SHIPPED, _ours),
    Method(f"batched by layer {NOT_SHIPPED}", partial(_ours, path=layer_gradients)),
    Method(f"batched by vmap {NOT_SHIPPED}", partial(_ours, path=vmap_gradients)),
    Method("Opacus hooks", _opacus_images),
    Method("Opacus functorch", partial(_opacus_images, functorch=True)),
    Method("Opacus ghost (images)", _opacus_ghost, clips="images"),
)
