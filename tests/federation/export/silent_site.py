"""A finished run of two sites beside one that only described itself, and two authors."""

import pytest

from federation.export.about import About, Author, Citation
from federation.messages import Description, RoundFinished
from federation.run_record import open_finished, write_record
from federation.training import initial_weights
from models.weights import weights_to_bytes
from tests.experiments import tiny_experiment

SITES = ("bio-lab", "north-hospital")


def described(number, site):
    return Description(
        site=site,
        public_key=f"{number:02d}" * 32,
        commitment="sha256:" + f"{number:02d}" * 32,
        dataset=f"images-of-{site}",
        source_kind="dicom",
        modality="MR",
        num_subjects="withheld",
        licence="CC-BY-4.0",
        data_use="DUO:0000007 MONDO:0004975; DUO:0000021",
        versions={"cohortium": "0.1.0", "pydicom": "3.0.2"},
    )


def make_finished(folder, experiment):
    """Two sites that took part in two rounds, and one that only described itself."""
    folder.mkdir(parents=True)
    model = weights_to_bytes(initial_weights(experiment))
    (folder / "model.safetensors").write_bytes(model)
    for name in ("receipts.json", "closings.json"):
        (folder / name).write_text("[]")
    scores = {site: {experiment.task.score: 0.7, "num_subjects": 8.0} for site in SITES}
    write_record(
        folder,
        experiment,
        run="5f0c" * 8,
        model=model,
        events=[RoundFinished(n, SITES, {}, scores) for n in range(3)],
        sites=[described(n, site) for n, site in enumerate((*SITES, "silent-clinic"), start=1)],
        epsilon=dict.fromkeys(SITES, 3.5),
        noise_multiplier=1.2,
        heads={site: "sha256:" + f"{n}f" * 32 for n, site in enumerate(SITES, start=1)},
    )
    return open_finished(folder)


@pytest.fixture
def finished(tmp_path):
    return make_finished(tmp_path / "run", tiny_experiment())


@pytest.fixture
def about():
    return About(
        title="Tiny tissue",
        description="A model for tests.",
        authors=(
            Author(name="Josiah Carberry", orcid="0000-0002-1825-0097", affiliation="Brown"),
            Author(name="Ada Example"),
        ),
        licence="CC-BY-4.0",
        cite=(Citation(text="A paper", doi="10.1234/example"),),
        intended_use="Tests.",
    )
