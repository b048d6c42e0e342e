"""Pictures of a run, written as SVG: readable without colour, on bright and dark pages."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite

WIDTH, HEIGHT = 720, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 150, 28, 44
# Dashes tell lines apart where colours do not.
_DASHES = ("", "8 4", "2 3", "12 3 2 3", "5 5", "1 4")
# Each has a contrast of at least 3 to 1 on white and on the dark page (WCAG 2.2, 1.4.11).
COLOURS = ("#1f77b4", "#c2570c", "#2a8f4d", "#8e62c9", "#c2417a", "#7a7a2a")
_NEAR = 15


def score_curves(
    title: str, what: str, curves: Mapping[str, Sequence[tuple[int, float]]], *, span: float = 1.0
) -> str:
    """Return a line for each site: its score after each round.

    Args:
        what: Of the score, with its unit, for the axis.
        curves: By site, (round, score); a site without scores has no line.
        span: The axis ends here, or at the largest score beyond it.
    """
    curves = {s: [(n, v) for n, v in points if isfinite(v)] for s, points in curves.items()}
    curves = {site: points for site, points in curves.items() if points}
    if not curves:
        return ""
    rounds = max(number for points in curves.values() for number, _ in points)
    top = max([span, *(value for points in curves.values() for _, value in points)]) or 1.0
    lines = "".join(_curve(n, points, rounds, top) for n, points in enumerate(curves.values()))
    return _picture(
        title,
        f"{what} of each site after each of {rounds} rounds. "
        + "; ".join(f"{site} ends at {points[-1][1]:.3f}" for site, points in curves.items()),
        _axes(what, rounds, top) + lines + _names(curves, top),
    )


def _x(number: int, rounds: int) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * number / max(1, rounds)


def _y(value: float, top: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / top


def _curve(place: int, points: Sequence[tuple[int, float]], rounds: int, top: float) -> str:
    path = " ".join(f"{_x(n, rounds):.1f},{_y(value, top):.1f}" for n, value in points)
    dashes = _DASHES[place % len(_DASHES)]
    colour = COLOURS[place % len(COLOURS)]
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"{dashed}/>\n'


def _names(curves: Mapping[str, Sequence[tuple[int, float]]], top: float) -> str:
    """Write each site's name at the end of its line, moved apart where lines end together."""
    ends = sorted((_y(points[-1][1], top), site) for site, points in curves.items())
    places = {site: place for place, site in enumerate(curves)}
    lines, free = [], float("-inf")
    for y, site in ends:
        free = max(y, free + _NEAR)
        shown = escape(site if len(site) <= 18 else f"{site[:17]}…")
        colour = COLOURS[places[site] % len(COLOURS)]
        lines.append(
            f'<text x="{WIDTH - _RIGHT + 8}" y="{free + 4:.1f}" font-size="13" fill="{colour}" '
            f'font-weight="600">{shown}</text>\n'
        )
    return "".join(lines)


def _axes(what: str, rounds: int, top: float) -> str:
    parts = [f'<text x="{_LEFT}" y="16" font-size="13" fill="currentColor">{escape(what)}</text>\n']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(top * share, top)
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="currentColor" stroke-opacity="0.25"/>\n'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" font-size="13" text-anchor="end" '
            f'fill="currentColor">{top * share:.3g}</text>\n'
        )
    step = max(1, round(rounds / 6))
    for number in range(0, rounds + 1, step):
        parts.append(
            f'<text x="{_x(number, rounds):.1f}" y="{HEIGHT - _BOTTOM + 20}" font-size="13" '
            f'text-anchor="middle" fill="currentColor">{number}</text>\n'
        )
    parts.append(
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2:.0f}" y="{HEIGHT - 6}" font-size="13" '
        'text-anchor="middle" fill="currentColor">round</text>\n'
    )
    return "".join(parts)


def _picture(title: str, description: str, body: str) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="chart-t chart-d" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif">\n'
        f'<title id="chart-t">{escape(title)}</title>\n'
        f'<desc id="chart-d">{escape(description)}</desc>\n{body}</svg>\n'
    )
