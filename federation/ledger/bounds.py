"""How many subjects a site declares to have at most, and what its delta permits.

Delta bounds the chance that the promise of epsilon fails. From 1/N on it would permit giving one of
N subjects away whole, so that it is held to 1/N^2. N is never the number of subjects, which is
private, but the upper of the bounds that the site declares; each approval records them, among what
leaves, so that an auditor can hold the ledger's delta against them.
"""

import re
from collections.abc import Iterable, Sequence
from math import floor, isqrt, log10

_DECLARED = re.compile(r"declared bounds of subjects: (\d{1,9}) to (\d{1,9})")


def most_subjects(delta: float) -> int:
    """Return the largest N for which delta is at most 1/N^2.

    >>> most_subjects(1e-5), most_subjects(1e-4), most_subjects(0.0999)
    (316, 100, 3)
    """
    found = isqrt(int(1 / delta)) + 1
    while delta > 1 / found**2:
        found -= 1
    return found


def delta_for(most: int) -> float:
    """Return the largest power of ten that so many subjects permit.

    >>> delta_for(316), delta_for(317)
    (1e-05, 1e-06)
    """
    return 10.0 ** floor(log10(1 / most**2))


def declared_bounds(low: int, high: int) -> str:
    """Return the text by which an approval records them.

    >>> declared_bounds(40, 60)
    'declared bounds of subjects: 40 to 60'
    """
    return f"declared bounds of subjects: {low} to {high}"


def highest_declared(approvals: Iterable[Sequence[str]]) -> int | None:
    """Return the largest upper bound among what approvals say leaves; None where none says it.

    >>> highest_declared([["update"], ["update", "declared bounds of subjects: 40 to 60"]])
    60
    """
    found = [
        match for leaves in approvals for text in leaves if (match := _DECLARED.fullmatch(text))
    ]
    return max((int(match[2]) for match in found), default=None)
