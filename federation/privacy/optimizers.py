"""What a noised, scaled gradient does to the weights: post-processing, at no cost in privacy."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class UnbiasedAdam(torch.optim.Optimizer):
    """Adam whose second moment is freed of the noise in it: DP-AdamBC (arXiv 2312.14334).

    Noise of standard deviation s on each coordinate adds s^2 to the expected square of a gradient.
    Where that outweighs the gradient, Adam divides everything by the same number and becomes
    SGD. Here a step is ``m / sqrt(max(v - s^2, floor))``, m and v the moments with Adam's own
    correction for their start at zero.

    Args:
        noise_stddev: s, of the noise after scaling: noise_multiplier x clip_norm / expected_batch.
            Zero without privacy.
        floor: Least value of the corrected second moment (gamma' in the paper).
        weight_decay: Taken off the weights themselves, after noise (arXiv 1711.05101).
    """

    def __init__(  # noqa: PLR0913 - all but the parameters are named
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        noise_stddev: float,
        floor: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {})
        self._learning_rate = learning_rate
        self._betas = betas
        self._noise_variance = noise_stddev**2
        self._floor = floor
        self._decay = weight_decay
        self._steps = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take one step along ``grad``; a parameter without one stays.

        Raises:
            ValueError: A closure was given: it would look at a gradient without noise.
        """
        if closure is not None:
            raise ValueError("This optimiser takes no closure; compute gradients before the step.")
        self._steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad)

    def _step(self, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["first"] = torch.zeros_like(parameter)
            state["second"] = torch.zeros_like(parameter)
        (first_beta, second_beta), steps = self._betas, self._steps
        first = state["first"].lerp_(gradient, 1 - first_beta) / (1 - first_beta**steps)
        second = state["second"].lerp_(gradient.square(), 1 - second_beta)
        second = second / (1 - second_beta**steps) - self._noise_variance
        parameter.mul_(1 - self._learning_rate * self._decay)
        parameter.addcdiv_(
            first, second.clamp_(min=self._floor).sqrt_(), value=-self._learning_rate
        )
