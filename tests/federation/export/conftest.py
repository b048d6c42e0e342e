"""A finished run on disk: nobody trained, so its weights are the drawn ones."""

import json
from pathlib import Path

import pytest

from federation.experiment import Experiment
from federation.export.about import About
from federation.messages import Description, RoundFinished
from federation.run_record import (
    CLOSINGS,
    MODEL,
    RECEIPTS,
    FinishedRun,
    open_finished,
    write_record,
)
from federation.training import initial_weights
from models.weights import weights_to_bytes
from tests.experiments import tiny_experiment

SITES = ("lab", "ward")


def finished_run(folder: Path, experiment: Experiment) -> FinishedRun:
    """Leave what a run of two rounds at two sites leaves, and open it."""
    folder.mkdir(parents=True)
    model = weights_to_bytes(initial_weights(experiment))
    (folder / MODEL).write_bytes(model)
    (folder / RECEIPTS).write_text(json.dumps([]))
    (folder / CLOSINGS).write_text(json.dumps([]))
    score = experiment.task.score
    write_record(
        folder,
        experiment,
        run="0" * 32,
        model=model,
        events=[
            RoundFinished(i, SITES, {}, {site: {score: 0.2 + 0.1 * i} for site in SITES})
            for i in range(3)
        ],
        sites=[description(site) for site in SITES],
        epsilon=dict.fromkeys(SITES, 7.5),
        noise_multiplier=1.5,
        heads={site: f"sha256:{number:064x}" for number, site in enumerate(SITES)},
    )
    return open_finished(folder)


def description(site: str) -> Description:
    return Description(
        site=site,
        public_key="ab" * 32,
        commitment="sha256:" + "cd" * 32,
        dataset=f"scans of {site}",
        source_kind="dicom",
        modality="MR",
        num_subjects="withheld",
        licence="CC-BY-4.0",
    )


@pytest.fixture
def finished(tmp_path) -> FinishedRun:
    return finished_run(tmp_path / "run", tiny_experiment())


ABOUT = {
    "title": "Tissue of the brain",
    "description": "Grey and white matter.",
    "authors": [{"name": "Ada Example", "orcid": "0000-0002-1825-0097"}],
    "licence": "CC-BY-4.0",
    "cite": [{"text": "Example 2027", "doi": "10.1234/example"}],
    "intended_use": "Research.",
}


@pytest.fixture
def about() -> About:
    return About.model_validate(ABOUT)


@pytest.fixture(scope="session")
def published() -> About:
    return About.model_validate(ABOUT)
