"""The guard fires on every disguise that mixing subjects was seen in, and names the layer."""

import time

import pytest
import torch
from monai.networks.nets import SwinUNETR
from opacus import GradSampleModule
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from models.behaviour import check_behaviour, require_layers_see_images
from models.bench import Bench
from models.build import build_network
from models.errors import ModelError
from models.specs import DenseNetSpec, ResNetSpec, SegResNetSpec, UNetSpec
from models.synthetic import KINDS, MadeUp, make_up
from tests.models.losses import cross_entropies, declared, dice, together


def checked(network, loss=cross_entropies, *, shapes=None, **options):
    shapes = shapes or declared()
    return check_behaviour(network, loss, record=MadeUp, declared=shapes, **options)


def between(*layers):
    """Layers between two convolutions, for two classes a voxel."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers, nn.Conv2d(4, 2, 1))


class Function(nn.Module):
    """A layer that is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class BatchNormInDisguise(nn.BatchNorm2d):
    pass


class BatchNormByHand(nn.Module):
    def forward(self, x):
        return (x - x.mean((0, 2, 3), keepdim=True)) / (x.std((0, 2, 3), keepdim=True) + 1e-5)


class FunctionalBatchNorm(nn.Module):
    def forward(self, x):
        return F.batch_norm(x, None, None, training=True)


MIXING = {
    "batch norm": nn.BatchNorm2d(4),
    "subclass": BatchNormInDisguise(4),
    "without statistics": nn.BatchNorm2d(4, track_running_stats=False),
    "functional": FunctionalBatchNorm(),
    "by hand": BatchNormByHand(),
    "minus the first of the batch": Function(lambda x: x - x[:1]),
    "running sum": Function(lambda x: x.cumsum(0) / 10),
    "attention along the batch": Function(
        lambda x: x * x.flatten(1).sum(1).softmax(0).sum() + x.sum(0)
    ),
    "largest of the batch": Function(lambda x: x / (x.abs().max() + 1)),
}


@pytest.mark.parametrize("layer", MIXING.values(), ids=MIXING.keys())
def test_a_layer_that_mixes_subjects_is_named(layer):
    with pytest.raises(ModelError, match=rf"'1' \({type(layer).__name__}\) mixes.*GroupNorm"):
        checked(between(layer, nn.ReLU()))


def test_synchronised_batch_norm_is_named():
    # On a CPU it runs as plain BatchNorm does, in evaluation only; in training it asks for a GPU.
    network = nn.SyncBatchNorm.convert_sync_batchnorm(between(nn.BatchNorm2d(4)))
    with pytest.raises(ModelError, match=r"SyncBatchNorm"):
        checked(network)


def test_mixing_in_a_nested_layer_is_named_not_what_holds_it():
    with pytest.raises(ModelError, match=r"Layer '1\.0\.1' \(BatchNorm2d\)"):
        checked(between(nn.Sequential(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), nn.ReLU())))


def test_mixing_by_the_network_itself_is_named():
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, x):
            return self.conv(x - x.mean())

    with pytest.raises(ModelError, match="Mixes mixes"):
        checked(Mixes())


def test_dice_over_a_batch_mixes_subjects_and_over_an_image_does_not():
    checked(between(nn.ReLU()), dice(batch=False))
    with pytest.raises(ModelError, match=r"The loss mixes.*batch=True"):
        checked(between(nn.ReLU()), dice(batch=True))


def test_a_loss_that_is_not_one_number_an_image_is_refused():
    with pytest.raises(ModelError, match=r"shape \(2,\), not one number an image"):
        checked(between(), lambda network, records: cross_entropies(network, records)[:2])


WRITING = {
    "instance norm with statistics": nn.InstanceNorm2d(4, track_running_stats=True),
    "spectral norm": nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)),
}


@pytest.mark.parametrize("layer", WRITING.values(), ids=WRITING.keys())
def test_a_layer_that_writes_a_buffer_is_named(layer):
    with pytest.raises(ModelError, match=r"Layer '1.*writes its entry.*without noise"):
        checked(between(layer))


def test_a_buffer_that_is_written_with_what_it_held_is_found():
    # As spectral norm does once its power iteration has converged, until the weights move.
    class Writes(nn.Module):
        def __init__(self, write):
            super().__init__()
            self.register_buffer("state", torch.zeros(2))
            self.write = write

        def forward(self, x):
            self.write(self)
            return x

    for write in (
        lambda layer: layer.state.mul_(2),
        lambda layer: setattr(layer, "state", layer.state * 2),
    ):
        with pytest.raises(ModelError, match=r"Layer '1' \(Writes\) writes its entry 'state'"):
            checked(between(Writes(write)))


def test_a_counter_that_changes_nothing_else_is_found():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("passes", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.passes += len(x)
            return x

    with pytest.raises(ModelError, match=r"Counts.*'passes'"):
        checked(between(Counts()))


def test_what_is_remembered_outside_buffers_is_found():
    class Remembers(nn.Module):
        mean = 0.0

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3), keepdim=True)
            return x - self.mean

    class RemembersOneLater(Remembers):
        def forward(self, x):
            seen, self.mean = self.mean, x.detach().mean((0, 2, 3), keepdim=True)
            return x - seen

    for layer in (Remembers(), RemembersOneLater()):
        with pytest.raises(ModelError, match=r"mixes|something else|remembers"):
            checked(between(layer))


HARMLESS = {
    "dropout": nn.Dropout(0.5),
    "dropout of maps": nn.Dropout2d(0.5),
    "alpha dropout": nn.AlphaDropout(0.5),
    "drop path": Function(lambda x: x * torch.rand(len(x), 1, 1, 1).round()),
    "noise": Function(lambda x: x + torch.randn_like(x)),
    "noise of a size": Function(lambda x: x + torch.rand(size=(len(x), 4, 1, 1))),
    "bernoulli": Function(lambda x: x * torch.empty(len(x), 1, 1, 1).bernoulli_(0.5)),
    "group norm": nn.GroupNorm(2, 4),
    "instance norm": nn.InstanceNorm2d(4, affine=True),
    "layer norm": nn.LayerNorm([4, 8, 8]),
    "weight norm": nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
    "in place": nn.ReLU(inplace=True),
    "unused": nn.Sequential(),
}


@pytest.mark.parametrize("layer", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_keeps_subjects_apart_passes(layer):
    assert checked(between(layer)).draws == 16


def test_the_network_and_the_global_generator_are_left_as_they_were():
    network = between(nn.Dropout(0.5), nn.InstanceNorm2d(4)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    checked(network)
    assert torch.equal(torch.rand(2), expected) and not network.training
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items())


def test_a_network_without_trainable_weights_is_refused():
    with pytest.raises(ModelError, match="no trainable weights"):
        checked(between().requires_grad_(False))


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("old", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_network_that_cannot_be_copied_is_refused_with_the_way_out(old):
    network = between(old(nn.Conv2d(4, 4, 1)))
    network(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ModelError, match=r"cannot be copied.*parametrizations"):
        checked(network)


def test_a_network_that_does_not_fit_the_images_is_refused():
    with pytest.raises(ModelError, match=r"images of \(2, 2\) voxels"):
        checked(nn.Sequential(nn.Conv2d(1, 2, 5)), shapes=declared(2, 2))


def test_subjects_are_of_at_least_sixteen_draws_with_extremes():
    assert len(KINDS) >= 16
    largest = max(make_up(declared(), n, 2).images.abs().max() for n in range(len(KINDS)))
    assert largest >= 1e4
    classes = {make_up(declared(), n, 2).labels.unique().numel() for n in range(len(KINDS))}
    assert classes == {1, 2}


# What gradients taken layer by layer get wrong


HOOKS = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


def rows(network, parameters, records, losses):
    """Opacus's hooks: a gradient for each row that a layer was given."""
    hooked = GradSampleModule(network, loss_reduction="sum", strict=False)
    hooked.zero_grad()
    losses(hooked, records).sum().backward()
    samples = [p.grad_sample for p in parameters]
    hooked.remove_hooks()
    return samples


def hooks(network, parameters, records, losses):
    """The mean over each subject's images, were every row one."""
    size = len(records[0].images)
    found = rows(network, parameters, records, losses)
    return [s.reshape(-1, size, *s.shape[1:]).mean(1) for s in found]


def loop(network, parameters, records, losses):
    found = [
        torch.autograd.grad(losses(network, [record]).mean(), parameters) for record in records
    ]
    return [torch.stack(of_one) for of_one in zip(*found, strict=True)]


def vmapped(network, parameters, records, losses):
    names = [n for n, p in network.named_parameters() if p.requires_grad]

    def loss(values, images, labels):
        return losses(
            lambda x: functional_call(network, values, (x,)), [MadeUp(images, labels)]
        ).mean()

    found = vmap(grad(loss), (None, 0, 0))(
        dict(zip(names, parameters, strict=True)),
        torch.stack([r.images for r in records]),
        torch.stack([r.labels for r in records]),
    )
    return [found[name] for name in names]


def windows(side=4):
    """Flatten windows of ``side`` voxels into the batch, as Swin transformers do."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(side * side, side * side)

        def forward(self, x):
            count, channels, height, width = x.shape
            grid = (count, channels, height // side, side, width // side, side)
            parts = x.reshape(grid).transpose(3, 4)
            out = self.dense(parts.reshape(-1, side * side)).reshape(parts.shape)
            return out.transpose(3, 4).reshape(x.shape)

    return Windows()


@HOOKS
@pytest.mark.parametrize("path", [loop, vmapped, hooks])
def test_a_path_that_gives_each_subject_its_own_gradient_passes(path):
    assert checked(between(nn.GroupNorm(2, 4)), gradients=path).layers_see_images


@HOOKS
def test_windows_pass_one_subject_at_a_time_and_not_layer_by_layer():
    network = between(windows())
    behaviour = checked(network, gradients=loop)
    assert behaviour.flattened == ("1.dense",)
    checked(network, gradients=vmapped)
    with pytest.raises(ModelError, match=r"'1\.dense' is given rows that are not images"):
        require_layers_see_images(behaviour)
    with pytest.raises(ModelError, match="counts windows"):
        checked(network, gradients=hooks)


@HOOKS
def test_twenty_five_windows_would_be_clipped_twenty_five_times():
    """What the guard is for: by hooks, one subject would move the sum by up to 25 clip norms."""
    torch.manual_seed(0)
    network = nn.Sequential(windows(4), nn.Conv2d(1, 2, 1))
    with pytest.raises(ModelError, match="75 gradients for 3 subjects"):
        checked(network, shapes=declared(20, 20, cap=1), gradients=rows, draws=2)


def test_a_shared_layer_and_a_shared_weight_are_told():
    conv = nn.Conv2d(4, 4, 1)
    assert checked(between(conv, nn.ReLU(), conv)).shared == ("1",)
    tied = nn.Conv2d(4, 4, 1)
    tied.weight = conv.weight
    behaviour = checked(between(conv, nn.ReLU(), tied))
    assert behaviour.shared == ("1", "3")
    with pytest.raises(ModelError, match="'1' is used more than once"):
        require_layers_see_images(behaviour)


def test_a_path_that_counts_a_shared_layer_twice_is_found():
    def twice(network, parameters, records, losses):
        found = loop(network, parameters, records, losses)
        return [2 * g if i == 2 else g for i, g in enumerate(found)]

    conv = nn.Conv2d(4, 4, 1)
    with pytest.raises(ModelError, match="another gradient than that subject alone"):
        checked(between(conv, nn.ReLU(), conv), gradients=twice)


def test_a_path_that_mixes_subjects_is_found():
    def mixes(network, parameters, records, losses):
        found = loop(network, parameters, records, losses)
        return [g + 0.01 * g.mean(0) for g in found]

    with pytest.raises(ModelError, match="another gradient"):
        checked(between(nn.ReLU()), gradients=mixes)


def test_weights_used_without_calling_their_layer_are_told():
    class Peeks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return F.conv2d(x, self.inner.weight)

    behaviour = checked(between(Peeks()))
    assert behaviour.uncalled == ("1.inner",)
    with pytest.raises(ModelError, match="never calls it"):
        require_layers_see_images(behaviour)


def test_swin_windows_are_rows_of_their_own():
    torch.manual_seed(0)
    network = SwinUNETR(
        in_channels=1, out_channels=2, spatial_dims=2, feature_size=12, depths=(1, 1, 1, 1)
    )
    behaviour = checked(network, shapes=declared(64, 64, cap=1), draws=1)
    assert any("attn.qkv" in name for name in behaviour.flattened)


SHIPPED = [
    (UNetSpec(spatial_dims=2, channels=(16, 32), strides=(2,)), (80, 64)),
    (SegResNetSpec(spatial_dims=2, blocks_down=(1, 1), blocks_up=(1,)), (16, 16)),
    (DenseNetSpec(spatial_dims=2), (28, 28)),
    (ResNetSpec(spatial_dims=2, channels=(8, 8, 16, 16)), (28, 28)),
]


@pytest.mark.parametrize(("spec", "shape"), SHIPPED, ids=lambda v: getattr(v, "kind", None))
def test_shipped_networks_pass_within_seconds(spec, shape):
    network = build_network(spec, num_classes=3)
    shapes = declared(*shape, classifies=spec.classifies, num_classes=3)
    began = time.process_time()
    assert checked(network, shapes=shapes).layers_see_images
    assert time.process_time() - began < 10


def test_a_difference_by_rounding_alone_is_looked_at_again_in_float64(monkeypatch):
    """Images without contrast: what normalising blows up is rounding, not another subject."""
    looked = []
    exact = Bench.exact.func
    monkeypatch.setattr(Bench, "exact", property(lambda self: looked.append(1) or exact(self)))
    network = between(Function(lambda x: x + 1e-3 * x.mean().detach() * (x.dtype == torch.float32)))
    checked(network)
    assert looked


def test_records_are_what_the_loss_takes():
    def losses(network, records):
        images, labels = together([MadeUp(*r) for r in records])
        return cross_entropies(network, [MadeUp(images, labels)])

    check_behaviour(between(), losses, record=lambda i, t: (i, t), declared=declared())
