"""The report's pictures, written as SVG by hand: the filter against the date, with its limit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from math import floor, isfinite, log10

from federation.audit.report_words import MONTHS, spent

_DAY_S = 86_400.0
_MONTH_STEPS = (1, 2, 3, 6, 12, 24, 60, 120, 600, 6_000, 36_000)
_DAY_STEPS = (1, 2, 5, 7, 14, 28)


@dataclass(frozen=True)
class Curve:
    """What a plot shows.

    Attributes:
        name: Makes the picture's ids unique on its page.
        points: Time and the filter's epsilon right after it; infinite without privacy.
        marks: Time and letter of the first charge of each experiment.
        limit: Of epsilon.
        start, end: Of the time axis.
    """

    name: str
    title: str
    description: str
    points: Sequence[tuple[datetime, float]]
    marks: Sequence[tuple[datetime, str]]
    limit: float
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Size:
    """Of a picture and its margins, in its own units, which are CSS pixels at full width."""

    name: str
    width: int
    height: int
    ticks: int
    left: int = 46
    right: int = 16
    top: int = 30
    bottom: int = 58


WIDE = Size("wide", 860, 310, ticks=8)
NARROW = Size("narrow", 340, 280, ticks=3, left=38, right=10)


def bar(share: float, held_share: float = 0.0) -> str:
    """Return a bar that is filled to ``share``, lighter up to ``held_share``; text repeats it."""
    held = max(0.0, min(1.0, held_share) - share)
    return (
        '<svg class="meter" aria-hidden="true" viewBox="0 0 100 8" preserveAspectRatio="none">'
        f'<rect class="filled" width="{share * 100:.2f}" height="8"/>'
        f'<rect class="held" x="{share * 100:.2f}" width="{held * 100:.2f}" height="8"/></svg>'
    )


def plot(curve: Curve) -> str:
    """Return the picture twice: for wide and for narrow screens; style shows one of them."""
    return "".join(_plot(curve, size) for size in (WIDE, NARROW))


def _plot(curve: Curve, size: Size) -> str:
    scale = _Scale.of(curve, size)
    name = escape(f"{curve.name}-{size.name}")
    return (
        f'<svg class="plot {size.name}" role="img" aria-labelledby="{name}-t {name}-d" '
        f'viewBox="0 0 {size.width} {size.height}">\n'
        f'<title id="{name}-t">{escape(curve.title)}</title>\n'
        f'<desc id="{name}-d">{escape(curve.description)}</desc>\n'
        + "".join([*_rules(scale), *_dates(scale), *_line(curve, scale), *_limit(curve, scale)])
        + "".join([*_marks(curve, scale), _end(curve, scale)])
        + "</svg>\n"
    )


@dataclass(frozen=True)
class _Scale:
    """Turns time and epsilon into places."""

    size: Size
    start: datetime
    span_s: float
    top: float

    @classmethod
    def of(cls, curve: Curve, size: Size) -> "_Scale":
        span = max((curve.end - curve.start).total_seconds(), 60.0)
        finite = [epsilon for _, epsilon in curve.points if isfinite(epsilon)]
        return cls(size, curve.start, span, 1.08 * max([curve.limit, *finite]))

    def x(self, when: datetime) -> float:
        wide = self.size.width - self.size.left - self.size.right
        share = (when - self.start).total_seconds() / self.span_s
        return self.size.left + wide * max(0.0, min(1.0, share))

    def y(self, epsilon: float) -> float:
        high = self.size.height - self.size.top - self.size.bottom
        return self.size.top + high * (1 - min(1.0, epsilon / self.top))

    @property
    def foot(self) -> int:
        return self.size.height - self.size.bottom

    @property
    def end_x(self) -> int:
        return self.size.width - self.size.right


def _rules(scale: _Scale) -> Iterator[str]:
    for value in ticks(scale.top):
        y = scale.y(value)
        yield f'<path class="rule" d="M{scale.size.left} {y:.1f}H{scale.end_x}"/>'
        yield _label(f"{value:g}", scale.size.left - 8, y + 4.5, "end")


def ticks(top: float, most: int = 5) -> list[float]:
    """Return round numbers from 0 to ``top``.

    >>> ticks(8.6), ticks(1.1)
    ([0.0, 2.0, 4.0, 6.0, 8.0], [0.0, 0.5, 1.0])
    """
    power = 10.0 ** floor(log10(top / most))
    step = next(power * one for one in (1, 2, 5, 10, 20) if top / (power * one) <= most)
    return [round(step * place, 12) for place in range(int(top / step) + 1)]


def _dates(scale: _Scale) -> Iterator[str]:
    for when, text in dates(scale.start, timedelta(seconds=scale.span_s), scale.size.ticks):
        x = scale.x(when)
        yield f'<path class="tick" d="M{x:.1f} {scale.foot}v28"/>'
        anchor = "middle"
        if x > scale.end_x - 30:
            anchor, x = "end", float(scale.end_x)
        yield _label(text, x, scale.foot + 45, anchor)


def dates(start: datetime, span: timedelta, most: int) -> list[tuple[datetime, str]]:
    """Return at most ``most`` round dates with their names, the year where it is new."""
    days = span.total_seconds() / _DAY_S
    if days < 2:
        places = [start + span * (k / (most - 1)) for k in range(most)]
        return [(at, f"{at:%H:%M}") for at in places[:: 1 if days * 1440 > most else most]]
    if days <= _DAY_STEPS[-1] * most:
        step = next(step for step in _DAY_STEPS if days / step <= most)
        first = start.replace(hour=0, minute=0, second=0) + timedelta(days=1)
        count = int((start + span - first).total_seconds() / _DAY_S / step) + 1
        found = [first + timedelta(days=step * k) for k in range(max(0, count))][:most]
        return [(at, f"{at.day} {MONTHS[at.month - 1]}") for at in found]
    step = next(step for step in _MONTH_STEPS if days / 30.4 / step <= most or step == 36_000)
    return [(at, _month(at, step)) for at in _months(start, start + span, step)][:most]


def _months(start: datetime, end: datetime, step: int) -> Iterator[datetime]:
    number = start.year * 12 + start.month  # the first month that begins after start
    number += -number % step if step > 1 else 0
    while number // 12 <= end.year and number // 12 < 9999:
        at = datetime(number // 12, number % 12 + 1, 1)
        if at > end:
            return
        yield at
        number += step


def _month(at: datetime, step: int) -> str:
    return str(at.year) if step >= 12 else f"{MONTHS[at.month - 1]} {at.year % 100:02}"


def _line(curve: Curve, scale: _Scale) -> Iterator[str]:
    """A step line: what was spent stays spent. One step a column of pixels is enough."""
    columns: dict[int, tuple[float, float]] = {}
    latest = curve.start
    for when, epsilon in curve.points:
        latest = max(latest, when)
        x = scale.x(latest)
        columns[round(x)] = (x, scale.y(epsilon) if isfinite(epsilon) else scale.size.top - 14)
    steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in columns.values())
    path = f"M{scale.size.left} {scale.foot}{steps}H{scale.end_x}"
    yield f'<path class="area" d="{path}V{scale.foot}Z"/>'
    yield f'<path class="axis" d="M{scale.size.left} {scale.foot}H{scale.end_x}"/>'
    yield f'<path class="line" d="{path}"/>'


def _limit(curve: Curve, scale: _Scale) -> Iterator[str]:
    y = scale.y(curve.limit)
    yield f'<path class="limit" d="M{scale.size.left} {y:.1f}H{scale.end_x}"/>'
    text = f"Limit promised: {curve.limit:g}"
    yield _label(text, scale.size.left + 4, y - 7, "start", "limit-text")


def _marks(curve: Curve, scale: _Scale) -> Iterator[str]:
    """A letter under the axis where an experiment begins; close ones stand side by side."""
    free = float(scale.size.left)
    for when, letter in curve.marks:
        width = 10 + 8 * len(letter)
        x = min(max(scale.x(when), free), scale.end_x - width)
        free = x + width + 3
        y = scale.foot + 8
        yield f'<rect class="mark" x="{x:.1f}" y="{y}" width="{width}" height="18" rx="3"/>'
        yield _label(letter, x + width / 2, y + 13.5, "middle", "mark-text")


def _end(curve: Curve, scale: _Scale) -> str:
    if not curve.points:
        return ""
    epsilon = curve.points[-1][1]
    if not isfinite(epsilon):
        return _label("unlimited: trained without protection", scale.end_x, 12, "end", "limit-text")
    y = scale.y(epsilon)
    below = y < scale.y(curve.limit) + 34
    text = f"Spent: {spent(epsilon)}"
    return f'<circle class="dot" cx="{scale.end_x}" cy="{y:.1f}" r="4"/>' + _label(
        text, scale.end_x - 9, y + 20 if below else y - 10, "end", "line-text"
    )


def _label(text: str, x: float, y: float, anchor: str, kind: str = "label") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
