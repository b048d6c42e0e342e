"""Changes to the bytes of a ledger, by somebody without its key; and to what is handed over."""

import json

from tests.verifiers.forging import Forger, change
from tests.verifiers.writer import fingerprint, seal, text_of

CONTRADICTED, VERIFIED = "contradicted", "verified"
ALONE = "verified, unless another site's ledger shows that something is gone"


def _text(forger: Forger) -> bytearray:
    forger.at().papers = True
    return bytearray(forger.scenario.texts()[forger.site])


def _lines(forger: Forger) -> list[bytes]:
    return bytes(_text(forger)).splitlines(keepends=True)


@change(CONTRADICTED)
def flipped_bit(forger):
    text = _text(forger)
    text[forger.rng.randrange(len(text))] ^= 1 << forger.rng.randrange(8)
    return forger.texts(bytes(text))


@change(CONTRADICTED)
def changed_byte(forger):
    text = _text(forger)
    place = forger.rng.randrange(len(text))
    text[place] = forger.rng.choice([b for b in b'09afAF",:{}[]e-. \n' if b != text[place]])
    return forger.texts(bytes(text))


@change(CONTRADICTED)
def removed_byte(forger):
    text = _text(forger)
    del text[forger.rng.randrange(len(text))]
    return forger.texts(bytes(text))


@change(CONTRADICTED)
def added_byte(forger):
    text = _text(forger)
    text.insert(forger.rng.randrange(len(text) + 1), forger.rng.randrange(256))
    return forger.texts(bytes(text))


@change(CONTRADICTED)
def torn_tail(forger):
    lines = _lines(forger)
    return forger.texts(b"".join(lines)[: -forger.rng.randrange(1, len(lines[-1]))])


@change(CONTRADICTED)
def removed_line(forger):
    lines = _lines(forger)
    del lines[forger.rng.randrange(len(lines) - 1)]
    return forger.texts(b"".join(lines))


@change(CONTRADICTED)
def repeated_line(forger):
    lines = _lines(forger)
    place = forger.rng.randrange(len(lines))
    lines.insert(forger.rng.randrange(len(lines) + 1), lines[place])
    return forger.texts(b"".join(lines))


@change(CONTRADICTED)
def swapped_lines(forger):
    lines = _lines(forger)
    a, b = forger.rng.sample(range(len(lines)), 2)
    lines[a], lines[b] = lines[b], lines[a]
    return forger.texts(b"".join(lines))


@change(CONTRADICTED)
def line_of_another_site(forger):
    lines = _lines(forger)
    other = forger.rng.choice(
        [b for name, b in forger.scenario.books.items() if name != forger.site]
    )
    lines[forger.rng.randrange(len(lines))] = text_of([forger.rng.choice(other.records)])
    return forger.texts(b"".join(lines))


@change(CONTRADICTED)
def not_canonical(forger):
    """The same JSON, written otherwise: spaces, escapes, another order, capital hex, CR LF."""
    lines = _lines(forger)
    place = forger.rng.randrange(len(lines))
    record = json.loads(lines[place])
    turned = dict(reversed(record.items()))
    capital = record["signature"].upper()
    lines[place] = forger.rng.choice(
        [
            json.dumps(record, sort_keys=True).encode() + b"\n",
            json.dumps(turned, separators=(",", ":"), ensure_ascii=False).encode() + b"\n",
            lines[place].replace(record["signature"].encode(), capital.encode()),
            lines[place].replace(b"\n", b"\r\n"),
            lines[place] + b"\n",
            b"\xef\xbb\xbf" + lines[place],
            lines[place].replace(b'"at"', b'"\\u0061t"'),
            lines[place].replace(b'"seq":', b'"seq":' + b"0" * 70_000),
            lines[place].replace(b'{"at":', b'{"at":"","at":'),
        ]
    )
    return forger.texts(b"".join(lines))


@change(CONTRADICTED)
def no_ledger_at_all(forger):
    text = bytes(_text(forger))
    hostile = (b"", b"\n", b"\0" * 9, b"[" * 60_000 + b"\n", b"1" * 60_000 + b"\n", b"null\n")
    hostile += (b'{"kind":"genesis"}\n', text[: len(text) // 2][::-1], b'"\\ud800"\n', b"[]\n")
    return forger.texts(forger.rng.choice(hostile))


@change(CONTRADICTED)
def line_of_another_signature(forger):
    """A record as it was, but signed by a stranger."""
    forger.at().papers = True
    place = forger.rng.randrange(len(forger.records))
    forger.records[place] = seal(forger.records[place], forger.stranger())
    return forger.texts(text_of(forger.records))


@change(CONTRADICTED)
def dropped_tail(forger):
    """The end is missing from a release or closing on that the site gave a paper for."""
    lines = _lines(forger)
    papered = [r["seq"] for r in forger.book.records if r["kind"] in ("release", "closing")]
    cut = forger.rng.randrange(1, papered[-1] + 1)
    if forger.site == "south":  # before its recovery, or its papers are explained
        recovery = next(r["seq"] for r in forger.book.records if r["kind"] == "recovery")
        cut = forger.rng.randrange(1, recovery)
    return forger.texts(b"".join(lines[:cut]))


@change(ALONE)
def dropped_tail_without_papers(forger):
    """What no paper names can go unseen: a verifier says so, and can say no more."""
    lines = _lines(forger)
    forger.papers = False
    return forger.texts(b"".join(lines[: forger.rng.randrange(1, len(lines))]))


@change(VERIFIED)
def untouched(forger):
    forger.at().papers = True
    return forger.texts()


@change("consistent, identity unknown")
def nobody_trusted(forger):
    forger.at().papers, forger.trust = True, []
    return forger.texts()


@change(CONTRADICTED)
def somebody_else_trusted(forger):
    forger.at().papers = True
    others = [mark for mark in forger.scenario.trust if mark != forger.book.fingerprint]
    forger.trust = others or [fingerprint(forger.stranger())]
    return forger.texts()
