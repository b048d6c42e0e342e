"""The journal of what left, and what it says beside the ledger."""

import json
import os

import pytest

from federation.egress import EgressJournal, Sent, reconcile
from federation.errors import FederationError

FIRST, SECOND, THIRD = (f"sha256:{c * 64}" for c in "123")


@pytest.fixture
def journal(tmp_path):
    return EgressJournal(tmp_path)


def note(journal, update=None, kind="train"):
    return journal.note(
        to="hub:1", kind=kind, answer="reply", num_bytes=10, digest=FIRST, update_digest=update
    )


def test_what_is_noted_can_be_read_again(journal):
    noted = [note(journal), note(journal, SECOND)]
    assert list(journal.entries()) == noted
    assert noted[1].update_digest == SECOND


def test_nothing_was_sent_yet(journal):
    assert list(journal.entries()) == []


def test_it_is_for_its_owner_only(journal):
    note(journal)
    assert journal.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_line_that_a_crash_cut_short_is_left_out(journal, cut):
    first, _ = note(journal), note(journal)
    journal.path.write_bytes(journal.path.read_bytes()[:-cut])
    kept = list(journal.entries())
    assert kept[0] == first and len(kept) == (2 if cut == 1 else 1)


def test_a_line_that_was_changed_is_told(journal):
    note(journal)
    value = json.loads(journal.path.read_bytes()) | {"more": 1}
    journal.path.write_text(json.dumps(value) + "\n")
    with pytest.raises(FederationError, match="line 1 is no entry"):
        list(journal.entries())


def test_a_journal_that_cannot_be_written_stops_the_sending(tmp_path):
    journal = EgressJournal(tmp_path / "gone")
    with pytest.raises(FederationError, match="nothing was sent"):
        note(journal)


def test_a_full_disk_stops_the_sending(journal, monkeypatch):
    def full(_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FederationError, match=r"No space left.*nothing was sent"):
        note(journal)


def sent(update):
    return Sent("2027-01-01T00:00:00Z", "hub:1", "train", "reply", 1, THIRD, update)


def test_reconciled_where_each_update_sent_was_released():
    found = reconcile([sent(FIRST), sent(FIRST), sent(None)], [FIRST, SECOND])
    assert found.sent == {FIRST: 2}
    assert found.unsent == (SECOND,)
    assert found.unpaid == ()


def test_an_update_that_no_release_accounts_for_is_found():
    found = reconcile([sent(FIRST), sent(THIRD), sent(THIRD)], [FIRST])
    assert found.unpaid == (THIRD,)
