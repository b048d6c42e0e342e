"""A site whose disk is full: it says nothing but a code, forgets nothing, and goes on with room."""

import json

import pytest

from federation.errors import LedgerError, Refused
from federation.messages import DescribeRequest, TrainRequest
from federation.privacy.plan import make_plan
from federation.rounds import LocalRounds
from federation.site import Permission, open_site
from federation.training import initial_weights
from tests.e2e.disks import disk
from tests.experiments import tiny_experiment

EXPERIMENT = tiny_experiment(retries=1)
RUN = "0123456789abcdef"


@pytest.fixture
def small(federation):
    """The small disk on which one site keeps its state."""
    with disk(federation / "bio-lab" / "state", 8) as made:
        yield made


@pytest.fixture
def rounds(small):
    site = open_site(small.folder.parent / "site.yaml")
    site.approve(EXPERIMENT, make_plan(EXPERIMENT), Permission("test"))
    rounds = LocalRounds(site)
    rounds.describe(DescribeRequest(EXPERIMENT.digest(), RUN))
    yield rounds
    site.ledger.close()


def train(rounds, number=1, attempt=1):
    weights = initial_weights(EXPERIMENT)
    return rounds.train(TrainRequest(EXPERIMENT.digest(), RUN, number, attempt, weights))


def refused(rounds, **request):
    with pytest.raises(Refused) as refusal:
        train(rounds, **request)
    return refusal.value.code


def kinds(small):
    lines = (small.folder / "ledger.jsonl").read_bytes().splitlines()
    return [json.loads(line)["kind"] for line in lines][3:]


def test_no_room_for_a_charge_opens_nothing_and_costs_nothing(small, rounds):
    ledger = open_site(small.folder.parent / "site.yaml").ledger
    with small.full():
        # The rest of the ledger's last page, too.
        with pytest.raises(LedgerError, match=r"could not be written.*Nothing was charged"):
            for number in range(20):
                ledger.refuse(f"sha256:{number:064x}", by="test", reason="x")
        before = kinds(small)
        assert refused(rounds) == "round_failed"
        assert kinds(small) == before
    assert train(rounds).payload
    assert kinds(small)[len(before) :] == ["charge", "release"]
    ledger.close()


def test_no_room_for_an_update_is_a_charge_and_a_lost_round_and_nothing_leaves(small, rounds):
    with small.full(but_bytes=8 * 1024):
        assert refused(rounds) == "round_failed"
        assert kinds(small)[0] == "charge" and "release" not in kinds(small)
    assert not list((small.folder / "outbox").glob("*.update"))
    assert refused(rounds) == "lost"
    assert train(rounds, attempt=2).payload
    assert kinds(small).count("charge") == 2 and kinds(small).count("release") == 1
    # What was released is sent again at no charge, with or without room.
    with small.full():
        assert train(rounds, attempt=2).payload
    assert kinds(small).count("charge") == 2
