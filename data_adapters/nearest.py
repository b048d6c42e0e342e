"""What is in no class, each with the nearest that is: most of it is a slip of the pen."""

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches

# A structure set of a planning system can hold a hundred regions; a sentence cannot.
_MOST_NAMED = 8
_MOST_NEAREST = 3
_ALIKE = 0.6


def unmapped(missing: Iterable[Sequence[str]], known: Iterable[str]) -> str:
    """Return the labels that are in no class, each with the nearest ones that are.

    Args:
        missing: What each label may be called.

    >>> unmapped([("Tumor", "SCT:4147007")], ["Tumour", "Liver"])
    "'Tumor' or 'SCT:4147007' (nearest: 'Tumour')"
    """
    known = list(known)
    texts = sorted(_with_nearest([name for name in names if name], known) for names in missing)
    more = f", and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return ", ".join(texts[:_MOST_NAMED]) + more


def _with_nearest(names: Sequence[str], known: Sequence[str]) -> str:
    folded = {name.casefold(): name for name in known}
    near = [
        folded[match]
        for name in names
        for match in get_close_matches(name.casefold(), folded, _MOST_NEAREST, _ALIKE)
    ]
    text = " or ".join(repr(name) for name in names) or "a label without a name"
    return f"{text} (nearest: {', '.join(map(repr, dict.fromkeys(near)))})" if near else text


def unmapped_values(missing: Iterable[int], known: Collection[int]) -> str:
    """Return label values that are in no class, each with the nearest one that is.

    >>> unmapped_values([7, 300], [0, 1, 5])
    '7 (nearest: 5), 300 (nearest: 5)'
    """
    return ", ".join(
        f"{value} (nearest: {min(known, key=lambda other: (abs(other - value), other))})"
        if known
        else str(value)
        for value in missing
    )
