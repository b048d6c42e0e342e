"""What a network does in one pass: every layer and torch function it calls, in order.

Randomness inside the network is drawn anew for each image from that image's own seed, so that
passes with and without another subject can be compared (dropout then is no difference).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models.reading import Constants, ReadsBelow, hands_out_values, only_checks

_RANDOM = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"})
_RANDOM |= {"feature_dropout", "feature_alpha_dropout", "scaled_dot_product_attention"}
_RANDOM |= {"bernoulli", "bernoulli_", "rand", "randn", "rand_like", "randn_like"}
_RANDOM |= {"normal_", "uniform_"}
_SIZED = frozenset(("rand", "randn"))


@dataclass(frozen=True)
class Call:
    """One step of a pass.

    Attributes:
        layer: The layer's name in the network ("" is the network), where the step happened; None
            is outside it, in the loss.
        what: A layer's class, or a torch function.
        shapes: Of the tensors that a layer was given; None for a torch function.
    """

    layer: str | None
    what: str
    shapes: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class Seen:
    """One layer's pass: detached copies of what it was given and what it gave."""

    layer: str
    given: tuple[torch.Tensor, ...]
    gave: tuple[torch.Tensor, ...]


class Watch(TorchFunctionMode):
    """Record one forward pass of ``network`` and of the loss; use as a context around them.

    Attributes:
        calls: What happened inside the network, in order.
        deciding: The first step, of network or loss, that took a value out of a tensor or made a
            shape of values, if there was one: see ``models.reading``.
        seen: What each layer was given and gave, in order of completion; only if ``keep``.
    """

    def __init__(self, network: nn.Module, seeds: Sequence[int], *, keep: bool = False) -> None:
        """Watch a pass over ``len(seeds)`` images, each with its own seed."""
        super().__init__()
        self.calls: list[Call] = []
        self.deciding: Call | None = None
        self.seen: list[Seen] = []
        self._network, self._seeds, self._keep = network, seeds, keep
        self._inside: list[str] = []
        self._function: str | None = None
        self._below, self._constants = ReadsBelow(self._on_read), Constants()
        self._num_random = 0

    def __enter__(self) -> Self:
        self._hooks = [
            hook
            for name, layer in self._network.named_modules()
            for hook in (
                layer.register_forward_pre_hook(self._on_entry(name), with_kwargs=True),
                layer.register_forward_hook(self._on_exit(name), with_kwargs=True),
            )
        ]
        self._forked = torch.random.fork_rng(devices=[])
        self._forked.__enter__()
        torch.manual_seed(0)
        self._below.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        self._below.__exit__(*failure)
        self._forked.__exit__(*failure)
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        if self._inside:
            self.calls.append(Call(self._inside[-1], name))
        taken, self._function = tensors_in((args, kwargs)), name
        of_constants = self._constants.hold(taken)
        with self._below.paused(of_constants or only_checks(name, args, kwargs)):
            given = self._call(func, args, kwargs)
        self._function = None
        self._constants.follow(taken, tensors_in(given), of_constants)
        if not of_constants and hands_out_values(name, given):
            self._on_read(name)
        return given

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self._inside and getattr(func, "__name__", "") in _RANDOM:
            self._num_random += 1
            return self._image_by_image(func, args, kwargs)
        return func(*args, **kwargs)

    def _on_read(self, what: str) -> None:
        """Note the torch function that was called from Python, rather than what it calls."""
        where = self._inside[-1] if self._inside else None
        self.deciding = self.deciding or Call(where, self._function or what)

    def _image_by_image(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        sized = func.__name__ in _SIZED
        rows = _leading_size(args, kwargs) if sized else _leading_length(args, kwargs)
        if rows is None or rows % len(self._seeds):
            return func(*args, **kwargs)
        share, parts = rows // len(self._seeds), []
        for number, seed in enumerate(self._seeds):
            torch.manual_seed(1_000_003 * self._num_random + seed)
            if sized:
                parts.append(_sized(func, args, kwargs, share))
            else:
                span = slice(number * share, (number + 1) * share)
                parts.append(_sliced(func, args, kwargs, rows=rows, span=span))
        return args[0] if func.__name__.endswith("_") else torch.cat(parts)

    def _on_entry(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, kwargs: Any) -> None:
            shapes = tuple(tuple(t.shape) for t in tensors_in((args, kwargs)))
            self.calls.append(Call(name, type(layer).__name__, shapes))
            self._inside.append(name)

        return hook

    def _on_exit(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._inside.pop()
            if self._inside:
                self.calls.append(Call(self._inside[-1], "return"))
            if self._keep:
                given = tuple(t.detach().clone() for t in tensors_in((args, kwargs)))
                gave = tuple(t.detach().clone() for t in tensors_in(output))
                self.seen.append(Seen(name, given, gave))

        return hook


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors in nested tuples, lists and dictionaries, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in tensors_in(part)]
    return []


def _leading_length(args: Any, kwargs: Any) -> int | None:
    found = [t for t in tensors_in((args, kwargs)) if t.dim()]
    return len(found[0]) if found else None


def _leading_size(args: Any, kwargs: Any) -> int | None:
    size = kwargs.get("size", args[0] if args else None)
    return size if isinstance(size, int) else (size[0] if size else None)


def _sized(func: Callable[..., Any], args: Any, kwargs: dict[str, Any], share: int) -> Any:
    """Call a factory for ``share`` rows instead of all."""
    if "size" in kwargs:
        return func(**{**kwargs, "size": (share, *kwargs["size"][1:])})
    if isinstance(args[0], int):
        return func(share, *args[1:], **kwargs)
    return func((share, *args[0][1:]), *args[1:], **kwargs)


def _sliced(
    func: Callable[..., Any], args: Any, kwargs: dict[str, Any], *, rows: int, span: slice
) -> Any:
    """Call a function on some rows of every tensor that has ``rows`` of them."""

    def part(value: Any) -> Any:
        whole = isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == rows
        return value[span] if whole else value

    return func(*map(part, args), **{key: part(value) for key, value in kwargs.items()})
