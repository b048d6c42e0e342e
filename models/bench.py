"""A copy of a network on which guards run made-up subjects, with gradients one subject each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import nn

from models.dp_safe import copied
from models.errors import ModelError
from models.reading import ReadsBelow
from models.synthetic import Declared, make_up
from models.tracing import Call, Seen, Watch

R = TypeVar("R")


@dataclass(frozen=True)
class Pass:
    """One forward pass over some subjects, and each one's gradient.

    Attributes:
        gradients: Of each subject's mean loss over all trainable weights, shape (weights,).
        sizes: Images of each subject.
        seen: What each layer was given and gave, where asked for.
    """

    gradients: tuple[torch.Tensor, ...]
    sizes: tuple[int, ...]
    calls: tuple[Call, ...]
    deciding: Call | None
    seen: tuple[Seen, ...] = ()

    @property
    def num_images(self) -> int:
        """Return how many images were in the batch."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Mark:
    """A buffer or weight at one moment: which tensor, its write counter, and its bits."""

    tensor: torch.Tensor
    version: int
    copy: torch.Tensor

    def differs(self, now: torch.Tensor) -> bool:
        """Tell whether it was replaced, written through torch, or holds other bits."""
        return (
            now is not self.tensor or now._version != self.version or not _same_bits(self.copy, now)
        )


class Bench(Generic[R]):
    """A network's copy in training mode on the CPU, its loss, and made-up subjects by number."""

    def __init__(
        self,
        network: nn.Module,
        loss_per_image: Callable[[nn.Module, Sequence[R]], torch.Tensor],
        record: Callable[[torch.Tensor, torch.Tensor], R],
        declared: Declared,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.network = copied(network).to(device="cpu", dtype=dtype).train()
        self.title = type(network).__name__
        self._loss, self._record, self._declared = loss_per_image, record, declared
        self._dtype = dtype
        self._parameters = [p for p in self.network.parameters() if p.requires_grad]
        if not self._parameters:
            raise ModelError(f"{self.title} has no trainable weights. Unfreeze some.")

    @cached_property
    def exact(self) -> "Bench[R]":
        """Return the same in float64."""
        return self._another()

    @cached_property
    def without_dropout(self) -> "Bench[R]":
        """Return the same in float64, with every dropout layer at probability 0."""
        other = self._another()
        for layer in other.network.modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd):
                layer.p = 0.0
        return other

    def run(
        self, numbers: Sequence[int], *, num_images: int | None = None, keep: bool = False
    ) -> Pass:
        """Run these subjects as one batch.

        Args:
            num_images: Of each subject; else it depends on the subject's number.
            keep: What each layer was given and gave.

        Raises:
            ModelError: The loss is not one number an image.
        """
        sizes = tuple(num_images or self._num_images(number) for number in numbers)
        seeds = [1009 * n + i for n, size in zip(numbers, sizes, strict=True) for i in range(size)]
        records = self._made_up(numbers, sizes)
        with Watch(self.network, seeds, keep=keep) as watch:
            losses = self._loss(self.network, records)
        if losses.shape != (len(seeds),):
            raise ModelError(
                f"The loss of {len(seeds)} images has shape {tuple(losses.shape)}, not one number "
                "an image, so it mixes the subjects of a batch. Take the loss of each image alone "
                "(no DiceLoss with batch=True)."
            )
        means = [part.mean() for part in losses.split(sizes)]
        read: list[str] = []
        with ReadsBelow(read.append):
            gradients = tuple(self._gradient(mean) for mean in means)
        backward = [Call(None, f"{what}, in its backward pass") for what in read]
        deciding = watch.deciding or next(iter(backward), None)
        return Pass(gradients, sizes, tuple(watch.calls), deciding, tuple(watch.seen))

    def run_afresh(self, numbers: Sequence[int], *, keep: bool) -> Pass:
        """Run, and put back what the pass wrote: two such passes start from the same."""
        before = self.state()
        seen = self.run(numbers, keep=keep)
        with torch.no_grad():
            for name, value in _entries(self.network).items():
                if name in before:
                    value.copy_(before[name])
        return seen

    def by_path(
        self, path: Callable[..., list[torch.Tensor]], numbers: Sequence[int]
    ) -> torch.Tensor:
        """Return each subject's gradient by a path of training's, float64 (subjects, weights).

        Each subject has as many images as the cap allows, but at most two.

        Raises:
            ModelError: It gives another number of gradients than there are subjects.
        """
        records = self._made_up(numbers, [self.most_images] * len(numbers))
        found = path(self.network, self._parameters, records, self._loss)
        for gradient, parameter in zip(found, self._parameters, strict=True):
            if gradient.shape != (len(numbers), *parameter.shape):
                raise ModelError(
                    f"The gradient path gives {len(gradient)} gradients for {len(numbers)} "
                    "subjects: it counts windows or images as subjects, and each would be clipped "
                    "alone. Take gradients one subject at a time."
                )
        return torch.cat([g.detach().flatten(1) for g in found], 1).double()

    def named(self, layer: str | None) -> str:
        """Return how messages call a layer; None is the loss."""
        if layer is None:
            return "The loss"
        if not layer:
            return self.title
        return f"Layer {layer!r} ({type(self.network.get_submodule(layer)).__name__})"

    def state(self) -> dict[str, torch.Tensor]:
        """Return copies of every buffer and weight."""
        return {name: value.detach().clone() for name, value in _entries(self.network).items()}

    def marks(self) -> dict[str, Mark]:
        """Return what tells later whether a buffer or weight was written since."""
        return {
            name: Mark(value, value._version, value.detach().clone())
            for name, value in _entries(self.network).items()
        }

    def written_since(self, before: dict[str, Mark]) -> str | None:
        """Return the first buffer or weight that was written, be it with what it already held.

        A power iteration that has converged writes the same bits again, until the weights move.
        """
        now = _entries(self.network)
        names = [*before, *(now.keys() - before.keys())]
        return next(
            (n for n in names if n not in before or n not in now or before[n].differs(now[n])),
            None,
        )

    def first_difference(self, together: Pass, without: Pass, removed: int) -> str | None:
        """Return the first layer that gives other outputs for the inputs that are the same."""
        owners = [i for i, size in enumerate(together.sizes) for _ in range(size)]
        kept = torch.tensor([owner != removed for owner in owners])
        for full, rest in zip(together.seen, without.seen, strict=False):
            same_given = _agree(full.given, rest.given, kept)
            if same_given and not _agree(full.gave, rest.gave, kept):
                return full.layer
        return None

    def _another(self) -> "Bench[R]":
        parts = (self.network, self._loss, self._record, self._declared)
        return type(self)(*parts, dtype=torch.float64)

    @property
    def most_images(self) -> int:
        """Return the most images that one subject has here: two show what mixing would do."""
        return min(self._declared.cap, 2)

    def _num_images(self, number: int) -> int:
        return 1 + number % self.most_images

    def _made_up(self, numbers: Sequence[int], sizes: Sequence[int]) -> list[R]:
        pairs = zip(numbers, sizes, strict=True)
        subjects = [make_up(self._declared, number, size) for number, size in pairs]
        return [self._record(s.images.to(self._dtype), s.labels) for s in subjects]

    def _gradient(self, loss: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad(
            loss, self._parameters, retain_graph=True, materialize_grads=True
        )
        return torch.cat([g.detach().flatten() for g in found])


def _entries(network: nn.Module) -> dict[str, torch.Tensor]:
    return dict(network.named_buffers()) | dict(network.named_parameters())


def _same_bits(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Compare bits: NaN equals itself, and -0 is not 0."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    flat = (t.detach().reshape(-1).contiguous().view(torch.uint8) for t in (before, after))
    return torch.equal(*flat)


def _agree(full: Sequence[torch.Tensor], rest: Sequence[torch.Tensor], kept: torch.Tensor) -> bool:
    """Tell whether the kept images' rows are the same but for rounding."""
    return all(_rows_agree(a, b, kept) for a, b in zip(full, rest, strict=True))


def _rows_agree(full: torch.Tensor, rest: torch.Tensor, kept: torch.Tensor) -> bool:
    if full.dim() and full.shape != rest.shape and len(full) % len(kept) == 0:
        full = full.reshape(len(kept), -1)[kept]
        rest = rest.reshape(int(kept.sum()), -1)
    if full.numel() != rest.numel():
        return False
    return torch.allclose(full.reshape(-1), rest.reshape(-1), rtol=1e-6, atol=1e-9, equal_nan=True)
