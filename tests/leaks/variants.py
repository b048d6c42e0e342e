"""The ways in which one planted identifier may be written: its forms, and how bytes spell them."""

import base64
import datetime
import html
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

# What is shorter is found only as a whole word among printable characters: four letters come up
# in random voxels about once in 10^8 bytes.
SHORTEST = 6
SHORTEST_WORD = 4
# A number of six digits comes up by chance in a megabyte of printed numbers.
FEWEST_DIGITS = 8
SEPARATORS = ("^", " ", ", ", ",", "_", "-", ".", "+", "")


@dataclass(frozen=True)
class Token:
    """One planted identifier.

    Args:
        kind: ``name``: a person's name (PN), parts divided by ``^``; ``date``: YYYYMMDD;
            ``digest``: hex digits, which chance would find the decimal ones of among numbers;
            ``text``: anything else, taken as a whole.
    """

    text: str
    kind: Literal["name", "date", "digest", "text"] = "text"

    def __post_init__(self):
        least = 8 if self.kind == "date" else SHORTEST
        if len(self.text) < least:
            raise ValueError(f"{self.text!r} is too short to be told from chance")


@dataclass(frozen=True)
class Pattern:
    """Bytes to look for.

    Args:
        data: In lower case (ASCII letters) unless ``cased``.
        cased: Base64: letters of either case mean different things.
        word: Only between bytes that are no letters or digits, among printable ones.
    """

    data: bytes
    token: Token
    form: str
    cased: bool = False
    word: bool = False


def patterns_of(token: Token) -> Iterator[Pattern]:
    """Yield every byte string that gives the token away."""
    for form in forms_of(token):
        short = len(form) < SHORTEST
        for data in spellings(form):
            yield Pattern(data.lower(), token, form, word=short)
        if not short:
            for data in base64_cores(form):
                yield Pattern(data, token, form, cased=True)


def forms_of(token: Token) -> list[str]:
    """Return the token's forms as text, without regard to case.

    >>> forms_of(Token("A-1234567"))[:3]
    ['A-1234567', 'A1234567', 'A_1234567']
    >>> "Doe, Jane" in forms_of(Token("Doe^Jane", "name"))
    True
    >>> "3 February 1961" in forms_of(Token("19610203", "date"))
    True
    """
    makers = {
        "name": _name_forms,
        "date": _date_forms,
        "digest": lambda text: [text],
        "text": _text_forms,
    }
    return list(dict.fromkeys(makers[token.kind](token.text)))


def _text_forms(text: str) -> Iterator[str]:
    yield text
    for separator in ("", "_", "-", " ", "."):
        yield from _long(re.sub(r"[^0-9A-Za-z\u0080-\uffff]+", separator, text))
    digits = re.sub(r"\D", "", text)
    yield from (number for number in (digits, digits.lstrip("0")) if len(number) >= FEWEST_DIGITS)
    yield text[::-1]
    yield text.replace("/", "\\")


def _long(text: str) -> Iterator[str]:
    if len(text) >= SHORTEST:
        yield text


def _name_forms(text: str) -> Iterator[str]:
    parts = [part for part in re.split(r"[\^= ]+", text) if part]
    yield text
    yield from (part for part in parts if len(part) >= SHORTEST_WORD)
    yield from (part[::-1] for part in parts if len(part) >= SHORTEST)
    orders = [*itertools.permutations(parts, 2), tuple(parts), tuple(reversed(parts))]
    yield from (form for order in orders for s in SEPARATORS for form in _long(s.join(order)))
    yield text[::-1]


def _date_forms(text: str) -> Iterator[str]:
    day = datetime.datetime.strptime(text, "%Y%m%d").replace(tzinfo=datetime.UTC)
    for order in ("%Y%m%d", "%d%m%Y", "%m%d%Y"):
        for separator in ("", "-", "/", ".", " ", "_"):
            yield day.strftime(separator.join(re.findall("%.", order)))
    for separator in ("-", "/", ".", ", "):
        for numbers in ((day.year, day.month, day.day), (day.day, day.month, day.year)):
            yield separator.join(map(str, numbers))
    yield f"{day.month}/{day.day}/{day.year}"
    for month in (day.strftime("%B"), day.strftime("%b")):
        yield f"{day.day} {month} {day.year}"
        yield f"{day.day:02d}-{month}-{day.year}"
        yield f"{month} {day.day}, {day.year}"
    yield str(abs(int(day.timestamp())))


def spellings(form: str) -> Iterator[bytes]:
    """Yield the bytes that spell a form where the case of letters does not matter.

    >>> b"j\\\\u00e4ger" in set(spellings("J\\u00e4ger"))
    True
    """
    for text in {form, form.lower(), form.upper()}:
        yield from _texts(text)
    for text in {form, form.lower(), form.upper(), form.title()}:
        spelled = text.encode().hex()
        yield spelled.encode()
        pairs = [spelled[i : i + 2] for i in range(0, len(spelled), 2)]
        yield from (s.join(pairs).encode() for s in (" ", ":", "-", ", 0x", "\\x"))
        yield text.encode("utf-16-le").hex().encode()


def _texts(text: str) -> Iterator[bytes]:
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        yield text.encode(encoding).lower()
    if all(ord(c) < 256 for c in text):
        yield text.encode("latin-1").lower()
    yield from _escaped(text)


def _escaped(text: str) -> Iterator[bytes]:
    in_json = json.dumps(text)[1:-1]
    yield in_json.lower().encode()
    yield in_json.replace("/", "\\/").lower().encode()
    yield "".join(f"\\u{ord(c):04x}" for c in text).encode()
    yield text.encode("unicode_escape").lower()
    for safe in ("/", ""):
        yield quote(text, safe=safe).lower().encode()
    yield quote(text, safe="").replace("%20", "+").lower().encode()
    yield "".join(f"%{b:02x}" for b in text.encode()).encode()
    yield "".join(f"&#{ord(c)};" for c in text).encode()
    yield "".join(f"&#x{ord(c):x};" for c in text).encode()
    yield html.escape(text).lower().encode("ascii", "xmlcharrefreplace")


def base64_cores(form: str) -> Iterator[bytes]:
    """Yield what base64 of any text around the form must contain, at each of three alignments."""
    for text in {form, form.lower(), form.upper(), form.title()}:
        for data in (text.encode(), text.encode("utf-16-le")):
            for before in range(3):
                core = _core(data, before)
                yield core
                yield core.replace(b"+", b"-").replace(b"/", b"_")


def _core(data: bytes, before: int) -> bytes:
    """Return the characters that depend on ``data`` alone."""
    encoded = base64.b64encode(bytes(before) + data)
    first = -(-8 * before // 6)
    return encoded[first : 8 * (before + len(data)) // 6]
