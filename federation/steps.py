"""One optimiser step at a site, under privacy and without."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import nn

from data_adapters.prepare import Record
from data_adapters.subjects import SubjectDataset
from federation.errors import OnFailure
from federation.experiment import Adam, DpAdam, Experiment
from federation.losses import loss_per_image
from federation.privacy.augmentation import augmented
from federation.privacy.engine import SubjectOptimizer
from federation.privacy.gradients import (
    Losses,
    each_by_itself,
    stacked,
    subject_gradient,
    subjects_at_a_time,
)
from federation.privacy.optimizers import UnbiasedAdam
from federation.privacy.plan import PrivacyPlan
from federation.privacy.random import Randomness
from federation.privacy.self_audit import SelfAudit

Step = Callable[[SubjectDataset, Sequence[int]], None]


@dataclass(frozen=True)
class LocalWork:
    """What one round's steps at one site are made of.

    Attributes:
        on_failure: Told, inside an ``except``, that one subject's gradient could not be computed.
        audit: Sees what happens to canaries that are sampled beside the subjects.
    """

    experiment: Experiment
    plan: PrivacyPlan
    network: nn.Module
    randomness: Randomness
    on_failure: OnFailure
    audit: SelfAudit | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are trained."""
        return [p for p in self.network.parameters() if p.requires_grad]

    @property
    def losses(self) -> Losses:
        """Return the loss of each image."""
        return partial(loss_per_image, loss=self.experiment.loss)

    @property
    def numbers_of_a_subject(self) -> int:
        """Return how many numbers the images of the largest possible subject hold."""
        inputs = self.experiment.input
        num_images = inputs.cap * self.experiment.augment.copies
        return num_images * inputs.num_channels * prod(inputs.shape)

    def record(self, dataset: SubjectDataset, subject: int) -> Record:
        """Return one subject's images as a step sees them."""
        uniforms = self.randomness.uniforms
        return augmented(dataset.record(subject, uniforms), self.experiment.augment, uniforms)


def example_record(experiment: Experiment, num_images: int) -> Record:
    """Return a made-up subject: noise, and labels that are all the first class, or 0."""
    generator = torch.Generator().manual_seed(0)
    shape, channels = experiment.input.shape, experiment.input.num_channels
    learns = experiment.task.learns
    labelled = shape if learns == "voxels" else ()
    images = torch.randn((num_images, channels, *shape), generator=generator)
    kind = torch.float32 if learns == "values" else torch.uint8
    return Record(images, torch.zeros((num_images, *labelled), dtype=kind))


def stepper(work: LocalWork) -> Step:
    """Return what takes one step over the sampled subjects."""
    return _private_stepper(work) if work.plan.is_private else _plain_stepper(work)


def make_optimizer(work: LocalWork, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the experiment's optimiser. What it adds to a gradient, it adds after noise."""
    spec = work.experiment.optimizer
    rate, decay = spec.learning_rate, spec.weight_decay
    if isinstance(spec, Adam):
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    if isinstance(spec, DpAdam):
        return UnbiasedAdam(
            parameters,
            learning_rate=rate,
            noise_stddev=work.plan.noise_stddev / work.plan.expected_batch,
            floor=spec.floor,
            weight_decay=decay,
        )
    return torch.optim.SGD(parameters, lr=rate, momentum=spec.momentum, weight_decay=decay)


def _private_stepper(work: LocalWork) -> Step:
    parameters, audit = work.parameters, work.audit
    stepped = parameters if audit is None else [*parameters, audit.parameter]
    optimizer = SubjectOptimizer(
        make_optimizer(work, stepped), plan=work.plan, randomness=work.randomness
    )

    def step(dataset: SubjectDataset, sampled: Sequence[int]) -> None:
        if audit is not None:
            audit.begin_step(sampled)
        real = [index for index in sampled if index < len(dataset)]
        for gradients in gradients_of(work, dataset, real):
            _add(optimizer, gradients, audit)
        if audit is None:
            optimizer.release_step()
            return
        audit.add_canaries(optimizer)
        optimizer.release_step(lambda: audit.end_step(audit.parameter.grad))

    return step


def _add(
    optimizer: SubjectOptimizer, gradients: Sequence[torch.Tensor], audit: SelfAudit | None
) -> None:
    """Add the subjects of one chunk, as if the audit's coordinates were not there."""
    watched: AbstractContextManager[None] = nullcontext()
    if audit is not None:
        watched = audit.watching(optimizer, gradients)
    with watched:
        optimizer.add_subjects(gradients)
    optimizer.forget_samples()


def gradients_of(
    work: LocalWork, dataset: SubjectDataset, subjects: Sequence[int]
) -> Iterator[list[torch.Tensor]]:
    """Yield the subjects' gradients, a few together: (subjects, *shape) for each parameter."""
    parameters = work.parameters
    at_a_time = subjects_at_a_time(parameters)

    def gradient(record: Record) -> list[torch.Tensor] | None:
        try:
            return subject_gradient(work.losses(work.network, [record]).mean(), parameters)
        except Exception:
            work.on_failure(_COUNTS_AS_ZERO)
            return None

    with each_by_itself(work.numbers_of_a_subject, parameters[0].device) as each:
        for start in range(0, len(subjects), at_a_time):
            records = _records(work, dataset, subjects[start : start + at_a_time])
            found = [one for one in each(gradient, records) if one is not None]
            if found:
                yield stacked(found)


# A failure that depends on one subject would tell the hub that it was sampled, at no cost: it
# counts as gradient zero, as NaN does, and only this site's log knows. What fails for every subject
# is found before approval.
_COUNTS_AS_ZERO = "a subject's gradient, which counts as zero,"


def _records(work: LocalWork, dataset: SubjectDataset, subjects: Sequence[int]) -> Iterator[Record]:
    """Prepare one subject after another: they draw from one source."""
    for subject in subjects:
        try:
            yield work.record(dataset, subject)
        except Exception:
            work.on_failure(_COUNTS_AS_ZERO)


def _plain_stepper(work: LocalWork) -> Step:
    optimizer = make_optimizer(work, work.parameters)

    def step(dataset: SubjectDataset, subjects: Sequence[int]) -> None:
        optimizer.zero_grad(set_to_none=True)
        records = [work.record(dataset, subject) for subject in subjects]
        if records:
            per_image = work.losses(work.network, records)
            shares = torch.cat([torch.full((len(r.images),), 1 / len(r.images)) for r in records])
            (per_image * shares.to(per_image)).sum().div(work.plan.expected_batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
