"""Three sites and what happened to them: every kind of record, and papers for most."""

import random
from dataclasses import dataclass
from pathlib import Path

from tests.verifiers.writer import POLICY, UNPROTECTED, Book, canonical, gaussian, text_of


@dataclass
class Scenario:
    """Ledgers with the papers that their sites gave out, on disk when asked."""

    books: dict[str, Book]

    @property
    def trust(self) -> list[str]:
        return [book.fingerprint for book in self.books.values()]

    @property
    def receipts(self) -> list[dict]:
        return [paper for book in self.books.values() for paper in book.receipts]

    @property
    def closings(self) -> list[dict]:
        return [paper for book in self.books.values() for paper in book.closings]

    def texts(self) -> dict[str, bytes]:
        """Return each ledger's bytes by site, and those of the papers."""
        ledgers = {name: text_of(book.records) for name, book in self.books.items()}
        papers = {"receipts": canonical(self.receipts), "closings": canonical(self.closings)}
        return ledgers | papers


def lay_out(texts: dict[str, bytes], folder: Path) -> dict[str, list[Path]]:
    """Write ledgers and papers, and return their paths as a verifier wants them."""
    papers: dict[str, list[Path]] = {"receipts": [], "closings": []}
    paths = []
    for name, text in texts.items():
        path = folder / (f"{name}.json" if name in papers else f"{name}.jsonl")
        path.write_bytes(text)
        papers.get(name, paths).append(path)
    return {"paths": paths, **papers}


def three_sites(seed: object) -> Scenario:
    """Return north (rotation, merge), south (fell behind), west (unprotected, merged away)."""
    rng = random.Random(f"three sites {seed}")
    a, b, c = ("sha256:" + rng.randbytes(32).hex() for _ in range(3))
    south, north = Book("south", "lungs", rng), Book("north", "chests", rng)
    west = Book("west", "slides", rng, policy={**POLICY, "allow_unprotected": True})
    north.note("declaration", [a])
    west.note("declaration")
    _first_run(north, south, west, a)
    _south_falls_behind(south, c)
    _second_run(north, south, b, c)
    west.approve(b, UNPROTECTED, 2)
    west.reserve(b, "open-1")
    west.release(west.charge(b, "open-1", (0, 0)))
    west.close(b, "open-1", {"north": north.receipts[-1]["head_after"]})
    north.merge(west.name, west.records[-1], [gaussian(steps=40), UNPROTECTED])
    west.add("merged", into=north.name)
    return Scenario({book.site: book for book in (north, south, west)})


SHORT = {**POLICY, "orders": [4, 16, 64], "order_deltas": [3e-6, 3e-6, 4e-6]}


def one_site(seed: object) -> Scenario:
    """Return a site that ran one experiment, changed its key and ran another."""
    rng = random.Random(f"one site {seed}")
    north = Book("north", "chests", rng, policy=SHORT)
    a, b = north.any_digest(), north.any_digest()
    north.approve(a, gaussian(), 3)
    north.reserve(a, "run-1")
    north.release(north.charge(a, "run-1", (0, 0)))
    north.lose(north.charge(a, "run-1", (1, 0)))
    north.release(north.charge(a, "run-1", (1, 1), {"south": north.any_digest()}))
    north.close(a, "run-1", {"south": north.any_digest()}, north.any_digest())
    north.rotate()
    north.approve(b, gaussian(0.02, 0.9, 15), 2)
    north.reserve(b, "run-2")
    north.release(north.charge(b, "run-2", (0, 0)))
    north.close(b, "run-2", {"south": north.any_digest()}, north.any_digest())
    north.refuse(b, "operator", by="Dr. Lund")
    return Scenario({"north": north})


def site_that_fell_behind(seed: object) -> Scenario:
    """Return a site that was restored from a backup and recovered."""
    rng = random.Random(f"site that fell behind {seed}")
    south = Book("south", "lungs", rng, policy=SHORT)
    a = south.any_digest()
    _south_falls_behind(south, south.any_digest())
    south.approve(a, gaussian(), 2)
    south.reserve(a, "run-3")
    south.release(south.charge(a, "run-3", (0, 0)))
    south.close(a, "run-3")
    return Scenario({"south": south})


def site_begun_anew(north: Book, population: str = "chests", seed: object = 0) -> Book:
    """Return another ledger of north's, under another key."""
    other = Book(north.site, population, random.Random(f"begun anew {seed}"))
    other.note("declaration")
    return other


def _first_run(north: Book, south: Book, west: Book, a: str) -> None:
    north.refuse(a, "not_approved")
    books = (north, south, west)
    for book in books:
        book.approve(a, gaussian(), 4)
        book.reserve(a, "run-1")
    heads: dict[str, str] = {}
    for number in range(2):
        shown, heads = heads, {}
        for book in books:
            charge = book.charge(a, "run-1", (number, 0), _others(shown, book))
            if book is north and number == 1:
                book.lose(charge)
                charge = book.charge(a, "run-1", (number, 1), _others(shown, book))
            heads[book.site] = book.release(charge)["hash"]
    model = north.any_digest()
    for book in books:
        book.close(a, "run-1", _others(heads, book), model)


def _others(heads: dict[str, str], book: Book) -> dict[str, str]:
    return {site: head for site, head in heads.items() if site != book.site}


def _south_falls_behind(south: Book, c: str) -> None:
    """A released round is forgotten with the records after its reservation, then recovered."""
    event = gaussian(0.1, 1.3, 10)
    south.approve(c, event, 3)
    south.reserve(c, "run-2")
    kept, totals = len(south.records), south.totals
    south.release(south.charge(c, "run-2", (0, 0)))
    seen = south.release(south.charge(c, "run-2", (1, 0)))
    del south.records[kept:]
    south.totals = totals
    south.recover(seen, [{**event, "steps": 30}])


def _second_run(north: Book, south: Book, b: str, c: str) -> None:
    north.rotate()
    for book in (north, south):
        book.approve(b, gaussian(0.02, 0.9, 15), 3, second_approver="Dr. Sato", expires=None)
    north.approve(c, gaussian(1.0, 20, 2), 2, author=None, epsilon=None)
    north.reserve(b, "run-3")
    south.reserve(b, "run-3")
    north.reserve(c, "run-4")
    n = north.release(north.charge(b, "run-3", (0, 0)))
    south.release(south.charge(b, "run-3", (0, 0), {"north": n["hash"]}))
    north.release(north.charge(c, "run-4", (0, 0)))
    north.withdraw(c)
    request = {"run": "run-3", "round": 0, "attempt": 0, "request_digest": north.any_digest()}
    north.refuse(b, "equivocation", request=request, event=gaussian())
    north.note("exclusion", [b, c])
    north.merge(north.any_digest(), {"seq": 9, "hash": north.any_digest()}, [gaussian(0.05, 2, 5)])
    north.release(north.charge(b, "run-3", (1, 0), {"south": south.receipts[-1]["head_after"]}))
    north.charge(b, "run-3", (2, 0))  # waits for its release
    north.refuse(c, "budget", by="operator", reason="zu knapp “heute”")
