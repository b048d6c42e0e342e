"""Numbers, times and other people's text as a board reads them. All text is escaped here."""

import unicodedata
from html import escape
from itertools import groupby
from math import ceil, floor, inf, isinf

from federation.audit.report_records import day_of

_MOST_MARKS = 3
# Joiners that scripts of India and Iran need; every other format character is shown by its number.
_JOINERS = "\u200c\u200d"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def text(value: object) -> str:
    """Return somebody's text for the page: escaped, kept apart from what stands around it.

    What is not to be seen, or would turn the line around, is shown by its number; so are accents
    piled up high enough to cover other lines.

    >>> text("<b>Dr. R</b>\u202e")
    '<bdi>&lt;b&gt;Dr. R&lt;/b&gt;‹U+202E›</bdi>'
    """
    return f"<bdi>{plain(value)}</bdi>"


def plain(value: object) -> str:
    """Return somebody's text escaped, for where no element may stand."""
    return escape(visible(str(value)))


def visible(value: str) -> str:
    """Return text with what is hidden in it shown; not escaped yet.

    >>> visible("a\u200bb"), visible("e" + 9 * "\u0301")[4:]
    ('a‹U+200B›b', '‹6 more marks›')
    """
    parts: list[str] = []
    for piled, group in groupby(value, lambda one: unicodedata.category(one) in ("Mn", "Me")):
        run = "".join(group)
        if piled:
            more = len(run) - _MOST_MARKS
            parts.append(run[:_MOST_MARKS] + (f"‹{more} more marks›" if more > 0 else ""))
        else:
            parts.extend(_shown(one) for one in run)
    return "".join(parts)


def _shown(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    if not hidden or character in _JOINERS:
        return character
    return " " if character in "\n\t" else f"‹U+{ord(character):04X}›"


def absent(value: object, word: str = "not given") -> str:
    """Return somebody's text, or that there is none.

    >>> absent(None)
    '<span class="absent">not given</span>'
    """
    return text(value) if value else f'<span class="absent">{escape(word)}</span>'


def code(value: str, length: int = 0) -> str:
    """Return an identifier, cut to ``length`` characters after its algorithm's name.

    >>> code("sha256:0123456789", 4)
    '<code>sha256:0123…</code>'
    """
    name, _, rest = value.rpartition(":")
    if length and len(rest) > length:
        rest = rest[:length] + "…"
    return f"<code>{escape(visible(f'{name}:{rest}' if name else rest))}</code>"


def spent(epsilon: float) -> str:
    """Return an epsilon that was spent, rounded up: what is shown is never too little.

    >>> spent(3.201), spent(0.0), spent(float("inf"))
    ('3.21', '0', 'unlimited')
    """
    if isinf(epsilon):
        return "unlimited"
    return f"{ceil(round(epsilon * 100, 6)) / 100:.2f}" if epsilon else "0"


def left(epsilon: float) -> str:
    """Return what is left of an epsilon, rounded down.

    >>> left(3.209), left(-1.0)
    ('3.20', '0')
    """
    return f"{floor(round(epsilon * 100, 6)) / 100:.2f}" if epsilon > 0 else "0"


def chance(delta: float) -> str:
    """Return a small probability in words.

    >>> chance(1e-5), chance(0.02)
    ('1 in 100,000', '1 in 50')
    """
    return f"1 in {round(1 / delta):,}" if delta > 1e-15 else f"{delta:.0e}"


def advantage(share: float) -> str:
    """Return an advantage, rounded, with more digits near 1.

    >>> [advantage(share) for share in (0.4621, 0.9051, 0.9993294, 1.0, 0.9999999)]
    ['0.46', '0.91', '0.9993', '1', '0.9999…']
    """
    if share >= 1:
        return "1"
    if share > 0.9999:
        return "0.9999…"
    return f"{share:.4f}" if share > 0.99 else f"{share:.2f}"


def of_100(share: float) -> str:
    """Return a share as so many of 100, rounded, with more digits near all.

    >>> [of_100(share) for share in (0.01, 0.02719, 0.16080, 0.99967, 1.0, 0.999999)]
    ['1', '2.7', '16', '99.97', '100', '99.99…']
    """
    percent = share * 100
    if percent >= 100:
        return "100"
    if percent > 99.99:
        return "99.99…"
    digits = 2 if percent > 99 else 1 if percent < 10 else 0
    return f"{percent:.{digits}f}".removesuffix(".0")


def day(at: str) -> str:
    """Return a record's time as a day, or the text itself where no calendar has it.

    >>> day("2026-05-04T10:00:00Z"), day("2026-99-04T10:00:00Z")
    ('<time datetime="2026-05-04T10:00:00Z">4 May 2026</time>', '2026-99-04T10:00:00Z')
    """
    when = day_of(at)
    if when is None:
        return escape(at)
    return f'<time datetime="{at}">{when.day} {MONTHS[when.month - 1]} {when.year}</time>'


def days(first: str, last: str) -> str:
    """Return a span of days, or one day."""
    return day(first) if first[:10] == last[:10] else f"{day(first)} to {day(last)}"


def month(name: str) -> str:
    """Return ``2026-05`` as people say it.

    >>> month("2026-05"), month("2026-77")
    ('May 2026', '2026-77')
    """
    year, number = name[:4], int(name[5:7])
    return f"{MONTHS[number - 1]} {year}" if 1 <= number <= 12 else escape(name)


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number with its noun.

    >>> counted(1, "round"), counted(1200, "round"), counted(2, "refusal")
    ('1 round', '1,200 rounds', '2 refusals')
    """
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def listed(parts: list[str]) -> str:
    """Return parts of a sentence, joined.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def share_of(epsilon: float, limit: float) -> float:
    """Return the part of the limit, from 0 to 1.

    >>> share_of(2.0, 8.0), share_of(inf, 8.0)
    (0.25, 1.0)
    """
    return 1.0 if epsilon == inf else max(0.0, min(1.0, epsilon / limit))
