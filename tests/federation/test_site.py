import shutil
import stat

import pytest

from data_adapters.errors import DataError
from federation import run
from federation.errors import FederationError, PrivacyBudgetError, Refused
from federation.ledger.ledger import RoundKey, Terms
from federation.merging import merge_sites
from federation.privacy.plan import make_plan
from federation.run import open_sites
from federation.site import Permission, load_site_config, open_site
from tests.conftest import edit, site_files
from tests.experiments import tiny_experiment


def test_two_formats_give_the_same_kind_of_site(sites):
    kinds = {site.name: source.kind for site in sites for source in site.config.protected}
    assert kinds == {"bio-lab": "ome_zarr", "north-hospital": "dicom", "south-hospital": "dicom"}
    for site in sites:
        assert len({scan.subject for scan in site.manifest("protected").scans}) == 5


def test_a_missing_folder_is_one_sentence_with_the_way_out(federation):
    shutil.rmtree(federation / "bio-lab" / "protected")
    with pytest.raises(FederationError, match=r"bio-lab: there is no readable folder .*'path'"):
        open_site(federation / "bio-lab" / "site.yaml")


def test_a_site_without_subjects_is_refused(federation):
    protected = federation / "bio-lab" / "protected"
    shutil.rmtree(protected)
    protected.mkdir()
    with pytest.raises(DataError, match="protected"):
        open_site(federation / "bio-lab" / "site.yaml").ingest("protected")


def test_more_subjects_than_declared_are_refused(federation):
    file = federation / "bio-lab" / "site.yaml"
    edit(file, "subjects_between: [1, 60]", "subjects_between: [1, 4]")
    with pytest.raises(
        FederationError,
        match=r"outside the declared bounds 1 to 4 \(policy.*Widen.*at most 316, which delta 1e-05",
    ):
        run.ingest_sites([open_site(file)])


def test_a_site_that_outgrows_what_its_delta_permits_goes_over_to_a_stricter_ledger(federation):
    file, wider = (federation / "bio-lab" / name for name in ("site.yaml", "wider.yaml"))
    edit(file, "delta: 1.0e-05", "delta: 0.09")
    edit(file, "subjects_between: [1, 60]", "subjects_between: [1, 3]")
    shutil.rmtree(federation / "bio-lab" / "state")
    with pytest.raises(
        FederationError,
        match=r"delta of 0.09 permits at most 3 \(1/N\^2\).*delta 0.01, and charge.*site merge NEW",
    ):
        run.ingest_sites([open_site(file)])
    old = open_site(file)
    event = make_plan(tiny_experiment()).round_event
    some = "sha256:" + "5" * 64
    old.ledger.approve(Terms(some, some, event, 1, some, "a", some))
    old.ledger.reserve(some, "run-1")
    old.ledger.charge(
        RoundKey("run-1", 1, 1),
        request_digest=some,
        experiment_digest=some,
        plan_digest=some,
        event=event,
    )
    text = file.read_text().replace("delta: 0.09", "delta: 0.01")
    text = text.replace("[1, 3]", "[1, 10]").replace("state: state", "state: wider-state")
    wider.write_text(text)
    new = open_site(wider)
    run.ingest_sites([new])
    merge_sites(new, old, by="a test", reason="more subjects")
    assert new.ledger.state == old.ledger.state and new.ledger.policy.delta == 0.01
    assert new.ledger.spent_epsilon > old.ledger.spent_epsilon > 0
    plan = make_plan(tiny_experiment())
    new.require_usable(tiny_experiment(), plan)


def test_an_approval_records_the_declared_bounds_and_ends_when_they_change(federation):
    file = federation / "bio-lab" / "site.yaml"
    site, experiment = open_site(file), tiny_experiment()
    run.ingest_sites([site])
    record = site.approve(experiment, make_plan(experiment), Permission("test"))
    assert "declared bounds of subjects: 1 to 60" in record.body["leaves"]
    site.approved(experiment.digest())
    site.ledger.close()
    edit(file, "subjects_between: [1, 60]", "subjects_between: [1, 70]")
    with pytest.raises(Refused, match="approve the experiment again"):
        open_site(file).approved(experiment.digest())


def test_a_subject_both_protected_and_public_is_refused(federation):
    lab = federation / "bio-lab"
    subject = min((lab / "protected").iterdir())
    shutil.copytree(subject, lab / "public" / subject.name)
    with pytest.raises(FederationError, match=r"1 subjects and . scans are in the protected"):
        run.ingest_sites([open_site(lab / "site.yaml")])
    shutil.rmtree(lab / "public" / subject.name)
    run.ingest_sites([open_site(lab / "site.yaml")])


def test_a_budget_changed_in_the_site_file_is_refused(federation):
    file = federation / "bio-lab" / "site.yaml"
    edit(file, "epsilon: 10", "epsilon: 20")
    with pytest.raises(FederationError, match=r"policy.epsilon is 20.0 .* budget never reset"):
        open_site(file)


def test_a_delta_that_would_permit_giving_one_subject_away_is_refused(federation):
    file = federation / "bio-lab" / "site.yaml"
    edit(file, "subjects_between: [1, 60]", "subjects_between: [1, 5000]")
    with pytest.raises(FederationError, match=r"above 1/N\^2"):
        load_site_config(file)


def test_a_label_outside_the_classes_names_the_label_and_the_site_file(federation):
    file = federation / "bio-lab" / "site.yaml"
    text = file.read_text().replace(', 2: "white matter"', "")
    file.write_text(text)
    shutil.rmtree(federation / "bio-lab" / "state")
    with pytest.raises(DataError, match="UNMAPPED_LABEL"):
        open_site(file).ingest("protected")


def test_no_privacy_is_forbidden_by_default(sites, open_experiment):
    with pytest.raises(PrivacyBudgetError, match="policy forbids it"):
        sites[0].approve(open_experiment, make_plan(open_experiment), Permission("test"))


def test_a_run_that_does_not_fit_the_budget_is_refused_and_the_refusal_recorded(sites):
    values = tiny_experiment().model_dump(mode="json")
    values["privacy"]["epsilon"] = 30
    too_much = type(tiny_experiment()).model_validate(values)
    with pytest.raises(PrivacyBudgetError, match="do not fit what is left"):
        sites[0].approve(too_much, make_plan(too_much), Permission("test"))
    assert [record.kind for record in sites[0].ledger.records] == ["genesis", "refusal"]


def test_an_experiment_that_was_not_approved_is_refused(sites):
    with pytest.raises(Refused, match="not_approved"):
        sites[0].approved(tiny_experiment().digest())


def test_an_approval_is_void_once_the_data_has_changed(federation, approved_sites):
    lab = next(site for site in approved_sites if site.name == "bio-lab")
    digest = tiny_experiment().digest()
    assert lab.approved(digest) == tiny_experiment()
    shutil.rmtree(min((federation / "bio-lab" / "protected").iterdir()))
    lab.ingest("protected")
    with pytest.raises(Refused, match=r"not_approved.*changed"):
        lab.approved(digest)


def test_commitments_of_two_experiments_share_nothing(sites):
    first, second = tiny_experiment().digest(), tiny_experiment(rounds=3).digest()
    root = sites[0].manifest("protected").root
    commitments = {sites[0].commitment(first), sites[0].commitment(second), root}
    assert len(commitments) == 3
    assert sites[0].commitment(first) in commitments


@pytest.mark.parametrize("digest", ["../../../etc/passwd", "sha256:" + "g" * 64, "", "sha256:12"])
def test_a_digest_that_is_none_never_becomes_a_path(sites, digest):
    with pytest.raises(Refused, match=r"invalid_request|not_approved"):
        sites[0].approved(digest)


def test_what_a_site_keeps_is_for_its_owner_only(federation, sites):
    state = federation / "bio-lab" / "state"
    for path in [state, state / "cache" / "protected"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    secrets = [p for p in state.iterdir() if p.is_file() and p.suffix != ".jsonl"]
    assert secrets
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_two_sites_of_one_name_are_refused(federation):
    file = site_files(federation)[0]
    with pytest.raises(FederationError, match="Two sites have the name"):
        open_sites([file, file])


@pytest.mark.parametrize(("how", "said"), [("exact", "5"), ("withheld", "withheld")])
def test_counts_leave_only_as_the_policy_says(federation, how, said):
    file = federation / "bio-lab" / "site.yaml"
    edit(file, "release_counts: withheld", f"release_counts: {how}")
    assert open_site(file).describe(tiny_experiment().digest()).num_subjects == said


def test_a_deleted_ledger_is_not_replaced_by_a_fresh_budget(federation, approved_sites):
    (federation / "bio-lab" / "state" / "ledger.jsonl").unlink()
    with pytest.raises(FederationError, match="would forget what was spent"):
        open_site(federation / "bio-lab" / "site.yaml")


def test_an_older_copy_of_the_ledger_is_found_by_the_outbox(federation, approved_sites):
    lab = next(site for site in approved_sites if site.name == "bio-lab")
    ledger = federation / "bio-lab" / "state" / "ledger.jsonl"
    older = ledger.read_bytes()
    plan = make_plan(tiny_experiment())
    charge = lab.ledger.charge(
        RoundKey("ab" * 16, 1, 1),
        request_digest="sha256:" + "0" * 64,
        experiment_digest=tiny_experiment().digest(),
        plan_digest=plan.digest(),
        event=plan.round_event,
    )
    lab.ledger.release(charge, b"update")
    ledger.write_bytes(older)
    with pytest.raises(FederationError, match="older copy"):
        open_site(federation / "bio-lab" / "site.yaml")


def test_a_renamed_site_is_refused(federation):
    file = federation / "bio-lab" / "site.yaml"
    edit(file, "site: bio-lab", "site: other-lab")
    with pytest.raises(FederationError, match="site is other-lab in the site file but bio-lab"):
        open_site(file)


def test_two_sites_over_one_folder_are_refused(federation):
    lab = federation / "bio-lab"
    text = (lab / "site.yaml").read_text()
    text = text.replace("site: bio-lab", "site: second-lab").replace("state: state", "state: other")
    (lab / "second.yaml").write_text(text)
    with pytest.raises(FederationError, match="Its subjects have one budget"):
        open_sites([lab / "site.yaml", lab / "second.yaml"])


def test_the_same_scan_under_another_subject_in_the_public_folder_is_refused(federation):
    lab = federation / "bio-lab"
    subject = min((lab / "protected").iterdir())
    shutil.copytree(subject, lab / "public" / "somebody-else")
    with pytest.raises(FederationError, match=r"0 subjects and . scans"):
        run.ingest_sites([open_site(lab / "site.yaml")])


def test_one_site_that_cannot_pay_means_that_no_site_approves(federation, sites):
    lab = sites[0]
    plan = make_plan(tiny_experiment())
    run.approve(tiny_experiment(rounds=1), [lab], approver="test")
    assert lab.ledger.fits(plan.round_event.times(plan.charges), "sha256:other") is False
    with pytest.raises(PrivacyBudgetError, match="do not fit what is left"):
        run.approve(tiny_experiment(), sites, approver="test")
    for site in sites[1:]:
        assert [record.kind for record in site.ledger.records] == ["genesis"]


def test_a_lost_key_is_not_replaced_where_there_is_a_ledger(federation, approved_sites):
    state = federation / "bio-lab" / "state"
    (state / "site-key").rename(state / "elsewhere")
    with pytest.raises(FederationError, match="key"):
        open_site(federation / "bio-lab" / "site.yaml")
    assert not (state / "site-key").exists()


def test_when_every_scan_is_withdrawn_nothing_can_be_trained_on(federation, approved_sites):
    lab = next(site for site in approved_sites if site.name == "bio-lab")
    protected = federation / "bio-lab" / "protected"
    shutil.rmtree(protected)
    protected.mkdir()
    with pytest.raises(DataError):
        lab.ingest("protected")
    with pytest.raises(FederationError, match="has not been ingested"):
        lab.approved(tiny_experiment().digest())
