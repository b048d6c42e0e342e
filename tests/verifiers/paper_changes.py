"""Changes to receipts and closings: what sites gave out, forged, replayed, withheld."""

import copy

from tests.verifiers.byte_changes import CONTRADICTED, VERIFIED
from tests.verifiers.forging import Forger, change
from tests.verifiers.writer import gaussian, public, signed

OTHER = {"round": 7, "attempt": 3, "charge_seq": 0, "run": "run-77", "site": "nowhere"}
OTHER |= {"event": gaussian(0.05, 1.2, 20), "versions": {"cohortium": "0.2.0"}, "heads": {}}
OTHER |= {"seq": 1, "model_digest": None}


def _papers(forger: Forger, sort: str, *sites: str) -> tuple[list[dict], dict, int]:
    """Return all papers of a sort and one to be changed, with its place."""
    forger.at(*sites).papers = True
    papers = copy.deepcopy(getattr(forger.scenario, sort))
    places = [place for place, paper in enumerate(papers) if paper["site"] == forger.site]
    place = forger.rng.choice(places)
    return papers, papers[place], place


def _held(papers: list[dict], forger: Forger) -> list[int]:
    """Places of the site's receipts whose releases its ledger holds."""
    heads = {record["hash"] for record in forger.book.records}
    mine = enumerate(papers)
    return [n for n, p in mine if p["site"] == forger.site and p["head_after"] in heads]


def _key_of(forger: Forger, paper: dict):
    return forger.book.keys[paper["public_key"]]


def _changed(forger: Forger, paper: dict) -> dict:
    names = [name for name in paper if name not in ("signature", "public_key", "ledger")]
    name = forger.rng.choice(names)
    other = OTHER.get(name, forger.any_digest())
    if other == paper[name]:
        other = forger.any_digest()
    return paper | {name: other}


@change(CONTRADICTED)
def receipt_changed_and_signed_anew(forger):
    papers, _, _ = _papers(forger, "receipts")
    place = forger.rng.choice(_held(papers, forger))
    changed = _changed(forger, papers[place])
    papers[place] = signed(changed, "receipt", _key_of(forger, changed))
    if forger.site == "south" and changed["head_after"] not in _heads(forger):
        papers[place] |= {"signature": "00" * 64}  # else the recovery would explain it
    return forger.texts(receipts=papers)


def _heads(forger: Forger) -> set[str]:
    return {record["hash"] for record in forger.book.records}


@change(CONTRADICTED)
def receipt_changed(forger):
    papers, paper, place = _papers(forger, "receipts")
    papers[place] = _changed(forger, paper)
    return forger.texts(receipts=papers)


@change(CONTRADICTED)
def receipt_signed_by_a_stranger(forger):
    papers, paper, place = _papers(forger, "receipts")
    key = forger.stranger()
    named = {"public_key": public(key)} if forger.rng.random() < 0.5 else {}
    papers[place] = signed(paper | named, "receipt", key)
    return forger.texts(receipts=papers)


@change(CONTRADICTED)
def receipt_signed_by_the_other_key(forger):
    """North has two keys: each receipt is by the one in force at its release."""
    papers, _, _ = _papers(forger, "receipts", "north")
    place = forger.rng.choice(_held(papers, forger))
    own = papers[place]["public_key"]
    other = next(key for name, key in forger.book.keys.items() if name != own)
    papers[place] = signed(papers[place] | {"public_key": public(other)}, "receipt", other)
    return forger.texts(receipts=papers)


@change(CONTRADICTED)
def receipt_replayed_for_another_run(forger):
    papers, _, _ = _papers(forger, "receipts")
    paper = papers[forger.rng.choice(_held(papers, forger))]
    again = paper | {"run": "run-9"} if forger.rng.random() < 0.5 else paper | {"round": 900}
    return forger.texts(receipts=[*papers, again])


@change(CONTRADICTED)
def receipt_for_another_ledger(forger):
    papers, paper, place = _papers(forger, "receipts")
    elsewhere = paper | {"ledger": forger.any_digest()}
    papers[place] = signed(elsewhere, "receipt", _key_of(forger, paper))
    return forger.texts(receipts=papers)


@change(CONTRADICTED)
def receipt_with_odd_keys(forger):
    papers, paper, place = _papers(forger, "receipts")
    key = _key_of(forger, paper)
    if forger.rng.random() < 0.5:
        paper["comment"] = "x"
    else:
        del paper[forger.rng.choice(["run", "event", "versions", "head_before", "commitment"])]
    papers[place] = signed(paper, "receipt", key)
    return forger.texts(receipts=papers)


@change(CONTRADICTED)
def receipt_of_a_charge_that_never_was(forger):
    papers, paper, _ = _papers(forger, "receipts", "north", "west")
    never = {"head_after": forger.any_digest(), "head_before": forger.any_digest()}
    made_up = paper | never | {"charge_seq": forger.rng.randrange(50)}
    return forger.texts(receipts=[*papers, signed(made_up, "receipt", _key_of(forger, paper))])


@change(CONTRADICTED)
def more_lost_receipts_than_the_recovery_spent(forger):
    papers, _, _ = _papers(forger, "receipts", "south")
    heads = _heads(forger)
    lost = [p for p in papers if p["site"] == "south" and p["head_after"] not in heads]
    for number in range(2):
        more = lost[0] | {"round": 5 + number, "head_after": forger.any_digest()}
        papers.append(signed(more, "receipt", _key_of(forger, more)))
    return forger.texts(receipts=papers)


@change(CONTRADICTED)
def lost_receipt_past_what_the_recovery_saw(forger):
    papers, _, _ = _papers(forger, "receipts", "south")
    heads = _heads(forger)
    place = next(
        n for n, p in enumerate(papers) if p["site"] == "south" and p["head_after"] not in heads
    )
    late = papers[place] | {"charge_seq": forger.rng.randrange(14, 99)}
    papers[place] = signed(late, "receipt", _key_of(forger, late))
    return forger.texts(receipts=papers)


@change(VERIFIED)
def papers_repeated_and_shuffled(forger):
    receipts, _, _ = _papers(forger, "receipts")
    closings = copy.deepcopy(forger.scenario.closings) * 2
    receipts *= forger.rng.randrange(1, 4)
    forger.rng.shuffle(receipts)
    forger.rng.shuffle(closings)
    return forger.texts(receipts=receipts, closings=closings)


@change(VERIFIED)
def papers_withheld(forger):
    receipts, _, _ = _papers(forger, "receipts")
    closings = [paper for paper in forger.scenario.closings if forger.rng.random() < 0.5]
    receipts = [paper for paper in receipts if forger.rng.random() < 0.5]
    return forger.texts(receipts=receipts, closings=closings)


@change(VERIFIED)
def receipts_of_an_unknown_site(forger):
    papers, paper, _ = _papers(forger, "receipts")
    key = forger.stranger()
    foreign = {"site": "east", "ledger": forger.any_digest(), "public_key": public(key)}
    return forger.texts(receipts=[*papers, signed(paper | foreign, "receipt", key)])


@change(CONTRADICTED)
def closing_changed_and_signed_anew(forger):
    papers, paper, place = _papers(forger, "closings", "north", "west")
    changed = _changed(forger, paper)
    papers[place] = signed(changed, "closing", _key_of(forger, paper))
    return forger.texts(closings=papers)


@change(CONTRADICTED)
def closing_changed(forger):
    papers, paper, place = _papers(forger, "closings")
    papers[place] = _changed(forger, paper)
    return forger.texts(closings=papers)


@change(CONTRADICTED)
def closing_signed_by_a_stranger(forger):
    papers, paper, place = _papers(forger, "closings")
    papers[place] = signed(paper, "closing", forger.stranger())
    return forger.texts(closings=papers)


@change(CONTRADICTED)
def closing_signed_by_the_other_key(forger):
    """North has two keys: each closing is by the one in force at its record."""
    papers, paper, place = _papers(forger, "closings", "north")
    other = next(key for name, key in forger.book.keys.items() if name != paper["public_key"])
    papers[place] = signed(paper | {"public_key": public(other)}, "closing", other)
    return forger.texts(closings=papers)


@change(CONTRADICTED)
def closing_record_left_out(forger):
    """The run's closing is gone from the ledger, but was given out."""
    forger.at("north", "west").papers = True
    place = forger.some("closing")["seq"]
    return forger.said(forger.records[:place])
