"""What the plain account and the kills of rounds have found, each as short as it gets."""

import contextlib
import shutil

import pytest

from federation.canonical import digest
from federation.errors import LedgerError
from federation.ledger.filter import BudgetPolicy
from federation.ledger.high_water import MarkFile
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger
from federation.ledger.upkeep import conclude, missing, recover, rotate
from tests.federation.ledger.conftest import World
from tests.federation.ledger.second_verifier import second_verdict


def end(ledger):
    return conclude(ledger, "run-1", digest("experiment"), heads={}, model_digest=None)


def test_a_closing_asked_for_again_after_a_rotation_is_the_same_or_none(world, tmp_path):
    world.approve()
    world.charge()
    first, new = end(world.ledger), SiteKey.create(tmp_path / "new")
    rotate(world.ledger, new)
    try:
        again = end(Ledger.open(world.ledger.path, new))
    except LedgerError:
        return
    assert again == first


@pytest.fixture
def marked(tmp_path, event) -> World:
    """A site whose mark is elsewhere."""
    for name in ("state", "vault"):
        (tmp_path / name).mkdir()
    key, path = SiteKey.create(tmp_path / "state"), tmp_path / "state" / "ledger.jsonl"
    policy, mark = BudgetPolicy.of(8.0, 1e-5), tmp_path / "vault" / "mark.json"
    ledger = Ledger.create(path, key, policy, "brains", mark=mark)
    return World(tmp_path, key, ledger, event)


@pytest.mark.parametrize("what", ["release", "closing"])
def test_nothing_is_sent_before_the_mark_has_seen_it(marked, what):
    """Killed between a record and its mark, the site sends what was recorded when asked again."""
    mark = marked.folder / "vault" / "mark.json"
    marked.approve()
    charge = marked.charge()
    before = mark.read_bytes()
    if what == "release":
        marked.ledger.release(charge, b"update")
    else:
        end(marked.ledger)
    mark.write_bytes(before)
    marked.ledger.close()
    again = Ledger.open(marked.ledger.path, marked.key, mark=mark)
    if what == "release":
        assert again.stored_release(charge) is not None
    else:
        end(again)
    assert MarkFile(mark).read().seq == again.head[0]


def test_what_is_forgotten_after_a_recovery_is_missed_as_well(world):
    """Without a mark: a second backup is restored, and the hub still has the receipt."""
    world.approve(charges=5)
    old = world.ledger.path.read_bytes()
    receipts = [world.ledger.release(world.charge(number), b"1") for number in range(1, 6)]
    restore(world, old)
    assert recover(world.ledger, by="a", reason="b", receipts=receipts) is not None
    world.approve(charges=1)
    backup = world.ledger.path.read_bytes()
    receipts.append(world.ledger.release(world.charge(1, run="run-2"), b"2"))
    restore(world, backup)
    assert missing(world.ledger, receipts) is not None


def test_one_backup_may_be_restored_twice(marked):
    """Each time it is paid for; nothing that the hub has contradicts it."""
    path, mark = marked.ledger.path, marked.folder / "vault" / "mark.json"
    marked.approve(charges=6)
    backup = path.read_bytes()
    receipts = [marked.ledger.release(marked.charge(number), b"1") for number in range(4)]
    for _ in range(2):
        marked.ledger.close()
        shutil.rmtree(path.parent / "outbox", ignore_errors=True)
        path.write_bytes(backup)
        marked.ledger = Ledger.open(path, marked.key, mark=mark, recovering=True)
        assert recover(marked.ledger, by="a", reason="b", receipts=receipts) is not None
    assert missing(marked.ledger, receipts) is None
    papers = [receipt.to_json() for receipt in receipts]
    told = second_verdict(path, trust=marked.key.fingerprint, receipts=papers)
    assert told["problems"] == []


@pytest.mark.parametrize("also", ["released again", "judged"])
def test_a_copy_that_was_made_during_a_round_pays_for_two_updates_or_releases_one(marked, also):
    """The release is forgotten, its charge is not: with its bytes gone it could be used twice."""
    path, mark = marked.ledger.path, marked.folder / "vault" / "mark.json"
    marked.approve(charges=1)
    charge = marked.charge()
    backup = path.read_bytes()
    receipt = marked.ledger.release(charge, b"an update")
    marked.ledger.close()
    shutil.rmtree(path.parent / "outbox")
    path.write_bytes(backup)
    marked.ledger = Ledger.open(path, marked.key, mark=mark, recovering=True)
    assert recover(marked.ledger, by="a", reason="b") is not None
    if also == "judged":
        told = second_verdict(path, trust=marked.key.fingerprint, receipts=[receipt.to_json()])
        assert told["problems"] == []
        return
    updates = 1
    with contextlib.suppress(LedgerError):
        marked.ledger.release(charge, b"another update")
        updates += 1
    assert marked.ledger.state.steps[0.25, 1.575] >= updates * charge.event.steps


def restore(world, content):
    world.ledger.close()
    shutil.rmtree(world.folder / "outbox")
    world.ledger.path.write_bytes(content)
    world.ledger = world.reopened()
