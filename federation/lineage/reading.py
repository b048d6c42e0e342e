"""Read run folders and ledgers into one lineage.

Run folders tell what left; a receipt that is not validly signed counts for nothing. A site's
ledger tells which commitments are to its own data, what was withdrawn since, and of runs that left
no folder here.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from federation.audit.openings import opened_at
from federation.audit.replay import Replay, replay_file
from federation.audit.sources import LEDGER, files_below, read_closings, read_opening, read_receipts
from federation.errors import FederationError
from federation.ledger.openings import Opening
from federation.lineage.graph import FRESH, UNSEEN, DataSet, Lineage, Run, Use
from federation.run_record import CLOSINGS, RECEIPTS, RECORD, RunRecord, read_record

# Beside a site's ledger: what the hub said of runs that it had withdrawn from (federation.usage).
TOLD_MODELS = "models_of_withdrawn_runs.json"


@dataclass
class _Facts:
    """What was read so far.

    Attributes:
        sites, names, experiments: By commitment.
        ledgers: By commitment, the genesis hash of the ledger that it stands in.
        roots: By commitment, the data that it was opened to.
        files: By the SHA-256 of a model's file, its digest.
        starts: By run, the SHA-256 of the file that it started from.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    uses: dict[tuple[str, str], Use] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)
    names: dict[str, set[str]] = field(default_factory=dict)
    experiments: dict[str, str] = field(default_factory=dict)
    ledgers: dict[str, str] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    starts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def know(self, commitment: str, site: str, name: str, experiment: str) -> None:
        self.sites.setdefault(commitment, site)
        self.names.setdefault(commitment, set()).add(name)
        self.experiments.setdefault(commitment, experiment)

    def know_run(self, run: Run) -> None:
        known = self.runs.get(run.name)
        if known is None:
            self.runs[run.name] = run
            return
        if known.experiment_digest != run.experiment_digest:
            self.problems.append(f"run {run.name[:12]}: two experiments are said to be its own")
        if known.model and run.model and known.model != run.model:
            self.problems.append(
                f"run {run.name[:12]}: it is said to have ended with the model {known.model[:19]} "
                f"and with {run.model[:19]}"
            )
        self.runs[run.name] = replace(
            known,
            experiment=known.experiment or run.experiment,
            finished=known.finished or run.finished,
            model=known.model or run.model,
        )

    def use(self, use: Use) -> None:
        key = (use.commitment, use.run)
        known = self.uses.get(key, use)
        updates, withdrawn = max(known.updates, use.updates), known.withdrawn or use.withdrawn
        self.uses[key] = replace(known, updates=updates, withdrawn=withdrawn)


def read_lineage(paths: Sequence[Path], *, openings: Sequence[Path] = ()) -> Lineage:
    """Read what is in these folders and ledgers.

    Args:
        paths: Folders, searched for run.json and ledgers; or such files.
        openings: Files with which sites opened commitments.

    Raises:
        FederationError: There is nothing, or something cannot be read.
    """
    records, ledgers = _found(paths)
    facts = _Facts()
    for path in records:
        _take_run(facts, path.parent)
    for path in ledgers:
        _take_ledger(facts, path)
    _open(facts, [read_opening(path) for path in openings])
    return _lineage(facts)


def _found(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    files: dict[Path, Path] = {}
    for path in paths:
        inside = files_below(path, (RECORD, LEDGER)) if path.is_dir() else [path]
        for file in inside:
            files.setdefault(file.resolve(), file)
    records = [file for file in files.values() if file.name == RECORD]
    ledgers = [file for file in files.values() if file.name.endswith(LEDGER)]
    if not records and not ledgers:
        raise FederationError(
            f"There is no finished run ({RECORD}) and no ledger ({LEDGER}) in "
            f"{', '.join(map(str, paths))}. Give the folder that 'cohortium run' left, a hub's "
            "folder, a crate, or a site's state folder."
        )
    return records, ledgers


def _take_run(facts: _Facts, folder: Path) -> None:
    record = read_record(folder)
    digest = record.experiment.digest()
    facts.know_run(
        Run(record.run, digest, record.experiment.name, record.finished, record.model_digest)
    )
    facts.files[record.model_sha256] = record.model_digest
    if record.experiment.initial_weights is not None:
        facts.starts[record.run] = record.experiment.initial_weights.sha256
    signed = _signed(facts, folder, record)
    for site in record.contributors:
        facts.know(site.commitment, site.site, site.dataset, digest)
        updates = signed[site.site, site.commitment]
        facts.use(Use(site.commitment, record.run, updates))
        if not updates:
            facts.problems.append(
                f"run {record.run[:12]}: no valid receipt of {site.site}; that it took part is "
                f"said in {RECORD} alone"
            )
    for closing in read_closings(folder / CLOSINGS):
        if closing.run == record.run and closing.verify() and closing.model_digest:
            facts.know_run(Run(record.run, closing.experiment_digest, model=closing.model_digest))


def _signed(facts: _Facts, folder: Path, record: RunRecord) -> Counter[tuple[str, str]]:
    """Count, by site and commitment, the updates of rounds that changed the model."""
    done = {e.round: e.returned for e in record.events if e.outcome == "completed"}
    counts: Counter[tuple[str, str]] = Counter()
    digest = record.experiment.digest()
    for receipt in read_receipts(folder / RECEIPTS):
        if not receipt.verify() or receipt.run != record.run or receipt.experiment_digest != digest:
            facts.problems.append(
                f"run {record.run[:12]}: a receipt that names {receipt.site} is not validly signed "
                "or of another run; it counts for nothing"
            )
        elif receipt.site in done.get(receipt.round, ()):
            counts[receipt.site, receipt.commitment] += 1
    return counts


def _take_ledger(facts: _Facts, path: Path) -> None:
    replay = replay_file(path)
    if replay.genesis is None:
        raise FederationError(f"{path}: {replay.problems[0]}. Give a site's ledger.")
    if replay.problems:
        facts.problems.append(
            f"{replay.site}: its ledger breaks a rule ({replay.problems[0]}); "
            "see 'cohortium audit verify'"
        )
    population = str(replay.genesis.body["population"])
    for approved in replay.approvals:
        commitment, digest = approved.body["commitment"], approved.body["experiment_digest"]
        facts.know(commitment, replay.site, population, digest)
        facts.ledgers[commitment] = replay.ledger
    for seq, (charge, approval) in replay.charges.items():
        if approval is not None:
            body = charge.body
            facts.know_run(Run(body["run"], body["experiment_digest"]))
            facts.use(Use(approval.body["commitment"], body["run"], 0, _withdrawn(replay, seq)))
    for key, updates in _released(replay).items():
        facts.use(Use(*key, updates))
    for closing in replay.closings:
        body = closing.body
        facts.know_run(Run(body["run"], body["experiment_digest"], model=body["model_digest"]))
    _take_told(facts, path.with_name(TOLD_MODELS))


def _released(replay: Replay) -> Counter[tuple[str, str]]:
    ended = [replay.charges[seq] for seq in replay.releases if seq in replay.charges]
    return Counter((a.body["commitment"], c.body["run"]) for c, a in ended if a is not None)


def _withdrawn(replay: Replay, charged: int) -> str | None:
    """Return when the experiment of a charge was withdrawn after it, if it was."""
    experiment = replay.records[charged].body["experiment_digest"]
    later = [r for r in replay.withdrawals if r.body["experiment_digest"] == experiment]
    return next((record.at for record in later if record.seq > charged), None)


def _take_told(facts: _Facts, path: Path) -> None:
    """Take the models of runs that went on after a withdrawal, where the site has kept them."""
    if not path.is_file():
        return
    try:
        told = json.loads(path.read_bytes())
    except ValueError:
        told = {}
    for name, model in told.items() if isinstance(told, dict) else ():
        if name in facts.runs and isinstance(model, str):
            known = facts.runs[name]
            facts.know_run(Run(name, known.experiment_digest, model=model))


def _open(facts: _Facts, openings: Sequence[Opening]) -> None:
    by_site: dict[str, dict[str, set[str]]] = {}
    for commitment, experiment in facts.experiments.items():
        at_site = by_site.setdefault(facts.sites[commitment], {})
        at_site.setdefault(experiment, set()).add(commitment)
    for site, committed in by_site.items():
        found = opened_at(site, committed, openings)
        facts.roots |= found.roots
        facts.problems += [
            f"{site}: the opening of experiment {one.experiment_digest[:19]} does not give its "
            "commitment: the data are not those that were trained on, or the nonce is another"
            for one in found.wrong
        ]
    for one in openings:
        if one.experiment_digest not in by_site.get(one.site, {}):
            facts.problems.append(
                f"{one.site}: an opening of experiment {one.experiment_digest[:19]}, in which "
                "nothing here tells of the site"
            )


def _lineage(facts: _Facts) -> Lineage:
    starts = {
        run: facts.files[sha256] for run, sha256 in facts.starts.items() if sha256 in facts.files
    }
    runs = [replace(run, started_from=starts.get(run.name)) for run in facts.runs.values()]
    used = {use.commitment for use in facts.uses.values()}
    data_sets = _data_sets(facts, used)
    unlinked = [data for data in data_sets if not data.linked_by]
    unseen = sorted({facts.sites[c] for c in used if c not in facts.ledgers})
    notes = [FRESH] if unlinked else []
    notes += [UNSEEN + ", ".join(unseen)] if unseen else []
    return Lineage(
        data_sets=tuple(data_sets),
        runs=tuple(sorted(runs, key=lambda run: (run.finished or "~", run.name))),
        uses=tuple(facts.uses[key] for key in sorted(facts.uses)),
        problems=tuple(dict.fromkeys(facts.problems)),
        notes=tuple(notes),
    )


def _data_sets(facts: _Facts, used: Iterable[str]) -> list[DataSet]:
    """Put together the commitments that a ledger or openings show to be to the same data."""
    groups: list[set[str]] = [{commitment} for commitment in sorted(used)]
    of_root = {one: facts.sites[one] + root for one, root in facts.roots.items()}
    for labels in (facts.ledgers, of_root):
        groups = _joined(groups, labels)
    return sorted((_data_set(facts, one) for one in groups), key=lambda d: (d.site, d.id))


def _joined(groups: list[set[str]], labels: Mapping[str, str]) -> list[set[str]]:
    joined: dict[str, set[str]] = {}
    for group in groups:
        label = next((labels[one] for one in sorted(group) if one in labels), min(group))
        joined.setdefault(label, set()).update(group)
    return list(joined.values())


def _data_set(facts: _Facts, commitments: set[str]) -> DataSet:
    roots = {facts.roots[one] for one in commitments & facts.roots.keys()}
    linked = "ledger" if commitments & facts.ledgers.keys() else "opening" if roots else ""
    return DataSet(
        site=facts.sites[min(commitments)],
        names=tuple(sorted({name for one in commitments for name in facts.names[one]})),
        commitments=tuple(sorted(commitments)),
        linked_by=linked,
        root=roots.pop() if len(roots) == 1 else None,
    )
