"""`python -m tests.benchmarks.utility`: what privacy and federation cost a model, over seeds.

Runs centralised, federated and local training without privacy and at some epsilons. Every run's
result is one line of ``OUT/results.jsonl``; a rerun does what is missing, and what has other
settings now.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.benchmarks.utility_report import draw, section, tried
from tests.benchmarks.utility_runs import (
    ARRANGEMENTS,
    GRADIENTS,
    Job,
    Outcome,
    carry_out,
    jobs,
    prepare,
)
from tests.benchmarks.utility_studies import STUDIES

RESULTS = "results.jsonl"
SHIPPED = "one-by-one"
LIBRARIES = ("cohortium", "torch", "monai", "opacus")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print and write what all runs say."""
    asked = _arguments(arguments)
    console = Console(width=asked.width)
    asked.out.mkdir(parents=True, exist_ok=True)
    results, wanted = asked.out / RESULTS, list(_wanted(asked))
    every = [*reported(asked.known), *read(results)]
    known = list({outcome.job: outcome for outcome in every if outcome.is_current}.values())
    there = {outcome.job for outcome in known}
    missing = [job for job in wanted if job not in there]
    if missing:
        prepare(STUDIES[asked.data_set], asked.data, asked.out / asked.data_set)
    for number, outcome in enumerate(_outcomes(missing, asked), start=1):
        known.append(outcome)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(outcome.to_json()) + "\n")
        progress = f"{number}/{len(missing)} {outcome.job}: {outcome.score:.4f}"
        console.print(f"{progress} ({outcome.seconds:.0f} s)", highlight=False)
    _report(console, asked.report, [o for o in known if _is_reported(o.job, asked)])


def _is_reported(job: Job, asked: argparse.Namespace) -> bool:
    shown = asked.gradients if job.study == asked.data_set else SHIPPED
    wanted = SHIPPED if job.epsilon is None else shown
    return job.rounds == asked.rounds and job.gradients == wanted


def _wanted(asked: argparse.Namespace) -> Iterator[Job]:
    return jobs(
        asked.data_set,
        arrangements=asked.arrangements,
        levels=asked.levels,
        num_seeds=asked.seeds,
        rounds=asked.rounds,
        gradients=asked.gradients,
        variants=asked.variants or ("",),
    )


def read(results: Path) -> list[Outcome]:
    """Return what earlier runs gave; a line cut short by a kill is passed over."""
    if not results.is_file():
        return []
    outcomes = []
    for line in results.read_text(encoding="utf-8").splitlines():
        try:
            outcomes.append(Outcome.from_json(json.loads(line)))
        except json.JSONDecodeError:
            continue
    return outcomes


def reported(report: Path | None) -> list[Outcome]:
    """Return the runs of an earlier report."""
    if report is None:
        return []
    runs = json.loads(report.read_text(encoding="utf-8"))["runs"]
    return [Outcome.from_json(run) for run in runs]


def _outcomes(missing: Sequence[Job], asked: argparse.Namespace) -> Iterator[Outcome]:
    folder = asked.out / asked.data_set
    if asked.processes == 1 or len(missing) < 2:
        yield from (in_new_folder(job, folder) for job in missing)
        return
    # Each run has one thread: two runs side by side are faster than two threads in one.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.processes, mp_context=context) as pool:
        for done in as_completed([pool.submit(in_new_folder, job, folder) for job in missing]):
            yield done.result()


def in_new_folder(job: Job, folder: Path) -> Outcome:
    """Carry out one job in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=folder) as work:
        return carry_out(job, folder, Path(work))


def _report(console: Console, report: Path | None, outcomes: Sequence[Outcome]) -> None:
    sections = [
        part
        for name in sorted({outcome.job.study for outcome in outcomes})
        for part in (section(name, outcomes), tried(name, outcomes))
        if part.lines
    ]
    for one in sections:
        one.show(console)
    if report is None:
        return
    document: dict[str, Any] = {
        "versions": {name: version(name) for name in LIBRARIES},
        "sections": [one.document() for one in sections],
        "runs": [outcome.to_json() for outcome in sorted(outcomes, key=lambda o: str(o.job))],
    }
    text = json.dumps(document, indent=1) + "\n"
    report.mkdir(parents=True, exist_ok=True)
    (report / "utility.json").write_text(text, encoding="utf-8")
    if not draw(report / "utility.svg", outcomes):
        console.print("No picture: matplotlib is not installed (it is in the demo extra).")


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="utility", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="pneumoniamnist.npz, or the hippocampus folder"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="sites and results; kept for reruns"
    )
    parser.add_argument("--known", type=Path, help="a utility.json whose runs are not done again")
    parser.add_argument("--data-set", choices=STUDIES, default="pneumonia")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to this less one (3)")
    parser.add_argument(
        "--arrangements", nargs="+", choices=ARRANGEMENTS, default=list(ARRANGEMENTS)
    )
    parser.add_argument(
        "--levels", nargs="+", type=_level, default=[None, 8.0, 3.0, 1.0], help="none, or epsilons"
    )
    parser.add_argument(
        "--gradients",
        choices=GRADIENTS,
        default=SHIPPED,
        help="of subjects under privacy. one-by-one is what ships; batched has the same noise and "
        "accounting and gradients equal to 1e-5, and is faster: only for published images, where "
        "nobody attacks (docs/decisions/0009)",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=sorted({name for study in STUDIES.values() for name in study.variants}),
        help="of the study's settings, in place of them",
    )
    parser.add_argument("--rounds", type=int, help="in place of the configs': shows that it works")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side (2)")
    parser.add_argument("--report", type=Path, help="folder for utility.json and utility.svg")
    parser.add_argument("--width", type=int, default=150, help="of the tables, in characters")
    return parser.parse_args(arguments)


def _level(text: str) -> float | None:
    return None if text == "none" else float(text)


if __name__ == "__main__":
    main()
