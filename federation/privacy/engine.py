"""Subject-level DP-SGD: Opacus clips, sums, noises and scales; the unit is ours.

One gradient sample is the mean gradient over one subject's images, so a subject with forty images
moves a step no further than a subject with one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from opacus.optimizers import DPOptimizer

from federation.privacy.plan import PrivacyPlan
from federation.privacy.random import Randomness

# Opacus clips in float32; clipping in float64 to just below the bound first makes rounding safe.
_INSIDE = 1.0 - 1e-6


class SubjectOptimizer(DPOptimizer):
    """``DPOptimizer`` fed one subject at a time, with noise from a cryptographic source.

    Call ``add_subject`` for each sampled subject (perhaps none), then ``release_step`` once.
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

    def add_subject(self, gradients: Sequence[torch.Tensor]) -> None:
        """Clip one subject's gradient to the plan's norm and add it to this step's sum.

        Args:
            gradients: The mean gradient over the subject's images, one tensor a parameter.
        """
        bounded = clip_subject(gradients, self._plan.clip_norm)
        for parameter, gradient in zip(self.params, bounded, strict=True):
            parameter.grad_sample = gradient.unsqueeze(0)
        self.clip_and_accumulate()

    def release_step(self) -> None:
        """Noise the sum, divide by the expected batch, step, and forget this step's gradients."""
        self.add_noise()
        self.scale_grad()
        self.original_optimizer.step()
        self._begin_step()

    def add_noise(self) -> None:
        """Add N(0, (noise_multiplier x clip_norm)^2) to every coordinate, in float64 on the CPU."""
        for parameter in self.params:
            summed = parameter.summed_grad
            noise = self._randomness.gaussians(summed.numel()) * self._plan.noise_stddev
            noised = summed.cpu() + torch.from_numpy(noise).view(summed.shape)
            parameter.grad = noised.to(device=parameter.device, dtype=parameter.dtype)

    @property
    def accumulated_iterations(self) -> int:
        """Return 1: a step has one expected batch, however many subjects were really drawn."""
        return 1

    def _begin_step(self) -> None:
        self.zero_grad(set_to_none=True)
        for parameter in self.params:
            # An empty batch releases pure noise through the same path.
            # In float64, so that rounding cannot make one subject move the sum past the clip norm.
            parameter.summed_grad = torch.zeros_like(parameter, dtype=torch.float64)


def clip_subject(gradients: Sequence[torch.Tensor], clip_norm: float) -> list[torch.Tensor]:
    """Scale one subject's gradient so that its L2 norm over all tensors is below ``clip_norm``.

    A gradient with a NaN or infinity anywhere counts as zero: nothing to the outside tells.
    """
    squared = sum(float(g.double().square().sum()) for g in gradients)
    if not squared < float("inf"):
        return [torch.zeros_like(g) for g in gradients]
    factor = min(1.0, clip_norm * _INSIDE / max(squared**0.5, 1e-300))
    return [(g.double() * factor).to(g.dtype) for g in gradients]


def subject_gradient(loss: torch.Tensor, parameters: Sequence[Any]) -> list[torch.Tensor]:
    """Return the gradient of one subject's mean loss; an unused parameter's is zero."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g.detach()
        for p, g in zip(parameters, gradients, strict=True)
    ]
