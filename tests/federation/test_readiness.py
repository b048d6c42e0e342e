import json
import shutil
from dataclasses import fields

import pytest
from pydicom import dcmread

from data_adapters.confinement import NAMES, Protection
from federation import readiness
from federation.errors import FederationError
from federation.experiment import Experiment
from federation.flower import wire
from federation.leaving import site_leaves
from federation.messages import Description, TrainReply
from federation.readiness import check_site
from federation.readiness_page import readiness_page
from federation.rounds import LocalRounds
from federation.run import approve
from federation.site import open_site
from tests.conftest import edit
from tests.experiments import tiny_experiment


@pytest.fixture
def file(federation):
    return federation / "bio-lab" / "site.yaml"


@pytest.fixture
def hospital(federation):
    return federation / "north-hospital" / "site.yaml"


def blocking(found):
    return [finding.what for finding in found.findings if finding.blocks]


def told(found):
    return " ".join(finding.what for finding in found.findings if not finding.blocks)


def test_a_ready_site_says_what_it_has(hospital):
    found = check_site(hospital)
    assert found.ready
    protected, public = found.parts
    assert (protected.num_subjects, protected.num_scans, public.num_subjects) == (5, 7, 2)
    assert protected.modalities == (("MR", 7),)
    assert protected.scans_per_subject == (("1", 3), ("2", 2))
    ((spacing, scans),) = protected.spacings
    assert (spacing, scans) == ("6 × 2.75 × 2.75 mm", 7)
    assert sum(use.share for use in protected.labels) == pytest.approx(1)
    assert {use.name: use.num_scans for use in protected.labels}["grey matter"] == 7
    assert dict(protected.identifiers)["PatientID"] > 0
    assert found.budget is not None and found.budget.spent == 0


def test_looking_fixes_no_budget(laid_out, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(laid_out / "bio-lab", site)
    found = check_site(site / "site.yaml")
    assert found.ready and found.budget is None
    assert not (site / "state" / "ledger.jsonl").exists()
    assert "fixed for good at the first run" in told(found)
    edit(site / "site.yaml", "epsilon: 10", "epsilon: 5")
    assert open_site(site / "site.yaml").ledger.policy.epsilon == 5


def test_what_a_site_cannot_find_out_by_itself_is_said_until_it_can(laid_out, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(laid_out / "bio-lab", site)
    missing = told(check_site(site / "site.yaml", quick=True))
    assert "no high-water mark" in missing and "no linking folder" in missing
    with (site / "site.yaml").open("a") as file:
        file.write(f"\nhigh_water_mark: {tmp_path}/mark\nlinking: {tmp_path}/linking\n")
    found = told(check_site(site / "site.yaml", quick=True))
    assert "high-water" not in found and "linking folder" not in found


def test_a_quick_look_reads_headers_and_caches_nothing(laid_out, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(laid_out / "north-hospital", site)
    found = check_site(site / "site.yaml", quick=True)
    assert (found.parts[0].num_subjects, found.parts[0].num_scans) == (5, 7)
    assert found.parts[0].labels == () and found.quick
    assert not (site / "state" / "cache").exists()
    assert any(one.value.startswith("known after") for one in found.leaving)


@pytest.fixture
def annotated(laid_out, tmp_path):
    """A hospital, the MR images of whose first subjects say that text is burned in."""

    def annotated(num_subjects):
        site = tmp_path / "site"
        shutil.copytree(laid_out / "north-hospital", site)
        names = sorted({dcmread(p).PatientID for p in (site / "protected").rglob("*.dcm")})
        for path in (site / "protected").rglob("*.dcm"):
            dataset = dcmread(path)
            if dataset.Modality == "MR" and dataset.PatientID in names[:num_subjects]:
                dataset.BurnedInAnnotation = "YES"
                dataset.save_as(path)
        return site / "site.yaml"

    return annotated


def test_a_quick_look_sets_aside_what_headers_alone_refuse(annotated):
    found = check_site(annotated(2), quick=True)
    assert found.ready
    (reason,) = found.parts[0].unusable
    assert reason.code == "BURNED_IN_ANNOTATION"
    assert (found.parts[0].num_subjects, found.parts[0].num_scans) == (3, 7 - len(reason.where))
    assert f"{len(reason.where)} images were set aside for it" in readiness_page(found)


def test_a_quick_look_that_finds_nothing_to_use_blocks(annotated):
    found = check_site(annotated(5), quick=True)
    assert [what.partition(";")[0] for what in blocking(found)] == [
        "protected: no scan can be used by what the headers say"
    ]


def test_what_cannot_be_used_has_code_sentence_remedy_and_place(hospital):
    file = min((hospital.parent / "protected").rglob("*.dcm"))
    file.write_bytes(file.read_bytes()[:300])
    found = check_site(hospital)
    reasons = found.parts[0].unusable
    assert reasons and all(r.code and r.sentence and r.remedy and r.where for r in reasons)
    assert found.parts[0].num_unusable >= 1
    assert found.ready, "one bad scan never stops the others"


def test_without_any_usable_scan_a_site_is_not_ready(file):
    edit(file, "labels: tissue", "labels: nothing")
    found = check_site(file)
    assert not found.ready
    assert "NO_LABELS" in blocking(found)[0]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("subjects_between: [1, 60]", "subjects_between: [1, 4]", "outside the declared bounds"),
        ("epsilon: 10", "epsilon: 20", "budget never reset"),
    ],
)
def test_what_blocks_training_is_found(file, old, new, why):
    edit(file, old, new)
    assert why in " ".join(blocking(check_site(file)))


def test_a_subject_who_is_protected_and_public_blocks(file):
    shutil.copytree(
        file.parent / "protected" / "specimen-0001", file.parent / "public" / "specimen-0001"
    )
    assert "in the protected and in the public" in " ".join(
        " ".join(blocking(check_site(file))).split()
    )


def test_an_experiment_against_the_terms_blocks(file):
    edit(file, "policy:", "data_use: [DUO:0000006]\npolicy:")
    assert check_site(file).ready
    assert "do not permit" in blocking(check_site(file, experiment=tiny_experiment()))[0]


def test_consent_is_counted_for_what_it_holds_today(file):
    edit(file, "policy:", "consent: {path: consent.csv}\npolicy:")
    rows = [
        "specimen-0001,DUO:0000042,",
        "specimen-0002,DUO:0000006,2030-01-01",
        "specimen-0003,DUO:0000006,2020-01-01",
        "specimen-0004,maybe,",
    ]
    table = file.parent / "consent.csv"
    table.write_text("\n".join(["subject,purpose,expires", *rows]))
    found = check_site(file)
    assert found.ready
    assert found.consent is not None
    assert (found.consent.num_subjects, found.consent.unknown, found.consent.expired) == (5, 2, 1)
    assert [number for _, number in found.consent.with_consent] == [1, 2]
    assert "3 of 5 subjects are not sampled" in told(found)
    assert "1 rows give none" in told(found)
    table.write_text("subject,purpose,expires\n")
    assert "No subject's consent holds today" in blocking(check_site(file))[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"task": {"classes": ["background", "lesion"]}}, "classes 'lesion' are not"),
        (
            {
                "input": {"channels": ["T1", "T2"]},
                "model": {"in_channels": 2},
            },
            "asks for the channels 'T1', 'T2'",
        ),
    ],
)
def test_an_experiment_on_what_the_data_do_not_have_blocks(file, changes, said):
    values = tiny_experiment().model_dump(mode="json")
    for name, change in changes.items():
        values[name] |= change
    found = check_site(file, experiment=Experiment.model_validate(values))
    assert found.ready == (said is None)
    if said:
        assert [what.partition(":")[0] for what in blocking(found)] == ["protected", "public"]
        assert said in blocking(found)[0]


def consent_to(file, purpose, expires=""):
    edit(file, "policy:", "consent: {path: consent.csv}\npolicy:")
    rows = [f"specimen-000{number},{purpose},{expires}" for number in range(1, 6)]
    (file.parent / "consent.csv").write_text("\n".join(["subject,purpose,expires", *rows]))


def test_consent_to_one_disease_alone_blocks_only_experiments_on_others(file):
    consent_to(file, "DUO:0000007 MONDO:0004975")
    found = check_site(file)
    assert found.ready
    assert "consent of 5 subjects holds today, and none for general" in told(found)
    values = tiny_experiment().model_dump(mode="json")
    for disease, ready in (("MONDO:0004975", True), ("MONDO:0005180", False)):
        use = {"purpose": "DUO:0000007", "disease": disease, "non_profit": True}
        asked = Experiment.model_validate(values | {"data_use": use})
        assert check_site(file, experiment=asked).ready == ready


def test_consent_to_one_disease_that_has_expired_blocks(file):
    consent_to(file, "DUO:0000007 MONDO:0004975", "2020-01-01")
    assert blocking(check_site(file)) == ["No subject's consent holds today."]


def test_headers_that_contradict_a_declaration_are_told_before_the_first_run(laid_out, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(laid_out / "north-hospital", site)
    declared = "human_subjects: {value: false, who: me, why: phantoms}"
    edit(site / "site.yaml", "policy:", declared + "\npolicy:")
    found = check_site(site / "site.yaml")
    assert found.ready and "PatientBirthDate" in told(found)
    edit(site / "site.yaml", "why: phantoms", "why: phantoms, headers_checked_by: you")
    assert "PatientBirthDate" not in told(check_site(site / "site.yaml"))


def test_a_missing_table_is_bad_input(file):
    edit(file, "policy:", "consent: {path: consent.csv}\npolicy:")
    with pytest.raises(FederationError, match=r"no readable file .*consent.csv"):
        check_site(file)


def test_the_json_is_plain(file):
    value = json.loads(json.dumps(check_site(file).to_json()))
    assert (value["format"], value["ready"]) == ("cohortium-site-check/1", True)
    assert value["parts"][0]["num_subjects"] == 5


# What leaves


def of(leaving, message):
    return {one.field: one.value for one in leaving if one.message == message}


def test_the_fields_of_the_description_are_those_that_the_wire_carries(file):
    site = open_site(file)
    shown = of(site_leaves(site, site.ledger), "description")
    sent = wire.encode_description(site.describe(tiny_experiment().digest()))
    config, versions = sent["description"], sent["versions"]
    assert set(shown) == set(config) | {"versions"} == {f.name for f in fields(Description)}
    for name in set(config) - {"commitment"}:
        assert shown[name] == config[name]
    assert shown["versions"] == ", ".join(f"{name} {value}" for name, value in versions.items())
    assert shown["commitment"] != config["commitment"], "fresh for each experiment"


def test_the_fields_of_a_training_reply_are_those_that_the_wire_carries(file):
    from federation.messages import CloseRequest, TrainRequest
    from federation.training import initial_weights

    experiment = tiny_experiment()
    site = open_site(file)
    approve(experiment, [site], approver="test")
    weights = initial_weights(experiment)
    reply = LocalRounds(site).train(TrainRequest(experiment.digest(), "ab" * 16, 1, 1, weights))
    sent = wire.encode_train_reply(reply)
    assert set(sent) == {"reply", "update"} and set(sent["reply"]) == {"receipt"}
    shown, receipt = site_leaves(site, site.ledger), json.loads(sent["reply"]["receipt"])
    assert set(of(shown, "update")) == {f.name for f in fields(TrainReply)}
    assert set(of(shown, "receipt")) == set(receipt)
    for name in ("site", "public_key", "ledger"):
        assert of(shown, "receipt")[name] == receipt[name]
    asked = CloseRequest(experiment.digest(), "ab" * 16, {}, "sha256:" + "7" * 64)
    sent = wire.encode_close_reply(LocalRounds(site).close(asked))
    assert set(sent) == {"reply"} and set(sent["reply"]) == {"closing"}
    closing = json.loads(sent["reply"]["closing"])
    assert set(of(shown, "closing")) == set(closing)
    for name in ("site", "public_key", "ledger"):
        assert of(shown, "closing")[name] == closing[name]


def test_a_field_that_is_not_explained_stops_the_list(file, monkeypatch):
    import federation.leaving as leaving

    known = dict(leaving._OF_DESCRIPTION)
    del known["modality"]
    monkeypatch.setattr(leaving, "_OF_DESCRIPTION", known)
    site = open_site(file)
    with pytest.raises(KeyError, match="modality"):
        site_leaves(site, site.ledger)


@pytest.mark.parametrize(
    ("how", "said"), [("withheld", "withheld"), ("rounded", "under 10"), ("exact", "5")]
)
def test_the_number_of_subjects_is_shown_as_it_would_leave(file, how, said):
    edit(file, "release_counts: withheld", f"release_counts: {how}")
    site = open_site(file)
    assert of(site_leaves(site, site.ledger), "description")["num_subjects"] == said


class TestDecoding:
    def test_it_says_what_decoders_cannot_do_here(self, hospital):
        found = check_site(hospital, quick=True)
        assert [one.name for one in found.decoding] == list(NAMES)
        assert found.to_json()["decoding"][0]["name"] == "no_network"

    def test_images_that_no_decoder_reads_have_none(self, file):
        assert check_site(file, quick=True).decoding == ()

    def test_what_is_required_and_not_to_be_had_blocks(self, hospital, monkeypatch):
        lacking = [Protection(n, "no such kernel" if n == "no_writes" else "") for n in NAMES]
        monkeypatch.setattr(readiness, "protections_here", lambda limits: tuple(lacking))
        assert not blocking(check_site(hospital, quick=True))
        edit(hospital, "policy:", "decoding: {require: [no_network, no_writes]}\npolicy:")
        (why,) = blocking(check_site(hospital, quick=True))
        assert "no_writes (no such kernel)" in why and "no_network" not in why
