"""The report's model, built from ledgers that the real ledger wrote."""

import shutil
from dataclasses import replace
from math import inf

import pytest

from federation.audit import report_records
from federation.audit.report import board_report
from federation.audit.report_records import day_of, tell
from federation.audit.report_sources import Experiments, read_experiments, read_self_audits
from federation.audit.verify import verify_ledgers
from federation.canonical import digest
from federation.errors import FederationError
from federation.ledger.filter import FilterState, PoissonGaussian
from federation.ledger.upkeep import recover
from tests.federation.audit.report_sample import make

MADE_AT = "2026-06-30T12:00:00Z"


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return make(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def report(sample):
    return sample.report()


def report_on(path, **named):
    return board_report(verify_ledgers([path]), made_at=MADE_AT, **named)


class TestBoardReport:
    def test_says_who_trained_what_on_whose_data_and_why(self, report):
        brains, lungs = report.experiments
        assert (brains.letter, brains.name) == ("A", "hippocampus-atrophy")
        assert "memory clinics" in brains.document.purpose
        assert [site.name for site, _ in brains.at_sites] == ["north-clinic", "coast-hospital"]
        assert [site.name for site, _ in lungs.at_sites] == ["coast-hospital", "valley-institute"]

    def test_spent_is_what_the_verifier_recomputed_and_the_last_point_agrees(self, report):
        for site in report.sites:
            assert site.spent == site.verdict.spent_epsilon
            assert site.told.points[-1].epsilon == pytest.approx(site.spent, rel=1e-12)
            assert site.months[-1].epsilon == site.told.points[-1].epsilon
            assert sum(month.charges for month in site.months) == site.verdict.charges

    def test_what_running_approvals_hold_is_added_as_the_ledger_does(self, sample, report):
        for hospital, site in zip(sample.hospitals, report.sites, strict=True):
            promised = hospital.ledger.promised("nobody's").spent_epsilon(site.policy)
            assert site.held == pytest.approx(promised, rel=1e-12)

    def test_rounds_sent_and_lost_are_counted(self, report):
        (share,) = report.sites[0].shares
        assert (share.charges, share.sent, share.lost) == (12, 11, 1)
        assert share.first.startswith("2026-02-16") and share.last.startswith("2026-03-11")

    def test_shares_cost_less_together_than_their_sum(self, report):
        coast = report.sites[1]
        assert len(coast.shares) == 2
        assert max(s.epsilon for s in coast.shares) < coast.spent
        assert coast.spent < sum(s.epsilon for s in coast.shares)

    def test_what_an_approval_may_cost_is_computed_whatever_it_states(self, site):
        values = site.values
        (approval,) = [v["body"] for v in values if v["kind"] == "approval"]
        for stated in (0.01, None):
            approval["epsilon"] = stated
            site.rewrite(values)
            one, policy = tell(site.path).approvals[0], tell(site.path).policy
            event = PoissonGaussian(**{k: v for k, v in approval["event"].items() if k != "kind"})
            whole = FilterState().after(event.times(approval["charges"]))
            assert one.cost(policy) == pytest.approx(whole.spent_epsilon(policy), rel=1e-12)
            assert one.cost(policy) > 1
        approval["event"] = {"kind": "unprotected"}
        site.rewrite(values)
        assert tell(site.path).approvals[0].cost(policy) == inf

    def test_exact_counts_bring_the_replace_one_figure(self, report):
        north, coast, _ = report.sites
        assert coast.counts_told and coast.whole_replace_one.epsilon > coast.whole.epsilon
        assert coast.whole_replace_one.epsilon == pytest.approx(
            coast.verdict.replace_one.value, rel=0.02
        )
        assert not north.counts_told and north.whole_replace_one is None

    def test_self_audits_stand_beside_the_site_that_they_name(self, report):
        assert [len(site.self_audits) for site in report.sites] == [1, 0, 1]

    def test_the_sample_is_verified(self, report):
        assert report.report.ok and not report.contradicted

    def test_without_experiment_files_there_are_only_digests(self, sample):
        bare = sample.report(experiments=Experiments({}))
        assert all(one.document is None for one in bare.experiments)
        assert [one.name for one in bare.experiments] == ["Experiment A", "Experiment B"]

    def test_a_file_that_changed_after_its_check_is_said(self, sample, tmp_path):
        path = tmp_path / "ledger.jsonl"
        shutil.copy(sample.ledgers[0], path)
        checked = verify_ledgers([path])
        path.write_bytes(path.read_bytes().rsplit(b"\n", 2)[0] + b"\n")
        assert board_report(checked, made_at=MADE_AT).contradicted


class TestTell:
    def test_happenings_are_joined_where_they_are_alike(self, report):
        refusals = [h for h in report.sites[0].told.happenings if h.kind == "refusal"]
        assert [(h.what, h.count) for h in refusals] == [("not_approved", 2)]

    def test_how_each_approval_ended(self, report):
        ended = {
            (site.name, a.ended) for site in report.sites for a in site.told.approvals if a.ended
        }
        assert ended == {
            ("north-clinic", "closed"),
            ("coast-hospital", "closed"),
            ("valley-institute", "withdrawn"),
        }

    def test_who_else_was_in_the_run_is_read_off_the_heads(self, report):
        (approval,) = report.sites[0].told.approvals
        assert approval.at_sites == {"coast-hospital"}

    def test_a_recovery_spends_and_ends_what_was_open(self, site):
        kept = site.path.read_bytes().splitlines(keepends=True)[: site.position("charge") + 1]
        site.path.write_bytes(b"".join(kept))
        ledger = site.open(recovering=True)
        assert recover(ledger, by="Dr. A", reason="restored backup", receipts=site.receipts)
        told = tell(site.path)
        assert [p.cause for p in told.points] == ["charge", "recovery"]
        assert told.points[-1].epsilon == pytest.approx(ledger.spent_epsilon)
        assert [a.ended for a in told.approvals] == ["recovery"]
        assert told.happenings[-1].by == "Dr. A"
        assert told.promised == told.points[-1].epsilon, "nothing is open any more"

    def test_a_merge_spends(self, site):
        event = PoissonGaussian(0.25, 1.575, 30)
        body = {
            "ledger": digest("other"),
            "head_seq": 9,
            "head": digest("head"),
            "spends": [event.to_json()],
            "by": "Dr. A",
            "reason": "shared people",
            "totals": [0.0],
        }
        before = tell(site.path)
        site.with_record("merge", body)
        told = tell(site.path)
        assert told.points[-1].cause == "merge"
        assert told.points[-1].epsilon > before.points[-1].epsilon
        assert told.steps[0.25, 1.575] == before.steps[0.25, 1.575] + 30

    def test_a_ledger_that_was_merged_away_holds_nothing_any_more(self, open_site):
        assert tell(open_site.path).promised > tell(open_site.path).points[-1].epsilon
        open_site.with_record("merged", {"into": digest("other")})
        told = tell(open_site.path)
        assert [a.ended for a in told.approvals] == ["merged"]
        assert told.promised == told.points[-1].epsilon

    def test_a_round_without_noise_is_unlimited_from_there_on(self, site):
        values = site.values
        for value in values:
            if value["kind"] == "charge":
                value["body"]["event"] = {"kind": "unprotected"}
        site.rewrite(values)
        account = report_on(site.path).sites[0]
        assert account.told.points[-1].epsilon == float("inf")
        assert "without noise" in account.whole.why_not

    @pytest.mark.parametrize("damage", [b"", b"\n", b"{}\n", b"\xff" * 70_000, b"[" * 5000 + b"\n"])
    def test_no_file_makes_it_raise(self, site, damage):
        whole = site.path.read_bytes()
        for text in (damage, whole + damage, damage + whole):
            site.path.write_bytes(text)
            assert report_on(site.path).contradicted == (text != whole)

    def test_records_out_of_order_are_told_without_raising(self, site):
        lines = site.path.read_bytes().splitlines(keepends=True)
        site.path.write_bytes(b"".join(reversed(lines)))
        assert report_on(site.path).contradicted

    def test_too_many_kinds_of_rounds_stop_the_sums_and_are_said(self, site, monkeypatch):
        monkeypatch.setattr(report_records, "_MAX_TERMS", 0)
        told = tell(site.path)
        assert told.points == [] and told.stopped_at == site.position("charge")

    def test_a_day_that_no_calendar_has_is_none(self):
        assert day_of("2026-13-01T00:00:00Z") is None
        assert day_of("2026-12-01T00:00:00Z").month == 12


class TestSources:
    def test_experiments_are_found_in_folders_and_others_are_named(self, sample, tmp_path):
        folder = tmp_path / "mixed"
        shutil.copytree(sample.folder / "experiments", folder)
        (folder / "site.yaml").write_text("site: here\n")
        found = read_experiments([folder])
        assert len(found.by_digest) == 2
        assert [line.split(":")[0] for line in found.unread] == ["site.yaml"]

    def test_a_named_file_that_is_none_is_refused(self, tmp_path):
        (tmp_path / "site.yaml").write_text("site: here\n")
        with pytest.raises(FederationError, match="experiment file"):
            read_experiments([tmp_path / "site.yaml"])
        with pytest.raises(FederationError, match="no experiment file or folder"):
            read_experiments([tmp_path / "nowhere"])

    def test_self_audits_in_a_folder_are_read_and_other_files_passed_over(self, sample, tmp_path):
        folder = tmp_path / "audits"
        shutil.copytree(sample.folder / "audits", folder)
        (folder / "else.json").write_text("[]")
        (folder / "broken.json").write_text("{")
        verdicts = [seen.verdict for seen in read_self_audits([folder])]
        assert verdicts == ["no_evidence_of_violation", "inconclusive"]
        with pytest.raises(FederationError, match="self-audit"):
            read_self_audits([folder / "else.json"])


def test_letters_go_by_the_first_approval_whatever_the_order_of_files(sample):
    turned = replace(sample, hospitals=sample.hospitals[::-1]).report()
    assert {one.letter: one.name for one in turned.experiments} == {
        "A": "hippocampus-atrophy",
        "B": "pneumonia-triage",
    }
