"""Two real runs over three sites: one withdrawn after it, one in the middle of it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from federation.experiment import Experiment
from federation.run import approve, open_sites, run_experiment
from tests.conftest import site_files
from tests.experiments import demo_values


@dataclass
class World:
    """Folders of runs, and of sites by name, and what ran."""

    folder: Path
    runs: dict
    sites: dict

    @property
    def public(self):
        return self.folder / "runs"

    @property
    def states(self):
        return [site.config.state for site in self.sites.values()]

    def state(self, site):
        return self.sites[site].config.state


def small(name, **algorithm):
    """So little epsilon that a site can approve three times."""
    values = demo_values()
    values["name"] = name
    values["algorithm"] |= {"steps_per_round": 1, "min_sites": 2} | algorithm
    values["privacy"] |= {"expected_batch": 2, "epsilon": 2.0}
    return Experiment.model_validate(values)


FIRST, SECOND = small("first", rounds=2), small("second", rounds=2)


@pytest.fixture(scope="module")
def world(ingested, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lineage")
    shutil.copytree(ingested, folder / "sites")
    sites = open_sites(site_files(folder / "sites"))
    by_name = {site.name: site for site in sites}
    first, second = FIRST, SECOND
    approve(first, sites, approver="test")
    one = run_experiment(first, sites, out=folder / "runs" / "one")
    # Afterwards: the approval that the site still holds for another run.
    approve(first, [by_name["bio-lab"]], approver="test")
    why = {"by": "Dr. Rivera", "reason": "a new ethics vote"}
    by_name["bio-lab"].ledger.withdraw(first.digest(), **why)
    approve(second, sites, approver="test")

    def withdraw_after_the_first(event):
        if event.round == 1:
            by_name["north-hospital"].ledger.withdraw(second.digest(), **why)

    two = run_experiment(
        second, sites, out=folder / "runs" / "two", on_event=withdraw_after_the_first
    )
    return World(folder, {"one": one, "two": two}, by_name)
