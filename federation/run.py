"""One experiment over sites on this machine: prepare, quote, approve, run, record.

The command line, the notebook and the tests all call these functions in this order:
``open_sites`` -> ``ingest_sites`` -> ``quote`` -> ``approve`` -> ``run_experiment``.
"""

import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from data_adapters.ingest import IngestReport, Stage
from federation.authors import Signature
from federation.checkpoint import CHECKPOINT, Checkpoint
from federation.errors import FederationError, PrivacyBudgetError
from federation.experiment import Experiment
from federation.files import write_atomically
from federation.flower.client_app import client_app
from federation.flower.grid import LocalGrid
from federation.flower.hub_run import Watcher
from federation.flower.whole_run import carry_out, write_json
from federation.messages import RoundFinished, Weights
from federation.privacy.plan import PrivacyPlan, make_plan
from federation.rounds import LocalRounds
from federation.separation import require_separate_data
from federation.site import Part, Permission, Site, open_site
from federation.starting import require_start_for_head
from federation.tracking.runs import LoggedRun
from federation.training import initial_weights, require_data_fits, require_trainable
from federation.withdrawal import finish_exclusions


@dataclass(frozen=True)
class Quote:
    """What an experiment would cost one site, in the state of that site's filter.

    Attributes:
        spent, after, limit: Epsilon before the run, after all of its charges, and at most.
        admitted: Whether the site's policy and budget allow it.
    """

    site: str
    spent: float
    after: float
    limit: float
    delta: float
    admitted: bool


@dataclass(frozen=True)
class SiteOutcome:
    """One site's line of the final table. Scores are on its public subjects.

    Attributes:
        before, after: The task's score before the first and after the last round; NaN without
            subjects.
        spent, limit: Epsilon in the state of the site's filter, and at most.
    """

    site: str
    before: float
    after: float
    num_public: int
    spent: float
    limit: float
    fingerprint: str
    ledger: Path


@dataclass(frozen=True)
class RunSummary:
    """What a run left behind, for people and programs."""

    run: str
    experiment: Experiment
    weights: Weights
    events: tuple[RoundFinished, ...]
    sites: tuple[SiteOutcome, ...]
    seconds: float
    out: Path
    store: str
    tracked: LoggedRun

    def mean_score(self, when: Literal["before", "after"]) -> float:
        """Return the mean of the sites' scores, each weighted by its number of public subjects."""
        scored = [s for s in self.sites if isfinite(getattr(s, when))]
        total = sum(s.num_public for s in scored)
        if not total:
            return float("nan")
        return float(sum(getattr(s, when) * s.num_public for s in scored) / total)

    @property
    def verify_command(self) -> str:
        """Return the complete command with which anybody can check the ledgers."""
        trust, receipts = (from_here(self.out / name) for name in ("trust.txt", "receipts.json"))
        closings = from_here(self.out / "closings.json")
        options = ["audit", "verify", "--trust", trust]
        options += ["--receipts", receipts, "--closings", closings]
        ledgers = [from_here(site.ledger) for site in self.sites]
        return shlex.join([program("cohortium"), *options, *ledgers])

    @property
    def mlflow_command(self) -> str:
        """Return the complete command that shows the run in MLflow's own pages."""
        place = from_here(Path(self.store.removeprefix("sqlite:///")))
        return shlex.join([program("mlflow"), "ui", "--backend-store-uri", f"sqlite:///{place}"])


def program(name: str) -> str:
    """Return how to call a program of this installation from where the person stands."""
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(beside) or not beside.is_file():
        return name
    return from_here(beside)


def from_here(path: Path) -> str:
    """Return ``path`` relative to where the person stands, if it is below."""
    absolute = path.absolute()
    return os.path.relpath(absolute) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def open_sites(paths: Sequence[Path]) -> list[Site]:
    """Open every site file.

    Raises:
        FederationError: A file is invalid, or two sites share a name, a state folder or images.
    """
    sites = [open_site(path) for path in paths]
    require_separate_data(sites)
    for what, values in (
        ("name", [s.name for s in sites]),
        ("state folder", [str(s.config.state.resolve()) for s in sites]),
    ):
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise FederationError(f"Two sites have the {what} {twice[0]}. Give each its own.")
    return sites


def ingest_sites(
    sites: Sequence[Site], progress: Callable[[str, Part, Stage, int, int], None] | None = None
) -> dict[str, dict[Part, IngestReport]]:
    """Gate and cache every site's data; safe to repeat. Returns the reports by site and part."""
    reports: dict[str, dict[Part, IngestReport]] = {}
    for site in sites:
        finish_exclusions(site)
        reports[site.name] = {
            part: site.ingest(part, partial(progress, site.name, part) if progress else None)
            for part in site.parts
        }
        site.check_subjects()
    return reports


def check_experiment(experiment: Experiment) -> PrivacyPlan:
    """Make the plan and try one training step on noise, before any site does anything.

    Raises:
        FederationError: No noise reaches the epsilon, or a head would be trained on top of weights
            that were drawn. ModelError: The network cannot be built, run
            on this input, or trained under privacy.
    """
    require_start_for_head(experiment)
    require_trainable(experiment)
    return make_plan(experiment)


def check_new_run(experiment: Experiment, folder: Path | None) -> PrivacyPlan:
    """Do the same, and read and try the public weights that a run would start from.

    Args:
        folder: Where the experiment's file is, and such weights beside it.

    Raises:
        FederationError, ModelError: See ``check_experiment`` and ``training.initial_weights``.
    """
    plan = check_experiment(experiment)
    if experiment.initial_weights is not None:
        initial_weights(experiment, folder)
    return plan


def quote(experiment: Experiment, sites: Sequence[Site]) -> list[Quote]:
    """Return what each site would pay if every permitted round were charged.

    Raises:
        DataError: The experiment does not fit a site's data. ModelError: See
            ``check_experiment``. FederationError: The same, or a site's terms or consents do not
            permit the experiment.
    """
    plan = check_experiment(experiment)
    for site in sites:
        site.require_usable(experiment, plan)
        require_data_fits(experiment, site)
    return [_quote(experiment, plan, site) for site in sites]


def _quote(experiment: Experiment, plan: PrivacyPlan, site: Site) -> Quote:
    state, policy = site.ledger.state, site.ledger.policy
    whole = plan.round_event.times(plan.charges)
    return Quote(
        site=site.name,
        spent=state.spent_epsilon(policy),
        after=state.after(whole).spent_epsilon(policy),
        limit=policy.epsilon,
        delta=policy.delta,
        admitted=site.ledger.fits(whole, experiment.digest()),
    )


def approve(
    experiment: Experiment,
    sites: Sequence[Site],
    *,
    approver: str,
    signature: Signature | None = None,
    **basis: str | None,
) -> None:
    """Record every site's approval in its ledger, or none.

    A site whose operator has approved just this before keeps that approval. Everything that can be
    wrong is looked for before the first approval is written. (Another process can still spend a
    site's budget in between; that site then refuses, and says so.)

    Args:
        basis: ``ethics_reference``, ``legal_basis``, ``expires`` of the ``Permission``.

    Raises:
        PrivacyBudgetError: Sites' policies or budgets do not allow it. Each refusal is recorded
            in its ledger; no site has approved anything.
        FederationError: A site's terms or consents do not permit it; nothing is recorded.
    """
    plan = make_plan(experiment)
    for site in sites:
        site.require_usable(experiment, plan)
        site.commitment(experiment.digest())
        site.require_author(experiment, signature)
    refusing = [site for site in sites if not _quote(experiment, plan, site).admitted]
    refusals = []
    for site in refusing or sites:
        author = site.require_author(experiment, signature)
        permission = Permission(approver, author=author, **basis)
        try:
            if not site.has_approved(experiment, plan):
                site.approve(experiment, plan, permission)
        except PrivacyBudgetError as refusal:
            refusals.append(str(refusal))
    if refusing or refusals:
        raise PrivacyBudgetError(" ".join(refusals) or "A site's budget changed; try again.")


def run_experiment(  # noqa: PLR0913 - all but two are named
    experiment: Experiment,
    sites: Sequence[Site],
    *,
    out: Path,
    on_event: Watcher | None = None,
    resume: bool = False,
    folder: Path | None = None,
) -> RunSummary:
    """Run every round of an approved experiment and record it under ``out``.

    Args:
        resume: Go on with the run in ``out`` that died: what sites have sent they send again, at
            no charge, so that the model is the one it would have been.
        folder: Where the experiment's file is, for weights beside it that it starts from.

    Raises:
        FederationError: Fewer sites than the experiment's minimum took part in a round. What
            sites were charged stands, and their receipts are in ``out``.
        CheckpointError: There is nothing in ``out`` to go on from; or there is, and nobody said so.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with (Checkpoint.open if resume else Checkpoint.new)(out / CHECKPOINT) as checkpoint:
        result, tracked, store = carry_out(
            experiment,
            LocalGrid({site.name: client_app(LocalRounds(site)) for site in sites}),
            checkpoint,
            out=out,
            folder=folder,
            run=secrets.token_hex(16),
            keep=partial(_keep_evidence, out, sites),
            on_event=on_event or _unwatched,
        )
    return RunSummary(
        run=result.run,
        experiment=experiment,
        weights=result.weights,
        events=result.events,
        sites=tuple(_outcome(site, result.events, experiment.task.score) for site in sites),
        seconds=time.monotonic() - started,
        out=out,
        store=store,
        tracked=tracked,
    )


def _unwatched(_: RoundFinished) -> None:
    pass


def how_far(experiment: Experiment, out: Path) -> int:
    """Return after which round the run in ``out`` would go on.

    Raises:
        CheckpointError: There is no run in ``out`` to go on with.
    """
    with Checkpoint.open(out / CHECKPOINT) as checkpoint:
        return checkpoint.load(experiment.digest())[0].round


def _keep_evidence(out: Path, sites: Sequence[Site], receipts: Sequence[Mapping[str, Any]]) -> None:
    """Write what an auditor starts from: the receipts, and the keys by which sites are known."""
    write_json(out / "receipts.json", receipts)
    lines = [f"{site.name} {site.key.fingerprint}\n" for site in sites]
    note = "# Site keys as this run saw them. Compare with what each site gave you itself.\n"
    write_atomically(out / "trust.txt", (note + "".join(lines)).encode(), mode=0o644)


def _outcome(site: Site, events: Sequence[RoundFinished], score: str) -> SiteOutcome:
    return SiteOutcome(
        site=site.name,
        before=_score(events[0], site.name, score, float("nan")),
        after=_score(events[-1], site.name, score, float("nan")),
        num_public=int(_score(events[-1], site.name, "num_subjects", 0)),
        spent=site.ledger.spent_epsilon,
        limit=site.ledger.policy.epsilon,
        fingerprint=site.key.fingerprint,
        ledger=site.ledger.path,
    )


def _score(event: RoundFinished, site: str, name: str, default: float) -> float:
    return event.scores.get(site, {}).get(name, default)
