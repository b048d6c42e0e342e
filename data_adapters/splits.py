"""Deterministic splits by subject: each subject's place depends on itself alone.

A permutation, or a fraction of the number of subjects, would let one subject move another from
training to validation. Here each subject's place is a hash of its pseudonym, so a part has the
declared fraction of the subjects on average, not exactly.
"""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import accumulate

_LARGEST = 2**64


def part_of(subject: str, fractions: Mapping[str, float], *, seed: int) -> str:
    """Return the part that one subject belongs to.

    Args:
        subject: Pseudonym: a keyed hash, so that nobody without the site's key can tell the part.
        fractions: Of each part; together 1. Their order matters.
        seed: The experiment's.

    Raises:
        ValueError: The fractions are not positive, or not 1 together.

    >>> part_of("a3f0", {"training": 0.8, "validation": 0.2}, seed=0)
    'training'
    """
    if min(fractions.values(), default=0.0) <= 0 or abs(sum(fractions.values()) - 1) > 1e-9:
        raise ValueError(
            f"the fractions of a split must be positive and 1 together, not {dict(fractions)}"
        )
    digest = hashlib.sha256(f"cohortium-split/1\0{seed}\0{subject}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / _LARGEST
    ends = accumulate(fractions.values())
    names = list(fractions)
    return next((name for name, end in zip(names, ends, strict=True) if place < end), names[-1])


def split_subjects(
    subjects: Iterable[str], fractions: Mapping[str, float], *, seed: int
) -> dict[str, tuple[str, ...]]:
    """Return the subjects of each part, sorted; every subject is in exactly one.

    Adding or removing a subject moves no other.

    >>> split_subjects(["a3f0", "b811", "c97e"], {"training": 0.5, "validation": 0.5}, seed=0)
    {'training': ('a3f0', 'c97e'), 'validation': ('b811',)}
    """
    parts: dict[str, list[str]] = {name: [] for name in fractions}
    for subject in sorted(set(subjects)):
        parts[part_of(subject, fractions, seed=seed)].append(subject)
    return {name: tuple(found) for name, found in parts.items()}
