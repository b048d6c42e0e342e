import pytest

from federation.canonical import digest
from federation.errors import LedgerError, PrivacyBudgetError
from federation.ledger.entries import Declaration
from federation.ledger.filter import BudgetPolicy, Unprotected
from federation.ledger.ledger import Ledger
from federation.ledger.records import BODIES, MAX_NOTED_EXPERIMENTS, Record

PHANTOMS = Declaration("Dr A. Example", "water phantoms")


def create(world, folder, declaration):
    policy = BudgetPolicy.of(8.0, 1e-5, allow_unprotected=declaration is not None)
    folder.mkdir()
    return Ledger.create(
        folder / "ledger.jsonl", world.key, policy, "phantoms", declaration=declaration
    )


def test_a_note_costs_nothing_and_changes_no_approval(world):
    world.approve()
    world.charge()
    before = (world.ledger.state, world.ledger.spent_epsilon, world.ledger.approvals)
    world.ledger.note("exclusion", by="op", reason="withdrawn", after=0)
    again = world.reopened()
    assert (again.state, again.spent_epsilon, again.approvals) == before
    assert [note.body["what"] for note in again.book.notes] == ["exclusion"]


def test_a_note_repeated_after_a_kill_is_written_once(world):
    seq, _ = world.ledger.head
    first = world.ledger.note("purge", by="op", reason="end of study", after=seq)
    assert world.reopened().note("purge", by="op", reason="end of study", after=seq) == first
    second = world.ledger.note("purge", by="op", reason="end of study", after=first.seq)
    assert (second.seq, world.kinds().count("note")) == (first.seq + 1, 2)


def test_a_declaration_is_there_from_the_start_and_reads_back(world, tmp_path):
    ledger = create(world, tmp_path / "phantoms", PHANTOMS)
    assert [record.kind for record in ledger.records] == ["genesis", "note"]
    assert Ledger.open(ledger.path, world.key).book.declaration == PHANTOMS
    assert ledger.fits(Unprotected(), digest("any"))


def test_without_a_declaration_there_is_none(world):
    assert world.ledger.book.declaration is None
    with pytest.raises(PrivacyBudgetError, match="forbids"):
        world.approve(event=Unprotected())


def test_a_declaration_added_later_makes_the_ledger_invalid(world):
    world.approve()
    newest = world.ledger.records[-1]
    added = Record.signed(
        world.key, seq=newest.seq + 1, kind="note", previous=newest.hash, body=PHANTOMS.to_json()
    )
    with world.ledger.path.open("ab") as file:
        file.write(added.line)
    with pytest.raises(LedgerError, match="right after the genesis"):
        world.reopened()


@pytest.mark.parametrize("text", ["", "x" * 201, "two\nlines", "\x1b[31m"])
def test_texts_that_could_steer_a_terminal_are_refused(world, text):
    with pytest.raises(ValueError, match="printable"):
        Declaration(text, "why")
    with pytest.raises(ValueError, match="printable"):
        world.ledger.note("purge", by="op", reason=text, after=0)
    assert world.kinds() == ["genesis"]


def test_a_note_has_neither_counts_nor_room_for_anything_else(world):
    assert set(BODIES["note"]) == {"what", "by", "reason", "experiments"}
    with pytest.raises(ValueError, match="one of"):
        world.ledger.note("charge", by="op", reason="hidden", after=0)
    with pytest.raises(ValueError, match="sha256"):
        world.ledger.note("purge", by="op", reason="r", experiments=["MRN 12345"], after=0)


def test_of_very_many_experiments_the_newest_are_named_and_the_line_still_fits(world):
    digests = [digest(number) for number in range(MAX_NOTED_EXPERIMENTS + 5)]
    wide = "\U0001d11e" * 200
    note = world.ledger.note("purge", by=wide, reason=wide, experiments=digests, after=0)
    assert note.body["experiments"] == digests[5:]
    assert world.reopened().book.notes == [note]
