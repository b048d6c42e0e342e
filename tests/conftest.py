"""A tiny federation on disk, made once a test process and copied for each test that writes."""

import os

# Test processes run side by side: more threads each would wait for one another. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.counts import properties_of, told

if TYPE_CHECKING:
    from federation.site import Site

# torch, flwr and mlflow take seconds to import: tests of the adapters do without.

ROOT = Path(__file__).resolve().parent.parent


def pytest_terminal_summary(terminalreporter):
    """Tell what was counted: whether each phase was hit can be read off any log, without -s."""
    stats = terminalreporter.stats
    reports = [one for outcome in ("passed", "failed") for one in stats.get(outcome, ())]
    lines = list(told(properties_of(reports)))
    if lines:
        terminalreporter.section("counts")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("COHORTIUM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real images are not at {folder}; set COHORTIUM_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory) -> Path:
    """Three sites (two DICOM + SEG, one OME-Zarr), 5 training and 2 public subjects each."""
    from federation.demo.layout import lay_out_demo

    folder = tmp_path_factory.mktemp("federation")
    for site_file in lay_out_demo(folder, num_training=5, num_public=2):
        loosen(site_file)
    return folder


@pytest.fixture(scope="session")
def ingested(laid_out, tmp_path_factory) -> Path:
    """The same, checked and cached, with keys and ledgers."""
    from federation.run import ingest_sites, open_sites

    folder = tmp_path_factory.mktemp("ingested") / "sites"
    shutil.copytree(laid_out, folder)
    ingest_sites(open_sites(site_files(folder)))
    return folder


@pytest.fixture
def federation(ingested, tmp_path) -> Path:
    """A copy of the ingested sites, to write into."""
    return Path(shutil.copytree(ingested, tmp_path / "sites"))


@pytest.fixture
def sites(federation) -> "list[Site]":
    from federation.run import open_sites

    return open_sites(site_files(federation))


@pytest.fixture
def approved_sites(sites) -> "list[Site]":
    from federation.run import approve
    from tests.experiments import tiny_experiment

    approve(tiny_experiment(), sites, approver="test")
    return sites


@pytest.fixture
def open_experiment():
    from tests.experiments import tiny_experiment, unprotected

    return unprotected(tiny_experiment())


def site_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/site.yaml"))


def loosen(site_file: Path) -> None:
    """Let a site have as few subjects as the tests give it."""
    edit(site_file, "subjects_between: [40, 60]", "subjects_between: [1, 60]")


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, f"{old!r} is not in {file}"
    file.write_text(text.replace(old, new))
