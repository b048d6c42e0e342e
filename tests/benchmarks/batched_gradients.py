"""Many subjects' gradients at once: faster, equal to 1e-5, and not shipped.

Rounding of one subject's gradient depends here on who is computed beside it, which a hub can
amplify until one subject moves a step's sum past the clip norm: see
docs/decisions/0009-gradient-paths.md. What compares speed or settings on published images, where
nobody attacks, may use it.

A path is ``path(network, parameters, records, losses)`` and returns, for each parameter, the
gradients of all records, (subjects, *shape): of each record the mean loss over its own images.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from data_adapters.prepare import Record, to_device
from data_adapters.subjects import SubjectDataset
from federation.privacy.engine import subject_norms
from federation.privacy.gradients import Losses, stacked, subject_gradient
from federation.steps import LocalWork
from federation.steps import gradients_of as one_by_one
from tests.benchmarks.batched_layers import StandIns, are_layers_known, layers_by_subject

Path = Callable[[nn.Module, Sequence[nn.Parameter], Sequence[Record], Losses], list[torch.Tensor]]
GradientsOf = Callable[[LocalWork, SubjectDataset, Sequence[int]], Iterator[list[torch.Tensor]]]

# Two paths give the same gradient to this, relative to its norm.
AGREEMENT = 1e-5


def batched(path: Path, at_a_time: int) -> GradientsOf:
    """Return what can stand in for ``federation.steps.gradients_of``.

    A chunk that fails is computed one by one, so that only the subject that fails counts as zero.
    """

    def gradients_of(
        work: LocalWork, dataset: SubjectDataset, subjects: Sequence[int]
    ) -> Iterator[list[torch.Tensor]]:
        for start in range(0, len(subjects), at_a_time):
            chunk = subjects[start : start + at_a_time]
            try:
                records = [work.record(dataset, subject) for subject in chunk]
                found = path(work.network, work.parameters, records, work.losses)
            except Exception:
                yield from one_by_one(work, dataset, chunk)
            else:
                yield found

    return gradients_of


def loop_gradients(
    network: nn.Module,
    parameters: Sequence[nn.Parameter],
    records: Sequence[Record],
    losses: Losses,
) -> list[torch.Tensor]:
    """Return the subjects' gradients, one subject after another, each by itself."""
    return stacked(
        [subject_gradient(losses(network, [record]).mean(), parameters) for record in records]
    )


def vmap_gradients(
    network: nn.Module,
    parameters: Sequence[nn.Parameter],
    records: Sequence[Record],
    losses: Losses,
) -> list[torch.Tensor]:
    """Return the subjects' gradients, all at once, by ``torch.func.vmap``.

    Raises:
        ValueError: The records do not have the same number of images.
    """
    require_same_size(records)
    names = _names(network, parameters)
    values = dict(zip(names, (p.detach() for p in parameters), strict=True))
    of_one = grad(_MeanLoss(network, losses).of)
    device = parameters[0].device
    images = torch.stack([to_device(r.images, device) for r in records])
    labels = torch.stack([to_device(r.labels, device) for r in records])
    found = vmap(of_one, in_dims=(None, 0, 0), randomness="different")(values, images, labels)
    return [found[name] for name in names]


def layer_gradients(
    network: nn.Module,
    parameters: Sequence[nn.Parameter],
    records: Sequence[Record],
    losses: Losses,
) -> list[torch.Tensor]:
    """Return the subjects' gradients from one pass over all images, layer by layer.

    Raises:
        ValueError: The records do not have the same number of images, or a parameter belongs to a
            layer that is not known.
    """
    require_same_size(records)
    if not are_layers_known(network, parameters):
        raise ValueError("This network has layers that are not taken apart. Use loop_gradients.")
    stand_ins = StandIns(parameters, len(records))
    with layers_by_subject(network, stand_ins):
        total = losses(network, records).sum() / len(records[0].images)
    return list(torch.autograd.grad(total, stand_ins.leaves))


def largest_difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Return the largest L2 distance between two gradients of a subject, over the gradient's norm.

    Infinite where either has a NaN.
    """
    apart = subject_norms([a.double() - b.double() for a, b in zip(one, other, strict=True)])
    sizes = subject_norms(other).clamp(min=1e-30)
    return float(torch.nan_to_num(apart / sizes, nan=torch.inf).max())


def require_same_size(records: Sequence[Record]) -> None:
    """Check that records can be one tensor.

    Raises:
        ValueError: Says what to do.
    """
    if len({len(record.images) for record in records}) > 1:
        raise ValueError(
            "These subjects have different numbers of images, which one tensor cannot hold. "
            "Take each size by itself, or loop_gradients."
        )


class _MeanLoss(nn.Module):
    """A network and its loss as one module, so that parameters can be handed in by name."""

    def __init__(self, network: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.network = network
        self._losses = losses

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self._losses(self.network, [Record(images, labels)]).mean()

    def of(
        self, values: dict[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        named = {f"network.{name}": value for name, value in values.items()}
        mean: torch.Tensor = functional_call(self, named, (images, labels))
        return mean


def _names(network: nn.Module, parameters: Sequence[nn.Parameter]) -> list[str]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return [names[id(parameter)] for parameter in parameters]
