"""An approval binds all the software that touches data, noise or what leaves."""

import re
import shutil
import tomllib
from pathlib import Path

import data_adapters
from federation import software

ROOT = Path(__file__).resolve().parents[2]
# They print to a screen and read the command line.
SHOWS = {"rich", "typer"}


def test_every_dependency_but_what_prints_is_part_of_the_digest():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split("[<>=]", one)[0] for one in needed}
    assert names - SHOWS <= set(software.DISTRIBUTIONS)
    assert list(software.DISTRIBUTIONS) == sorted(software.DISTRIBUTIONS)


def test_each_of_them_is_installed_under_the_name_that_is_looked_up():
    missing = [n for n in software.DISTRIBUTIONS if software._installed(n) == "not installed"]
    assert missing == []


def test_the_policy_of_what_headers_stay_is_part_of_it(tmp_path, monkeypatch):
    copy = tmp_path / "data_adapters"
    shutil.copytree(Path(data_adapters.__file__).parent, copy)
    monkeypatch.setattr(data_adapters, "__file__", str(copy / "__init__.py"))
    before = software._own()
    (policy,) = copy.rglob("*.json")
    policy.write_text(policy.read_text() + " ")
    assert software._own() != before
