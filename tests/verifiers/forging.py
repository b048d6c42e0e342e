"""How a ledger is changed: its bytes, or its records, chained and signed anew as the site could."""

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.verifiers.scenario import Scenario
from tests.verifiers.writer import ZERO, Book, added, canonical, new_key, seal, sign, text_of

Record = dict


def rechained(book: Book, records: list[Record], *, renumber: bool = True) -> list[Record]:
    """Return records with numbers, hashes, proofs and signatures made anew with the site's keys."""
    places = {record["seq"]: place for place, record in reversed(list(enumerate(records)))}
    key, head, done = book.first_key, ZERO, []
    for place, old in enumerate(records):
        record = copy.deepcopy(old) | {"seq": place, "previous": head}
        body = record["body"]
        if renumber and record["kind"] in ("release", "loss"):
            body["charge_seq"] = places.get(body["charge_seq"], body["charge_seq"])
        new = (
            book.keys.get(str(body.get("public_key"))) if record["kind"] == "key_rotation" else None
        )
        if new and renumber:
            claim = {"ledger": done[0]["hash"], "previous": head, "public_key": body["public_key"]}
            body["proof"] = sign(new, "key rotation", canonical(claim))
        done.append(seal(record, key))
        key, head = new or key, done[-1]["hash"]
    return done


def recounted(records: list[Record]) -> list[Record]:
    """Return records whose totals are those of their events."""
    records = copy.deepcopy(records)
    orders = records[0]["body"]["policy"]["orders"]
    totals = [0.0] * len(orders)
    for record in records:
        body = record["body"]
        if "totals" in body:
            events = body["spends"] if "spends" in body else [body["event"]]
            totals = added(totals, events, orders)
            body["totals"] = totals
    return records


@dataclass
class Mutant:
    """A changed scenario: what lies on disk, and what must be said of the changed site."""

    texts: dict[str, bytes]
    trust: list[str]
    site: str
    expected: str | None
    needs: tuple[str, ...] = ()


@dataclass
class Forger:
    """One change of one scenario, with its randomness.

    `papers`: does the site's evidence stay? `needs`: other sites whose ledgers show the change.
    """

    scenario: Scenario
    rng: random.Random
    site: str = ""
    records: list[Record] = field(default_factory=list)
    papers: bool = False
    needs: tuple[str, ...] = ()
    trust: list[str] | None = None

    def at(self, *sites: str) -> "Forger":
        books = tuple(self.scenario.books)
        self.site = self.rng.choice([site for site in sites if site in books] or books)
        self.records = copy.deepcopy(self.book.records)
        return self

    @property
    def book(self) -> Book:
        return self.scenario.books[self.site]

    def some(self, *kinds: str, but_last: bool = False) -> Record:
        found = [record for record in self.records if record["kind"] in kinds]
        return self.rng.choice(found[:-1] if but_last else found)

    def fresh(self, record: Record) -> Record:
        return copy.deepcopy(record) | {"salt": self.rng.randbytes(16).hex()}

    def said(self, records: list[Record] | None = None, **how) -> dict[str, bytes]:
        """Return the texts with the records chained anew, with or without the site's papers."""
        return self.texts(text_of(rechained(self.book, records or self.records, **how)))

    def texts(self, ledger: bytes | None = None, receipts=None, closings=None) -> dict[str, bytes]:
        texts = self.scenario.texts()
        if ledger is not None:
            texts[self.site] = ledger
        given = {"receipts": receipts, "closings": closings}
        for name, changed in given.items():
            papers = getattr(self.scenario, name) if changed is None else changed
            if changed is None and not self.papers:
                papers = [paper for paper in papers if paper["site"] != self.site]
            texts[name] = canonical(papers)
        return texts

    def stranger(self):
        return new_key(self.rng)

    def any_digest(self) -> str:
        return "sha256:" + self.rng.randbytes(32).hex()


Change = Callable[[Forger], dict[str, bytes]]
CHANGES: dict[str, tuple[Change, str | None]] = {}


def change(expected: str | None) -> Callable[[Change], Change]:
    """Register a kind of change under its function's name, with what must be said of it."""

    def register(make: Change) -> Change:
        assert make.__name__ not in CHANGES
        CHANGES[make.__name__] = (make, expected)
        return make

    return register


def mutant(kind: str, seed: int, scenario: Scenario) -> Mutant:
    make, expected = CHANGES[kind]
    forger = Forger(scenario, random.Random(f"{kind} {seed}"))
    texts = make(forger)
    trust = scenario.trust if forger.trust is None else forger.trust
    return Mutant(texts, trust, forger.site, expected, forger.needs)


def leaves_of(value, path=()) -> Iterator[tuple]:
    """Walk the paths to every value inside a JSON value."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            yield from leaves_of(value[key], (*path, key))


def put(value, path: tuple, new) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new
