"""Data sets of one institution that share subjects, found by keyed pseudonyms in a shared folder.

Site files that name the same ``linking`` folder hash identifiers under one key, which lies there.
Each ingest leaves there who is in the data set; a person who is in two data sets with a ledger
each would have two budgets, and nothing is approved or charged until the ledgers are merged.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from data_adapters.aliases import same_person
from data_adapters.manifest import Manifest
from federation.canonical import canonical_json, digest
from federation.errors import FederationError
from federation.files import private_folder, write_atomically

Aliases = tuple[str, ...]
LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
class Population:
    """Who is in one protected data set, by keyed hashes.

    Attributes:
        state: The site's state folder.
        ledger: Hash of its ledger's first record; empty before there is one.
        people: Every name of each subject.
        merged: The ledger has gone on in another, so that nobody has a budget here any more.
    """

    site: str
    dataset: str
    state: str
    ledger: str
    people: tuple[Aliases, ...]
    merged: bool = False

    def is_of(self, state: Path) -> bool:
        """Tell whether this is the data set of a state folder, wherever that was before."""
        ledger = _identity(state)
        return self.state == _named(state) or (bool(ledger) and self.ledger == ledger)


class LinkingFolder:
    """The folder that an institution's site files share."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, site: str, dataset: str, state: Path, manifest: Manifest) -> None:
        """Write down who is in a data set now, durable before this returns."""
        people = tuple(sorted({tuple(sorted(scan.aliases)) for scan in manifest.scans}))
        for earlier in self._all():
            if earlier.is_of(state) and earlier.state != _named(state):
                self._path(earlier).unlink(missing_ok=True)
        self._write(
            Population(site, dataset, _named(state), _identity(state), people, _is_merged(state))
        )

    def mark_merged(self, state: Path) -> None:
        """Write down that a data set has no budget of its own any more."""
        for population in self._all():
            if population.is_of(state):
                self._write(Population(**{**population.__dict__, "merged": True}))

    def shared(self, state: Path, manifest: Manifest) -> dict[str, int]:
        """Return, by other data set, how many subjects are in that one, too.

        Raises:
            FederationError: The folder's files are damaged.
        """
        own = {tuple(sorted(scan.aliases)) for scan in manifest.scans}
        found: dict[str, int] = {}
        if _is_merged(state):
            return found  # its ledger says so itself, and takes nothing more
        for other in self._all():
            if not other.is_of(state) and not other.merged:
                count = num_in_both(own, other.people)
                if count:
                    found[f"{other.dataset} ({other.site}, {other.state})"] = count
        return found

    def _all(self) -> list[Population]:
        if not self.path.is_dir():
            return []
        return [_read(path) for path in sorted(self.path.glob("*.population.json"))]

    def _write(self, population: Population) -> None:
        private_folder(self.path)
        write_atomically(self._path(population), canonical_json(asdict(population)) + b"\n")

    def _path(self, population: Population) -> Path:
        name = digest(population.state).removeprefix("sha256:")[:16]
        return self.path / f"{name}.population.json"


def num_in_both(own: Collection[Aliases], others: Iterable[Aliases]) -> int:
    """Return how many of ``own`` may be somebody of ``others``."""
    by_hash: defaultdict[str, list[Aliases]] = defaultdict(list)
    for other in others:
        for alias in other:
            by_hash[_hash(alias)].append(other)
    return sum(
        any(same_person(one, other) for alias in one for other in by_hash.get(_hash(alias), ()))
        for one in own
    )


def _hash(alias: str) -> str:
    return alias.partition(":")[2]


def _identity(state: Path) -> str:
    """Return the hash of the first record of the ledger in a state folder; empty without one."""
    lines = _ledger_lines(state)
    return str(json.loads(lines[0])["hash"]) if lines else ""


def _is_merged(state: Path) -> bool:
    lines = _ledger_lines(state)
    return bool(lines) and b'"kind":"merged"' in lines[-1]


def _ledger_lines(state: Path) -> list[bytes]:
    path = state / LEDGER
    return path.read_bytes().splitlines() if path.is_file() else []


def _named(state: Path) -> str:
    return str(state.resolve())


def _read(path: Path) -> Population:
    try:
        value = json.loads(path.read_bytes())
        people = tuple(tuple(map(str, names)) for names in value["people"])
        return Population(**{**value, "people": people})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FederationError(
            f"{path} cannot be read ({type(error).__name__}). Ingest the data set again that it "
            "is of: without it nobody knows who is in two data sets."
        ) from error


def require_one_key(linking: Path, state: Path, exists: Callable[[Path], bool]) -> Path:
    """Return the folder whose pseudonym key is used: the shared one.

    Raises:
        FederationError: The state folder has a key of its own from before.
    """
    if exists(state):
        raise FederationError(
            f"{state} has a pseudonym key of its own, from before 'linking' was in the site file, "
            f"and its subjects are known by it. If no other data set uses {linking} yet, move the "
            "file pseudonym-key there; else these data sets cannot be linked."
        )
    return private_folder(linking)
