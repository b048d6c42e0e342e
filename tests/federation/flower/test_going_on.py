"""A hub that dies anywhere goes on to the very model it would have made, at no new charge."""

import itertools

import pytest

from federation.checkpoint import Checkpoint
from federation.errors import CheckpointError, Refused, StorageError
from federation.flower.client_app import client_app
from federation.flower.collecting import Collector
from federation.flower.grid import LocalGrid
from federation.flower.hub_run import HubRun
from federation.flower.server_app import RunStoppedError, run_rounds
from federation.flower.spool import Spool
from models.weights import weights_digest

ROUNDS = 3


class Killed(BaseException):
    """The process is gone; no handler of ours catches this."""


@pytest.fixture
def carry_out(tmp_path, weights, experiment_digest, run_id):
    """Start a run in a folder of its own, or go on with it."""

    def run(sites, name="run", **more):
        grid = LocalGrid({one.name: client_app(one) for one in sites})
        terms = {"rounds": ROUNDS, "min_sites": len(sites), "ema_decay": 0.5} | more
        with Checkpoint(tmp_path / name) as checkpoint:
            state, start = None, weights
            if checkpoint.exists:
                state, start = checkpoint.load(experiment_digest)
            return run_rounds(
                grid,
                experiment_digest=experiment_digest,
                run=run_id,
                weights=start,
                checkpoint=checkpoint,
                state=state,
                **terms,
            )

    return run


@pytest.fixture
def dying(monkeypatch):
    """Make the n-th call of these fail, before or after it has done its work; count all."""
    calls = itertools.count()
    fatal = []

    def wrap(owner, name):
        real = getattr(owner, name)

        def counted(*args, **kwargs):
            number = next(calls)
            if fatal == [(number, "before")]:
                raise Killed
            result = real(*args, **kwargs)
            if fatal == [(number, "after")]:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, counted)

    for owner, name in [
        (Checkpoint, "put"),
        (Checkpoint, "save"),
        (Spool, "keep"),
        (Collector, "ask"),
        (LocalGrid, "pull_messages"),
        (HubRun, "finish"),
    ]:
        wrap(owner, name)

    def set_fatal(number=None, way="before"):
        nonlocal calls
        calls = itertools.count()
        fatal[:] = [] if number is None else [(number, way)]

    set_fatal.count = lambda: next(calls)
    return set_fatal


def two(paying_site):
    return [paying_site("a"), paying_site("b", dies=(2,))]


@pytest.mark.slow
def test_killed_at_any_of_its_steps_a_hub_goes_on_to_the_same_model_and_nobody_pays_twice(
    carry_out, paying_site, dying
):
    dying()
    sites = two(paying_site)
    whole = carry_out(sites, "whole", retries=1)
    num_steps = dying.count()
    paid = [site.charges for site in sites]
    assert num_steps > 40
    for number, way in itertools.product(range(num_steps), ("before", "after")):
        sites, name = two(paying_site), f"{number}-{way}"
        dying(number, way)
        with pytest.raises(Killed):
            carry_out(sites, name, retries=1)
        dying()
        again = carry_out(sites, name, retries=1)
        assert weights_digest(again.weights) == weights_digest(whole.weights), name
        assert again.receipts == whole.receipts, name
        assert again.events == whole.events, name
        assert again.closings == whole.closings, name
        assert [site.charges for site in sites] == paid, name


def test_killed_again_and_again_it_comes_to_its_end(carry_out, paying_site, dying):
    dying()
    whole = carry_out(two(paying_site), "whole", retries=1)
    sites, num_kills = two(paying_site), 0
    while True:
        dying(14)
        try:
            again = carry_out(sites, retries=1)
            break
        except Killed:
            num_kills += 1
    assert num_kills > 2
    assert weights_digest(again.weights) == weights_digest(whole.weights)
    assert [len(site.charges) for site in sites] == [ROUNDS, ROUNDS + 1]


def test_a_site_that_was_late_before_is_not_in_a_round_that_is_over(carry_out, paying_site, dying):
    """A round that was averaged stays as it was: else the next request would be another one."""
    late = paying_site("b", fails={"train": Refused("budget")})
    dying()
    sites = [paying_site("a"), late]

    def die_after_round_1(event):
        if event.round == 1:
            raise Killed

    with pytest.raises(Killed):
        carry_out(sites, min_sites=1, on_event=die_after_round_1)
    late.fails = {}
    result = carry_out(sites, min_sites=1)
    assert [event.returned for event in result.events[1:]] == [("a",), ("a", "b"), ("a", "b")]


def test_a_full_disk_is_no_end_of_a_run(carry_out, paying_site, monkeypatch):
    sites, real, full = two(paying_site), Spool.keep, []

    def keep(spool, node_id, payload):
        if not full:
            full.append(True)
            raise StorageError("No space left. Make room.")
        return real(spool, node_id, payload)

    monkeypatch.setattr(Spool, "keep", keep)
    with pytest.raises(StorageError):
        carry_out(sites, retries=1)
    assert not any(kind == "close" for site in sites for kind, _ in site.seen)
    assert [e.round for e in carry_out(sites, retries=1).events] == [0, 1, 2, 3]


def test_a_run_that_was_stopped_for_want_of_sites_does_not_go_on(carry_out, paying_site):
    sites = [paying_site("a"), paying_site("b", fails={"train": Refused("budget")})]
    with pytest.raises(RunStoppedError):
        carry_out(sites)
    with pytest.raises(CheckpointError, match=r"has ended: Round 1: 1 of 2 sites"):
        carry_out(sites)


def test_a_run_that_never_began_can_be_tried_again_under_the_same_approvals(carry_out, paying_site):
    absent = paying_site("b", fails={"describe": Refused("not_approved")})
    sites = [paying_site("a"), absent]
    with pytest.raises(RunStoppedError, match="Before round 1"):
        carry_out(sites)
    absent.fails = {}
    assert [e.round for e in carry_out(sites).events] == [0, 1, 2, 3]


def test_other_sites_than_it_began_with_are_refused_before_anything_is_sent(
    carry_out, paying_site, dying
):
    dying(20)
    with pytest.raises(Killed):
        carry_out([paying_site("a"), paying_site("b")])
    dying()
    others = [paying_site("a"), paying_site("c")]
    with pytest.raises(CheckpointError, match=r"began with a, b, and other sites.*: a, c\."):
        carry_out(others)
    assert [site.seen for site in others] == [[], []]
    again = carry_out([paying_site("a"), paying_site("b")])
    assert [event.round for event in again.events] == [0, 1, 2, 3]
