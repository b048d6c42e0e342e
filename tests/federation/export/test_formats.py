"""``cohortium export`` as it is typed, and what it leaves."""

import json

import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from federation.cli.app import app
from federation.documents import load_document
from federation.errors import FederationError
from federation.export import card
from federation.export.about import About, Author
from federation.export.formats import FORMATS, Format, export


def cohortium(*arguments):
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    if isinstance(result.exception, FederationError):
        raise result.exception
    assert result.exception is None, result.output
    return result.output


def test_help_names_every_format_and_teaches_by_example():
    told = cohortium("--help")
    assert "cohortium export runs/brains" in told
    for name, form in FORMATS.items():
        assert name in told and form.what in " ".join(told.split())


def test_a_format_is_written_into_a_new_folder(finished, about_file, tmp_path):
    out = tmp_path / "card"
    told = cohortium(
        finished.path, "--about", about_file, "--format", "model-card", "--out", out, "--json"
    )
    value = json.loads(told)
    assert (value["format"], value["kind"]) == ("cohortium-export/1", "model-card")
    assert value["files"] == sorted(path.name for path in out.iterdir())
    with pytest.raises(FederationError, match="exists already"):
        cohortium(finished.path, "--about", about_file, "--format", "model-card", "--out", out)


def test_the_folder_is_named_after_the_run_and_the_format(finished, about_file):
    told = cohortium(finished.path, "--about", about_file, "--format", "model-card")
    assert finished.path.with_name("run-model-card").is_dir()
    assert "README.md" in told


def test_the_template_is_an_about_file(finished, tmp_path):
    path = tmp_path / "about.yaml"
    path.write_text(cohortium(finished.path, "--template"))
    about = load_document(path, About, "about")
    assert about.description == finished.record.experiment.purpose
    assert about.licence == "CC-BY-4.0"


def test_what_is_missing_is_asked_for(finished, about_file, tmp_path):
    with pytest.raises(FederationError, match=r"--format must be one of monai-bundle, .*'word'"):
        cohortium(finished.path, "--format", "word")
    with pytest.raises(FederationError, match=r"--template > about\.yaml"):
        cohortium(finished.path, "--format", "model-card")
    with pytest.raises(FederationError, match=r"holds no finished run: there is no run\.json"):
        cohortium(tmp_path, "--format", "model-card", "--about", about_file)
    values = yaml.safe_load(about_file.read_text())
    about_file.write_text(yaml.safe_dump(values | {"licence": "no licence!"}))
    with pytest.raises(FederationError, match="licence"):
        cohortium(finished.path, "--format", "model-card", "--about", about_file)


def test_a_failure_leaves_nothing_behind(finished, about, tmp_path, monkeypatch):
    def fails(run, about, folder):
        (folder / "half").write_text("of it")
        raise FederationError("the network cannot be told in this format")

    monkeypatch.setattr(card, "write", fails)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FederationError, match="cannot be told"):
        export(finished, about, "model-card", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_package_that_is_not_installed_is_named(finished, about, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "x", Format("formats_that_is_not_there", "for this test"))
    with pytest.raises(FederationError, match=r"pip install 'cohortium\[export\]'"):
        export(finished, about, "x", tmp_path / "out")


@pytest.mark.parametrize("orcid", ["0000-0002-1825-0098", "0000-0002-1825-009", "abc"])
def test_an_orcid_must_check_out(orcid):
    with pytest.raises(ValidationError, match="orcid"):
        Author(name="Ada", orcid=orcid)
    assert Author(name="Ada", orcid="0000-0002-1694-233X").orcid
