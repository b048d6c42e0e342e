"""Two data sets of one institution, one patient in both: one budget."""

import shutil

import pytest
from typer.testing import CliRunner

from federation.cli.app import app
from federation.errors import FederationError, LedgerError
from federation.ledger.filter import FilterState
from federation.ledger.keys import PSEUDONYM_KEY
from federation.linking import LinkingFolder, num_in_both
from federation.merging import merge_sites
from federation.privacy.plan import make_plan
from federation.readiness import check_site
from federation.run import approve, run_experiment
from federation.site import Permission, open_site
from federation.withdrawal import exclude
from tests.conftest import edit
from tests.experiments import tiny_experiment


@pytest.fixture
def two(laid_out, tmp_path):
    """Site files of two data sets of one lab; the second holds two of the first's specimens."""
    for name in ("lab", "archive"):
        shutil.copytree(laid_out / "bio-lab", tmp_path / name)
        edit(tmp_path / name / "site.yaml", "policy:", "linking: ../linking\npolicy:")
    archive = tmp_path / "archive" / "site.yaml"
    edit(archive, "site: bio-lab", "site: bio-lab-archive")
    edit(archive, "dataset: simulated-brain-mr-lab", "dataset: archive")
    for folder in sorted((tmp_path / "archive" / "protected").iterdir())[2:]:
        shutil.rmtree(folder)
    return [tmp_path / name / "site.yaml" for name in ("lab", "archive")]


def ingested(file):
    site = open_site(file)
    for part in site.parts:
        site.ingest(part)
    return site


def test_a_subject_in_two_data_sets_is_found_and_neither_is_approved(two):
    lab = ingested(two[0])
    lab.require_one_budget()
    archive = ingested(two[1])
    for site in (lab, archive):
        with pytest.raises(FederationError, match=r"2 in .*one budget.*site merge"):
            site.approve(tiny_experiment(), make_plan(tiny_experiment()), Permission("test"))
    assert not (lab.config.state / PSEUDONYM_KEY).exists(), "the key is the institution's"


def test_a_readiness_report_finds_it_before_an_approval_is_refused(two):
    ingested(two[0])
    assert check_site(two[0]).ready
    ingested(two[1])
    for file in two:
        (finding,) = (one.what for one in check_site(file).findings if one.blocks)
        assert "2 in" in finding and "site merge" in finding


def test_data_sets_that_share_nobody_go_on(two):
    lab = ingested(two[0])
    for folder in (two[1].parent / "protected").iterdir():
        shutil.rmtree(folder)
    source = next(iter(sorted((two[0].parent / "public").iterdir())))
    shutil.copytree(source, two[1].parent / "protected" / source.name)
    shutil.rmtree(two[1].parent / "public" / source.name)
    ingested(two[1]).require_one_budget()
    lab.require_one_budget()


def test_a_new_study_of_somebody_elses_subject_is_found_at_the_next_ingest(two):
    moved = sorted((two[1].parent / "protected").iterdir())
    for folder in moved[1:]:
        folder.rename(two[1].parent / folder.name)
    lab_folders = {folder.name for folder in (two[0].parent / "protected").iterdir()}
    shutil.rmtree(two[0].parent / "protected" / moved[0].name)
    shutil.rmtree(two[0].parent / "protected" / moved[1].name)
    assert {folder.name for folder in moved} <= lab_folders
    lab, archive = ingested(two[0]), ingested(two[1])
    lab.require_one_budget()
    archive.require_one_budget()
    other = sorted((two[0].parent / "protected").iterdir())[0]
    shutil.copytree(other, two[1].parent / "protected" / other.name)
    archive.ingest("protected")
    with pytest.raises(FederationError, match="1 in "):
        archive.require_one_budget()


def test_merging_charges_the_first_with_both_histories_and_ends_the_second(two, tmp_path):
    archive = ingested(two[1])
    experiment = tiny_experiment(rounds=2, min_sites=1)
    approve(experiment, [archive], approver="test")
    run_experiment(experiment, [archive], out=tmp_path / "run")
    spent = archive.ledger.state
    lab = ingested(two[0])
    arguments = ["site", "merge", str(two[0]), str(two[1]), "--reason", "same people", "--yes"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    lab, archive = open_site(two[0]), open_site(two[1])
    assert lab.ledger.state == spent != FilterState()
    assert archive.ledger.book.merged_into == lab.ledger.book.genesis.hash
    lab.require_one_budget()
    with pytest.raises(LedgerError, match="merged into another"):
        archive.approve(experiment, make_plan(experiment), Permission("test"))
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
    assert lab.ledger.state == spent, "a second merge charges nothing again"


def merged(two):
    arguments = ["site", "merge", str(two[0]), str(two[1]), "--reason", "same people", "--yes"]
    return CliRunner().invoke(app, arguments)


def with_source(file, folder):
    """Name the images of the second data set as a further source of the first."""
    text = file.read_text()
    line = next(line for line in text.splitlines() if line.startswith("protected:"))
    one = line.removeprefix("protected: ")
    other = one.replace("path: protected", f"path: {folder}")
    file.write_text(text.replace(line, f"protected:\n- {one}\n- {other}"))


def test_whoever_was_excluded_from_the_second_stays_out_after_merging(two):
    for file in two:
        edit(file, "path: protected", "subjects: {issuer: LAB}, path: protected")
    archive = ingested(two[1])
    ingested(two[0])
    specimen = sorted((two[1].parent / "protected").iterdir())[0].name
    done = exclude(archive, specimen, by="test", reason="consent withdrawn")
    assert merged(two).exit_code == 0
    lab = open_site(two[0])
    assert done.subject not in lab.manifest("protected").subjects, "they were in both"
    notes = [note.body["what"] for note in lab.ledger.book.notes]
    assert notes == ["exclusion"]
    with_source(two[0], two[1].parent / "protected")
    ingested(two[0])
    lab = open_site(two[0])
    assert done.subject not in lab.manifest("protected").subjects
    assert merged(two).exit_code == 0
    assert [note.body["what"] for note in open_site(two[0]).ledger.book.notes] == notes


def test_exclusions_under_another_key_are_not_merged_away(two):
    edit(two[1], "linking: ../linking\n", "")
    archive = ingested(two[1])
    lab = ingested(two[0])
    specimen = sorted((two[1].parent / "protected").iterdir())[0].name
    exclude(archive, specimen, by="test", reason="consent withdrawn")
    with pytest.raises(FederationError, match="another pseudonym key"):
        merge_sites(lab, archive, by="test", reason="same people")
    assert lab.exclusions == () and archive.ledger.book.merged_into is None


def test_nothing_is_carried_over_into_a_laxer_budget(two):
    edit(two[1], "epsilon: ", "epsilon: 2 # ")
    archive, lab = ingested(two[1]), ingested(two[0])
    exclude(archive, min(archive.manifest("protected").subjects), by="test", reason="withdrawn")
    with pytest.raises(LedgerError, match="Merge the other way round"):
        merge_sites(lab, archive, by="test", reason="same people")
    assert lab.exclusions == ()


def test_a_data_set_with_a_key_of_its_own_is_not_linked_silently(two):
    edit(two[0], "linking: ../linking\n", "")
    ingested(two[0])
    edit(two[0], "policy:", "linking: ../linking\npolicy:")
    with pytest.raises(FederationError, match="key of its own"):
        open_site(two[0]).ingest("protected")


def test_a_damaged_entry_is_named(two):
    lab = ingested(two[0])
    ingested(two[1])
    for path in (two[0].parent.parent / "linking").glob("*.population.json"):
        path.write_text("{")
    with pytest.raises(FederationError, match="Ingest the data set again"):
        lab.require_one_budget()


def test_people_are_counted_by_any_of_their_names():
    own = {("is:a", "of:1"), ("is:b", "of:2"), ("is:c",)}
    assert num_in_both(own, [("is:x", "bare:1"), ("is:c", "of:9")]) == 2
    assert num_in_both(own, [("is:x", "of:1")]) == 0, "another issuer's number"
    assert num_in_both(own, []) == 0


def test_the_folder_is_for_its_owner_only(two):
    ingested(two[0])
    folder = LinkingFolder(two[0].parent.parent / "linking").path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
