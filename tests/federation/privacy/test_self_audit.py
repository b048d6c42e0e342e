"""The audit of a run: what it keeps between rounds, what it concludes, and what it does not say."""

import json
from dataclasses import fields, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from federation.privacy.audit_evidence import Evidence, InclusionTally, NoiseTally
from federation.privacy.audit_report import (
    POWER,
    UNCLIPPED,
    ConformanceTest,
    DetectableFault,
    SelfAuditReport,
    make_report,
)
from federation.privacy.canaries import CanaryBlock
from federation.privacy.contributions import longer_than, moved_too_far
from federation.privacy.random import SecureRandomness
from federation.privacy.self_audit import SelfAudit
from tests.federation.privacy.planted_faults import (
    REGIMES,
    ClipsAt,
    Engine,
    RealSubjectsUnclipped,
    audited,
    audited_round,
    network,
    plan_of,
)
from tests.federation.privacy.randomness import SeededRandomness

DEMO = REGIMES[0]
SHORT = replace(DEMO, rounds=1, plan=replace(DEMO.plan, steps=2))


def begun(plan=DEMO.plan, seed=0, num_subjects=DEMO.num_subjects) -> SelfAudit:
    return SelfAudit.begin(plan, SeededRandomness(seed), num_subjects=num_subjects)


def after_a_round(regime=SHORT, engine=None) -> SelfAudit:
    audit = begun(regime.plan, num_subjects=regime.num_subjects)
    audited_round(
        regime, engine or Engine(), audit, network(), SeededRandomness(1), SeededRandomness(2)
    )
    return audit


def test_a_run_of_the_demos_length_ends_without_evidence_of_violation():
    report = audited(DEMO, Engine(), 0)
    assert report.verdict == "no_evidence_of_violation"
    assert (report.steps, report.rounds, report.num_canaries) == (60, 12, 1000)
    assert 0 < report.epsilon_one_run < report.claimed_epsilon
    assert "no evidence of violation; epsilon >= " in report.statement()


def test_two_steps_are_too_few_for_a_verdict_and_the_report_says_what_they_miss():
    report = after_a_round().report()
    assert report.verdict == "inconclusive"
    assert "part by which all noise is too small" in [fault.name for fault in report.unseen]
    assert report.statement().startswith("inconclusive: these steps could not show")


def test_a_gross_fault_is_a_violation_after_two_steps_all_the_same():
    report = after_a_round(engine=Engine(optimizer=RealSubjectsUnclipped)).report()
    assert report.verdict == "violation"
    assert "violation of the plan: subject contributions: clip norm" in report.statement()


def test_the_declared_faults_are_seen_with_the_power_that_the_report_states():
    report = audited(DEMO, Engine(), 3)
    assert all(fault.power >= POWER for fault in report.faults)
    cut = next(f for f in report.faults if f.name == "part by which all noise is too small")
    assert 0.01 < cut.smallest < 0.03

    class ALittleLess(SeededRandomness):
        def gaussians(self, count):
            return (1 - cut.smallest) * super().gaussians(count)

    found = [audited(DEMO, Engine(noise=ALittleLess), seed).verdict for seed in range(10)]
    assert found.count("violation") >= 7


def test_evidence_passes_through_json_between_rounds_unchanged():
    audit = after_a_round()
    state = json.loads(json.dumps(audit.state(), allow_nan=False))
    assert Evidence.from_json(state).to_json() == audit.state()
    assert make_report(Evidence.from_json(state), SHORT.plan) == audit.report()


def test_a_further_round_keeps_the_canaries_and_adds_up():
    first = after_a_round()
    second = SelfAudit.resume(first.state(), SHORT.plan, num_subjects=7)
    regime = replace(SHORT, num_subjects=7)
    audited_round(regime, Engine(), second, network(), SeededRandomness(3), SeededRandomness(4))
    both, one = second.evidence(), first.evidence()
    assert np.array_equal(both.present, one.present)
    assert (both.rounds, both.steps) == (2, 4)
    assert both.subjects.trials == SHORT.num_subjects * 2 + 7 * 2
    assert both.canaries.trials == 4000
    assert both.tensors[0].values == 2 * one.tensors[0].values


def test_evidence_of_another_plan_is_refused():
    state = after_a_round().state()
    with pytest.raises(ValueError, match="another plan"):
        SelfAudit.resume(state, DEMO.plan, num_subjects=3)


def test_evidence_of_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="no evidence"):
        SelfAudit.resume({"format": "other"}, DEMO.plan, num_subjects=3)


def test_a_run_without_privacy_cannot_be_audited():
    plan = replace(
        plan_of(sampling_rate=0.1, noise_multiplier=0.0, expected_batch=1, steps=1),
        epsilon=float("inf"),
    )
    with pytest.raises(ValueError, match="nothing to audit"):
        begun(plan)


def test_steps_out_of_order_are_refused():
    with pytest.raises(ValueError, match="once after begin_step"):
        begun().end_step(torch.zeros(1000))
    for match, again in (
        ("begin_step was called twice", lambda audit: audit.begin_step([])),
        ("once after begin_step", lambda audit: audit.end_step(None)),
        ("take the round's steps first", lambda audit: audit.test_noise()),
    ):
        audit = begun()
        audit.begin_step([])
        with pytest.raises(ValueError, match=match):
            again(audit)


def test_coins_are_fair_secret_and_fresh():
    audits = [
        SelfAudit.begin(DEMO.plan, SecureRandomness(), num_subjects=1).evidence().present
        for _ in range(2)
    ]
    assert all(400 < present.sum() < 600 for present in audits)
    assert not np.array_equal(*audits)
    assert "present" not in {field.name for field in fields(SelfAuditReport)}


def test_only_canaries_that_are_there_are_summed():
    audit = begun()
    present = audit.evidence().present
    numbered = [DEMO.num_subjects + i for i in range(20)]
    assert audit.canaries_in([0, 5, *numbered]) == [i for i in range(20) if present[i]]
    assert audit.num_sampled_from == DEMO.num_subjects + 1000


def test_steps_of_pure_noise_touch_neither_the_network_nor_the_optimisers_state():
    net, audit = network(), begun(SHORT.plan)
    optimizer = Engine().optimizer(
        torch.optim.Adam([*net.parameters(), audit.parameter]),
        plan=SHORT.plan,
        randomness=SeededRandomness(0),
    )
    audit.begin_step([])
    audit.add_canaries(optimizer)
    optimizer.release_step(lambda: audit.end_step(audit.parameter.grad))
    weights = [p.detach().clone() for p in net.parameters()]
    steps = {k: float(v["step"]) for k, v in enumerate(optimizer.state.values())}
    audit.test_noise()
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), weights, strict=True))
    assert {k: float(v["step"]) for k, v in enumerate(optimizer.state.values())} == steps
    assert len(audit.evidence().tensors) == len(list(net.parameters())) + 1


def test_a_site_with_nobody_and_a_batch_of_everybody_are_audited_too():
    nobody = replace(SHORT, num_subjects=0)
    assert nobody.num_subjects == after_a_round(nobody).evidence().subjects.trials
    everybody = replace(SHORT, plan=replace(SHORT.plan, sampling_rate=1.0))
    report = after_a_round(everybody).report()
    assert report.verdict != "violation"
    assert "shuffling" not in " ".join(fault.name for fault in report.faults)


def test_the_report_is_json_and_never_claims_to_know_epsilon():
    report = after_a_round().report()
    written = json.dumps(report.to_json(), allow_nan=False) + report.text()
    assert "true epsilon" not in written and "epsilon is" not in written
    assert "epsilon >= " in written and "Not covered: the code that computes gradients" in written
    assert len(report.text().splitlines()) <= 6


def test_one_test_below_its_share_of_the_false_alarms_is_a_violation():
    fault = DetectableFault("noise", "any", 0.05, 1.0, 0.01)
    tests = tuple(ConformanceTest("noise", str(i), 0.5) for i in range(19))
    usual = replace(after_a_round().report(), faults=(fault,), tests=tests)
    assert usual.verdict == "no_evidence_of_violation"
    low = replace(usual, tests=(*tests, ConformanceTest("noise", "low", 4.9e-5)))
    assert low.verdict == "violation" and [t.name for t in low.violations] == ["low"]
    near = replace(usual, tests=(*tests, ConformanceTest("noise", "near", 5.1e-5)))
    assert near.verdict == "no_evidence_of_violation"
    weak = replace(usual, faults=(replace(fault, power=0.89),))
    assert weak.verdict == "inconclusive"


class TestContributions:
    """The watch over what real subjects add."""

    def moved(self, rows, factors):
        return [(row.double() * factors[:, None]).sum(0) for row in rows]

    def rows(self, *norms):
        random = np.random.default_rng(0)
        values = random.standard_normal((len(norms), 8))
        values *= np.array(norms)[:, None] / np.linalg.norm(values, axis=1, keepdims=True)
        rows = torch.from_numpy(values).float()
        return [rows[:, :5], rows[:, 5:]]

    def test_subjects_within_the_clip_norm_pass(self):
        rows = self.rows(0.3, 0.999)
        assert not moved_too_far(self.moved(rows, torch.ones(2)), rows, 1.0)

    def test_clipped_subjects_pass(self):
        rows = self.rows(0.5, 4.0)
        assert not moved_too_far(self.moved(rows, torch.tensor([1.0, 0.25])), rows, 1.0)

    @pytest.mark.parametrize("norms", [(1.1,), (0.1, 0.1, 1.1, 0.1)])
    def test_one_subject_past_the_clip_norm_is_seen(self, norms):
        rows = self.rows(*norms)
        as_they_came = self.moved(rows, torch.ones(len(norms)))
        assert moved_too_far(as_they_came, rows, 1.0)
        assert not moved_too_far(as_they_came, rows, 1.2)

    def test_a_subject_that_counts_twice_is_seen(self):
        rows = self.rows(0.5, 0.4)
        assert moved_too_far(self.moved(rows, torch.tensor([2.0, 1.0])), rows, 1.0)

    def test_a_subject_that_is_not_finite_has_to_count_as_zero(self):
        rows = self.rows(0.5, 0.4)
        moved = self.moved(rows, torch.tensor([0.0, 1.0]))
        rows[0][0, 0] = float("nan")
        assert not moved_too_far(moved, rows, 1.0)
        assert not longer_than(rows, 1.0)

    def test_a_sum_that_is_not_a_number_is_too_far(self):
        rows = self.rows(0.5)
        assert moved_too_far(self.moved(rows, torch.tensor([float("nan")])), rows, 1.0)

    def test_only_whether_is_kept(self):
        evidence = after_a_round(engine=Engine(optimizer=ClipsAt)).evidence()
        assert 1 <= evidence.contributions_over <= evidence.contributions == 2

    def test_a_clip_that_never_had_to_act_proves_nothing(self):
        audit = begun(SHORT.plan)
        optimizer = RealSubjectsUnclipped(
            torch.optim.SGD([*network().parameters(), audit.parameter], lr=0.1),
            plan=SHORT.plan,
            randomness=SeededRandomness(0),
        )
        for size, power in ((0.001, 0.0), (1.0, 1.0)):
            audit.begin_step([0])
            rows = [torch.full((1, *p.shape), size) for p in network().parameters()]
            with audit.watching(optimizer, rows):
                optimizer.add_subjects(rows)
            optimizer.release_step(lambda: audit.end_step(audit.parameter.grad))
            fault = next(f for f in audit.report().faults if f.name == UNCLIPPED)
            assert fault.power == power
        evidence = audit.evidence()
        assert (evidence.contributions, evidence.contributions_longer) == (2, 1)
        assert evidence.contributions_over == 1


def test_noise_that_repeats_is_seen_between_steps_and_between_tensors():
    noise = np.random.default_rng(1).standard_normal(300)
    p_values = NoiseTally().plus(noise).after(noise, noise).beside(noise[:100], noise).p_values()
    assert p_values["same noise twice"] < 1e-9
    assert p_values["same noise for two tensors"] < 1e-9
    assert set(NoiseTally().after(noise, np.zeros(300)).p_values().values()) == {1.0}


def test_an_empty_round_adds_nothing():
    empty = InclusionTally()
    assert empty.after_round([], 10, 0.1) is empty


class TestFailure:
    """An audit that fails is told of, stops observing, and changes nothing else."""

    BROKEN: ClassVar = {
        "who is sampled": "federation.privacy.self_audit.SelfAudit.canaries_in",
        "_watch": "federation.privacy.self_audit.moved_too_far",
        "add_canaries": "federation.privacy.canaries.CanaryBlock.gradients",
        "end_step": "federation.privacy.self_audit.log_likelihood_ratio",
        "test_noise": "federation.privacy.self_audit.SelfAudit._pure_noise",
        "_all_seen": "federation.privacy.audit_evidence.InclusionTally.after_round",
    }

    @pytest.fixture
    def earlier(self):
        return after_a_round().state()

    def another_round(self, state):
        """Return the audit of a further round, the network after it, and what was told."""
        told, net = [], network()
        audit = SelfAudit.resume(
            state, SHORT.plan, num_subjects=SHORT.num_subjects, on_failure=told.append
        )
        audited_round(SHORT, Engine(), audit, net, SeededRandomness(3), SeededRandomness(4))
        audit.report()
        return audit, [p.detach().clone() for p in net.parameters()], told

    @pytest.mark.parametrize("target", BROKEN.values(), ids=BROKEN)
    def test_wherever_it_fails_the_round_is_what_it_would_be(self, target, earlier, monkeypatch):
        _, expected, nothing = self.another_round(earlier)
        assert nothing == []

        def fails(*args, **kwargs):
            raise RuntimeError("out of memory")

        monkeypatch.setattr(target, fails)
        audit, trained, told = self.another_round(earlier)
        assert told == ["the self-audit, which says nothing of this round,"]
        assert all(torch.equal(a, b) for a, b in zip(trained, expected, strict=True))
        assert audit.state() == earlier | {"unobserved": 1}

    def test_no_canary_is_added_after_a_failure(self, monkeypatch):
        audit, added = begun(), []
        audit._on_failure = lambda what: None
        monkeypatch.setattr(CanaryBlock, "add_to", lambda *args: added.append(args))
        audit.begin_step([0])
        audit.begin_step([0])
        assert not audit.observing
        audit.add_canaries(None)
        assert added == []

    def test_a_failure_of_the_real_subjects_own_code_is_not_swallowed(self):
        audit = begun()
        audit._on_failure = lambda what: pytest.fail("not the audit's")
        optimizer = Engine().optimizer(
            torch.optim.SGD([*network().parameters(), audit.parameter], lr=0.1),
            plan=SHORT.plan,
            randomness=SeededRandomness(0),
        )
        with pytest.raises(ZeroDivisionError), audit.watching(optimizer, []):
            raise ZeroDivisionError
        assert optimizer.params[-1] is audit.parameter

    def test_a_report_that_fails_is_made_of_the_rounds_before(self, earlier, monkeypatch):
        def fails_once(evidence, plan, made=[]):  # noqa: B006 - counts the calls
            made.append(evidence)
            if len(made) == 1:
                raise ValueError("not a number")
            return make_report(evidence, plan)

        monkeypatch.setattr("federation.privacy.self_audit.make_report", fails_once)
        audit, _, told = self.another_round(earlier)
        assert len(told) == 1
        assert audit.report().rounds_unobserved == 1

    def test_the_report_says_that_a_round_was_not_observed(self, earlier, monkeypatch):
        monkeypatch.setattr(SelfAudit, "canaries_in", None)
        audit, _, _ = self.another_round(earlier)
        report = audit.report()
        assert (report.rounds, report.rounds_unobserved) == (1, 1)
        assert "the audit failed in 1 more rounds" in report.text()

    def test_a_first_round_that_fails_leaves_a_report_of_no_step(self):
        audit = begun()
        audit._on_failure = lambda what: None
        audit.end_step(None)
        report = audit.report()
        assert (report.verdict, report.rounds, report.steps) == ("inconclusive", 0, 0)
        json.dumps(report.to_json(), allow_nan=False)
