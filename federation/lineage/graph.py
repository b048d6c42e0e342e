"""Data sets, runs and models, and how one came from another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from federation.errors import FederationError
from federation.export import identifiers

FORMAT = "cohortium-lineage/1"
_SHORTEST = 6
FRESH = (
    "Commitments are fresh for each experiment, so one data set in two experiments stands here as "
    "two, which nobody can link from what left. The site's own ledger links them, or --opening."
)
UNSEEN = (
    "Withdrawals and runs that left no folder here stand in the sites' ledgers; these sites' were "
    "not given: "
)


@dataclass(frozen=True)
class DataSet:
    """What a site trained on.

    Attributes:
        names: Data sets as the site calls them, or the population of its ledger.
        commitments: One for each experiment; several only where something links them.
        linked_by: ``ledger``, ``opening``, or empty: each commitment by itself.
        root: Digest of the data themselves, where an opening fits.
    """

    site: str
    names: tuple[str, ...]
    commitments: tuple[str, ...]
    linked_by: str = ""
    root: str | None = None

    @property
    def id(self) -> str:
        """Return the name of its oldest commitment, as exports have it."""
        return identifiers.data_set(self.commitments[0])

    def is_called(self, text: str) -> bool:
        """Tell whether a person means this: SITE/DATASET, a commitment or how it begins."""
        if text in {f"{self.site}/{name}" for name in self.names}:
            return True
        return any(begins(commitment, text) for commitment in self.commitments)


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        experiment: Its name; None where only a ledger tells of the run.
        model: Digest of the model that it ended with, where somebody has said.
        started_from: Digest of the model that it started from, where that is known here.
    """

    name: str
    experiment_digest: str
    experiment: str | None = None
    finished: str | None = None
    model: str | None = None
    started_from: str | None = None

    @property
    def id(self) -> str:
        """Return its name in exports."""
        return identifiers.run(self.name)


@dataclass(frozen=True)
class Use:
    """A data set in a run.

    Attributes:
        updates: How many left the site, as it has signed; 0 where run.json alone tells of it.
        withdrawn: When the site withdrew its approval, if it did.
    """

    commitment: str
    run: str
    updates: int
    withdrawn: str | None = None


@dataclass(frozen=True)
class Lineage:
    """Everything that is known, or a part of it.

    Attributes:
        problems: What does not fit together; the exit status is 1.
        notes: What cannot be seen from here.
    """

    data_sets: tuple[DataSet, ...]
    runs: tuple[Run, ...]
    uses: tuple[Use, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    _of: Mapping[str, DataSet] = field(init=False, default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        of = {commitment: data for data in self.data_sets for commitment in data.commitments}
        object.__setattr__(self, "_of", of)

    @property
    def models(self) -> tuple[str, ...]:
        """Return the digests of the models, each once."""
        named = [digest for run in self.runs for digest in (run.started_from, run.model)]
        return tuple(dict.fromkeys(digest for digest in named if digest))

    def data_set_of(self, use: Use) -> DataSet:
        """Return whose use it is."""
        return self._of[use.commitment]

    def uses_in(self, run: Run) -> list[Use]:
        """Return what was used in a run."""
        return [use for use in self.uses if use.run == run.name]

    def uses_of(self, data: DataSet) -> list[Use]:
        """Return where a data set was used."""
        return [use for use in self.uses if use.commitment in data.commitments]

    def run_of(self, use: Use) -> Run:
        """Return where it was used."""
        return next(run for run in self.runs if run.name == use.run)

    def of_model(self, text: str) -> "Lineage":
        """Keep what made a model: its runs, their data sets, and the models they started from.

        Raises:
            FederationError: No model or several begin like this.
        """
        wanted = {_the_one(text, self.models)}
        kept: dict[str, Run] = {}
        while found := [r for r in self.runs if r.model in wanted and r.name not in kept]:
            kept |= {run.name: run for run in found}
            wanted |= {run.started_from for run in found if run.started_from}
        return self._only(kept, [use for use in self.uses if use.run in kept])

    def of_data_set(self, text: str) -> "Lineage":
        """Keep what a data set went into, however many runs later.

        Raises:
            FederationError: There is none of this name.
        """
        data = [one for one in self.data_sets if one.is_called(text)]
        if not data:
            known = ", ".join(sorted(f"{d.site}/{n}" for d in self.data_sets for n in d.names)[:20])
            raise FederationError(
                f"No data set here is called {text[:80]!r}. Give its commitment (from "
                f"{_SHORTEST} digits) or SITE/DATASET, one of: {known or 'none'}."
            )
        uses = [use for one in data for use in self.uses_of(one)]
        kept = {use.run: self.run_of(use) for use in uses}
        grown = True
        while grown:
            made = {run.model for run in kept.values() if run.model}
            more = {r.name: r for r in self.runs if r.started_from in made and r.name not in kept}
            kept, grown = kept | more, bool(more)
        return self._only(kept, uses)

    def _only(self, runs: Mapping[str, Run], uses: Iterable[Use]) -> "Lineage":
        kept = set(uses)
        commitments = {use.commitment for use in kept}
        return replace(
            self,
            data_sets=tuple(d for d in self.data_sets if commitments & set(d.commitments)),
            runs=tuple(run for run in self.runs if run.name in runs),
            uses=tuple(use for use in self.uses if use in kept),
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON values. What is named has the name that exports give it."""
        return {
            "format": FORMAT,
            "data_sets": [_data_set_json(one) for one in self.data_sets],
            "runs": [_run_json(one) for one in self.runs],
            "models": [
                {"id": identifiers.model(digest), "digest": digest} for digest in self.models
            ],
            "uses": [
                {
                    "data_set": self.data_set_of(use).id,
                    "commitment": use.commitment,
                    "run": self.run_of(use).id,
                    "updates": use.updates,
                    "withdrawn": use.withdrawn,
                }
                for use in self.uses
            ],
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


def _data_set_json(data: DataSet) -> dict[str, Any]:
    return {
        "id": data.id,
        "site": data.site,
        "names": list(data.names),
        "commitments": list(data.commitments),
        "linked_by": data.linked_by or None,
        "root": data.root,
    }


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "run": run.name,
        "experiment": run.experiment,
        "experiment_digest": run.experiment_digest,
        "finished": run.finished,
        "model": identifiers.model(run.model) if run.model else None,
        "started_from": identifiers.model(run.started_from) if run.started_from else None,
    }


def begins(digest: str, text: str) -> bool:
    """Tell whether a digest is meant by how it begins, with or without what stands before it.

    >>> begins("sha256:" + "ab" * 32, "ababab"), begins("sha256:" + "ab" * 32, "ab")
    (True, False)
    """
    start = text.rpartition(":")[2]
    return len(start) >= _SHORTEST and digest.removeprefix("sha256:").startswith(start)


def _the_one(text: str, digests: Sequence[str]) -> str:
    found = [digest for digest in digests if begins(digest, text)]
    if len(found) != 1:
        raise FederationError(
            f"{len(found)} models here begin with {text[:80]!r}. Give more of the digest, at least "
            f"{_SHORTEST} digits, or name the folders with the runs that you mean."
        )
    return found[0]
