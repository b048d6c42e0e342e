"""The experiment's names for classes and channels, found among a site's own."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import torch

from data_adapters.errors import DataError
from data_adapters.inputs import Learns


def class_map(
    present: Sequence[str],
    wanted: Sequence[str],
    *,
    learns: Learns = "voxels",
    meanings: Mapping[str, str] | None = None,
) -> torch.Tensor:
    """Return, for each class of a site, its index in the experiment; uint8.

    Args:
        present: The site's, in the order of its stored numbers.
        wanted: The experiment's, in any order.
        learns: Classes of ``voxels`` start with the background on both sides, whatever its name.
        meanings: What coded classes mean, for the error.

    Raises:
        DataError: The two differ; names what is missing on either side, and what looks like it.

    >>> class_map(["background", "head", "tail"], ["background", "tail", "head"]).tolist()
    [0, 2, 1]
    """
    if not present:
        raise DataError(_nothing_to_learn(learns))
    fixed = 1 if learns == "voxels" else 0
    ours, theirs = list(present)[fixed:], list(wanted)[fixed:]
    missing = [name for name in theirs if name not in ours]
    foreign = [name for name in ours if name not in theirs]
    if missing or foreign:
        key = "classes" if learns == "voxels" else "targets.classes"
        raise DataError(_difference(missing, foreign or ours, meanings or {}, key))
    places = [*range(fixed), *(theirs.index(name) + fixed for name in ours)]
    return torch.tensor(places, dtype=torch.uint8)


def require_values(present: Sequence[str]) -> None:
    """Check that a site's table holds values and not classes.

    Args:
        present: The site's classes of targets.

    Raises:
        DataError: It holds classes.
    """
    if present:
        raise DataError(
            "This data set's table holds classes, so no value can be learned from it. Leave out "
            "'targets.classes' in the site file if the column holds numbers, or use a task of "
            "kind: classification."
        )


def _nothing_to_learn(learns: Learns) -> str:
    if learns == "voxels":
        return (
            "This data set has no voxel labels, so segmentation cannot be learned from it. Name "
            "them under 'labels' and 'classes' in the site file, or use a task of kind: "
            "classification."
        )
    return (
        "This data set has no table of classes, so classification cannot be learned from it. Name "
        "one under 'targets' in the site file, with its 'classes'."
    )


def _difference(
    missing: Sequence[str], foreign: Sequence[str], meanings: Mapping[str, str], key: str
) -> str:
    asked = ", ".join(_with_nearest(name, foreign, meanings) for name in missing)
    left = ", ".join(map(repr, foreign))
    return (
        f"The experiment's classes {asked or '(no other)'} are not this data set's {left}. Map "
        f"the labels onto the experiment's names under '{key}' in the site file."
    )


def _with_nearest(name: str, candidates: Sequence[str], meanings: Mapping[str, str]) -> str:
    shown = f"{name!r} ({meanings[name]})" if name in meanings else repr(name)
    near = nearest(name, candidates) or nearest(meanings.get(name, ""), candidates)
    return f"{shown} (nearest here: {near!r})" if near else shown


def nearest(name: str, candidates: Sequence[str]) -> str | None:
    """Return the candidate that is spelt most like ``name``, if any is.

    >>> nearest("tumour", ["edema", "Tumor"])
    'Tumor'
    """
    folded = {candidate.casefold(): candidate for candidate in candidates}
    found = get_close_matches(name.casefold(), list(folded), n=1)
    return folded[found[0]] if found else None


def channel_indices(present: Sequence[str], wanted: Sequence[str] | None) -> tuple[int, ...]:
    """Return which of a site's channels the experiment's are, in the experiment's order.

    One channel without a name is whatever single channel is asked for.

    Raises:
        DataError: A channel is missing, or several are there and the experiment names none.
    """
    if len(present) == 1 and (wanted is None or (present[0] == "" and len(wanted) == 1)):
        return (0,)
    has = ", ".join(map(repr, filter(None, present))) or "one channel without a name"
    if wanted is None:
        raise DataError(
            f"This data set's images have {len(present)} channels ({has}), and the experiment "
            "names none. Name those that are meant under input.channels in the experiment."
        )
    missing = [name for name in wanted if name not in present]
    if missing:
        asked = ", ".join(_with_nearest(name, present, {}) for name in missing)
        raise DataError(
            f"The experiment asks for the channels {asked}, which this data set does not have; it "
            f"has {has}. Name them alike under 'channels' in the site file."
        )
    return tuple(list(present).index(name) for name in wanted)
