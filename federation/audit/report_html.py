"""Pieces of the page: sections, tables, facts, icons. What they are given is HTML already."""

from collections.abc import Iterable, Sequence
from html import escape

from federation.audit.report_words import counted

MOST_ROWS = 200

_ICONS = {
    "good": '<circle cx="12" cy="12" r="10"/><path d="M7.5 12.5l3 3 6-6.5"/>',
    "bad": '<path d="M8 2h8l6 6v8l-6 6H8l-6-6V8z"/><path d="M8.5 8.5l7 7m0-7l-7 7"/>',
    "warn": '<path d="M12 3L22.5 21h-21z"/><path d="M12 10v5m0 3v.01"/>',
    "signed": '<path d="M4 20l1-4L16 5l3 3L8 19zM13 20h8"/>',
}


def icon(name: str) -> str:
    """Return a picture that repeats what the words beside it say."""
    return f'<svg class="icon" aria-hidden="true" viewBox="0 0 24 24">{_ICONS[name]}</svg>'


def chip(kind: str, words: str, picture: str = "") -> str:
    """Return a verdict in words, with a colour and a shape."""
    return f'<span class="chip {kind}">{icon(picture or kind)} {words}</span>'


def verdict(kind: str, headline: str, sentence: str) -> str:
    """Return a verdict in large."""
    return (
        f'<div class="verdict {kind}">{icon(kind)}<p><strong class="{kind}">{headline}</strong> '
        f"{sentence}</p></div>\n"
    )


def section(name: str, title: str, body: str, kind: str = "") -> str:
    """Return a part of the page that its contents list leads to."""
    classes = f' class="{kind}"' if kind else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-h"{classes}>\n'
        f'<h2 id="{name}-h">{escape(title)}</h2>\n{body}</section>\n'
    )


def facts(pairs: Iterable[tuple[str, str]], kind: str = "") -> str:
    """Return names with values."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>\n" for name, value in pairs)
    return f'<dl class="facts {kind}">\n{lines}</dl>\n'


def bullets(items: Sequence[str], kind: str = "") -> str:
    """Return a list; of very many items the first."""
    shown = "".join(f"<li>{item}</li>\n" for item in items[:MOST_ROWS])
    more = len(items) - MOST_ROWS
    rest = f"<li>and {more:,} more, which are left out here</li>\n" if more > 0 else ""
    classes = f' class="{kind}"' if kind else ""
    return f"<ul{classes}>\n{shown}{rest}</ul>\n"


class Column(str):
    """A column's heading. One that starts with ``#`` holds numbers, one with ``>`` sentences."""

    @property
    def kind(self) -> str:
        """Return the class attribute of its cells."""
        names = {"#": ' class="number"', ">": ' class="wide"'}
        return names.get(self[:1], "")

    @property
    def words(self) -> str:
        """Return what is shown."""
        return self.lstrip("#>")


def table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, here: int = -1
) -> str:
    """Return a table whose first column names its rows.

    Args:
        here: The row to stress, if any.
    """
    heads = [Column(column) for column in columns]
    top = "".join(f'<th scope="col"{one.kind}>{escape(one.words)}</th>' for one in heads)
    body = "".join(_row(heads, row, place == here) for place, row in enumerate(rows[:MOST_ROWS]))
    more = len(rows) - MOST_ROWS
    rest = f'<p class="muted">{counted(more, "more row")} left out here.</p>\n' if more > 0 else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">\n'
        f"<table>\n<caption>{escape(caption)}</caption>\n<thead><tr>{top}</tr></thead>\n"
        f"<tbody>\n{body}</tbody>\n</table></div>\n{rest}"
    )


def _row(heads: Sequence[Column], cells: Sequence[str], stressed: bool) -> str:
    first, *others = cells
    rest = "".join(
        f"<td{head.kind}>{cell}</td>" for head, cell in zip(heads[1:], others, strict=True)
    )
    mark = ' class="here"' if stressed else ""
    return f'<tr{mark}><th scope="row">{first}</th>{rest}</tr>\n'


def folded(summary: str, body: str) -> str:
    """Return something that opens at a touch, and on paper stands open."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{body}</details>\n"


def letter(name: str) -> str:
    """Return an experiment's letter."""
    return f'<span class="letter">{escape(name)}</span>'
