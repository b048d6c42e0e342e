"""Two ledgers become one budget."""

import pytest

from federation.errors import LedgerError, PrivacyBudgetError, Refused
from federation.ledger.entries import Declaration
from federation.ledger.filter import BudgetPolicy
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger
from federation.ledger.upkeep import merge
from tests.federation.ledger.conftest import World


def test_a_merge_that_was_killed_half_way_counts_what_came_since(world, tmp_path, monkeypatch):

    key = SiteKey.create(tmp_path / "other")
    other = Ledger.create(tmp_path / "other" / "ledger.jsonl", key, world.ledger.policy, "archive")
    world.approve()
    world.charge(1)
    ended = world.ledger
    append = type(ended.chain).append

    def killed(self, kind, body):
        if kind == "merged":
            raise KeyboardInterrupt
        return append(self, kind, body)

    monkeypatch.setattr(type(ended.chain), "append", killed)
    with pytest.raises(KeyboardInterrupt):
        merge(other, ended, by="a", reason="b")
    monkeypatch.undo()
    world.charge(2)
    merge(other, ended, by="a", reason="b")
    assert other.state == ended.state
    assert other.state.steps[0.25, 1.575] == 10
    with pytest.raises(LedgerError, match="merged into another"):
        merge(other, ended, by="a", reason="b")
    with pytest.raises(LedgerError, match="into itself"):
        merge(other, other, by="a", reason="b")
    assert Ledger.open(ended.path, world.key).book.merged_into is not None


def test_a_charge_after_merging_that_passes_the_budget_is_refused(world, tmp_path, event):

    key = SiteKey.create(tmp_path / "other")
    other = Ledger.create(tmp_path / "other" / "ledger.jsonl", key, world.ledger.policy, "archive")
    second = World(tmp_path / "other", key, other, event)
    second.approve(charges=8)
    for number in range(8):
        second.charge(number)
    world.approve(charges=8)
    for number in range(4):
        world.charge(number)
    merge(world.ledger, other, by="a", reason="same people")
    with pytest.raises(Refused, match="budget"):
        world.charge(5)
    with pytest.raises(PrivacyBudgetError):
        world.approve(charges=1)
    assert world.reopened().state == world.ledger.state


def ledger(folder, epsilon=1.0, delta=1e-5, **more) -> Ledger:
    told = {"declaration": more.pop("declaration", None)}
    policy = BudgetPolicy.of(epsilon, delta, **more)
    return Ledger.create(folder / "ledger.jsonl", SiteKey.create(folder), policy, "archive", **told)


@pytest.mark.parametrize(
    ("laxer", "said"),
    [
        ({"epsilon": 10.0}, "epsilon 10, not 1"),
        ({"delta": 2e-5}, "delta 2e-05, not 1e-05"),
        ({"allow_unprotected": True}, "charges without noise"),
    ],
)
def test_a_ledger_is_not_merged_into_a_laxer_one_but_the_other_way_round(tmp_path, laxer, said):
    tight, lax = ledger(tmp_path / "tight"), ledger(tmp_path / "lax", **laxer)
    with pytest.raises(LedgerError, match=rf"{said}.*Merge the other way round"):
        merge(lax, tight, by="a", reason="b")
    assert [len(one.records) for one in (tight, lax)] == [1, 1]
    merge(tight, lax, by="a", reason="b")
    assert lax.book.merged_into == tight.book.genesis.hash


def test_ledgers_of_which_neither_is_the_tighter_one_are_not_merged(tmp_path):
    one, other = ledger(tmp_path / "a", epsilon=2.0), ledger(tmp_path / "b", delta=2e-5)
    with pytest.raises(LedgerError, match="out of one data set, and ingest it again"):
        merge(one, other, by="a", reason="b")


def test_a_ledger_of_no_human_subjects_is_merged_only_with_another(tmp_path):
    declared = {"declaration": Declaration("Dr. Rivera", "cell lines")}
    one, other = ledger(tmp_path / "a", **declared), ledger(tmp_path / "b")
    for first, second in ((one, other), (other, one)):
        with pytest.raises(LedgerError, match="declared to be of no human subjects"):
            merge(first, second, by="a", reason="b")
    merge(one, ledger(tmp_path / "c", **declared), by="a", reason="b")
