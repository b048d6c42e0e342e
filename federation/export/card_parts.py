"""What a model card says, as values: two renderers make Markdown and HTML of the same parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, pstdev

from federation.audit.report_meaning import in_words
from federation.audit.report_numbers import advantage
from federation.audit.report_words import counted
from federation.experiment import Experiment, RegressionTask, SubjectDP
from federation.export.about import About
from federation.export.charts import score_curves
from federation.export.summaries import class_names
from federation.export.summaries import curves as curves_of
from federation.run_record import FinishedRun, RunRecord, rounded_up

HIGHER_SCORES = {"dice": "Dice (mean over classes, 1 is best)", "auc": "AUC (1 is best)"}


@dataclass(frozen=True)
class Rows:
    """A table; columns whose name starts with # hold numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Points:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """An SVG, and what it shows in words."""

    name: str
    svg: str
    words: str


@dataclass(frozen=True)
class Code:
    """Something to type."""

    text: str


Block = str | Rows | Points | Picture | Code


@dataclass(frozen=True)
class Part:
    """A titled part of the card."""

    name: str
    title: str
    blocks: tuple[Block, ...]


def parts_of(run: FinishedRun, about: About) -> tuple[Part, ...]:
    """Return the card, part by part (Mitchell et al. 2019, arXiv 1810.03993)."""
    record = run.record
    return (
        Part("model", "The model", tuple(_model(record, about))),
        Part("use", "Intended use and limits", (about.intended_use, about.limits)),
        Part("data", "Data", tuple(_data(record))),
        Part("training", "Training", tuple(_training(record))),
        Part("performance", "Performance, site by site", tuple(_performance(record))),
        Part("privacy", "Privacy", tuple(_privacy(record))),
        Part("checking", "How to check this", tuple(_checking(record))),
        *([Part("cite", "Cite", (Points(tuple(_citations(about))),))] if about.cite else []),
    )


def _model(record: RunRecord, about: About) -> Iterator[Block]:
    experiment = record.experiment
    yield about.description
    spec = experiment.model.model_dump(mode="json")
    settings = ", ".join(f"{k} {v}" for k, v in spec.items() if k != "kind")
    authors = "; ".join(
        a.name + (f" ({a.affiliation})" if a.affiliation else "") for a in about.authors
    )
    yield Rows(
        "What it is",
        ("property", "value"),
        (
            ("task", _task(experiment)),
            ("network", f"{experiment.model.kind} (MONAI): {settings}"),
            ("input", _input(experiment)),
            ("authors", authors),
            ("licence of the model", about.licence),
            ("finished", record.finished),
            ("experiment", f"{experiment.name}, {record.experiment.digest()}"),
            ("run", record.run),
            ("model digest", record.model_digest),
        ),
    )


def _task(experiment: Experiment) -> str:
    task = experiment.task
    if isinstance(task, RegressionTask):
        return f"{task.kind}: {task.value}"
    return f"{task.kind}: {', '.join(class_names(task))}"


def _input(experiment: Experiment) -> str:
    given = experiment.input
    values = given.model_dump(mode="json")
    spacing = next((v for k, v in values.items() if k.startswith("spacing")), None)
    channels = f"{given.num_channels} channel{'' if given.num_channels == 1 else 's'}"
    shape = " x ".join(map(str, given.shape))
    at = f" at {' x '.join(map(str, spacing))} mm" if spacing else ""
    return f"{given.kind}, {channels}, {shape}{at}; each scan with mean 0 and deviation 1"


def _data(record: RunRecord) -> Iterator[Block]:
    yield (
        "The images stayed at the sites. What is known here is what each site declared in public; "
        "numbers of subjects are as the site's policy releases them."
    )
    rows = tuple(
        (
            *(s.site, s.dataset, s.modality, s.source_kind, s.num_subjects),
            *(s.licence, s.data_use, s.commitment),
        )
        for s in record.contributors
    )
    columns = (
        *("site", "data set", "modality", "read from", "subjects"),
        *("licence", "data use (DUO)", "commitment"),
    )
    yield Rows("Data sets", columns, rows)


def _training(record: RunRecord) -> Iterator[Block]:
    experiment, rounds = record.experiment, [event for event in record.events if event.round]
    algorithm = experiment.algorithm
    yield (
        f"Federated averaging over {counted(len(record.contributors), 'site')}: "
        f"{algorithm.rounds} rounds of {algorithm.steps_per_round} steps at each site, loss "
        f"{experiment.loss.kind}, optimiser {experiment.optimizer.kind}. Purpose, as approved: "
        f"{experiment.purpose}"
    )
    without = [event for event in rounds if event.lacks_sites]
    skipped = [event for event in rounds if event.outcome == "skipped"]
    if without or skipped:
        names = sorted({site for e in without for site in (*e.refused, *e.late)})
        yield (
            f"Not every round had every site: {len(without)} of {len(rounds)} changed the model "
            f"without some of them ({', '.join(names) or 'not connected'}), {len(skipped)} were "
            "skipped."
        )
    else:
        yield f"Every site's update is in each of the {len(rounds)} rounds."


def _performance(record: RunRecord) -> Iterator[Block]:
    task = record.experiment.task
    curves = {c.site: list(zip(c.rounds, c.values, strict=True)) for c in curves_of(record)}
    if not curves:
        yield "No site scored the model: none declares public subjects. Its performance is unknown."
        return
    better = "less is better" if task.lower_is_better else "more is better"
    yield (
        f"Scores are of subjects that each site declares public, not of those trained on; "
        f"{task.score}, {better}. Few subjects make them uncertain; run.json has how many they are."
    )
    rows = tuple(
        (site, f"{points[0][1]:.3f}", f"{points[-1][1]:.3f}") for site, points in curves.items()
    )
    yield Rows(
        "Score before training and after the last round", ("site", "#before", "#after"), rows
    )
    svg = score_curves(
        f"{task.score} by round",
        HIGHER_SCORES.get(task.score, task.score),
        curves,
        span=1.0 if not task.lower_is_better else 0.0,
    )
    yield Picture("scores", svg, f"{task.score} of each site after each round.")
    yield from _by_class(record)
    yield from _fairness(record, curves)


def _by_class(record: RunRecord) -> Iterator[Block]:
    last = next((e.scores for e in reversed(record.events) if e.scores), {})
    names = sorted({name for scores in last.values() for name in scores if "/" in name})
    if not names:
        return
    rows = tuple(
        (site, *(f"{scores[n]:.3f}" if n in scores else "-" for n in names))
        for site, scores in sorted(last.items())
        if scores
    )
    yield Rows("After the last round, class by class", ("site", *(f"#{n}" for n in names)), rows)


def _fairness(record: RunRecord, curves: dict[str, list[tuple[int, float]]]) -> Iterator[Block]:
    ends = {site: points[-1][1] for site, points in curves.items()}
    if len(ends) < 2:
        yield "One site alone scored it, so nothing is known of how it differs between sites."
        return
    order = sorted(ends, key=ends.__getitem__, reverse=record.experiment.task.lower_is_better)
    worst, best = order[0], order[-1]
    yield (
        f"Between sites: mean {fmean(ends.values()):.3f}, deviation {pstdev(ends.values()):.3f}; "
        f"worst at {worst} ({ends[worst]:.3f}), best at {best} ({ends[best]:.3f}), a gap of "
        f"{abs(ends[best] - ends[worst]):.3f}. Whether that is the model or the images cannot be "
        "told from here. Differences between groups of people (sex, age, origin) were not "
        "measured: no site releases them."
    )


def _privacy(record: RunRecord) -> Iterator[Block]:
    privacy = record.experiment.privacy
    if not isinstance(privacy, SubjectDP):
        yield (
            "None. The model was trained without differential privacy. It may have memorised "
            "single subjects, and whoever has it may find out who took part."
        )
        return
    delta = privacy.delta
    yield (
        "The unit is the subject with all of its images. For each site, at most so much could be "
        "told from everything that left it in this run, beside what its other experiments released:"
    )
    rows = tuple(
        (site, rounded_up(e, 2), *_meaning(e, delta)) for site, e in sorted(record.epsilon.items())
    )
    yield Rows(
        f"What this run alone cost each site, at delta {delta:g}",
        ("site", "#epsilon", "#advantage", "in words"),
        rows,
    )
    yield (
        f"Noise {record.noise_multiplier:.3g} times the clip norm, each subject in a step with "
        f"probability {privacy.sampling_rate:g}. Advantage: by how much somebody who must decide "
        "whether a person took part can be right more often than wrong, at worst, by (e^epsilon - "
        "1 + 2 delta) / (e^epsilon + 1); 0 is a coin, 1 is certainty."
    )
    yield (
        "Not protected: a person who is at several sites (their epsilons add up), relatives, what "
        "is true of everybody alike, and that a site took part."
    )


def _meaning(epsilon: float | None, delta: float) -> tuple[str, str]:
    if epsilon is None:
        return "1", "no promise"
    return f"{advantage(epsilon, delta):.4f}", in_words(epsilon)


def _checking(record: RunRecord) -> Iterator[Block]:
    yield (
        "Each site's ledger says what its subjects lost. With the receipts of this run and the "
        "sites' ledgers anybody can recompute the epsilons above; no image and no key is needed. "
        "The keys come from the sites themselves, not from here."
    )
    yield Code("cohortium audit verify --trust trust.txt RUN/ LEDGERS/")
    rows = tuple((site, head) for site, head in sorted(record.heads.items()))
    yield Rows("Newest signed record of each site's ledger", ("site", "hash"), rows)
    versions = ", ".join(f"{name} {number}" for name, number in sorted(record.versions.items()))
    yield f"Made with {versions}."


def _citations(about: About) -> Iterator[str]:
    for one in about.cite:
        yield one.text + (f" {one.link}" if one.link else "")
