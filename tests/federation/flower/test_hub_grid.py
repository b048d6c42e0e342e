"""A hub's grid signs for each site apart, and knows who is connected."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.flower import wire
from federation.flower.client_app import client_app
from federation.flower.cohort import addressed
from federation.flower.grid import LocalGrid
from federation.flower.hub_grid import HubGrid
from federation.ledger.keys import SiteKey
from federation.messages import CloseRequest, DescribeRequest, EvaluateRequest, TrainRequest
from federation.signed_requests import Gate

HUB, OTHER = (SiteKey(Ed25519PrivateKey.generate()) for _ in range(2))


@pytest.fixture
def sites(site):
    return {name: site(name) for name in ("ward-a", "ward-b")}


def flower(sites):
    """Return Flower's grid: sites that let through what HUB has signed for them."""
    return LocalGrid(
        {name: client_app(fake, Gate(name, HUB.public_bytes.hex())) for name, fake in sites.items()}
    )


def over(grid, key=HUB, names=None, valid_s=60.0):
    return HubGrid(grid, grid.names if names is None else names, key, valid_s=valid_s)


def contents(experiment_digest, run_id, weights):
    return {
        "query": wire.encode_describe_request(DescribeRequest(experiment_digest, run_id)),
        "train": wire.encode_train_request(
            TrainRequest(experiment_digest, run_id, 1, 1, weights, {"ward-b": experiment_digest})
        ),
        "evaluate": wire.encode_evaluate_request(
            EvaluateRequest(experiment_digest, run_id, 1, weights)
        ),
        "query.close": wire.encode_close_request(
            CloseRequest(experiment_digest, run_id, {}, experiment_digest)
        ),
    }


def test_every_site_accepts_every_kind(sites, experiment_digest, run_id, weights):
    grid = over(flower(sites))
    for kind, content in contents(experiment_digest, run_id, weights).items():
        messages = addressed(grid, grid.names, content, kind, round_number=1, timeout_s=10)
        replies = grid.send_and_receive(messages, timeout=10)
        assert len(replies) == 2
        assert not any("refusal" in reply.content for reply in replies), kind


def test_another_hubs_requests_are_refused(sites, experiment_digest, run_id, weights):
    grid = over(flower(sites), key=OTHER)
    for kind, content in contents(experiment_digest, run_id, weights).items():
        messages = addressed(grid, grid.names, content, kind, round_number=1, timeout_s=10)
        codes = {r.content["refusal"]["code"] for r in grid.send_and_receive(messages, timeout=10)}
        assert codes == {"not_from_hub"}
    assert all(not fake.seen for fake in sites.values())


def test_a_request_for_one_site_is_none_for_another(sites, experiment_digest, run_id, weights):
    """A hub that mixes two node ids up gets nothing from either."""
    below = flower(sites)
    first, second = below.get_node_ids()
    crossed = {first: below.names[second], second: below.names[first]}
    grid = over(below, names=crossed)
    content = contents(experiment_digest, run_id, weights)["train"]
    messages = addressed(grid, grid.names, content, "train", round_number=1, timeout_s=10)
    codes = {r.content["refusal"]["code"] for r in grid.send_and_receive(messages, timeout=10)}
    assert codes == {"not_from_hub"}


def test_only_registered_sites_that_are_connected_are_known(sites):
    below = flower(sites)
    (first, _) = below.get_node_ids()
    grid = over(below, names={first: "ward-a", 99: "ward-x"})
    assert grid.names == {first: "ward-a"}
    assert grid.get_node_ids() == [first]


def test_a_change_of_the_content_is_noticed(sites, experiment_digest, run_id, weights):
    """The digest is kept for one content, and made anew for the next."""
    grid = over(flower(sites))
    for round_number in (1, 2):
        request = TrainRequest(experiment_digest, run_id, round_number, 1, weights)
        content = wire.encode_train_request(request)
        messages = addressed(
            grid, grid.names, content, "train", round_number=round_number, timeout_s=10
        )
        replies = grid.send_and_receive(messages, timeout=10)
        assert not any("refusal" in reply.content for reply in replies)


class Silent(LocalGrid):
    """Nobody answers."""

    def pull_messages(self, message_ids):
        del message_ids
        return []


def test_a_wait_ends_at_its_deadline(sites, experiment_digest, run_id, weights):
    below = Silent({name: client_app(fake) for name, fake in sites.items()})
    grid = over(below)
    content = contents(experiment_digest, run_id, weights)["query"]
    messages = addressed(grid, grid.names, content, "query", round_number=0, timeout_s=10)
    assert grid.send_and_receive(messages, timeout=0.2) == []
