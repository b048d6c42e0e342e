"""What an operator sees before and after deciding. No decisions here."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from federation.cli.show import epsilon
from federation.experiment import Experiment, RegressionTask
from federation.ledger.entries import Terms
from federation.ledger.filter import PoissonGaussian
from federation.ledger.keys import fingerprint_of
from federation.ledger.records import Record
from federation.ledger.recovery import Forgotten
from federation.privacy.plan import PrivacyPlan
from federation.run import Quote
from federation.site import Site
from federation.software import installed_versions
from federation.usage import UsedBy

_screen = Console(stderr=True)
_results = Console()


def say(text: str) -> None:
    """Print one line; nothing in it is markup."""
    _results.print(Text(text), soft_wrap=True)


def offer(experiment: Experiment, plan: PrivacyPlan, quote: Quote, terms: Terms) -> None:
    """Print exactly what would run, what it would cost, and what would leave."""
    table = Table(title=f"{quote.site}: to approve", box=SIMPLE_HEAD, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    rows = [*_what(experiment, terms), *_cost(plan, quote, terms), *_basis(terms)]
    for name, value in rows:
        table.add_row(name, Text(value))
    _screen.print(table)


def _what(experiment: Experiment, terms: Terms) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    algorithm = experiment.algorithm
    return [
        ("experiment", f"{experiment.name}  {terms.experiment_digest}"),
        ("purpose", experiment.purpose),
        ("data use", str(experiment.data_use)),
        ("signed by", terms.author or "nobody"),
        ("task", f"{experiment.task.kind}: {_learnt(experiment)}"),
        ("network", f"{experiment.model.kind}; trained: {experiment.trainable}"),
        ("starts from", _start(experiment)),
        ("learns by", _learning(experiment)),
        ("rounds", f"{algorithm.rounds} of {algorithm.steps_per_round} steps ({algorithm.kind})"),
        ("software", f"{versions}  {terms.software}"),
        ("data", f"as they are now: {terms.commitment}"),
    ]


def _start(experiment: Experiment) -> str:
    start = experiment.initial_weights
    if start is None:
        return "weights drawn from its seed"
    return f"weights that its author declares public: {start.file}  sha256:{start.sha256}"


def _learning(experiment: Experiment) -> str:
    parts = {"loss": experiment.loss, "optimiser": experiment.optimizer}
    told = [f"{what} {_settings(part.model_dump(mode='json'))}" for what, part in parts.items()]
    augment = experiment.augment
    versions = _settings(augment.model_dump(mode="json"))
    return "; ".join([*told, f"augment {versions if augment.changes_anything else 'nothing'}"])


def _settings(values: dict[str, Any]) -> str:
    """Return a part of an experiment in one line, its kind first.

    >>> _settings({"kind": "sgd", "learning_rate": 0.1})
    'sgd (learning_rate 0.1)'
    """
    more = ", ".join(f"{name} {value}" for name, value in values.items() if name != "kind")
    kind = values.get("kind", "")
    return f"{kind} ({more})".strip() if kind and more else kind or more


def _recipient(hub_key: str | None) -> str:
    if hub_key is None:
        return "runs on this machine alone: the site file names no hub"
    return f"the hub with key {fingerprint_of(bytes.fromhex(hub_key))}, and to no other"


def _learnt(experiment: Experiment) -> str:
    task = experiment.task
    return task.value if isinstance(task, RegressionTask) else ", ".join(task.classes)


def _cost(plan: PrivacyPlan, quote: Quote, terms: Terms) -> list[tuple[str, str]]:
    event = terms.event
    if isinstance(event, PoissonGaussian):
        noise = (
            f"clip norm {plan.clip_norm:g}, noise {event.noise_multiplier:g} times that, each "
            f"subject in a step with probability {event.sampling_rate:g}"
        )
    else:
        noise = "NONE: what leaves protects nobody"
    fits = "" if quote.admitted else "  DOES NOT FIT"
    return [
        ("plan", terms.plan_digest),
        ("protection", noise),
        ("charges", f"at most {terms.charges}, repeats of lost rounds included"),
        (
            "epsilon",
            f"{epsilon(quote.spent)} spent, {epsilon(quote.after)} after the whole run, "
            f"{epsilon(quote.limit)} at most (delta {quote.delta:g}){fits}",
        ),
        ("what leaves", "; ".join(terms.leaves)),
    ]


def _basis(terms: Terms) -> list[tuple[str, str]]:
    return [
        ("who may ask", _recipient(terms.hub_key)),
        ("approver", terms.approver),
        ("second approver", terms.second_approver or "none"),
        ("ethics reference", terms.ethics_reference or "none"),
        ("legal basis", terms.legal_basis or "none"),
        ("expires", terms.expires or "never"),
    ]


def approved(site: Site, record: Record) -> None:
    """Print where the approval stands, and the way back."""
    experiment = record.body["experiment_digest"]
    say(
        f"{site.name}: approved, record {record.seq} of {site.ledger.path}. One run may use it. "
        f"To end it: cohortium site withdraw SITE.yaml {experiment} --reason ..."
    )


def withdrawn(site: Site, used: UsedBy) -> None:
    """Print which runs have used the data."""
    say(f"{site.name}: the approval of {used.name} is withdrawn. A round under way stops.")
    if not used.runs:
        say("No run has used the data for it.")
        return
    table = Table(title="Runs whose models used the data", box=SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    table.add_column("updates that left", justify="right")
    table.add_column("model", overflow="fold")
    for run, updates in used.runs.items():
        table.add_row(run, str(updates), used.models.get(run, "not told: the run had not ended"))
    _results.print(table)
    say(
        "What has left cannot be called back, and what was charged stays charged. Where a run goes "
        "on without this site, its hub tells the model at the end: 'cohortium budget show' then "
        "names it."
    )


def merged_epsilon(into: Site, other: Site) -> float:
    """Return the filter's state once ``into`` has paid for what ``other`` was charged."""
    book = into.ledger.book
    return book.state.after_all(other.ledger.state.events()).spent_epsilon(book.policy)


def forgotten(site: Site, lost: Forgotten) -> None:
    """Print what a recovery would spend."""
    book = site.ledger.book
    policy = book.policy
    after = book.state.after_all(lost.spends.events()).spent_epsilon(policy)
    _screen.print(
        Text(
            f"{site.name}: the ledger ends at record {site.ledger.head[0]}; record {lost.seen_seq} "
            f"has been seen. It stands at epsilon {epsilon(book.state.spent_epsilon(policy))}; "
            "with everything that may have been released since, at "
            f"{epsilon(after)} of {epsilon(policy.epsilon)}."
        ),
        soft_wrap=True,
    )
