"""Canary subjects: an unused block of coordinates that shows what the mechanism does to a subject.

Each canary's gradient is zero for the network and ten times the clip norm on its own coordinate of
a block that no forward pass reads. A canary is there or not by a secret fair coin. The sampler
draws it beside the real subjects, the optimiser clips it, sums it, noises and scales its coordinate
like any other. So the block shows, one coordinate a canary, what an attacker would see of a
subject, and costs nobody anything: the real subjects' coordinates hold exactly what they would hold
without it, the block is outside the expected batch, and it is no part of the network that is
released.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from federation.privacy.engine import SubjectOptimizer

NUM_CANARIES = 1000
# Far past the clip norm, so that a missing clip shows.
_GRADIENT_OVER_CLIP = 10.0


class CanaryBlock:
    """The unused parameter, and the gradients of the canaries that live in it.

    Attributes:
        parameter: Shape (canaries,). Goes last into the optimiser, so its noise is drawn last.
        present: Which canaries are there, each by a fair coin.
    """

    def __init__(
        self,
        present: npt.NDArray[np.bool_],
        *,
        clip_norm: float,
        device: torch.device | None = None,
    ) -> None:
        self.present = present
        self.parameter = nn.Parameter(torch.zeros(len(present), device=device))
        self._size = _GRADIENT_OVER_CLIP * clip_norm

    def gradients(self, canaries: Sequence[int]) -> torch.Tensor:
        """Return the block's part of these canaries' gradients, shape (given, canaries)."""
        rows = torch.zeros(len(canaries), len(self.present), device=self.parameter.device)
        rows[range(len(canaries)), list(canaries)] = self._size
        return rows

    def whole_gradients(
        self, canaries: Sequence[int], parameters: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return these canaries' gradients for every parameter, the block last.

        Args:
            parameters: The optimiser's, in its order, the block last.
        """
        zeros = [p.new_zeros(()).expand(len(canaries), *p.shape) for p in parameters[:-1]]
        return [*zeros, self.gradients(canaries)]

    def add_to(self, optimizer: SubjectOptimizer, canaries: Sequence[int]) -> None:
        """Clip and accumulate these canaries by the optimiser's own code.

        Their gradients for the network are zero: they add nothing to a norm and nothing to a sum.
        So the optimiser is shown the block alone while it does this, and a thousand canaries cost
        no pass over the network's parameters. ``whole_gradients`` gives the same sums, bit by bit.
        """
        if canaries:
            with seeing_only(optimizer, [self.parameter]):
                optimizer.add_subjects([self.gradients(canaries)])

    def forget(self) -> None:
        """Set the block's values back to zero: nothing ever reads them."""
        with torch.no_grad():
            self.parameter.zero_()


@contextmanager
def seeing_only(optimizer: SubjectOptimizer, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let the optimiser see some of its parameters only: the block alone, or all but the block.

    Real subjects are added without it, since a thousand zeros more change the order in which a
    norm's squares are added up, and so the last bits of the sum.
    """
    groups = optimizer.param_groups
    optimizer.param_groups = [{"params": list(parameters)}]
    try:
        yield
    finally:
        optimizer.param_groups = groups
