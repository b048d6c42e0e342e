"""Which of MONAI's networks can be trained under subject-level privacy: found out, not claimed.

``python -m tests.models.monai_table`` runs each small network through the repairs and the guard,
and writes docs/models.md.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.networks import nets
from monai.networks.nets import vnet
from torch import nn
from torch.func import functional_call, grad, vmap

from models.behaviour import Behaviour, check_behaviour
from models.dp_safe import make_dp_safe, summary
from models.errors import ModelError
from models.synthetic import Declared, MadeUp
from tests.models.losses import cross_entropies
from tests.models.refusals import REFUSED, refusal

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
NUM_CLASSES = 2
# What an experiment's guard takes; the test takes fewer, and must find the same.
DRAWS = 16


class FirstOutput(nn.Module):
    """MONAI's ViT returns its hidden states as well."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)[0]


class NarrowVNet(nets.VNet):
    """VNet's own blocks at a quarter of their width: MONAI's has 45 million weights."""

    def __init__(self, dims: int) -> None:
        nn.Module.__init__(self)
        act, dropout = ("elu", {"inplace": True}), {"dropout_dim": dims}
        half = {"dropout_prob": 0.5, **dropout}
        self.in_tr = vnet.InputTransition(dims, 1, 4, act)
        self.down_tr32 = vnet.DownTransition(dims, 4, 1, act)
        self.down_tr64 = vnet.DownTransition(dims, 8, 2, act)
        self.down_tr128 = vnet.DownTransition(dims, 16, 3, act, **half)
        self.down_tr256 = vnet.DownTransition(dims, 32, 2, act, **half)
        half = {"dropout_prob": (0.5, 0.5), **dropout}
        self.up_tr256 = vnet.UpTransition(dims, 64, 64, 2, act, **half)
        self.up_tr128 = vnet.UpTransition(dims, 64, 32, 2, act, **half)
        self.up_tr64 = vnet.UpTransition(dims, 32, 16, 1, act, **dropout)
        self.up_tr32 = vnet.UpTransition(dims, 16, 8, 1, act, **dropout)
        self.out_tr = vnet.OutputTransition(dims, 8, NUM_CLASSES, act)


@dataclass(frozen=True)
class Candidate:
    """One network of MONAI, as small as it can be built.

    Attributes:
        make: From spatial dimensions to the network.
        side: Voxels along each axis that it is tried on.
        long: Twice as many along the first axis.
    """

    name: str
    make: Callable[[int], nn.Module]
    side: int = 16
    classifies: bool = False
    long: bool = False

    def shape(self, dims: int) -> tuple[int, ...]:
        return (2 * self.side if self.long else self.side, *(self.side,) * (dims - 1))


def _inner(dims):
    return {"spatial_dims": dims, "in_channels": 1, "out_channels": NUM_CLASSES}


LEVELS = {"channels": (8, 16), "strides": (2,)}
ATTENTION = {"num_heads": 2, "hidden_size": 16, "mlp_dim": 16}
EFFICIENT_BLOCKS = ["r1_k3_s11_e1_i32_o8_se0.25", "r1_k3_s22_e2_i8_o16_se0.25"]

CANDIDATES = (
    Candidate("UNet", lambda d: nets.UNet(**_inner(d), **LEVELS, num_res_units=1)),
    Candidate(
        "UNet, norm=batch",
        lambda d: nets.UNet(**_inner(d), **LEVELS, num_res_units=1, norm="batch"),
    ),
    Candidate("BasicUNet", lambda d: nets.BasicUNet(**_inner(d), features=(4,) * 6), long=True),
    Candidate("AttentionUnet", lambda d: nets.AttentionUnet(**_inner(d), **LEVELS)),
    Candidate(
        "SegResNet",
        lambda d: nets.SegResNet(**_inner(d), init_filters=8, blocks_down=(1, 1), blocks_up=(1,)),
    ),
    Candidate(
        "DynUNet",
        lambda d: nets.DynUNet(
            **_inner(d),
            kernel_size=[3] * 3,
            strides=[1, 2, 2],
            upsample_kernel_size=[2, 2],
            filters=(4, 8, 8),
        ),
    ),
    Candidate("VNet", NarrowVNet),
    Candidate(
        "DenseNet",
        lambda d: nets.DenseNet(**_inner(d), init_features=8, growth_rate=8, block_config=(2, 2)),
        classifies=True,
    ),
    Candidate(
        "ResNet",
        lambda d: nets.ResNet(
            "basic", [1] * 4, [8] * 4, d, n_input_channels=1, num_classes=NUM_CLASSES
        ),
        classifies=True,
    ),
    Candidate(
        "SEResNet",
        lambda d: nets.SEResNet50(
            layers=(1, 1, 1, 1), spatial_dims=d, in_channels=1, num_classes=NUM_CLASSES
        ),
        classifies=True,
    ),
    Candidate(
        "EfficientNet",
        lambda d: nets.EfficientNet(
            EFFICIENT_BLOCKS, d, in_channels=1, num_classes=NUM_CLASSES, image_size=16
        ),
        classifies=True,
    ),
    Candidate(
        "ViT",
        lambda d: FirstOutput(
            nets.ViT(
                in_channels=1,
                img_size=(16,) * d,
                patch_size=8,
                **ATTENTION,
                num_layers=1,
                classification=True,
                num_classes=NUM_CLASSES,
                spatial_dims=d,
            )
        ),
        classifies=True,
    ),
    Candidate(
        "UNETR",
        lambda d: nets.UNETR(
            **_inner(d), img_size=(32, *(16,) * (d - 1)), feature_size=4, **ATTENTION
        ),
        long=True,
    ),
    Candidate(
        "SwinUNETR",
        lambda d: nets.SwinUNETR(
            **_inner(d), feature_size=12, depths=(1,) * 4, num_heads=(1,) * 4, window_size=4
        ),
        side=32,
        long=True,
    ),
)


@dataclass(frozen=True)
class Verdict:
    """What happened to a network, in the words of the table."""

    outcome: str
    one_by_one: str
    by_vmap: str


def verdict(candidate: Candidate, dims: int, draws: int) -> Verdict:
    torch.manual_seed(0)
    try:
        network = candidate.make(dims)
    except (ValueError, RuntimeError, AssertionError) as error:
        return Verdict(f"refused: MONAI does not build it ({error})", "", "")
    declared = Declared(candidate.shape(dims), 1, NUM_CLASSES, candidate.classifies, cap=1)
    try:
        return _passed("works", network, declared, draws)
    except ModelError as error:
        if "cannot be trained on" in str(error):
            raise  # The candidate is too small for its grid: says nothing about privacy.
    try:
        network, repairs = make_dp_safe(network)
        return _passed(f"repaired: {summary(repairs)}", network, declared, draws)
    except ModelError as error:
        return Verdict(f"refused: {error}", "", "")


def _passed(outcome: str, network: nn.Module, declared: Declared, draws: int) -> Verdict:
    behaviour = check_behaviour(
        network, cross_entropies, record=MadeUp, declared=declared, draws=draws
    )
    return Verdict(outcome, _layers(behaviour), _vmap(make_dp_safe(network)[0], declared))


def _layers(behaviour: Behaviour) -> str:
    told = (
        (behaviour.flattened, "rows that are not images"),
        (behaviour.shared, "layers used twice"),
        (behaviour.uncalled, "layers with weights never called"),
    )
    return ", ".join(f"{words} ({len(layers)})" for layers, words in told if layers) or "yes"


def _vmap(network: nn.Module, declared: Declared) -> str:
    """Tell whether torch.func.vmap can take many subjects' gradients in one pass."""
    network.train()
    values = {n: p.detach() for n, p in network.named_parameters()}
    images = torch.randn(2, 1, 1, *declared.image_shape)
    labels = torch.zeros(
        (2, 1) if declared.classifies else (2, 1, *declared.image_shape), dtype=torch.uint8
    )

    def loss(values, images, labels):
        def run(x):
            return functional_call(network, values, (x,))

        return cross_entropies(run, [MadeUp(images, labels)]).mean()

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Slow rules are rules.
            vmap(grad(loss), (None, 0, 0), randomness="different")(values, images, labels)
    except (RuntimeError, ValueError) as error:
        return f"no: {' '.join(str(error).split())[:70]}"
    return "yes"


HEAD = """# Networks under subject-level privacy

A network may be trained under privacy if no subject's data reaches another subject's gradient.
That is found out by running it ([models/behaviour.py](../models/behaviour.py)): made-up subjects,
extremes among them, go through network and loss with and without one of them. What can be repaired
without changing what the network means ([models/dp_safe.py](../models/dp_safe.py)) is, and tried
again: BatchNorm becomes GroupNorm (the most groups that divide the channels, at most 32, of 4
channels or more each), InstanceNorm loses its running statistics, activations no longer work in
place. Layers with learned statistics, and a BatchNorm with a `forward` of its own, are refused.

An experiment names these by `model.kind`: `unet`, `segresnet`, `dynunet`, `attention_unet`
(segmentation), `densenet`, `resnet` (classification and regression). Where MONAI keeps BatchNorm
whatever it is asked for (ResNet, AttentionUnet), the network is built and then repaired, always in
the same way.
`weight_standardisation: true` (arXiv 1903.10520) is possible with each.

## MONAI's networks

"Layer by layer" says whether gradients that hooks take at each layer would be those of images,
"vmap" whether `torch.func.vmap` gives the same. Training does neither: it takes them one subject at
a time ([decisions/0009](decisions/0009-gradient-paths.md)).

| network | axes | under privacy | layer by layer | vmap |
|---|---|---|---|---|
"""
REFUSALS = """
## What is refused, and why

No network of MONAI's is refused as its constructor makes it. What is refused are weights that came
with statistics, layers and losses of one's own, and what an experiment asks for:

| what | it says |
|---|---|
"""
FOOT = """
Written by `python -m tests.models.monai_table` with MONAI {monai}: each network small, at its
default normalisation, VNet at a quarter of its width, {draws} draws of the guard. A test compares
it with what the networks do today, with fewer draws. The guard is a trial, not a proof: a network
that mixes subjects only on inputs unlike all that it tries would pass.
"""


def row(candidate: Candidate, dims: int, draws: int = DRAWS) -> str:
    found = verdict(candidate, dims, draws)
    cells = (candidate.name, f"{dims}-D", found.outcome, found.one_by_one, found.by_vmap)
    return "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |"


def document(rows: list[str]) -> str:
    import monai

    version = monai.__version__.split("+")[0]
    refused = "\n".join(refusal(name) for name in REFUSED)
    return (
        HEAD
        + "\n".join(rows)
        + "\n"
        + REFUSALS
        + refused
        + "\n"
        + FOOT.format(monai=version, draws=DRAWS)
    )


if __name__ == "__main__":
    DOCUMENT.write_text(document([row(c, dims) for c in CANDIDATES for dims in (2, 3)]))
