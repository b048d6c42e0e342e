"""Two ledgers become one budget."""

import pytest

from federation.errors import LedgerError, PrivacyBudgetError, Refused
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
