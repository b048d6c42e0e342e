"""The behavioural guard: whether one subject's data reaches another subject's gradient.

Names of layers prove nothing (BatchNorm hides in subclasses, in functions, in losses), so a
network is tried out. Made-up subjects go through network and loss, all in one batch and with one of
them left out, with the same randomness for each image. The other subjects' gradients must not
change, the sum of clipped gradients must move by at most the clip norm, the same layers and torch
functions must be called in the same order, and no buffer or weight may be written.

Draws include extremes, but they are trials, not a proof: a network that mixes subjects only on
inputs unlike all of them passes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from models.bench import Bench, Pass
from models.errors import ModelError
from models.synthetic import Declared
from models.tracing import Call

R = TypeVar("R")
LossPerImage = Callable[[nn.Module, Sequence[R]], torch.Tensor]
# (network, parameters, records, loss_per_image) -> one (subjects, *parameter.shape) a parameter.
GradientPath = Callable[
    [nn.Module, Sequence[nn.Parameter], Sequence[R], LossPerImage[R]], list[torch.Tensor]
]

# Relative change of another subject's gradient, and of the sum beyond the clip norm. Float32
# rounds differently in batches of another size (and layers that normalise a constant image blow
# rounding up), so what is above the first is looked at again in float64.
_SLACK_32 = 1e-4
_SLACK_64 = 1e-6


@dataclass(frozen=True)
class Behaviour:
    """What the guard saw of a network that passed, for whoever chooses how gradients are taken.

    Attributes:
        draws: With and without one subject, so often.
        flattened: Layers with weights whose first axis is not images (windows, tokens).
        shared: Layers with weights that one pass calls more than once, or that share a weight.
        uncalled: Layers with weights that a pass never calls: unused, or used from outside.
    """

    draws: int
    flattened: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    uncalled: tuple[str, ...] = ()

    @property
    def layers_see_images(self) -> bool:
        """Tell whether gradient samples taken layer by layer (hooks) are those of images."""
        return not (self.flattened or self.shared or self.uncalled)


def check_behaviour(  # noqa: PLR0913 - all named but the two that are checked
    network: nn.Module,
    loss_per_image: LossPerImage[R],
    *,
    record: Callable[[torch.Tensor, torch.Tensor], R],
    declared: Declared,
    gradients: GradientPath[R] | None = None,
    draws: int = 16,
    clip_norm: float = 1.0,
) -> Behaviour:
    """Try a network and its loss on made-up subjects; the network itself is left as it was.

    Args:
        loss_per_image: From network and records to the loss of each image, shape (images,).
        record: From images (images, channels, *shape), float32 or float64, and uint8 labels to
            what ``loss_per_image`` takes.
        gradients: The path that training takes, compared with one subject at a time as well.

    Raises:
        ModelError: What was seen, in which layer where that can be told, and what to use instead.
    """
    try:
        trial = _Trial(Bench(network, loss_per_image, record, declared), clip_norm)
        for draw in range(draws):
            trial.compare(draw)
            if gradients is not None:
                trial.compare_path(draw, gradients)
        trial.require_untouched()
        return _behaviour(trial.bench.network, trial.reference, draws)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ModelError(
            f"{type(network).__name__} cannot be trained on images of {declared.image_shape} "
            f"voxels: {' '.join(str(error).split())[:200]}. Use a larger shape or fewer strides."
        ) from error


def require_layers_see_images(behaviour: Behaviour) -> None:
    """Refuse what gradient samples taken layer by layer get wrong.

    Windows count as images there (a subject of 25 windows is clipped 25 times, to 25 times the
    clip norm), and a layer that is called twice counts twice.

    Raises:
        ModelError: Names the first layer.
    """
    for layers, seen in (
        (behaviour.flattened, "is given rows that are not images (windows or tokens)"),
        (behaviour.shared, "is used more than once, or shares its weights"),
        (behaviour.uncalled, "has weights, but a pass never calls it"),
    ):
        if layers:
            raise ModelError(
                f"Layer {layers[0]!r} {seen}, so gradients taken layer by layer are not those of "
                "subjects. Take them one subject at a time, or with torch.func.vmap."
            )


class _Trial(Generic[R]):
    """Draws, and what they are compared with."""

    def __init__(self, bench: Bench[R], clip_norm: float) -> None:
        self.bench, self._clip_norm = bench, clip_norm
        self._marks = bench.marks()
        self.reference = bench.run(_subjects(0))

    def compare(self, draw: int) -> None:
        """Compare passes with and without one subject; look again in float64 where they differ."""
        everybody, removed = _subjects(draw), _removed(draw)
        others = [s for i, s in enumerate(everybody) if i != removed]
        together = self.reference if draw == 0 else self.bench.run(everybody)
        without = self.bench.run(others)
        for seen in (together, without):
            _require_same_calls(self.bench, self.reference, seen)
        if self._moved(together, without, removed).within(_SLACK_32):
            return
        exact = self.bench.exact
        together, without = (exact.run_afresh(who, keep=True) for who in (everybody, others))
        moved = self._moved(together, without, removed)
        if not moved.within(_SLACK_64):
            layer = exact.first_difference(together, without, removed)
            raise ModelError(_mixing(exact, layer, moved))

    def compare_path(self, draw: int, path: GradientPath[R]) -> None:
        """Compare a gradient path with one subject at a time, in float64 and without dropout."""
        exact, everybody = self.bench.without_dropout, _subjects(draw)
        found = exact.by_path(path, everybody)
        for subject, gradient in zip(everybody, found, strict=True):
            alone = exact.run([subject], num_images=exact.most_images).gradients[0]
            if _change(alone, gradient, self._clip_norm) > _SLACK_64:
                raise ModelError(
                    "The gradient path gives a subject another gradient than that subject alone "
                    f"has (norm {_norm(gradient):.3g} instead of {_norm(alone):.3g})."
                    " It counts windows or calls of a shared layer as subjects, or mixes them. "
                    "Take gradients one subject at a time."
                )

    def require_untouched(self) -> None:
        """Refuse written buffers and weights, and what remembers earlier passes elsewhere."""
        written = self.bench.written_since(self._marks)
        if written:
            raise ModelError(_written(self.bench, written))
        again = self.bench.run(_subjects(0))
        pairs = zip(self.reference.gradients, again.gradients, strict=True)
        if any(_change(a, b, self._clip_norm) > _SLACK_32 for a, b in pairs):
            raise ModelError(
                f"{self.bench.title} gives the same subjects other gradients in a later pass: it "
                "remembers earlier inputs, or draws numbers in a way that cannot be repeated. "
                "Keep nothing between passes."
            )

    def _moved(self, together: Pass, without: Pass, removed: int) -> "_Moved":
        clip = self._clip_norm
        others = [g for i, g in enumerate(together.gradients) if i != removed]
        pairs = zip(others, without.gradients, strict=True)
        sums = [_sum(gradients, clip) for gradients in (together.gradients, without.gradients)]
        return _Moved(
            others=max(_change(a, b, clip) for a, b in pairs),
            total=_norm(sums[0] - sums[1]) / clip,
        )


@dataclass(frozen=True)
class _Moved:
    """What leaving one subject out changes.

    Attributes:
        others: Of any other subject's gradient, relative to its norm.
        total: Of the sum of clipped gradients, in clip norms.
    """

    others: float
    total: float

    def within(self, slack: float) -> bool:
        return self.others <= slack and self.total <= 1 + slack


def _subjects(draw: int) -> list[int]:
    """Return the numbers of a draw's subjects: two, in every eighth draw three."""
    return list(range(draw, draw + (3 if draw % 8 == 0 else 2)))


def _removed(draw: int) -> int:
    """Return whose turn it is to be left out: the first, the last, one between."""
    return (draw + draw // 2) % len(_subjects(draw))


def _norm(gradient: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(gradient, dtype=torch.float64))


def _clipped(gradient: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """Clip as training does: what is not finite counts as zero."""
    norm = _norm(gradient)
    if not norm < float("inf"):
        return torch.zeros_like(gradient)
    return gradient if norm <= clip_norm else gradient * (clip_norm / norm)


def _sum(gradients: Iterable[torch.Tensor], clip_norm: float) -> torch.Tensor:
    return torch.stack([_clipped(g, clip_norm) for g in gradients]).sum(0)


def _change(before: torch.Tensor, after: torch.Tensor, clip_norm: float) -> float:
    """Return how far apart two gradients are once clipped, relative to the longer."""
    before, after = _clipped(before, clip_norm), _clipped(after, clip_norm)
    longer = max(_norm(before), _norm(after), 1e-30)
    return _norm(before - after) / longer


def _require_same_calls(bench: Bench[R], expected: Pass, seen: Pass) -> None:
    """Refuse control flow that depends on values or on who else is there."""
    deciding = seen.deciding
    if deciding is not None:
        raise ModelError(
            f"{bench.named(deciding.layer)} takes a value out of a tensor ({deciding.what}), and "
            "so can decide by data what is computed. Use torch.where or a mask instead."
        )
    pairs = list(zip(expected.calls, seen.calls, strict=False))
    common = next((i for i, (a, b) in enumerate(pairs) if not _same(a, b, expected, seen)), None)
    if common is None and len(expected.calls) != len(seen.calls):
        common = len(pairs)
    if common is not None:
        # Where the pass was when it departed: in the layer of the last step that both have.
        where = bench.named(expected.calls[max(common - 1, 0)].layer)
        raise ModelError(
            f"{where} computes something else for other inputs, or for another number of "
            "images: which layers and functions are called, or their shapes, depend on the data. "
            "Use torch.where or a mask, and a fixed depth."
        )


def _same(a: Call, b: Call, first: Pass, second: Pass) -> bool:
    """Tell whether two steps are the same but for the number of images."""
    if (a.layer, a.what) != (b.layer, b.what):
        return False
    if a.shapes is None or b.shapes is None:
        return a.shapes == b.shapes
    sizes = (first.num_images, second.num_images)
    return len(a.shapes) == len(b.shapes) and all(
        _same_shape(s, t, sizes) for s, t in zip(a.shapes, b.shapes, strict=True)
    )


def _same_shape(a: tuple[int, ...], b: tuple[int, ...], sizes: tuple[int, int]) -> bool:
    if len(a) != len(b) or a[1:] != b[1:]:
        return False
    return not a or a[0] == b[0] or a[0] * sizes[1] == b[0] * sizes[0]


def _mixing(bench: Bench[R], layer: str | None, moved: _Moved) -> str:
    """Say which layer lets one subject reach another, and what to use instead."""
    way_out = (
        "Take the loss of each image alone (no DiceLoss with batch=True)."
        if layer is None
        else "Use GroupNorm, or InstanceNorm without running statistics (norm: group or instance), "
        "and nothing that looks along the batch."
    )
    total = ""
    if moved.total > 1 + _SLACK_64:
        total = f", and the sum of clipped gradients by {moved.total:.1f} clip norms (1 is allowed)"
    return (
        f"{bench.named(layer)} mixes the subjects of a batch: leaving one made-up subject out "
        f"changes another one's gradient by {moved.others:.1%}{total}. {way_out}"
    )


def _written(bench: Bench[R], written: str) -> str:
    layer, _, entry = written.rpartition(".")
    return (
        f"{bench.named(layer)} writes its entry {entry!r} during training passes (running "
        "statistics, counters, spectral norm): it would leave without noise. Build it without "
        "(track_running_stats=False), or replace the layer."
    )


def _behaviour(network: nn.Module, reference: Pass, draws: int) -> Behaviour:
    owners: dict[str, list[nn.Parameter]] = {
        name: own
        for name, layer in network.named_modules()
        if (own := [p for p in layer.parameters(recurse=False) if p.requires_grad])
    }
    calls = [
        (c.layer, _rows(c))
        for c in reference.calls
        if c.shapes is not None and c.layer is not None and c.layer in owners
    ]
    times = Counter(layer for layer, _ in calls)
    uses = Counter(id(p) for own in owners.values() for p in own)
    return Behaviour(
        draws,
        flattened=_distinct(layer for layer, rows in calls if rows != reference.num_images),
        shared=_distinct(
            name
            for name, own in owners.items()
            if times[name] > 1 or any(uses[id(p)] > 1 for p in own)
        ),
        uncalled=_distinct(name for name in owners if not times[name]),
    )


def _rows(call: Call) -> int | None:
    return next((shape[0] for shape in call.shapes or () if shape), None)


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
