"""A finished run on disk, of any experiment, without training: its weights are the drawn ones."""

import getpass
import socket
from collections.abc import Callable
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

SITES = ("bio-lab", "north-hospital")
RUN = "0123456789abcdef" * 2


def description(site: str) -> Description:
    """Return what a site says of itself."""
    return Description(
        site=site,
        public_key="ab" * 32,
        commitment="sha256:" + "cd" * 31 + f"{SITES.index(site):02}",
        dataset=f"brains-{site}",
        source_kind="dicom",
        modality="MR",
        num_subjects="withheld",
        licence="CC-BY-4.0",
        data_use="DUO:0000007 MONDO:0004975; DUO:0000021",
    )


def finished_run(folder: Path, experiment: Experiment) -> FinishedRun:
    """Leave what a run of two rounds at two sites leaves, and open it."""
    folder.mkdir(parents=True)
    model = weights_to_bytes(initial_weights(experiment))
    (folder / MODEL).write_bytes(model)
    for name in (RECEIPTS, CLOSINGS):
        (folder / name).write_text("[]\n")
    score = experiment.task.score
    write_record(
        folder,
        experiment,
        run=RUN,
        model=model,
        events=[
            RoundFinished(
                number,
                SITES if number else (),
                {},
                {site: {score: 0.2 + 0.1 * (number + place)} for place, site in enumerate(SITES)},
            )
            for number in range(3)
        ],
        sites=[description(site) for site in SITES],
        epsilon=dict.fromkeys(SITES, 7.5),
        noise_multiplier=1.5,
        heads={site: f"sha256:{number:064x}" for number, site in enumerate(SITES)},
    )
    return open_finished(folder)


@pytest.fixture(scope="session")
def finish(tmp_path_factory) -> Callable[[Experiment], FinishedRun]:
    """Return what leaves a finished run of an experiment."""
    return lambda experiment: finished_run(tmp_path_factory.mktemp("finished") / "run", experiment)


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


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was looked up over the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def machines_words(tmp_path_factory) -> tuple[str, ...]:
    """Return what would tell on which machine, and by whom, a file was made.

    Names of a few letters are looked for only where a path has them: bytes of weights have all.
    """
    folder = str(tmp_path_factory.getbasetemp())
    user, host = getpass.getuser(), socket.gethostname()
    names = [name if len(name) > 6 else f"/{name}/" for name in (user, host)]
    return (folder, str(Path.home()) + "/", str(Path(__file__).parents[3]), *names)
