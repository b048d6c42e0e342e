"""Faults planted in the shipped engine are rejected; the engine as it ships is not."""

import pytest

from federation.experiment import Experiment
from federation.privacy.audit_report import POWER, SelfAuditReport
from federation.privacy.engine import SubjectOptimizer
from federation.privacy.plan import make_plan
from federation.privacy.self_audit import SelfAudit
from federation.training import initial_weights, train_locally
from tests.federation.classification import bright_and_dark, classification
from tests.federation.privacy.planted_faults import (
    CORRECT,
    FAULTS,
    REGIMES,
    TABLE,
    Halved,
    RealSubjectsUnclipped,
    row_of,
)
from tests.federation.privacy.randomness import SeededRandomness


@pytest.fixture(scope="module")
def committed() -> list[str]:
    return TABLE.read_text().splitlines()


@pytest.mark.slow
def test_the_engine_as_it_ships_is_never_rejected(committed):
    row = row_of(CORRECT)
    assert row.rejected == (0,) * len(REGIMES)
    assert row.sure, "a regime is too short for a verdict"
    assert row.bounds == 0
    assert row.text in committed


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_rejected_in_nine_of_ten_runs(name, committed):
    row = row_of(name)
    assert min(row.rejected) >= 9
    assert row.text in committed


@pytest.mark.slow
def test_bounds_alone_would_pass_half_of_the_noise(committed):
    assert any(line.startswith("| noise halved") and "| 0 of 30 |" in line for line in committed)


class TestThroughTrainLocally:
    """The same audit beside the trainer that sites run, on a real network and images."""

    @pytest.fixture
    def report(self, tmp_path, monkeypatch):
        subjects = bright_and_dark(tmp_path, 12)

        def audited(optimizer=SubjectOptimizer, noise=SeededRandomness) -> SelfAuditReport:
            monkeypatch.setattr("federation.steps.SubjectOptimizer", optimizer)
            values = classification().model_dump(mode="json")
            values["algorithm"] |= {"steps_per_round": 40}
            values["privacy"] |= {"sampling_rate": 0.25, "expected_batch": 3, "clip_norm": 0.1}
            experiment = Experiment.model_validate(values)
            plan = make_plan(experiment)
            audit = SelfAudit.begin(plan, SeededRandomness(1), num_subjects=12)
            train_locally(
                experiment,
                plan,
                initial_weights(experiment),
                subjects,
                randomness=noise(2),
                on_failure=pytest.fail,
                audit=audit,
            )
            return audit.report()

        return audited

    def test_the_engine_as_it_ships_passes_with_power_for_both_faults(self, report):
        found = report()
        assert found.violations == ()
        assert {f.about: f.power >= POWER for f in found.faults}["subjects"]
        assert {f.name: f.power for f in found.faults}["part by which all noise is too small"] > 0.9

    def test_real_subjects_that_are_not_clipped_are_a_violation(self, report):
        found = report(optimizer=RealSubjectsUnclipped)
        assert [t.name for t in found.violations] == ["subject contributions: clip norm"]

    def test_noise_that_is_halved_is_a_violation(self, report):
        names = [t.name for t in report(noise=Halved).violations]
        assert {"canary noise: variance", "tensor noise: variance"} <= set(names)
