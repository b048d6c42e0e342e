"""Who trained what, on whose data and why; and what of the promise that used."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from math import inf, isinf

from federation.audit import report_words as words
from federation.audit.report import BoardReport, ExperimentAccount, Share, SiteAccount
from federation.audit.report_html import chip, facts, folded, letter, table
from federation.audit.report_plots import Curve, bar, plot
from federation.audit.report_records import Approval, Point, day_of
from federation.experiment import Experiment, RegressionTask, SegmentationTask
from federation.ledger.filter import BudgetPolicy
from federation.ledger.keys import fingerprint_of

_MOST_EXPERIMENTS = 50
_MOST_SITES = 30
_MOST_APPROVALS = 10
_MOST_DAYS = 60
_MOST_CLASSES = 8
_NOT_RECORDED = "not recorded in the approval"


# Who trained what


def training(report: BoardReport) -> str:
    """Return every experiment with what each site approved."""
    if not report.experiments:
        return "<p>No experiment was approved at any of these sites.</p>\n"
    shown = "".join(_experiment(report, one) for one in report.experiments[:_MOST_EXPERIMENTS])
    more = len(report.experiments) - _MOST_EXPERIMENTS
    rest = f"<p>{words.counted(more, 'more experiment')} left out here.</p>\n" if more > 0 else ""
    intro = (
        "<p>Each site decides for itself and signs what it approves. Purpose and data use are the "
        "researcher’s words, taken from the experiment’s file; its digest in the approval shows "
        "that it is the file that was approved. What an approval leaves open is said to be "
        "missing.</p>\n"
    )
    return intro + shown + rest + _who_received()


def _experiment(report: BoardReport, one: ExperimentAccount) -> str:
    sites = "".join(_at_site(report, site, own) for site, own in one.at_sites[:_MOST_SITES])
    more = len(one.at_sites) - _MOST_SITES
    rest = f"<p>{words.counted(more, 'more site')} left out here.</p>\n" if more > 0 else ""
    return (
        f"<h3>{letter(one.letter)} {words.text(one.name)}</h3>\n"
        + (_document(one.document) if one.document else _no_document(one))
        + f'<div class="sites">\n{sites}</div>\n{rest}'
    )


def _no_document(one: ExperimentAccount) -> str:
    return (
        f"<p>No file of this experiment was given, so its name, purpose and data use are not known "
        f"here; the approvals name it by its digest, {words.code(one.digest, 16)}.</p>\n"
    )


def _document(document: Experiment) -> str:
    return (
        f"<blockquote><p>{words.text(document.purpose)}</p></blockquote>\n"
        f'<p><span class="muted">Data use declared:</span> {words.text(document.data_use)}.<br>'
        f'<span class="muted">What is trained:</span> {_what(document)}.</p>\n'
    )


def _what(document: Experiment) -> str:
    task, rounds = document.task, document.algorithm.rounds
    if isinstance(task, RegressionTask):
        does, names = "a network that estimates", [words.text(task.value)]
    elif isinstance(task, SegmentationTask):
        does = "a network that outlines"
        names = [words.text(task.shown(name)) for name in task.classes[1:]]
    else:
        names = [words.text(task.shown(name)) for name in task.classes]
        does = "a network that tells apart"
    shown = names[:_MOST_CLASSES]
    more = [f"{len(names) - len(shown)} more"] if len(names) > len(shown) else []
    steps = document.algorithm.steps_per_round
    return (
        f"{does} {words.listed(shown + more)} ({words.text(document.model.kind)}), in "
        f"{words.counted(rounds, 'round')} of {words.counted(steps, 'step')}"
    )


def _at_site(report: BoardReport, site: SiteAccount, own: Sequence[Approval]) -> str:
    newest, earlier = own[-1], own[:-1][::-1]
    older = ""
    if earlier:
        shown = "".join(facts(_approval(report, site, one)) for one in earlier[:_MOST_APPROVALS])
        older = folded(words.counted(len(earlier), "earlier approval"), shown)
    return (
        f'<article class="card">\n<h4>{words.text(site.name)}</h4>\n'
        f"{facts(_approval(report, site, newest))}{older}</article>\n"
    )


def _approval(report: BoardReport, site: SiteAccount, one: Approval) -> Iterator[tuple[str, str]]:
    body = one.record.body
    yield "State", _state(report, one)
    yield "Whose data", words.text(site.verdict.population)
    second = body["second_approver"]
    also = f" and {words.text(second)}" if second else "; no second approver"
    yield "Approved by", f"{words.text(body['approver'])}{also}, on {words.day(one.record.at)}"
    yield "Ethics reference", words.absent(body["ethics_reference"], _NOT_RECORDED)
    yield "Legal basis", words.absent(body["legal_basis"], _NOT_RECORDED)
    yield "Expires", words.day(body["expires"]) if body["expires"] else words.absent(None, "never")
    yield "Rounds", _rounds(one)
    yield "Cost at most", _cost(site.policy, one)
    yield "Received by", _recipient(body["hub_key"], one)
    yield "What left", _leaves(body["leaves"])
    yield "Author", _author(body["author"])


def _state(report: BoardReport, one: Approval) -> str:
    on = words.day(one.ended_at) if one.ended_at else ""
    if one.ended == "withdrawn":
        by = f" by {words.text(one.ended_by)}" if one.ended_by else ""
        why = f": {words.text(one.ended_reason)}" if one.ended_reason else ""
        return f"{chip('bad', f'withdrawn on {on}')}{by}{why}"
    ends = {
        "closed": ("good", f"finished on {on}"),
        "recovery": ("warn", f"ended by the recovery of {on}"),
        "merged": ("warn", f"ended on {on}: the ledger was merged into another"),
        "replaced": ("warn", f"replaced by a newer approval on {on}"),
    }
    return chip(*(ends.get(one.ended) or _open_state(report, one)))


def _open_state(report: BoardReport, one: Approval) -> tuple[str, str]:
    expires = one.record.body["expires"]
    if not one.held:
        return "good", "every approved round was charged"
    if expires and expires < report.made_at:
        return "warn", f"expired on {words.day(expires)}"
    return "warn", "running" if one.charges else "open, not begun"


def _rounds(one: Approval) -> str:
    permitted = words.counted(int(one.record.body["charges"]), "round")
    told = [f"{len(one.charges):,} of {permitted} charged", f"{one.releases:,} sent"]
    if one.losses:
        told.append(f"{one.losses:,} lost (charged all the same)")
    when = f", {words.days(one.charges[0], one.charges[-1])}" if one.charges else ""
    return f"{words.listed(told)}{when}"


def _cost(policy: BudgetPolicy | None, one: Approval) -> str:
    """Compute it from what was approved; what the site states beside it no verifier checks."""
    said = one.record.body["epsilon"]
    stated = "no ε" if said is None else f"ε {said:g}"
    return f"{_recomputed(policy, one)} (stated by the site, not recomputed: {stated})"


def _recomputed(policy: BudgetPolicy | None, one: Approval) -> str:
    epsilon = inf if policy is None else one.cost(policy)
    if isinf(epsilon):
        return "no limit: nothing bounds what the updates tell"
    rounds = words.counted(int(one.record.body["charges"]), "permitted round")
    return (
        f"ε {words.spent(epsilon)} for {rounds}, were nothing else ever charged; recomputed from "
        "the approved sampling, noise and steps"
    )


def _recipient(hub_key: str | None, one: Approval) -> str:
    others = sorted(one.at_sites)
    with_ = f"; in the same run: {words.listed([words.text(n) for n in others])}" if others else ""
    if hub_key is None:
        return f"no hub is named (a run on one machine){with_}"
    return f"the hub with key {words.code(fingerprint_of(bytes.fromhex(hub_key)), 12)}{with_}"


def _leaves(leaves: Sequence[str]) -> str:
    return "; ".join(words.text(one) for one in leaves) or words.absent(None, _NOT_RECORDED)


def _author(fingerprint: str | None) -> str:
    if fingerprint is None:
        return words.absent(None, "nobody’s signature was asked for")
    return f"signed with {words.code(fingerprint, 12)}"


def _who_received() -> str:
    return (
        "<h3>Who receives what after that</h3>\n"
        "<p>The hub averages the sites’ updates and gives the model to every site of the run, and "
        "to whoever it likes: a model that has left cannot be called back, and no record here says "
        "who has copies. The limits on this page hold against all of them together.</p>\n"
    )


# What of the promise that used


def budgets(report: BoardReport) -> str:
    """Return every site's filter over time, by experiment and by month."""
    intro = (
        "<p>The solid line is what each round added to the site’s <em>filter</em>, the account "
        "that decides whether another round may be charged. The dashed line is the promise. What "
        "is spent never comes back. The first round always looks dear: with it comes the price of "
        "stating one number at all (of δ), which is paid once.</p>\n"
    )
    return intro + "".join(_budget(report, place, site) for place, site in enumerate(report.sites))


def _budget(report: BoardReport, place: int, site: SiteAccount) -> str:
    policy = site.policy
    if policy is None:
        return (
            f"<h3>{words.text(site.name)}</h3>\n<p>The file does not say what was promised.</p>\n"
        )
    head = (
        f"<h3>{words.text(site.name)}: {words.spent(site.spent)} of {policy.epsilon:g} spent</h3>\n"
    )
    if not site.told.points:
        return f"{head}<p>Nothing was charged yet.</p>\n"
    stopped = ""
    if site.told.stopped_at is not None:
        stopped = (
            f"<p>From record {site.told.stopped_at:,} on there are too many kinds of rounds to add "
            "up here; the figures stop before it.</p>\n"
        )
    return (
        head
        + plot(_curve(report, place, site, policy))
        + stopped
        + folded("The same as a table", _by_day(report, site, policy))
        + _by_experiment(report, site, policy)
        + _by_month(site, policy)
    )


def _curve(report: BoardReport, place: int, site: SiteAccount, policy: BudgetPolicy) -> Curve:
    points = [(when, p.epsilon) for p in site.told.points if (when := day_of(p.at))]
    firsts: dict[str, datetime] = {}
    for point in site.told.points:
        when = day_of(point.at)
        if when is not None and point.experiment:
            firsts.setdefault(point.experiment, when)
    genesis = site.told.genesis
    began = day_of(genesis.at) if genesis else None
    times = [when for when, _ in points] + [
        when for when in (began, day_of(report.made_at)) if when
    ]
    start, end = min(times, default=datetime(2000, 1, 1)), max(times, default=datetime(2000, 1, 2))
    marks = [(when, report.letters.get(digest, "?")) for digest, when in firsts.items()]
    return Curve(
        name=f"budget-{place}",
        title=f"Epsilon spent at {words.visible(site.name)} against the date",
        description=_described(site, policy),
        points=points,
        marks=sorted(marks)[:26],
        limit=policy.epsilon,
        start=start,
        end=max(end, start + timedelta(hours=1)),
    )


def _described(site: SiteAccount, policy: BudgetPolicy) -> str:
    first, last = site.told.points[0], site.told.points[-1]
    return (
        f"A line that rises in {words.counted(len(site.told.points), 'step')} from 0 on "
        f"{first.at[:10]} to {words.spent(last.epsilon)} on {last.at[:10]}; the limit is a level "
        f"line at {policy.epsilon:g}. Letters mark where an experiment begins. The table below has "
        "the numbers."
    )


def _by_day(report: BoardReport, site: SiteAccount, policy: BudgetPolicy) -> str:
    """A row a day; of very many days a row a month."""
    length = 10 if len({point.at[:10] for point in site.told.points}) <= _MOST_DAYS else 7
    groups: dict[str, list[Point]] = {}
    for point in site.told.points:
        groups.setdefault(point.at[:length], []).append(point)
    rows = [
        (
            words.day(own[0].at) if length == 10 else words.month(name),
            _causes(report, own),
            words.spent(own[-1].epsilon),
            policy.epsilon.__format__("g"),
        )
        for name, own in groups.items()
    ]
    span = "day" if length == 10 else "month"
    caption = f"The filter of {words.visible(site.name)} after every {span} with charges"
    return table(caption, ("when", ">what was charged", "#epsilon after", "#limit"), rows)


def _causes(report: BoardReport, points: Sequence[Point]) -> str:
    charged: dict[str, int] = {}
    for point in points:
        if point.cause == "charge":
            name = report.letters.get(point.experiment, "?")
            charged[name] = charged.get(name, 0) + 1
    told = [f"{words.counted(n, 'round')} of {letter(name)}" for name, n in charged.items()]
    told += [f"a {point.cause}" for point in points if point.cause != "charge"]
    return words.listed(told)


def _by_experiment(report: BoardReport, site: SiteAccount, policy: BudgetPolicy) -> str:
    names = {one.digest: one.name for one in report.experiments}
    rows = [
        (
            f"{letter(report.letters[share.experiment])} {words.text(names[share.experiment])}",
            words.days(share.first, share.last),
            _outcome(share),
            f"{words.spent(share.epsilon)}{bar(words.share_of(share.epsilon, policy.epsilon))}",
        )
        for share in site.shares
    ]
    caption = (
        f"{words.visible(site.name)}, by experiment. Each epsilon is the filter had that "
        "experiment been the only one; together they cost less than their sum."
    )
    return table(caption, ("experiment", "when", "rounds", "#epsilon alone"), rows)


def _outcome(share: Share) -> str:
    lost = f", {share.lost:,} lost" if share.lost else ""
    return f"{share.charges:,} charged, {share.sent:,} sent{lost}"


def _by_month(site: SiteAccount, policy: BudgetPolicy) -> str:
    before, rows = 0.0, []
    for month in site.months:
        added = 0.0 if isinf(month.epsilon) else month.epsilon - before
        left = 0.0 if isinf(month.epsilon) else policy.epsilon - month.epsilon
        rows.append(
            (
                words.month(month.name),
                f"{month.charges:,}",
                words.spent(month.epsilon if isinf(month.epsilon) else added),
                words.spent(month.epsilon),
                words.left(left),
            )
        )
        before = month.epsilon
    columns = ("month", "#rounds charged", "#added", "#spent by its end", "#left")
    return table(f"{words.visible(site.name)}, by month", columns, rows)
