"""The other networks and tasks as packages of the BioImage Model Zoo, judged like the first."""

from pathlib import Path

import pytest
import yaml

from federation.export.bioimage import RDF
from federation.export.bioimage_tensors import spacing_of
from federation.export.formats import export
from federation.run_record import FinishedRun
from tests.federation.export.conftest import finished_run
from tests.federation.export.zoo import (
    EXPERIMENTS,
    FIRST,
    REPAIRED,
    judge,
    nothing_tells_of_this_machine,
    pipeline_gives_our_numbers,
)

OTHERS = [name for name in EXPERIMENTS if name not in FIRST]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, FinishedRun]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: finished_run(folder / name, EXPERIMENTS[name]()) for name in OTHERS}


@pytest.fixture(scope="module")
def packages(tmp_path_factory, runs, about) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    for name, run in runs.items():
        export(run, about, "bioimageio", folder / name)
    cite = ({"text": "Example", "url": "https://cohortium.invalid/paper"},)
    addressed = type(about).model_validate(about.model_dump() | {"cite": cite})
    export(runs["regression"], addressed, "bioimageio", folder / "addressed")
    return {name: folder / name for name in (*OTHERS, "addressed")}


@pytest.fixture(scope="module")
def said(packages, tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("judged")
    told = judge(folder, [package / RDF for package in packages.values()])
    attempts = (folder / "attempts").read_text().splitlines()
    return {
        name: told[package / RDF] | {"attempts": attempts} for name, package in packages.items()
    }


@pytest.mark.parametrize("name", OTHERS)
def test_the_zoos_own_test_passes_offline_and_gives_our_numbers(said, runs, packages, name):
    assert said[name]["status"] == "passed", said[name]["errors"]
    assert all(set(statuses) == {"passed"} for statuses in said[name]["formats"].values())
    pipeline_gives_our_numbers(runs[name], packages[name] / RDF, list(said[name]["formats"]))


@pytest.mark.parametrize("name", OTHERS)
def test_a_network_that_monai_alone_cannot_rebuild_has_no_state_dict(said, packages, name):
    formats = {"torchscript"} if name in REPAIRED else {"pytorch_state_dict", "torchscript"}
    assert set(said[name]["formats"]) == formats
    text = (packages[name] / "documentation.md").read_text()
    assert ("None travels here" in text) == (name in REPAIRED)


def test_a_regression_gives_its_value_in_its_own_unit(packages):
    described = yaml.safe_load((packages["regression"] / RDF).read_text())
    assert described["outputs"][0]["postprocessing"] == [
        {"id": "scale_linear", "kwargs": {"gain": 4.0, "offset": 8.0}}
    ]


def test_without_privacy_the_documentation_says_so(packages):
    assert "epsilon is infinite" in (packages["dynunet"] / "documentation.md").read_text()


def test_fine_spacing_is_told_in_micrometres(runs):
    assert spacing_of(runs["standardised"].record.experiment)["x"] == (0.65, "micrometer")
    assert spacing_of(runs["dynunet"].record.experiment)["z"] == (2.0, "millimeter")


def test_only_an_address_without_a_doi_makes_the_zoos_test_reach_out_and_it_passes_anyway(said):
    assert said["addressed"]["status"] == "passed"
    attempts = said["addressed"]["attempts"]
    assert attempts and all("cohortium.invalid" in line for line in attempts)


@pytest.mark.parametrize("name", OTHERS)
def test_no_path_user_or_host_is_in_any_file(packages, tmp_path, name):
    nothing_tells_of_this_machine(packages[name], tmp_path)
