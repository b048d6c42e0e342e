"""What a record says of classes and scores, for pictures and tables."""

from dataclasses import dataclass
from math import isfinite, nan

from federation.experiment import AnyTask, RegressionTask
from federation.run_record import RunRecord


@dataclass(frozen=True)
class Curve:
    """One site's score after each round at which it gave one; round 0 is before training."""

    site: str
    rounds: tuple[int, ...]
    values: tuple[float, ...]


def curves(record: RunRecord) -> tuple[Curve, ...]:
    """Return the task's score of each site that gave any, in the order of their names."""
    name = record.experiment.task.score
    sites = sorted({site for event in record.events for site in event.scores})
    told = {
        site: [
            (e.round, e.scores[site][name])
            for e in record.events
            if isfinite(e.scores.get(site, {}).get(name, nan))
        ]
        for site in sites
    }
    return tuple(
        Curve(site, tuple(number for number, _ in points), tuple(value for _, value in points))
        for site, points in told.items()
        if points
    )


def class_names(task: AnyTask) -> list[str]:
    """Return the classes as people read them; none of a regression."""
    return [] if isinstance(task, RegressionTask) else [task.shown(name) for name in task.classes]
