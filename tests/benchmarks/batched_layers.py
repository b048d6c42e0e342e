"""Gradients of many subjects from one pass: layers run on everybody's images at once, and each
layer's backward pass gives its weights' gradient subject by subject.

Where a subject has one image, a pass for each subject is mostly the overhead of many small
operations. Here only the gradient of the weights is taken by itself. Opacus's hooks do the same
from unfolded copies of a convolution's input; here a convolution's own backward kernel runs on each
subject's part of the batch.

This is right where the first axis of every layer's input is the batch, subject after subject, and
where a layer's parameters are used by that layer only. It is not shipped: see batched_gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_aten = torch.ops.aten
Stand = torch.Tensor | None  # (subjects, *shape): stands for a parameter; None where it is frozen


class StandIns:
    """For each trained parameter a leaf of shape (subjects, *shape) that collects gradients.

    Their values are never read: all of a leaf's numbers are one number in memory.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], num_subjects: int) -> None:
        self.num_subjects = num_subjects
        self.leaves = [
            p.new_zeros(()).expand(num_subjects, *p.shape).requires_grad_() for p in parameters
        ]
        self._of = {id(p): leaf for p, leaf in zip(parameters, self.leaves, strict=True)}

    def of(self, parameter: torch.Tensor | None) -> Stand:
        """Return a parameter's leaf; None for one that is frozen or not there."""
        return self._of.get(id(parameter))


@contextmanager
def layers_by_subject(network: nn.Module, stand_ins: StandIns) -> Iterator[None]:
    """Let the network's layers give gradients to the stand-ins, not to their parameters."""
    layers = [layer for layer in network.modules() if _owns(layer, stand_ins)]
    for layer in layers:
        layer.forward = _forward(layer, stand_ins)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def are_layers_known(network: nn.Module, parameters: Sequence[nn.Parameter]) -> bool:
    """Tell whether each trained parameter belongs to a layer that this module can run."""
    trained = {id(p) for p in parameters}
    owners = [
        layer
        for layer in network.modules()
        if any(id(p) in trained for p in layer.parameters(recurse=False))
    ]
    return all(type(layer) in _LAYERS and _is_plain(layer) for layer in owners)


def _owns(layer: nn.Module, stand_ins: StandIns) -> bool:
    return any(stand_ins.of(p) is not None for p in layer.parameters(recurse=False))


def _is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer's padding, if it has any, is zeros of a given width."""
    padding = getattr(layer, "padding", 0)
    return getattr(layer, "padding_mode", "zeros") == "zeros" and not isinstance(padding, str)


@dataclass(frozen=True)
class _Call:
    """What a layer computes with, beside its input.

    Attributes:
        options: Of a convolution, as ``aten::convolution`` takes them; of GroupNorm, the number of
            groups and epsilon.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    options: tuple[Any, ...]
    num_subjects: int

    def by_subject(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return (images, channels, *shape) as (subjects, images of each, channels, positions)."""
        positions = tensor[0, 0].numel()
        return tensor.reshape(self.num_subjects, -1, tensor.shape[1], positions)


def _forward(layer: Any, stand_ins: StandIns) -> Callable[[torch.Tensor], torch.Tensor]:
    function, options = _LAYERS[type(layer)]
    weight, bias = layer.weight, getattr(layer, "bias", None)
    call = _Call(
        weight=weight.detach(),
        bias=None if bias is None else bias.detach(),
        options=options(layer),
        num_subjects=stand_ins.num_subjects,
    )
    stands = stand_ins.of(weight), stand_ins.of(bias)
    return lambda x: function.apply(x, call, *stands)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, call: _Call, *_stands: Stand) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.call = call
        y: torch.Tensor = _aten.convolution(x, call.weight, call.bias, *call.options)
        return y

    @staticmethod
    def backward(ctx: Any, up: torch.Tensor) -> tuple[Stand, ...]:
        (x,), call = ctx.saved_tensors, ctx.call
        to_x, _, to_weight, to_bias = ctx.needs_input_grad
        return (
            _convolution_backward(up, x, call, to=0) if to_x else None,
            None,
            _convolution_weights(up, x, call) if to_weight else None,
            call.by_subject(up).sum((1, 3)) if to_bias else None,
        )


def _convolution_backward(
    up: torch.Tensor, x: torch.Tensor, call: _Call, *, to: int
) -> torch.Tensor:
    """Return the gradient of the input (0) or of the weight (1), over all images given."""
    mask = [to == 0, to == 1, False]
    found = _aten.convolution_backward(up, x, call.weight, None, *call.options, mask)
    gradient: torch.Tensor = found[to]
    return gradient


def _convolution_weights(up: torch.Tensor, x: torch.Tensor, call: _Call) -> torch.Tensor:
    """Return (subjects, *weight.shape)."""
    if _is_matrix(call):
        products = torch.einsum("siop,sicp->soc", call.by_subject(up), call.by_subject(x))
        return products.reshape(-1, *call.weight.shape)
    found = x.new_empty((call.num_subjects, *call.weight.shape))
    parts = zip(up.chunk(call.num_subjects), x.chunk(call.num_subjects), strict=True)
    for row, (of_up, of_x) in zip(found, parts, strict=True):
        row.copy_(_convolution_backward(of_up, of_x, call, to=1))
    return found


def _is_matrix(call: _Call) -> bool:
    """Tell whether a convolution is a plain product over channels at each position."""
    stride, padding, _, transposed, _, groups = call.options
    of_one_voxel = call.weight[0, 0].numel() == 1 and set(stride) == {1} and set(padding) == {0}
    return of_one_voxel and not transposed and groups == 1


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, call: _Call, *_stands: Stand) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.call = call
        return nn.functional.linear(x, call.weight, call.bias)

    @staticmethod
    def backward(ctx: Any, up: torch.Tensor) -> tuple[Stand, ...]:
        (x,), call = ctx.saved_tensors, ctx.call
        to_x, _, to_weight, to_bias = ctx.needs_input_grad
        ups, inputs = (t.reshape(call.num_subjects, -1, t.shape[-1]) for t in (up, x))
        return (
            up @ call.weight if to_x else None,
            None,
            ups.transpose(1, 2) @ inputs if to_weight else None,
            ups.sum(1) if to_bias else None,
        )


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, call: _Call, *_stands: Stand) -> torch.Tensor:
        x, (num_groups, epsilon) = x.contiguous(), call.options
        ctx.call, ctx.sizes = call, (len(x), x.shape[1], x[0, 0].numel(), num_groups)
        y, mean, inverse = _aten.native_group_norm(x, call.weight, call.bias, *ctx.sizes, epsilon)
        ctx.save_for_backward(x, mean, inverse)
        normed: torch.Tensor = y
        return normed

    @staticmethod
    def backward(ctx: Any, up: torch.Tensor) -> tuple[Stand, ...]:
        (x, mean, inverse), call, up = ctx.saved_tensors, ctx.call, up.contiguous()
        to_x, _, *to_affine = ctx.needs_input_grad
        mask = [to_x, False, False]
        found = _aten.native_group_norm_backward(
            up, x, mean, inverse, call.weight, *ctx.sizes, mask
        )
        affine = _affine_gradients(up, x, (mean, inverse), call)
        kept = (t if wanted else None for t, wanted in zip(affine, to_affine, strict=True))
        return (found[0], None, *kept)


def _affine_gradients(
    up: torch.Tensor, x: torch.Tensor, moments: tuple[torch.Tensor, ...], call: _Call
) -> list[torch.Tensor]:
    """Return the gradients of scale and offset, (subjects, channels)."""
    (images, channels), (mean, inverse) = x.shape[:2], (m.unsqueeze(2) for m in moments)
    by_group = (images, mean.shape[1], -1)
    rows = up.view(images * channels, 1, -1)
    products = (rows @ x.view(images * channels, -1, 1)).view(by_group)
    sums = rows.sum(2).view(by_group)
    scales = (products - mean * sums) * inverse
    return [t.reshape(call.num_subjects, -1, channels).sum(1) for t in (scales, sums)]


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, call: _Call, *_stands: Stand) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.call = call
        return torch.prelu(x, call.weight)

    @staticmethod
    def backward(ctx: Any, up: torch.Tensor) -> tuple[Stand, ...]:
        (x,), call = ctx.saved_tensors, ctx.call
        shaped = call.weight.view(1, -1, *[1] * (x.ndim - 2))
        to_x, slopes = _aten._prelu_kernel_backward(up, x, shaped)
        over = (1, 3) if len(call.weight) > 1 else (1, 2, 3)
        found = call.by_subject(slopes).sum(over).view(-1, *call.weight.shape)
        return to_x, None, found, None


def _convolution_options(layer: Any) -> tuple[Any, ...]:
    transposed = isinstance(layer, _TRANSPOSED)
    places = (layer.stride, layer.padding, layer.dilation, transposed, layer.output_padding)
    return (*places, layer.groups)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Exactly these types: a subclass may do anything with its weights.
_LAYERS: dict[type[nn.Module], tuple[Any, Callable[[Any], Any]]] = {
    **dict.fromkeys((*_CONVOLUTIONS, *_TRANSPOSED), (_Convolution, _convolution_options)),
    nn.Linear: (_Linear, lambda _: ()),
    nn.GroupNorm: (_GroupNorm, lambda layer: (layer.num_groups, layer.eps)),
    nn.PReLU: (_PReLU, lambda _: ()),
}
