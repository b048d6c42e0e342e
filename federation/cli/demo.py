"""``cohortium demo``: the main job on simulated subjects, with nothing to prepare."""

from pathlib import Path
from typing import Annotated

import typer

from federation.cli import show
from federation.cli.run import AsJson, carry_out
from federation.experiment import load_experiment

Folder = Annotated[
    Path | None,
    typer.Option("--out", help="Scratch folder. [default: cohortium-demo/<date-time>]"),
]
Seed = Annotated[int, typer.Option(help="Seed of the simulated subjects.", min=0)]
Permute = Annotated[
    bool,
    typer.Option(
        "--permute-labels",
        help="Control: give each training subject another subject's labels. What the model still "
        "scores then is what an average atlas explains.",
    ),
]


def demo(
    out: Folder = None, seed: Seed = 0, permute_labels: Permute = False, as_json: AsJson = False
) -> None:
    """Lay out three simulated sites, train on them under subject-level privacy, and report.

    The images are simulated subjects, deformed from a population-average brain template.

    Example:

    $ cohortium demo --out /tmp/cohortium-demo
    """
    from federation.configs_folder import config_path
    from federation.demo.layout import lay_out_demo

    folder = out or show.new_folder(Path("cohortium-demo"), "demo")
    experiment = load_experiment(config_path("demo.yaml"))
    show.note(
        "All subjects are [bold]simulated[/]: deformed from the MNI152 population-average "
        "template. No real person's image is used."
    )
    with show.layout_progress() as progress:
        site_files = lay_out_demo(
            folder / "sites", seed=seed, permute_labels=permute_labels, progress=progress
        )
    show.layout(site_files)
    carry_out(
        experiment,
        site_files,
        out=folder / "run",
        yes=True,
        approver="cohortium demo (answers for itself)",
        as_json=as_json,
    )
