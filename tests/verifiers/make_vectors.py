"""Writes tests/verifiers/vectors anew, with new keys: `python -m tests.verifiers.make_vectors`.

A vector is a ledger with the papers that are shown beside it and the verdict that any verifier
must reach. `expected.json` lists them; README.md in the folder says how to use them elsewhere.
"""

import json
import secrets
from pathlib import Path

from tests.verifiers import byte_changes, paper_changes, record_changes, value_changes  # noqa: F401
from tests.verifiers.byte_changes import ALONE, VERIFIED
from tests.verifiers.forging import CHANGES, mutant
from tests.verifiers.scenario import Scenario, one_site, site_that_fell_behind
from tests.verifiers.writer import Book, canonical, gaussian, text_of

FOLDER = Path(__file__).parent / "vectors"
NORTH = (
    "untouched",
    "nobody_trusted",
    "somebody_else_trusted",
    "flipped_bit",
    "torn_tail",
    "not_canonical",
    "removed_line",
    "swapped_lines",
    "repeated_line",
    "dropped_tail",
    "dropped_tail_without_papers",
    "papers_withheld",
    "papers_repeated_and_shuffled",
    "line_of_another_signature",
    "all_signed_by_another_key",
    "charge_removed_and_all_chained_anew",
    "charge_removed_and_papers_withheld",
    "charge_removed_but_its_cost_kept",
    "charge_replayed",
    "charge_without_reservation",
    "run_reserved_twice",
    "approval_of_fewer_charges",
    "released_twice",
    "release_without_charge",
    "noise_for_tests",
    "expired_approval",
    "clock_moved",
    "clock_moved_past_expiry",
    "clock_moved_under_papers",
    "snapshot_restored",
    "epsilon_understated",
    "one_order_altered",
    "totals_rounded_otherwise",
    "more_noise_claimed",
    "limit_passed",
    "rotation_with_a_bad_proof",
    "rotation_that_is_not_followed",
    "receipt_changed_and_signed_anew",
    "receipt_replayed_for_another_run",
    "receipt_signed_by_a_stranger",
    "receipt_of_a_charge_that_never_was",
    "closing_changed_and_signed_anew",
    "closing_signed_by_the_other_key",
)
SOUTH = (
    "untouched",
    "recovery_left_out",
    "recovery_that_saw_less",
    "recovery_that_spends_too_little",
    "more_lost_receipts_than_the_recovery_spent",
)


def main() -> None:
    """Write every vector, and say how many."""
    for old in FOLDER.glob("*.json*"):
        old.unlink()
    seed = secrets.token_hex(16)
    north, south = one_site(seed), site_that_fell_behind(seed)
    expected = {}
    for kinds, scenario in ((NORTH, north), (SOUTH, south)):
        (site,) = scenario.books
        for kind in kinds:
            name = kind if scenario is north else f"{kind}_of_a_site_that_fell_behind"
            changed = mutant(kind, 0, scenario)
            texts = {"": changed.texts.pop(site)}
            verdict = CHANGES[kind][1]
            verdict = VERIFIED if verdict == ALONE else verdict
            expected[name] = _write(name, texts, changed.texts, changed.trust, verdict)
    expected |= _two_ledgers(north)
    text = json.dumps(expected, indent=1, sort_keys=True)
    (FOLDER / "expected.json").write_text(text + "\n")
    print(f"{len(expected)} vectors in {FOLDER.name}/")  # noqa: T201


def _write(name: str, ledgers: dict[str, bytes], papers, trust, verdict) -> dict:
    for part, text in ledgers.items():
        (FOLDER / f"{name}{part}.jsonl").write_bytes(text)
    given = {sort: text for sort, text in papers.items() if text != b"[]"}
    for sort, text in given.items():
        (FOLDER / f"{name}.{sort}.json").write_bytes(text + b"\n")
    return {
        "ledgers": [f"{name}{part}.jsonl" for part in ledgers],
        **{sort: [f"{name}.{sort}.json"] for sort in given},
        "trust": trust,
        "verdict": verdict,
    }


def _two_ledgers(north: Scenario) -> dict:
    """A second ledger for the same population; and one begun anew after receipts were given."""
    book = north.books["north"]
    other = Book("north", "chests", book.rng, policy=book.policy)
    other.note("declaration")
    marks = [book.fingerprint, other.fingerprint]
    both = {"": text_of(book.records), ".again": text_of(other.records)}
    nothing, fair = (_merged_for(north, spends) for spends in ([], [gaussian(steps=40)]))
    older = {"": text_of(book.records), ".older": text_of(book.records[:6])}
    same_key = Book("north", "chests", book.rng, policy=book.policy)
    same_key.key = same_key.first_key = book.first_key
    same_key.records.clear()
    genesis = dict(book.records[0]["body"])
    same_key.add("genesis", **genesis)
    papers = {"receipts": canonical(north.receipts)}
    anew = {"": text_of(same_key.records)}
    names = ("two_ledgers_of_one_population", "ledger_with_an_older_copy", "begun_anew_by_one_key")
    names += ("merge_that_spends_nothing", "merge_of_all_that_was_charged")
    return {
        names[0]: _write(names[0], both, {}, marks, "contradicted"),
        names[1]: _write(names[1], older, {}, marks[:1], "verified"),
        names[2]: _write(names[2], anew, papers, marks[:1], "contradicted"),
        names[3]: _write(names[3], *nothing, ["contradicted", "verified"]),
        names[4]: _write(names[4], *fair, "verified"),
    }


def _merged_for(north: Scenario, spends: list[dict]) -> tuple[dict[str, bytes], dict, list[str]]:
    """Two populations of one site, the older one charged 40 steps and merged into the other."""
    rng = north.books["north"].rng
    old, new = Book("north", "chests", rng), Book("north", "all chests", rng)
    experiment = old.any_digest()
    old.approve(experiment, gaussian(), 2)
    old.reserve(experiment, "run-1")
    for number in range(2):
        old.release(old.charge(experiment, "run-1", (number, 0)))
    new.merge(old.name, old.records[-1], spends)
    old.add("merged", into=new.name)
    texts = {"": text_of(new.records), ".merged": text_of(old.records)}
    return texts, {"receipts": canonical(old.receipts)}, [old.fingerprint, new.fingerprint]


if __name__ == "__main__":
    main()
