"""Which runs have used a site's data, from its ledger. For the site's own screen."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from federation.files import write_atomically
from federation.site import Site

# Beside the ledger, which closes no run that was withdrawn.
_TOLD = "models_of_withdrawn_runs.json"


@dataclass(frozen=True)
class UsedBy:
    """An experiment that was approved on data which are now another data set.

    Attributes:
        runs: Runs that were charged, with the number of updates that left in each.
        models: Digest of the model that each run ended with, where the hub has said.
        on_earlier_data: It was approved on data older than those before this exclusion.
    """

    name: str
    digest: str
    runs: dict[str, int]
    on_earlier_data: bool = False
    models: dict[str, str] = field(default_factory=dict)


def runs_by_experiment(site: Site) -> dict[str, Counter[str]]:
    """Return, by experiment, how many updates left in each run; charged runs without any, too."""
    records = site.ledger.records
    released = {r.body["charge_seq"] for r in records if r.kind == "release"}
    runs: dict[str, Counter[str]] = {}
    for record in records:
        if record.kind == "charge":
            counts = runs.setdefault(record.body["experiment_digest"], Counter())
            counts[record.body["run"]] += record.seq in released
    return runs


def used_by(site: Site, experiment_digest: str) -> UsedBy:
    """Return what an experiment made of this site's data."""
    return _used(site, experiment_digest, runs_by_experiment(site).get(experiment_digest, {}))


def every_use(site: Site) -> list[UsedBy]:
    """Return the same of every experiment that was charged, in the order of their first charges."""
    return [_used(site, digest, runs) for digest, runs in runs_by_experiment(site).items()]


def _used(site: Site, digest: str, runs: Mapping[str, int]) -> UsedBy:
    models = models_of(site, runs)
    return UsedBy(site.experiment_name(digest), digest, dict(runs), models=models)


def models_of(site: Site, runs: Iterable[str]) -> dict[str, str]:
    """Return the digests of the models that those runs ended with, as far as the hub has said."""
    closings = site.ledger.book.closings
    ended = {run: closings[run].body["model_digest"] for run in runs if run in closings}
    told = _told(site)
    ended |= {run: told[run] for run in runs if run in told}
    return {run: model for run, model in ended.items() if model is not None}


def remember_model(site: Site, run: str, model_digest: str | None) -> None:
    """Keep what a hub says of the end of a run whose approval was withdrawn here.

    The run went on without this site, from updates that had left before. The first word stands.
    """
    told = _told(site)
    if model_digest is not None and run in site.ledger.book.withdrawn and run not in told:
        text = json.dumps({**told, run: model_digest}, indent=1)
        write_atomically(_path(site), text.encode() + b"\n")


def _told(site: Site) -> dict[str, str]:
    try:
        told = json.loads(_path(site).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return {str(run): str(model) for run, model in told.items()} if isinstance(told, dict) else {}


def _path(site: Site) -> Path:
    return site.config.state / _TOLD
