"""What long tests count, told at the end of a run, whichever process ran them.

A test that records one of ``TITLES`` as a property has it shown, without ``-s``, too.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Property, and what its lines are called.
TITLES = {
    "phases": "killed in phase",
    "verdicts": "verdicts of both verifiers on changed ledgers",
    "counts": "counted",
}


def told(properties: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """Return a title and a line a count, the counts of all tests added up.

    >>> list(told([("phases", {"send": 2, "fsync": 0}), ("seed", 3), ("phases", {"send": 1})]))
    ['killed in phase', '  send: 3', '  fsync: 0']
    """
    sums: dict[str, Counter[str]] = {}
    for name, counts in properties:
        if name in TITLES and isinstance(counts, Mapping):
            # One by one: adding Counters would drop a phase that was never hit.
            for what, number in counts.items():
                sums.setdefault(name, Counter())[what] += number
    for name, title in TITLES.items():
        if name in sums:
            yield title
            yield from (f"  {what}: {number}" for what, number in sums[name].items())


def properties_of(reports: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Return the properties of each test once: every later report of a test repeats them."""
    for report in reports:
        if getattr(report, "when", None) == "call":
            yield from report.user_properties
