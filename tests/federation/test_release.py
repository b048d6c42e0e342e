"""What leaves a site: a closed schema, and in it nothing that was not noised."""

import json
import shutil
import struct
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from federation.canonical import canonical_json
from federation.errors import FederationError
from federation.flower import records, wire
from federation.ledger.receipts import Receipt
from federation.messages import EvaluateReply, TrainReply, TrainRequest
from federation.release import ReleaseError, release_update, unprotected_update
from federation.rounds import LocalRounds
from federation.run import approve, open_sites
from federation.training import initial_weights
from models.build import weights_of
from tests.experiments import tiny_experiment


class Remembering(nn.Module):
    """A layer with a frozen parameter, a float buffer and a counter beside its weights."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.scalar = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("count", torch.tensor(0))


@pytest.fixture
def network():
    return Remembering()


def trainable(network):
    return [p for p in network.parameters() if p.requires_grad]


def move(network, by=0.5):
    with torch.no_grad():
        for parameter in trainable(network):
            parameter.add_(by)


class Told(list):
    """An ``on_failure`` that checks that it is called inside an ``except``."""

    def __call__(self, what):
        import sys

        self.append((what, str(sys.exc_info()[1])))


def released(network, arrived, stepped=None, told=None):
    return release_update(
        network,
        arrived,
        stepped=trainable(network) if stepped is None else stepped,
        on_failure=pytest.fail if told is None else told,
    )


def test_an_update_is_what_noised_steps_moved_and_the_rest_is_exactly_zero(network):
    arrived = weights_of(network)
    move(network)
    update = released(network, arrived)
    assert list(update) == list(arrived)
    for name, array in update.items():
        assert array.dtype == np.float32 and array.shape == arrived[name].shape
        moved = name.startswith(("linear", "scalar"))
        assert np.all(np.abs(array - 0.5) < 1e-6) if moved else not array.any()


def spoil_buffer(network):
    network.mean.add_(torch.tensor([1.0, 2.0, 3.0]))


def spoil_sign_of_zero(network):
    network.mean.mul_(-1.0)


def spoil_with_nan(network):
    network.mean.fill_(torch.nan)


def spoil_frozen(network):
    network.frozen.data.mul_(7.0)


def spoil_shape(network):
    network.mean = torch.ones(9)


def add_a_buffer(network):
    network.register_buffer("images", torch.arange(50.0))


def lose_a_buffer(network):
    del network.mean


def swap_a_parameter(network):
    network.linear.weight = nn.Parameter(torch.full((2, 3), 42.0))


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_buffer,
        spoil_sign_of_zero,
        spoil_with_nan,
        spoil_frozen,
        spoil_shape,
        add_a_buffer,
        lose_a_buffer,
        swap_a_parameter,
    ],
)
def test_what_training_changed_beside_is_sent_as_it_arrived_and_only_the_site_is_told(
    network, spoil
):
    arrived, stepped, told = weights_of(network), trainable(network), Told()
    move(network)
    clean = released(network, arrived, stepped)
    spoil(network)
    update = released(network, arrived, stepped, told)
    lost = {"linear.weight"} if spoil is swap_a_parameter else set()
    expected = {name: array for name, array in clean.items() if name not in lost}
    assert list(update) == list(clean)
    assert all(update[n].tobytes() == expected[n].tobytes() for n in expected)
    assert all(update[name].tobytes() == bytes(24) for name in lost)
    (what, why), *more = told
    assert "as it arrived" in what and "Training changed 1 buffers" in why and not more


def test_a_buffer_that_does_not_travel_does_not_matter(network):
    arrived = weights_of(network)
    network.count.add_(1)
    assert not any(array.any() for array in released(network, arrived).values())


def test_a_parameter_that_is_not_the_networks_never_leaves(network):
    arrived, canaries = weights_of(network), nn.Parameter(torch.full((1000,), 9.0))
    move(network)
    update = released(network, arrived, [*trainable(network), canaries])
    assert list(update) == list(arrived)
    assert max(float(np.abs(array).max()) for array in update.values()) < 0.6


@pytest.mark.parametrize("names", [("0.weight",), ("0.weight", "1.weight")], ids=len)
def test_a_parameter_that_two_layers_share_moves_under_each_name_that_arrived(names):
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    network[1].weight = network[0].weight
    arrived = {name: network[0].weight.detach().numpy().copy() for name in names}
    move(network)
    update = release_update(
        network, arrived, stepped=trainable(network), on_failure=lambda what: None
    )
    assert tuple(update) == names
    assert all(np.all(np.abs(update[name] - 0.5) < 1e-6) for name in names)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 3.4e38])
def test_a_noised_value_that_is_not_finite_is_refused(network, poison):
    """Whether it is refused follows from noised values alone: the same for any images."""
    arrived = weights_of(network)
    arrived["linear.weight"][0, 0] = -3.4e38
    with torch.no_grad():
        network.linear.weight[0, 0] = poison
    with pytest.raises(ReleaseError, match=r"'linear\.weight' holds NaN or inf.*learning rate"):
        released(network, arrived)


def test_a_stepped_parameter_of_another_shape_is_refused(network):
    arrived = weights_of(network)
    network.linear.weight.data = torch.zeros(5, 3)
    with pytest.raises(ReleaseError, match=r"changed the shape of 'linear\.weight'"):
        released(network, arrived)


def test_without_privacy_buffers_travel_but_the_schema_is_as_closed(network):
    arrived = weights_of(network)
    spoil_buffer(network)
    assert unprotected_update(network, arrived)["mean"].tolist() == [1, 2, 3]
    add_a_buffer(network)
    with pytest.raises(FederationError, match="names of the network's weights"):
        unprotected_update(network, arrived)


# What is on the wire


@pytest.fixture(scope="module")
def reply(ingested, tmp_path_factory):
    folder = tmp_path_factory.mktemp("release") / "sites"
    shutil.copytree(ingested, folder)
    (site, *_) = open_sites(sorted(folder.glob("*/site.yaml")))
    experiment = tiny_experiment()
    approve(experiment, [site], approver="test")
    request = TrainRequest(experiment.digest(), "ab" * 16, 1, 1, initial_weights(experiment))
    return LocalRounds(site).train(request)


def test_a_reply_and_its_receipt_have_these_fields_and_no_others(reply):
    assert {f.name for f in fields(TrainReply)} == {"payload", "receipt"}
    assert {f.name for f in fields(EvaluateReply)} == {"scores"}
    assert set(reply.receipt) == {
        "site",
        "public_key",
        "ledger",
        "experiment_digest",
        "plan_digest",
        "run",
        "round",
        "attempt",
        "request_digest",
        "event",
        "commitment",
        "charge_seq",
        "head_before",
        "head_after",
        "update_digest",
        "versions",
        "signature",
    }
    assert set(reply.receipt["versions"]) == {"cohortium", "torch", "monai", "opacus"}
    assert set(reply.receipt["event"]) == {"kind", "sampling_rate", "noise_multiplier", "steps"}


def test_the_payload_holds_arrays_of_the_requests_names_and_no_other_text(reply):
    length = struct.unpack("<Q", reply.payload[:8])[0]
    header = json.loads(reply.payload[8 : 8 + length])
    weights = initial_weights(tiny_experiment())
    assert set(header) == set(weights)
    for name, entry in header.items():
        assert set(entry) == {"dtype", "shape", "data_offsets"}
        assert (entry["dtype"], tuple(entry["shape"])) == ("F32", weights[name].shape)
    assert len(reply.payload) == 8 + length + 4 * sum(w.size for w in weights.values())


def test_nothing_else_is_on_the_wire(reply):
    content = wire.encode_train_reply(reply)
    assert set(content) == {"reply", "update"}
    assert set(content["reply"]) == {"receipt"} and set(content["update"]) == {"payload"}
    assert content["reply"]["receipt"] == canonical_json(dict(reply.receipt)).decode()
    assert bytes(content["update"]["payload"].data) == reply.payload


@pytest.mark.parametrize("name", ["loss", "grad_norm", "batch_size", "seconds", "gpu_memory"])
def test_figures_that_stay_at_the_site_have_no_place_in_a_receipt_or_a_reply(reply, name):
    with pytest.raises(ValueError, match="exactly the keys"):
        Receipt.from_json({**reply.receipt, name: 1.0})
    with pytest.raises(TypeError):
        TrainReply(reply.payload, reply.receipt, **{name: 1.0})
    content = wire.encode_train_reply(reply)
    content["scores"] = records.MetricRecord({name: 1.0})
    with pytest.raises(FederationError, match="unknown fields"):
        wire.decode_train_reply(content)
