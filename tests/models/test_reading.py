"""The guard refuses what decides by values, in layers, losses and backward passes alike."""

import math
import pickle

import monai.losses
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from models.errors import ModelError
from models.reading import Constants
from tests.models.losses import cross_entropies, declared, together
from tests.models.test_behaviour import Function, between, checked


class Branches(nn.Module):
    """Each of these decides by the data; ``decide`` hides how from the torch functions called."""

    def __init__(self, decide):
        super().__init__()
        self.decide, self.conv = decide, nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.conv(x) if self.decide(x) else x


# What Python is told of a tensor's values, and what gives shapes that depend on them.
DECISIONS = {
    "__bool__": lambda x: x.mean() > 0,
    "item": lambda x: x.max().item() > 100,
    "tolist": lambda x: x.tolist()[0],
    "__contains__": lambda x: 1.0 in x,
    "__format__": lambda x: f"{x.detach().mean():.0f}" == "0",
    "__repr__": lambda x: "nan" in repr(x),
    "__array__": lambda x: np.asarray(x.detach()).any(),
    "numpy": lambda x: x.detach().numpy().any(),
    "__dlpack__": lambda x: np.from_dlpack(x.detach()).any(),
    "__complex__": lambda x: complex(x.detach().mean()).real > 0,
    "__float__": lambda x: math.floor(x.detach().mean()) > 0,
    "__int__": lambda x: int(x.detach().mean()) > 0,
    "__index__": lambda x: len(range(x.detach().mean().abs().long())) > 1,
    "equal": lambda x: x.equal(x.abs()),
    "allclose": lambda x: torch.allclose(x, x.abs()),
    "is_nonzero": lambda x: torch.is_nonzero(x.mean()),
    "untyped_storage": lambda x: len(pickle.dumps(x.detach())) > 10,
    "data_ptr": lambda x: x.data_ptr(),
    "arange": lambda x: len(torch.arange(x.detach().mean().abs().clamp(max=9))) > 1,
    "bincount": lambda x: len(torch.bincount(x.abs().clamp(max=9).long().flatten())) > 1,
    "where": lambda x: len(torch.where(x > 0)[0]) > 1,
    "nonzero": lambda x: len(x.nonzero()) > 1,
    "argwhere": lambda x: len(torch.argwhere(x)) > 1,
    "masked_select": lambda x: len(x.masked_select(x > 0)) > 1,
    "unique": lambda x: len(x.unique()) > 1,
    "unique_consecutive": lambda x: len(x.unique_consecutive()) > 1,
    "repeat_interleave": lambda x: len(
        x.detach()[0, 0, 0].repeat_interleave(x[0, 0, 0].abs().clamp(max=3).long())
    ),
    "one_hot": lambda x: one_hot(x.abs().clamp(max=9).long()).shape[-1] > 1,
    "to_sparse": lambda x: len(x.to_sparse().values()) > 1,
    # Masks, as bool and as bytes; an index that gives as many rows as it has is no decision.
    "__getitem__": lambda x: len(x[x > 0]) > 1,
    "__getitem__ ": lambda x: len(x[(x > 0).byte()]) > 1,
    # Not by the values of this tensor's memory alone: what was empty holds data by now.
    "any": lambda x: any(torch.empty(x.shape).copy_(x.detach()).flatten().tolist()),
}
DECISIONS["tolist "] = DECISIONS.pop("any")


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("what", DECISIONS)
def test_a_layer_that_depends_on_values_is_found(what):
    with pytest.raises(ModelError) as refused:
        checked(between(Branches(DECISIONS[what])))
    assert f"Layer '1' (Branches) takes a value out of a tensor ({what.strip()})" in str(
        refused.value
    )


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("what", DECISIONS)
def test_a_loss_that_depends_on_values_is_found(what):
    def losses(network, records):
        images, _ = together(records)
        values = cross_entropies(network, records)
        return values * 2 if DECISIONS[what](images) else values

    with pytest.raises(ModelError) as refused:
        checked(between(), losses)
    assert f"The loss takes a value out of a tensor ({what.strip()})" in str(refused.value)


def test_a_backward_pass_that_depends_on_values_is_found():
    class Flips(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            return gradient if gradient.max() > 0 else -gradient

    with pytest.raises(ModelError, match=r"The loss takes a value.*in its backward pass"):
        checked(between(Function(Flips.apply)))


HARMLESS = {
    "rows by number": lambda x: x[torch.arange(len(x))],
    "a mask written through": lambda x: x.clone().masked_fill_(x < 0, 0.0),
    "a mask assigned through": lambda x: torch.ones_like(x).index_put((x < 0,), x.new_zeros(())),
    "what describes": lambda x: x * (x.is_floating_point() and x.dim() == 4 and x.stride(1) > 0),
    "a constant's value": lambda x: x * torch.arange(3).max().item(),
    "a constant's view": lambda x: x.sum(torch.arange(2, 4).view(2)[:1].tolist(), keepdim=True) + x,
    "where of three": lambda x: torch.where(x > 0, x, 0.1 * x),
    "sorted": lambda x: x.sort(1).values,
    "products": lambda x: x + 0.01 * x.tanh().prod(1, keepdim=True),
}


@pytest.mark.parametrize("function", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_takes_no_value_out_passes(function):
    assert checked(between(Function(function))).draws == 16


def test_a_constant_that_was_written_through_a_view_is_none():
    constants, constant, data = Constants(), torch.zeros(4), torch.ones(1)
    constants.follow([], [constant], True)
    assert constants.hold([constant[1:]]) and not constants.hold([data])
    constants.follow([constant[1:], data], [constant[1:]], False)
    assert not constants.hold([constant])


OF_MONAI = {
    "DiceLoss": monai.losses.DiceLoss(softmax=True),
    "DiceCELoss": monai.losses.DiceCELoss(softmax=True),
    "DiceFocalLoss": monai.losses.DiceFocalLoss(softmax=True),
    "FocalLoss": monai.losses.FocalLoss(),
    "GeneralizedDiceLoss": monai.losses.GeneralizedDiceLoss(softmax=True),
    "TverskyLoss": monai.losses.TverskyLoss(softmax=True),
}


@pytest.mark.parametrize("measure", OF_MONAI.values(), ids=OF_MONAI.keys())
def test_the_losses_of_monai_pass(measure):
    def losses(network, records):
        images, labels = together(records)
        logits = network(images)
        targets = one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits)
        pairs = zip(logits.split(1), targets.split(1), strict=True)
        return torch.stack([measure(*pair) for pair in pairs])

    assert checked(between(), losses, shapes=declared()).draws == 16


def test_control_flow_that_depends_on_who_else_is_there_is_found():
    with pytest.raises(ModelError, match=r"'1' \(Branches\) computes something else"):
        checked(between(Branches(lambda x: len(x) > 2)))


def test_shapes_that_depend_on_values_are_found():
    with pytest.raises(ModelError, match=r"'1' \(Function\) takes a value out.*nonzero"):
        checked(between(Function(lambda x: x + x.nonzero().shape[0])))
