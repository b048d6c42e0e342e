"""A finished run on disk, of any experiment, without training."""

import getpass
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.experiment import Experiment
from federation.export.about import About
from federation.messages import Description
from federation.run_record import FinishedRun, open_finished, write_record
from federation.training import initial_weights
from models.weights import weights_to_bytes
from tests.experiments import tiny_experiment

SITES = ("bio-lab", "north-hospital")


def _site(name: str) -> Description:
    return Description(
        site=name,
        public_key="ab" * 32,
        commitment="sha256:" + "cd" * 32,
        dataset=f"brains-{name}",
        source_kind="nifti",
        modality="MR",
        num_subjects="about 50",
        licence="CC0-1.0",
    )


@pytest.fixture(scope="session")
def finish(tmp_path_factory) -> Callable[[Experiment], FinishedRun]:
    """Return what leaves a finished run of an experiment, its weights as they were drawn."""

    def finished(experiment: Experiment) -> FinishedRun:
        folder = tmp_path_factory.mktemp("run")
        model = weights_to_bytes(initial_weights(experiment))
        (folder / "model.safetensors").write_bytes(model)
        for name in ("receipts.json", "closings.json"):
            (folder / name).write_text("[]\n")
        write_record(
            folder,
            experiment,
            run="0123456789abcdef" * 2,
            model=model,
            events=(),
            sites=[_site(name) for name in SITES],
            epsilon=dict.fromkeys(SITES, 7.5),
            noise_multiplier=1.5,
            heads=dict.fromkeys(SITES, "sha256:" + "ef" * 32),
        )
        return open_finished(folder)

    return finished


@pytest.fixture
def finished(finish) -> FinishedRun:
    return finish(tiny_experiment())


@pytest.fixture(scope="session")
def about() -> About:
    return About.model_validate(
        {
            "title": "Tiny brains",
            "description": "A tiny network for tests.",
            "authors": [{"name": "Ada Example", "orcid": "0000-0002-1825-0097"}],
            "licence": "CC-BY-4.0",
            "cite": [{"text": "A paper, 2027", "doi": "10.1234/example"}],
            "intended_use": "Tests.",
        }
    )


@pytest.fixture
def about_file(about, tmp_path) -> Path:
    path = tmp_path / "about.yaml"
    # YAML reads JSON.
    path.write_text(about.model_dump_json(exclude_none=True))
    return path


@pytest.fixture(scope="session")
def machines_words(tmp_path_factory) -> tuple[str, ...]:
    """Return what would tell on which machine, and by whom, a file was made.

    Names of a few letters are looked for only where a path has them: bytes of weights have all.
    """
    folder = str(tmp_path_factory.getbasetemp())
    user, host = getpass.getuser(), socket.gethostname()
    names = [name if len(name) > 6 else f"/{name}/" for name in (user, host)]
    return (folder, str(Path.home()) + "/", str(Path(__file__).parents[3]), *names)
