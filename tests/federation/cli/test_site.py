import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import dcmread
from typer.testing import CliRunner

from data_adapters.errors import DataError
from federation.cli.app import app
from federation.errors import FederationError
from federation.site import load_site_config
from tests.conftest import edit

COMMAND = Path(sys.executable).with_name("cohortium")
COMMANDS = ("init", "check", "ingest", "exclude", "purge")


def site(*arguments, answers=None):
    result = CliRunner().invoke(app, ["site", *map(str, arguments)], input=answers)
    if isinstance(result.exception, FederationError | DataError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def file(laid_out, tmp_path):
    """A site that nothing was done with yet."""
    shutil.copytree(laid_out / "bio-lab", tmp_path / "lab")
    return tmp_path / "lab" / "site.yaml"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command):
    shown = site(command, "--help").output
    assert f"cohortium site {command}" in shown.split("Examples:")[1]


def test_init_check_ingest_exclude_purge_in_the_order_of_a_sites_life(file):
    file.unlink()
    images = file.parent / "protected"
    site("init", images, "--out", file, "--site", "our-lab", "--no-ask")
    assert load_site_config(file).site == "our-lab"
    assert site("check", file).exit_code == 0
    assert json.loads(site("ingest", file, "--json").stdout)["parts"]["protected"]["subjects"] == 5
    excluded = site("exclude", file, "specimen-0002", "--json")
    assert json.loads(excluded.stdout)["scans"] == 1
    assert json.loads(site("ingest", file, "--json").stdout)["parts"]["protected"]["subjects"] == 4
    assert "nothing is left" in site("purge", file, "--yes").output
    assert not (file.parent / "state" / "cache").exists()


def test_init_asks_for_what_was_not_given_and_offers_what_it_saw(file, tmp_path):
    out = tmp_path / "new.yaml"
    answers = "our-lab\n\nCC0\nMR\n5\n3\n30\n"
    shown = site("init", file.parent / "protected", "--out", out, "--ask", answers=answers).output
    config = load_site_config(out)
    assert (config.site, config.dataset, config.licence) == ("our-lab", "lab", "CC0")
    assert (config.policy.epsilon, config.policy.subjects_between) == (5.0, (3, 30))
    assert "Public name of the data set [lab]" in shown


def test_init_takes_bounds_as_two_numbers(file, tmp_path):
    out = tmp_path / "new.yaml"
    site("init", file.parent / "protected", "--out", out, "--subjects-between", 40, 60, "--no-ask")
    assert load_site_config(out).policy.subjects_between == (40, 60)


def test_init_never_overwrites(file):
    with pytest.raises(FederationError, match="was not touched"):
        site("init", file.parent / "protected", "--out", file, "--no-ask")


def test_check_exits_1_where_something_blocks_and_0_where_nothing_does(file, tmp_path):
    assert site("check", file, "--quick").exit_code == 0
    edit(file, "subjects_between: [1, 60]", "subjects_between: [1, 2]")
    result = site("check", file, "--html", tmp_path / "page.html")
    assert result.exit_code == 1
    assert "BLOCKS" in result.output and "Not ready" in result.output
    assert "Not ready." in (tmp_path / "page.html").read_text()


def test_check_shows_what_would_leave_with_its_value(file):
    value = json.loads(site("check", file, "--json").stdout)
    shown = {(one["message"], one["field"]): one["value"] for one in value["leaving"]}
    assert shown["description", "dataset"] == "simulated-brain-mr-lab"
    assert shown["description", "num_subjects"] == "withheld"
    table = site("check", file).output
    assert "What would leave this site" in table and "num_subjects" in table


def test_a_page_that_cannot_be_written_is_one_sentence(file, tmp_path):
    with pytest.raises(FederationError, match=r"page .* cannot be written"):
        site("check", file, "--quick", "--html", tmp_path / "none" / "page.html")


def test_ingest_lists_what_was_set_aside_with_reason_and_remedy(file):
    image = min((file.parent / "protected" / "specimen-0002").iterdir())
    shutil.rmtree(image / "labels")
    shown = site("ingest", file).output
    assert "1 x NO_LABELS" in shown
    assert f"specimen-0002/{image.name}" in shown


def test_ingest_again_reads_only_what_is_new(file):
    first = json.loads(site("ingest", file, "--json").stdout)["parts"]["protected"]
    again = json.loads(site("ingest", file, "--json").stdout)["parts"]["protected"]
    assert (first["read_now"], again["read_now"]) == (7, 0)
    assert first["manifest_root"] == again["manifest_root"]


def test_exclude_names_the_experiments_that_used_the_earlier_data(federation):
    from federation.run import approve
    from federation.site import open_site
    from tests.experiments import tiny_experiment

    file = federation / "bio-lab" / "site.yaml"
    approve(tiny_experiment(), [open_site(file)], approver="test")
    shown = site("exclude", file, "specimen-0002", "--reason", "consent withdrawn").output
    assert "tiny" in shown and "approve again" in " ".join(shown.split())
    assert "excluded before" in site("exclude", file, "specimen-0002").output


def test_exclude_names_the_images_that_only_the_site_can_delete(file):
    site("ingest", file)
    shown = site("exclude", file, "specimen-0002")
    told = " ".join(shown.output.split())
    assert "yours to delete: your own images in" in told and "in 1 places" in told
    assert "specimen-0002" not in told, "a screen is looked at by others"
    again = json.loads(site("exclude", file, "specimen-0002", "--json").stdout)
    (kept,) = again["still_there"]
    assert kept["folder"] == str(file.parent / "protected")
    assert kept["is_mirror"] is False and len(kept["where"]) == 1
    shutil.rmtree(file.parent / "protected" / "specimen-0002")
    gone = json.loads(site("exclude", file, "specimen-0002", "--json").stdout)
    assert gone["still_there"] == [] and gone["already_excluded"]


def test_exclude_finds_the_subject_in_the_mirror_of_a_pacs_and_asks_nobody(laid_out, tmp_path):
    """Also in files that no scan is made of, such as a study that was not fetched whole."""
    hospital = tmp_path / "hospital"
    shutil.copytree(laid_out / "north-hospital", hospital)
    file = hospital / "site.yaml"
    line = next(line for line in file.read_text().splitlines() if line.startswith("protected:"))
    mirrored = line.replace("kind: dicom,", "kind: dicomweb, url: 'http://127.0.0.1:1/d',")
    edit(file, line, mirrored.replace("path: protected", "path: mirror"))
    subject = min((hospital / "protected").iterdir())
    shutil.copytree(subject, hospital / "mirror" / "incoming" / "0a1b")
    identifier = dcmread(next(subject.rglob("*.dcm"))).PatientID
    told = " ".join(site("exclude", file, identifier, "--in-advance").output.split())
    assert f"the copy of a PACS in {hospital / 'mirror'}" in told
    (kept,) = json.loads(site("exclude", file, identifier, "--json").stdout)["still_there"]
    assert kept["is_mirror"]
    assert all(where.startswith("incoming/0a1b") for where in kept["where"])


def test_exclude_says_what_it_could_not_look_through(file, monkeypatch):
    from federation import originals

    def broken(source):
        raise OSError("stale file handle")

    site("ingest", file)
    monkeypatch.setattr(originals, "discover", broken)
    shown = site("exclude", file, "specimen-0002").output
    assert "Excluded." in shown and "Could not be looked through" in " ".join(shown.split())


def test_check_lists_what_was_set_aside_also_where_nothing_is_left(file):
    for labels in (file.parent / "protected").glob("*/*/labels"):
        shutil.rmtree(labels)
    value = json.loads(site("check", file, "--json").stdout)
    (reason,) = value["parts"][0]["unusable"]
    assert (reason["code"], len(reason["where"])) == ("NO_LABELS", 7)
    assert value["parts"][0]["num_scans"] == 0 and not value["ready"]


@pytest.mark.parametrize("command", ["check", "ingest"])
def test_a_full_disk_is_one_sentence_and_exit_2(file, monkeypatch, capsys, command):
    from data_adapters import staging
    from federation.cli import app as module

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(staging, "write_pixels", full)
    edit(file, "protected: {", "protected: {rechunk: true, ")
    monkeypatch.setattr(sys, "argv", ["cohortium", "site", command, str(file)])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "space left" in told and "Traceback" not in told


def test_purge_asks_first(file):
    site("ingest", file)
    with pytest.raises(FederationError, match="Nothing was deleted"):
        site("purge", file, answers="n\n")
    assert (file.parent / "state" / "cache").exists()
    assert "Deleted" in site("purge", file, answers="y\n").output


def test_text_from_files_is_never_markup(file):
    image = min((file.parent / "protected" / "specimen-0002").iterdir())
    shutil.rmtree(image / "labels")
    image.rename(image.with_name("[red]x.ome.zarr"))
    assert "[red]x.ome.zarr" in site("ingest", file).output


@pytest.mark.parametrize("command", ["check", "ingest", "purge"])
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, command):
    done = subprocess.run(
        [COMMAND, "site", command, str(tmp_path / "none.yaml")],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("Error: There is no site file at")
    assert "Traceback" not in done.stderr
