"""Each subject's gradient, computed by itself: on no other subject does a bit of it depend.

Passes over many subjects at once, such as ``torch.func.vmap``, are faster and give the same
gradients to 1e-5. But rounding of one subject's then depends on who is computed beside it, and a
hub that chooses the weights can make rounding as large as it likes: with a head of 1e9 to 1e11
that cancels in real numbers, one subject less moved a step's clipped sum by 2.45 clip norms,
where the noise hides 1. See docs/decisions/0009-gradient-paths.md.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from data_adapters.prepare import Record

Losses = Callable[[nn.Module, Sequence[Record]], torch.Tensor]
# As ``map``.
Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]

# Gradients of so many subjects, and of so many bytes, are held before they are clipped together.
_MOST, _HELD_BYTES = 8, 1 << 24


def subjects_at_a_time(parameters: Sequence[nn.Parameter]) -> int:
    """Return how many subjects' gradients are clipped together: a public choice."""
    of_one = sum(p.numel() * p.element_size() for p in parameters)
    return max(1, min(_MOST, _HELD_BYTES // max(1, of_one)))


# Images with more numbers than this keep several cores busy by themselves, and need the memory.
_SMALL = 1 << 19


@contextmanager
def each_by_itself(num_numbers: int, device: torch.device) -> Iterator[Each]:
    """Give a ``map`` that computes small subjects side by side, each on a core of its own.

    Nothing of one subject's arithmetic is shared with another's: threads only share the time.

    Args:
        num_numbers: Of the largest subject's images, a public fact.
    """
    cores = torch.get_num_threads()
    if cores == 1 or device.type != "cpu" or num_numbers > _SMALL:
        yield map
        return
    workers = min(cores, _MOST)
    try:
        with ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(cores // workers,)
        ) as pool:
            yield pool.map
    finally:
        # A thread's setting becomes that of threads which start later.
        torch.set_num_threads(cores)


def subject_gradient(loss: torch.Tensor, parameters: Sequence[Any]) -> list[torch.Tensor]:
    """Return the gradient of one subject's mean loss; an unused parameter's is zero."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g.detach()
        for p, g in zip(parameters, gradients, strict=True)
    ]


def stacked(subjects: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """Turn one list of tensors a subject into one tensor (subjects, *shape) a parameter."""
    if len(subjects) == 1:
        return [gradient.unsqueeze(0) for gradient in subjects[0]]
    return [torch.stack(gradients) for gradients in zip(*subjects, strict=True)]
