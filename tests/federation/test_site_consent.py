"""Consent as rounds see it: who is sampled, today, for this experiment."""

from datetime import date

import pytest

from data_adapters.errors import DataError
from federation import run, site_data
from federation.errors import FederationError, Refused
from federation.messages import TrainRequest
from federation.rounds import LocalRounds
from federation.site import open_site
from federation.training import initial_weights, open_dataset
from tests.conftest import edit
from tests.experiments import tiny_experiment

HEALTH = {"purpose": "DUO:0000006", "methods_development": False}
IDS = [f"specimen-{number:04d}" for number in range(1, 6)]


@pytest.fixture
def experiment():
    values = tiny_experiment().model_dump(mode="json") | {"data_use": HEALTH}
    return type(tiny_experiment()).model_validate(values)


@pytest.fixture
def lab(federation):
    """A site whose table of consent has nobody yet."""
    file = federation / "bio-lab" / "site.yaml"
    edit(file, "policy:", "consent: {path: consent.csv}\npolicy:")
    consent(file.parent)
    return file


def consent(folder, *rows):
    (folder / "consent.csv").write_text("\n".join(["subject,purpose,expires", *rows]) + "\n")


def everybody(folder, purpose="DUO:0000006", expires=""):
    consent(folder, *(f"{name},{purpose},{expires}" for name in IDS))


def sampled(site, experiment):
    return len(open_dataset(experiment, site, "protected"))


def test_only_subjects_with_consent_are_sampled_and_public_ones_need_none(lab, experiment):
    consent(lab.parent, f"{IDS[0]},DUO:0000006,", f"{IDS[1]},DUO:0000011,", "stranger,DUO:0000006,")
    site = open_site(lab)
    assert sampled(site, experiment) == 1
    assert len(open_dataset(experiment, site, "public")) == 2


def test_where_nobody_consents_nothing_is_quoted_or_approved(lab, experiment):
    everybody(lab.parent, purpose="DUO:0000011")
    site = open_site(lab)
    with pytest.raises(FederationError, match=r"no subject has consented.*site check"):
        run.quote(experiment, [site])
    with pytest.raises(FederationError, match="no subject has consented"):
        run.approve(experiment, [site], approver="test")
    assert [record.kind for record in site.ledger.records] == ["genesis"]


def test_consent_that_ends_during_a_run_takes_the_subject_out_of_the_next_round(
    lab, experiment, monkeypatch
):
    everybody(lab.parent, expires="2026-05-04")
    consent_of_one = (lab.parent / "consent.csv").read_text().replace("2026-05-04", "2030-01-01", 1)
    (lab.parent / "consent.csv").write_text(consent_of_one)
    site = open_site(lab)
    monkeypatch.setattr(site_data, "local_day", lambda: date(2026, 5, 4))
    run.approve(experiment, [site], approver="test")
    rounds = LocalRounds(site)
    assert len(rounds._dataset(experiment, "protected", site.ingested())) == 5
    monkeypatch.setattr(site_data, "local_day", lambda: date(2026, 5, 5))
    assert len(rounds._dataset(experiment, "protected", site.ingested())) == 1


def request(experiment, round_=1):
    weights = initial_weights(experiment)
    return TrainRequest(experiment.digest(), "ab" * 16, round_, 1, weights)


def test_when_the_last_consent_has_ended_a_round_still_answers_with_noise(
    lab, experiment, monkeypatch
):
    """A refusal then would tell the hub something about the subjects."""
    everybody(lab.parent, expires="2026-05-04")
    site = open_site(lab)
    monkeypatch.setattr(site_data, "local_day", lambda: date(2026, 5, 4))
    run.approve(experiment, [site], approver="test")
    monkeypatch.setattr(site_data, "local_day", lambda: date(2026, 5, 5))
    assert LocalRounds(site).train(request(experiment)).payload


def test_a_table_that_cannot_be_read_stops_a_round_before_it_is_charged(lab, experiment):
    everybody(lab.parent)
    site = open_site(lab)
    run.approve(experiment, [site], approver="test")
    (lab.parent / "consent.csv").write_text("nonsense")
    with pytest.raises(Refused, match="round_failed"):
        LocalRounds(site).train(request(experiment))
    assert "charge" not in [record.kind for record in site.ledger.records]
    with pytest.raises(DataError, match="no column 'subject'"):
        site.without_consent(experiment.data_use)


def test_the_number_without_consent_is_on_the_sites_own_screen(lab, experiment, capsys):
    from federation.cli import show

    consent(lab.parent, f"{IDS[0]},DUO:0000006,")
    show.consent(experiment, [open_site(lab)])
    assert "4 of 5 subjects" in capsys.readouterr().err


def test_neither_the_description_nor_the_ledger_tells_who_consented(lab, experiment):
    consent(lab.parent, *(f"{name},DUO:0000006," for name in IDS[:4]))
    site = open_site(lab)
    few = site.describe(experiment.digest())
    everybody(lab.parent)
    assert site.describe(experiment.digest()) == few


def test_identifiers_of_the_table_go_through_the_rule_of_the_source(lab, experiment):
    edit(lab, "path: protected,", "path: protected, subjects: {crosswalk: who.csv},")
    (lab.parent / "who.csv").write_text(f"id,subject\n{IDS[0]},anna\nold-7,anna\n")
    consent(lab.parent, "old-7,DUO:0000006,")
    site = open_site(lab)
    site.ingest("protected")
    assert sampled(site, experiment) == 1


def test_an_identifier_that_two_sources_know_as_two_people_is_nobodys(lab, experiment):
    text = lab.read_text()
    line = next(line for line in text.splitlines() if line.startswith("protected:"))
    one = line.removeprefix("protected: ").replace("path:", "subjects: {issuer: A}, path:")
    other = one.replace("issuer: A", "issuer: B").replace("path: protected", "path: more")
    lab.write_text(text.replace(line, f"protected:\n- {one}\n- {other}"))
    (lab.parent / "more").mkdir()
    (lab.parent / "protected" / IDS[1]).rename(lab.parent / "more" / IDS[0])
    consent(lab.parent, f"{IDS[0]},DUO:0000006,")
    site = open_site(lab)
    site.ingest("protected")
    assert len(site.manifest("protected").subjects) == 5
    assert sampled(site, experiment) == 0
    consent(lab.parent, f"{IDS[0]}^^^B,DUO:0000006,")
    assert sampled(site, experiment) == 1
