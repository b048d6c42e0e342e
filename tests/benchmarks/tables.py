"""What a part of the run found: records for machines, a table for people."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Section:
    """One table.

    Args:
        records: One for each row; what JSON holds. Numbers are as measured.
        lines: The same rows as text, one cell a column.
        notes: Below the table: what the numbers mean, and how they stand to the targets.
    """

    title: str
    columns: tuple[str, ...]
    records: tuple[dict[str, Any], ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def show(self, console: Console) -> None:
        """Print the table."""
        console.print(self.title, style="bold", highlight=False)
        table = Table()
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for line in self.lines:
            table.add_row(*line)
        console.print(table)
        for note in self.notes:
            console.print(f"- {note}", highlight=False, markup=False)
        console.print()

    def document(self) -> dict[str, Any]:
        """Return what JSON holds."""
        document = asdict(self)
        del document["lines"]
        return document


def rate(value: float | None, share: float | None = None) -> str:
    """Return a rate, and its share of the raw limit's.

    >>> rate(1234.5, 0.617), rate(None)
    ('1,234 (0.62)', '-')
    """
    if value is None:
        return "-"
    return f"{value:,.0f}" + ("" if share is None else f" ({share:.2f})")


def seconds(value: float | None, limit: float | None = None) -> str:
    """Return a duration, and how many times the raw limit's it is.

    >>> seconds(0.1234), seconds(0.1234, 0.1)
    ('0.123', '0.123 (1.2x)')
    """
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({value / limit:.1f}x)" if limit else "")


def verdict(what: str, values: Sequence[float], least: float | None = None) -> str:
    """Return one line: ratios, and whether each reaches the target.

    >>> verdict("ours / limit, random and aligned", [0.72, 1.31], 0.6)
    'ours / limit, random and aligned: 0.72, 1.31 (target 0.6: met)'
    """
    shown = ", ".join(f"{value:.2f}" for value in values)
    if least is None:
        return f"{what}: {shown} (no target)"
    missed = sum(value < least for value in values)
    state = "met" if not missed else f"MISSED by {missed} of {len(values)}"
    return f"{what}: {shown} (target {least:g}: {state})"
