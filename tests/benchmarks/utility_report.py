"""What the runs say together: a table, its JSON, and a picture."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tests.benchmarks.tables import Section
from tests.benchmarks.utility_runs import ARRANGEMENTS, DECAYS, Arrangement, Outcome
from tests.benchmarks.utility_studies import STUDIES

MEANT = {
    "centralised": "one site holds everything",
    "federated": "three sites",
    "local": "each site alone, mean over sites",
}
GRADIENTS_MEAN = {
    "one-by-one": "one subject at a time, as shipped",
    "batched": "batched, not as shipped: equal to 1e-5, same noise and accounting; only where "
    "nobody attacks (docs/decisions/0009)",
}
Place = tuple[str, Arrangement, float | None]


@dataclass(frozen=True)
class Cell:
    """One arrangement at one level of privacy.

    Args:
        scores: One for each seed; of local training the mean over sites.
    """

    study: str
    arrangement: Arrangement
    epsilon: float | None
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return mean(self.scores)

    @property
    def deviation(self) -> float:
        """Return the standard deviation over seeds; 0 of one."""
        return stdev(self.scores) if len(self.scores) > 1 else 0.0

    def __str__(self) -> str:
        spread = f" ± {self.deviation:.3f}" if len(self.scores) > 1 else ""
        return f"{self.mean:.3f}{spread} ({len(self.scores)})"


def cells(outcomes: Sequence[Outcome], variant: str = "") -> list[Cell]:
    """Return the means of what was run; of local training, seeds that lack a site are left out."""
    by_place: defaultdict[Place, defaultdict[int, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for outcome in outcomes:
        job = outcome.job
        if job.variant != variant:
            continue
        by_place[job.study, job.arrangement, job.epsilon][job.seed].append(outcome.score)
    found = []
    for (study, arrangement, epsilon), seeds in by_place.items():
        most = max(map(len, seeds.values()))
        scores = tuple(mean(seeds[seed]) for seed in sorted(seeds) if len(seeds[seed]) == most)
        found.append(Cell(study, arrangement, epsilon, scores))
    return sorted(found, key=_place)


def _place(cell: Cell) -> tuple[str, int, float]:
    level = float("-inf") if cell.epsilon is None else -cell.epsilon
    return cell.study, ARRANGEMENTS.index(cell.arrangement), level


def level_name(epsilon: float | None) -> str:
    """Return a level as people read it.

    >>> level_name(None), level_name(8.0)
    ('no privacy', 'epsilon 8')
    """
    return "no privacy" if epsilon is None else f"epsilon {epsilon:g}"


def section(study: str, outcomes: Sequence[Outcome]) -> Section:
    """Return the table of one study."""
    own = [cell for cell in cells(outcomes) if cell.study == study]
    levels = sorted({cell.epsilon for cell in own}, key=_level)
    shown = {(cell.arrangement, cell.epsilon): cell for cell in own}
    present = [name for name in ARRANGEMENTS if any(cell.arrangement == name for cell in own)]
    lines = tuple(
        (
            f"{name}: {MEANT[name]}",
            *(str(shown[name, level]) if (name, level) in shown else "-" for level in levels),
        )
        for name in present
    )
    scored = {o.num_scored for o in outcomes if o.job.study == study}
    return Section(
        title=f"{STUDIES[study].title}: {score_name(study).upper()} of the last round's model",
        columns=("", *map(level_name, levels)),
        records=tuple(record(cell) for cell in own),
        lines=lines,
        notes=(
            "mean ± standard deviation over seeds of the initial weights (number of seeds); "
            "sampling and noise are never seeded",
            f"scored on the same public subjects in all rows: {', '.join(map(str, scored))}",
            "epsilon is of each subject at each site, for the whole run",
            *(f"gradients under privacy: {GRADIENTS_MEAN[how]}" for how in _ways(study, outcomes)),
        ),
    )


def tried(study: str, outcomes: Sequence[Outcome]) -> Section:
    """Return what else was tried, in federated training, beside the study's own settings."""
    own = [o for o in outcomes if o.job.study == study and o.job.arrangement == "federated"]
    rows = {"as in the table above": cells(own)}
    rows |= {name: cells(own, name) for name in STUDIES[study].variants}
    scored = [o for o in own if o.averaged and not o.job.variant]
    if scored:
        rows["those that averages were scored of"] = cells(scored)
    for decay in map("{:g}".format, DECAYS) if scored else ():
        averages = [replace(o, score=o.averaged[decay]) for o in scored]
        rows[f"the same runs, ema_decay {decay}"] = cells(averages)
    rows = {name: found for name, found in rows.items() if found}
    levels = sorted({cell.epsilon for found in rows.values() for cell in found}, key=_level)
    return Section(
        title=f"{STUDIES[study].title}: {score_name(study).upper()}, what else was tried",
        columns=("", *map(level_name, levels)),
        records=tuple(
            record(cell) | {"tried": name} for name, found in rows.items() for cell in found
        ),
        lines=tuple(_tried_line(name, found, levels) for name, found in rows.items())
        if len(rows) > 1
        else (),
        notes=("mean ± standard deviation over seeds (number of seeds), federated",),
    )


def _tried_line(
    name: str, found: Sequence[Cell], levels: Sequence[float | None]
) -> tuple[str, ...]:
    by_level = {cell.epsilon: str(cell) for cell in found}
    return (name, *(by_level.get(level, "-") for level in levels))


def _ways(study: str, outcomes: Sequence[Outcome]) -> list[str]:
    """Return how gradients of subjects were computed, in the runs with privacy."""
    private = (o.job for o in outcomes if o.job.study == study and o.job.epsilon is not None)
    return sorted({job.gradients for job in private})


def _level(epsilon: float | None) -> float:
    return float("-inf") if epsilon is None else -epsilon


def score_name(study: str) -> str:
    """Return what the study's task is scored by."""
    from federation.configs_folder import config_path
    from federation.experiment import load_experiment

    return load_experiment(config_path(f"{STUDIES[study].config}.yaml")).task.score


def record(cell: Cell) -> dict[str, Any]:
    """Return one cell as JSON values."""
    return {
        "study": cell.study,
        "arrangement": cell.arrangement,
        "epsilon": cell.epsilon,
        "mean": cell.mean,
        "standard_deviation": cell.deviation,
        "scores": list(cell.scores),
    }


def draw(path: Path, outcomes: Sequence[Outcome]) -> bool:
    """Draw one panel for each study; False where matplotlib is not installed."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return False
    every = cells(outcomes)
    studies = sorted({cell.study for cell in every})
    # A picture of the same numbers has the same bytes: no date, no random names.
    with mpl.rc_context({"svg.hashsalt": "utility", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(5.2 * len(studies), 3.6), layout="constrained")
        panels = figure.subplots(1, len(studies), squeeze=False)[0]
        for panel, study in zip(panels, studies, strict=True):
            _draw_study(panel, study, [cell for cell in every if cell.study == study])
            if ways := _ways(study, outcomes):
                panel.set_xlabel(f"gradients under privacy: {', '.join(ways)}")
        figure.savefig(path, format="svg", metadata={"Date": None})
    return True


def _draw_study(panel: Any, study: str, own: Sequence[Cell]) -> None:
    levels = sorted({cell.epsilon for cell in own}, key=_level)[::-1]
    for name in ARRANGEMENTS:
        line = [cell for cell in own if cell.arrangement == name]
        places = [levels.index(cell.epsilon) for cell in line]
        values, spreads = [cell.mean for cell in line], [cell.deviation for cell in line]
        panel.errorbar(places, values, yerr=spreads, marker="o", capsize=3, label=name)
    panel.set_xticks(range(len(levels)), [level_name(level) for level in levels])
    panel.set_title(STUDIES[study].title)
    panel.set_ylabel(f"{score_name(study).upper()} on public subjects")
    panel.grid(axis="y", alpha=0.3)
    panel.legend(frameon=False)
