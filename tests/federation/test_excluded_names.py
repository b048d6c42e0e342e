"""Whoever was taken out stays out, under whatever name they come back."""

import json
import shutil

import pytest

from data_adapters.ingest import alone
from federation import site_data
from federation.errors import FederationError
from federation.rounds import LocalRounds
from federation.run import approve, ingest_sites
from federation.site import open_site
from federation.training import open_dataset
from federation.withdrawal import exclude, finish_exclusions
from tests.experiments import tiny_experiment

SUBJECT, OTHER = "specimen-0002", "specimen-0003"


@pytest.fixture
def file(federation):
    return federation / "bio-lab" / "site.yaml"


@pytest.fixture
def lab(file):
    return open_site(file)


def out(site, subject=SUBJECT, **options):
    return exclude(site, subject, **({"by": "op", "reason": "withdrawn"} | options))


def rule(file, text):
    """Give the protected source a subject rule that it did not have."""
    text = f"protected: {{subjects: {text}, "
    file.write_text(file.read_text().replace("protected: {", text, 1))


def second_source(file, subject, *, issuers):
    """Move one folder of the protected images into a source of its own."""
    text = file.read_text()
    line = next(line for line in text.splitlines() if line.startswith("protected:"))
    one, other = (
        line.removeprefix("protected: ").replace("path:", f"subjects: {{issuer: {who}}}, path:")
        for who in issuers
    )
    other = other.replace("path: protected", "path: more")
    file.write_text(text.replace(line, f"protected:\n- {one}\n- {other}"))
    (file.parent / "more").mkdir()
    shutil.move(file.parent / "protected" / subject, file.parent / "more" / SUBJECT)


def num_subjects(file):
    site = open_site(file)
    site.ingest("protected")
    return len(site.manifest("protected").subjects)


def test_an_issuer_that_is_written_down_afterwards_brings_nobody_back(lab, file):
    out(lab)
    rule(file, "{issuer: LAB}")
    assert num_subjects(file) == 4


def test_an_issuer_that_is_taken_away_afterwards_brings_nobody_back(file):
    before = file.read_text()
    rule(file, "{issuer: LAB}")
    assert num_subjects(file) == 5
    out(open_site(file))
    file.write_text(before)
    assert num_subjects(file) == 4


@pytest.mark.parametrize("rows", [f"{SUBJECT},anna", f"{SUBJECT}^^^LAB,anna\nold-7^^^LAB,anna"])
def test_a_crosswalk_that_is_added_afterwards_brings_nobody_back(lab, file, rows):
    out(lab)
    (file.parent / "who.csv").write_text(f"id,subject\n{rows}\n")
    rule(file, "{issuer: LAB, crosswalk: who.csv}")
    assert num_subjects(file) == 4


def test_a_person_of_a_crosswalk_is_out_under_their_other_identifier_without_it(lab, file):
    before = file.read_text()
    (file.parent / "who.csv").write_text(f"id,subject\n{SUBJECT},anna\n{OTHER},anna\n")
    rule(file, "{crosswalk: who.csv}")
    assert num_subjects(file) == 4
    out(open_site(file))
    file.write_text(before)
    assert num_subjects(file) == 3


def test_a_second_source_that_is_added_afterwards_brings_nobody_back(lab, file):
    out(lab)
    second_source(file, SUBJECT, issuers=("NORTH", "SOUTH"))
    assert num_subjects(file) == 4


def test_the_same_images_under_another_folder_name_bring_nobody_back(lab, file):
    out(lab)
    images = file.parent / "protected"
    shutil.copytree(images / SUBJECT, images / "specimen-9999")
    report = lab.ingest("protected")
    assert len(report.manifest.subjects) == 4
    assert any("excluded subjects were left out" in note for note in report.notes)


def test_two_issuers_are_two_people_and_the_other_one_stays(file):
    """Of one number: the one from NORTH is taken out, the one from SOUTH is somebody else."""
    second_source(file, OTHER, issuers=("NORTH", "SOUTH"))
    assert num_subjects(file) == 5
    (gone,) = out(open_site(file), f"{SUBJECT}^^^NORTH").subject.split()
    site = open_site(file)
    site.ingest("protected")
    assert len(site.manifest("protected").subjects) == 4
    assert gone not in site.manifest("protected").subjects
    assert site.pseudonymise(f"{SUBJECT}^^^SOUTH") in site.manifest("protected").subjects


def test_whoever_comes_later_with_the_number_from_another_issuer_is_somebody_else(file):
    """The operator gave the bare number, and the site knew of one person: from NORTH."""
    before = file.read_text()
    rule(file, "{issuer: NORTH}")
    assert num_subjects(file) == 5
    out(open_site(file))
    file.write_text(before)
    second_source(file, OTHER, issuers=("NORTH", "SOUTH"))
    assert num_subjects(file) == 4
    site = open_site(file)
    assert site.pseudonymise(f"{SUBJECT}^^^SOUTH") in site.manifest("protected").subjects


def test_in_advance_a_number_without_issuer_keeps_out_everybody_who_has_it(lab, file):
    out(lab, "specimen-7777", in_advance=True)
    images = file.parent / "protected"
    shutil.move(images / OTHER, images / "specimen-7777")
    rule(file, "{issuer: LAB}")
    assert num_subjects(file) == 4


@pytest.mark.parametrize(("issuer", "left"), [("LAB", 4), ("ELSEWHERE", 5)])
def test_in_advance_a_number_with_its_issuer_keeps_out_that_person(lab, file, issuer, left):
    out(lab, f"specimen-7777^^^{issuer}", in_advance=True)
    images = file.parent / "protected"
    shutil.move(images / OTHER, images / "specimen-7777")
    rule(file, "{issuer: LAB}")
    assert num_subjects(file) == left


def test_in_advance_twice_is_one_exclusion(lab):
    first = out(lab, "specimen-7777", in_advance=True)
    again = out(lab, "specimen-7777", in_advance=True)
    assert (first.already, again.already) == (False, True)
    assert first.subject == again.subject
    assert len(lab.exclusions) == 1


def test_rounds_see_it_too_where_the_cache_still_has_the_person(lab, file):
    """As after a restored cache: who is sampled is not what the cache says alone."""
    rule(file, "{issuer: LAB}")
    site = open_site(file)
    site.ingest("protected")
    cache, kept = site.cache("protected"), file.parent / "kept"
    shutil.copytree(cache, kept)
    out(site)
    shutil.rmtree(cache)
    kept.rename(cache)
    assert len(site.manifest("protected").subjects) == 5
    assert len(open_dataset(tiny_experiment(), site, "protected")) == 4


def test_an_exclusion_from_before_there_were_aliases_still_holds(lab, file):
    out(lab)
    kept = lab.config.state / "excluded.json"
    document = json.loads(kept.read_text())
    for name in ("aliases", "images"):
        del document["excluded"][0][name]
    kept.write_text(json.dumps(document | {"format": 1}))
    assert num_subjects(file) == 4
    assert lab.exclusions[0].aliases == (f"is:{lab.exclusions[0].subject}",)


def test_an_exclusion_while_an_ingest_is_about_to_begin_is_seen_by_it(lab, monkeypatch):
    """Who is out is asked once nobody else can write, not before."""
    ingest = site_data.ingest

    def late(*arguments, **options):
        out(lab)
        return ingest(*arguments, **options)

    monkeypatch.setattr(site_data, "ingest", late)
    lab.ingest("protected")
    assert len(lab.manifest("protected").subjects) == 4
    assert [entry.done for entry in lab.exclusions] == [True]


def test_an_exclusion_during_an_ingest_holds_at_once_and_is_finished_after_it(lab):
    with (
        alone(lab.cache("protected")),
        pytest.raises(FederationError, match=r"no round samples.*Another process.*again"),
    ):
        out(lab)
    assert len(open_dataset(tiny_experiment(), lab, "protected")) == 4
    assert len(lab.manifest("protected").subjects) == 5
    finish_exclusions(lab)
    assert len(lab.manifest("protected").subjects) == 4
    assert [entry.done for entry in lab.exclusions] == [True]


def test_scans_are_deleted_also_where_no_manifest_knows_of_them(lab):
    (lab.cache("protected") / "manifest.json").unlink()
    assert any((lab.cache("protected") / "scans").iterdir())
    out(lab, in_advance=True)
    assert not any((lab.cache("protected") / "scans").iterdir())


def test_a_public_part_that_the_site_file_no_longer_names_is_cleaned_too(lab, file):
    text = file.read_text()
    start = text.index("public:")
    end = text.index("policy:")
    file.write_text(text[:start] + text[end:] if start < end else text[:start])
    site = open_site(file)
    assert site.parts == ("protected",)
    assert out(site, "specimen-0006").num_scans > 0
    assert len(site.manifest("public").subjects) == 1


def test_consent_is_read_once_for_who_is_left_out_and_who_is_sampled(file, monkeypatch):
    """A row that comes between two looks at the table must not decide one of them."""
    ids = sorted(path.name for path in (file.parent / "protected").iterdir())
    head, rows = "subject,purpose,expires\n", [f"{name},DUO:0000042,\n" for name in ids]
    table, less = file.parent / "consent.csv", "".join([head, *rows[1:]])
    table.write_text(less)
    file.write_text(file.read_text().replace("policy:", "consent: {path: consent.csv}\npolicy:"))
    site, experiment = open_site(file), tiny_experiment()
    ingest_sites([site])
    approve(experiment, [site], approver="test")
    rounds, looks = LocalRounds(site), []
    consents = type(site).consents

    def counted(self, subjects):
        looks.append(len(subjects))
        return consents(self, subjects)

    monkeypatch.setattr(type(site), "consents", counted)
    dataset = rounds._dataset(experiment, "protected", site.ingested())
    assert len(looks) == 1
    assert len(dataset) == len(ids) - 1
