"""Subject-level DP-SGD over Opacus's ``DPOptimizer``; the unit, the sum and the noise are ours.

One gradient sample is the mean gradient over one subject's images, so a subject with forty images
moves a step no further than a subject with one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from opacus.optimizers import DPOptimizer

from federation.privacy.plan import PrivacyPlan
from federation.privacy.random import Randomness

# What is clipped is float32 again: to just below the bound, so that rounding stays inside.
_INSIDE = 1.0 - 1e-6
# Numbers that are turned into float64 at a time: they and their float64 stay in a core's cache.
_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 23}
# Tensors whose noise is drawn together hold about so many numbers.
_DRAWN_TOGETHER = 1 << 17


class SubjectOptimizer(DPOptimizer):
    """``DPOptimizer`` fed whole subjects, with noise from a cryptographic source.

    Call ``add_subjects`` or ``add_subject`` for those sampled (perhaps nobody), then
    ``release_step`` once.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, plan: PrivacyPlan, randomness: Randomness
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.clip_norm,
            expected_batch_size=plan.expected_batch,
        )
        self._plan = plan
        self._randomness = randomness
        self._begin_step()

    def add_subjects(self, gradients: Sequence[torch.Tensor]) -> None:
        """Clip each subject's gradient to the plan's norm and add all of them to this step's sum.

        Args:
            gradients: Mean gradients over each subject's images, (subjects, *shape) for each
                parameter in the order of ``params``; perhaps no subject.
        """
        if not gradients or not len(gradients[0]):
            return
        bounded = clip_subjects(gradients, self._plan.clip_norm)
        for parameter, gradient in zip(self.params, bounded, strict=True):
            parameter.grad_sample = gradient
        self.clip_and_accumulate()

    def add_subject(self, gradients: Sequence[torch.Tensor]) -> None:
        """Clip one subject's gradient to the plan's norm and add it to this step's sum.

        Args:
            gradients: The mean gradient over the subject's images, one tensor a parameter.
        """
        self.add_subjects([gradient.unsqueeze(0) for gradient in gradients])

    def clip_and_accumulate(self) -> None:
        """Clip once more, by Opacus's formula, and sum over subjects, both in float64.

        Opacus takes norms and sums in float32: with 64 aligned subjects, rounding alone moves its
        sum by more than what clipping leaves below the clip norm.
        """
        rows = _table(self.grad_samples)
        factors = (self.max_grad_norm / (subject_norms([rows]) + 1e-6)).clamp(max=1.0)
        added = rows.new_zeros(rows.shape[1], dtype=torch.float64)
        _add_weighted(added, rows, factors)
        parts = added.split([parameter.numel() for parameter in self.params])
        for parameter, part in zip(self.params, parts, strict=True):
            parameter.summed_grad += part.view(parameter.shape)

    def forget_samples(self) -> None:
        """Let go of the gradients that were added last; the sum keeps them."""
        for parameter in self.params:
            parameter.grad_sample = None

    def release_step(self, observe: Callable[[], None] | None = None) -> None:
        """Noise the sum, divide by the expected batch, step, and forget this step's gradients.

        Args:
            observe: Called when each ``grad`` is noised and scaled, just before the step.
        """
        self.add_noise()
        self.scale_grad()
        if observe is not None:
            observe()
        self.original_optimizer.step()
        self._begin_step()

    def add_noise(self) -> None:
        """Add N(0, (noise_multiplier x clip_norm)^2) to every coordinate, in float64 on the CPU."""
        for some in _few_together(self.params):
            sums = torch.cat([parameter.summed_grad.reshape(-1).cpu() for parameter in some])
            noise = self._randomness.gaussians(len(sums)) * self._plan.noise_stddev
            sums += torch.from_numpy(noise)
            parts = sums.split([parameter.numel() for parameter in some])
            for parameter, part in zip(some, parts, strict=True):
                shaped = part.view(parameter.shape)
                parameter.grad = shaped.to(device=parameter.device, dtype=parameter.dtype)

    @property
    def accumulated_iterations(self) -> int:
        """Return 1: a step has one expected batch, however many subjects were really drawn."""
        return 1

    def _begin_step(self) -> None:
        self.zero_grad(set_to_none=True)
        for parameter in self.params:
            # An empty batch releases pure noise through the same path.
            # In float64, so that rounding cannot make one subject move the sum past the clip norm.
            parameter.summed_grad = torch.zeros_like(
                parameter, dtype=torch.float64, memory_format=torch.contiguous_format
            )


def clip_subjects(gradients: Sequence[torch.Tensor], clip_norm: float) -> list[torch.Tensor]:
    """Scale each subject's gradient so that its L2 norm over all tensors is below ``clip_norm``.

    A subject with a NaN or infinity anywhere counts as zero: nothing to the outside tells. The
    same is done whatever the values, so that the time it takes does not tell either.

    Args:
        gradients: (subjects, *shape) for each parameter; also of no dimension, (subjects,).
    """
    rows = _table(gradients)
    norms = subject_norms([rows])
    factors = (clip_norm * _INSIDE / norms.clamp(min=1e-300)).clamp(max=1.0)
    for block in _blocks(rows):
        scaled = _in_float64(block).mul_(factors.unsqueeze(1))
        block.copy_(scaled.masked_fill_(~norms.isfinite().unsqueeze(1), 0.0))
    parts = rows.split([gradient[0].numel() for gradient in gradients], dim=1)
    return [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)]


def subject_norms(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the L2 norm of each subject's gradient over all tensors, float64 (subjects,)."""
    squared = torch.zeros(len(gradients[0]), dtype=torch.float64, device=gradients[0].device)
    for gradient in gradients:
        for block in _blocks(_rows(gradient)):
            squared += _in_float64(block).square_().sum(1)
    return squared.sqrt()


def _few_together(parameters: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield parameters in order, so many together that drawing their noise pays: a public choice.

    A network has many small tensors, and each draw costs as much as some thousand numbers.
    """
    some: list[Any] = []
    held = 0
    for parameter in parameters:
        some.append(parameter)
        held += parameter.numel()
        if held >= _DRAWN_TOGETHER:
            yield some
            some, held = [], 0
    if some:
        yield some


def _add_weighted(total: torch.Tensor, rows: torch.Tensor, factors: torch.Tensor) -> None:
    """Add the weighted sum of rows (subjects, numbers) to ``total``, float64 (numbers,)."""
    for part, block in zip(_blocks(total.unsqueeze(0), len(rows)), _blocks(rows), strict=True):
        part[0].addmv_(_in_float64(block).T, factors)


def _table(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return (subjects, numbers) over all tensors: a network has many small ones."""
    return torch.cat([_rows(gradient) for gradient in gradients], dim=1)


def _rows(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.reshape(len(gradient), -1)


def _in_float64(block: torch.Tensor) -> torch.Tensor:
    """Return a copy, also of what is float64 already: the caller's numbers stay."""
    return block.to(torch.float64, copy=True)


def _blocks(rows: torch.Tensor, num_subjects: int | None = None) -> Sequence[torch.Tensor]:
    """Return (subjects, numbers) in pieces that are turned into float64 one at a time."""
    columns = max(1, _BLOCK[rows.device.type] // (num_subjects or len(rows)))
    return rows.split(columns, dim=1)
