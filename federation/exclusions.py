"""Who was taken out of a site's data set for good: keyed hashes in a file of the site's state.

Beside the pseudonym stand all names that the person may come back under, and their images: an
issuer or a crosswalk that is written down later gives the same person another pseudonym.

An entry stands here before anything else is done about it, so that an interrupted exclusion keeps
the subject out of every round and is finished by whatever comes next.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_adapters.aliases import Excluded
from federation.canonical import canonical_json
from federation.errors import FederationError
from federation.files import write_atomically

FILE = "excluded.json"
FORMAT = 2
# Entries had a pseudonym alone.
EARLIER_FORMAT = 1
# In place of a record's number, for exclusions from before the first run.
NO_LEDGER = -1


@dataclass(frozen=True)
class Exclusion:
    """One subject who is out.

    Attributes:
        subject: Pseudonym; of several, the first.
        aliases: Every name of theirs (``aliases.Identity``), sorted.
        images: ``aliases.image_name`` of each scan that they had then, sorted.
        by, reason: As the ledger's note has them.
        experiments: Digests of those approved on the data with the subject.
        after: Newest record of the ledger when this began; the note comes later.
        done: Cache and ledger are as they should be.
    """

    subject: str
    aliases: tuple[str, ...]
    images: tuple[str, ...]
    at: str
    by: str
    reason: str
    experiments: tuple[str, ...]
    after: int
    done: bool = False


def read_exclusions(state: Path) -> tuple[Exclusion, ...]:
    """Return every exclusion of a site.

    Raises:
        FederationError: The file is damaged.
    """
    path = state / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] not in {FORMAT, EARLIER_FORMAT}:
            raise ValueError("another format")
        return tuple(_exclusion(fields) for fields in document["excluded"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FederationError(
            f"{path} cannot be read ({type(error).__name__}). Restore it from backup: without it "
            "subjects who were taken out would be trained on again."
        ) from error


def _exclusion(fields: dict[str, Any]) -> Exclusion:
    fields = {"aliases": [f"is:{fields['subject']}"], "images": [], **fields}
    for name in ("aliases", "images", "experiments"):
        if not isinstance(fields[name], list):
            raise TypeError(f"{name} are a list")
        fields[name] = tuple(map(str, fields[name]))
    return Exclusion(**fields)


def everybody(exclusions: Iterable[Exclusion]) -> Excluded:
    """Return whom these exclusions keep out, and which images."""
    exclusions = tuple(exclusions)
    return Excluded(
        people=tuple(frozenset(exclusion.aliases) for exclusion in exclusions),
        images=frozenset(image for exclusion in exclusions for image in exclusion.images),
    )


def keep_exclusion(state: Path, exclusion: Exclusion) -> None:
    """Add an entry, or replace the one of the same names; durable before this returns."""
    others = [e for e in read_exclusions(state) if e.aliases != exclusion.aliases]
    document = {"format": FORMAT, "excluded": [asdict(e) for e in (*others, exclusion)]}
    write_atomically(state / FILE, canonical_json(document))


@contextmanager
def one_at_a_time(state: Path) -> Iterator[None]:
    """Let exclusions and purges of one site take turns, also between processes."""
    descriptor = os.open(state / ".withdrawal.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
