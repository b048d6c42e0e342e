"""The utility table works, at sizes that say nothing about utility; and it goes on where it was."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from federation import steps
from federation.privacy.plan import make_plan
from tests.benchmarks import utility
from tests.benchmarks.utility_report import cells, section, tried
from tests.benchmarks.utility_runs import (
    DECAYS,
    Job,
    Outcome,
    average,
    gradients_computed,
    jobs,
    models_of_rounds,
    unspent,
)
from tests.benchmarks.utility_studies import STUDIES
from tests.experiments import tiny_experiment
from tests.federation.demo.test_pneumonia import write_npz

LEVELS = (None, 8.0, 3.0, 1.0)


def every_job(study: str) -> list[Job]:
    return list(
        jobs(study, arrangements=("centralised", "federated", "local"), levels=LEVELS, num_seeds=3)
    )


def outcome(score: float, **job: object) -> Outcome:
    whole = Job("pneumonia", "federated", None, 8.0, 0)
    return Outcome(replace(whole, **job), "sha256:0", score, 516, 1.0)


@pytest.mark.slow
def test_a_tiny_table_is_computed_once_and_written_down(tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    data = write_npz(tmp_path / "published.npz", 24, 12)
    (tmp_path / "docs").mkdir()
    asked = [
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--report",
        str(tmp_path / "docs"),
    ]
    asked += ["--seeds", "1", "--rounds", "1", "--levels", "none", "8", "--processes", "1"]
    asked += ["--arrangements", "centralised", "federated"]
    utility.main(asked)
    lines = (tmp_path / "out" / utility.RESULTS).read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [one["num_scored"] for one in found] == [12] * 4
    assert all(0 <= one["score"] <= 1 for one in found)
    document = json.loads((tmp_path / "docs" / "utility.json").read_text())
    assert len(document["runs"]) == len(document["sections"][0]["records"]) == 4
    assert {one["job"]["gradients"] for one in [*found, *document["runs"]]} == {"one-by-one"}
    federated = [one for one in found if one["job"]["arrangement"] == "federated"]
    # Of one round, every average is that round's model.
    assert all(set(one["averaged"].values()) == {one["score"]} for one in federated)
    picture = (tmp_path / "docs" / "utility.svg").read_text()
    assert "epsilon 8" in picture
    assert "gradients under privacy: one-by-one" in picture
    capsys.readouterr()
    utility.main(asked)
    assert (tmp_path / "out" / utility.RESULTS).read_text().splitlines() == lines
    shown = capsys.readouterr().out
    elsewhere = [
        str(tmp_path / "elsewhere") if one == str(tmp_path / "out") else one for one in asked
    ]
    utility.main([*elsewhere, "--known", str(tmp_path / "docs" / "utility.json")])
    assert not (tmp_path / "elsewhere" / utility.RESULTS).exists()
    assert "PneumoniaMNIST: AUC" in shown
    assert "one subject at a time, as shipped" in shown
    assert "what else was tried" in shown


@pytest.mark.parametrize("study", STUDIES)
def test_every_run_of_a_study_has_its_own_settings_and_a_plan(study: str) -> None:
    every = every_job(study)
    assert len(every) == len(set(every)) == 3 * 4 * (1 + 1 + 3)
    federated, pooled = (
        Job(study, arrangement, None, 8.0, 1).experiment()
        for arrangement in ("federated", "centralised")
    )
    assert pooled.privacy.expected_batch == 3 * federated.privacy.expected_batch
    assert pooled.privacy.sampling_rate == federated.privacy.sampling_rate
    assert (federated.algorithm.min_sites, pooled.algorithm.min_sites) == (3, 1)
    assert make_plan(federated).noise_multiplier == make_plan(pooled).noise_multiplier > 0
    by_epsilon = [
        make_plan(Job(study, "federated", None, level, 0).experiment()).noise_multiplier
        for level in LEVELS
    ]
    assert by_epsilon == sorted(by_epsilon)
    assert by_epsilon[0] == 0
    assert by_epsilon[-1] > 0


def test_more_noise_gets_the_smaller_steps_that_were_chosen_for_it() -> None:
    rates = [
        Job("pneumonia", "federated", None, level, 0).experiment().optimizer.learning_rate
        for level in (8.0, 3.0, 1.0)
    ]
    assert rates == [1.0, 1.0, 0.5]


def test_an_outcome_survives_its_file_and_a_line_cut_short_is_passed_over(tmp_path: Path) -> None:
    one = outcome(0.9, arrangement="local", site=2, epsilon=None)
    text = json.dumps(one.to_json())
    (tmp_path / "results.jsonl").write_text(f"{text}\n{text[:40]}\n")
    assert utility.read(tmp_path / "results.jsonl") == [one]
    assert utility.read(tmp_path / "absent.jsonl") == []


def test_a_line_from_before_gradients_were_written_counts_as_batched() -> None:
    values = outcome(0.9).to_json()
    assert Outcome.from_json(values).job.gradients == "one-by-one"
    del values["job"]["gradients"]
    assert Outcome.from_json(values).job.gradients == "batched"


@pytest.mark.parametrize("study", STUDIES)
def test_what_ships_is_measured_unless_the_batched_way_is_asked_for(study: str) -> None:
    asks = ["--data", "d", "--out", "o", "--data-set", study]
    assert {job.gradients for job in utility._wanted(utility._arguments(asks))} == {"one-by-one"}
    asked = utility._arguments([*asks, "--gradients", "batched"])
    ways = {(job.epsilon is None, job.gradients) for job in utility._wanted(asked)}
    assert ways == {(True, "one-by-one"), (False, "batched")}
    one = outcome(0.9, study=study).job
    assert not utility._is_reported(one, asked)
    assert utility._is_reported(replace(one, gradients="batched"), asked)
    assert utility._is_reported(replace(one, epsilon=None), asked)
    # The other study's runs in the same file are reported as they ship.
    (other,) = STUDIES.keys() - {study}
    assert utility._is_reported(replace(one, study=other), asked)


def test_without_privacy_there_is_one_way_whatever_was_written() -> None:
    values = outcome(0.9, epsilon=None, gradients="batched").to_json()
    assert Outcome.from_json(values).job.gradients == "one-by-one"


@pytest.mark.parametrize("variant", STUDIES["pneumonia"].variants)
def test_a_variant_is_the_study_with_what_it_names_changed(variant: str) -> None:
    usual = Job("pneumonia", "federated", None, 8.0, 0)
    changed = replace(usual, variant=variant)
    before, after = usual.experiment(), changed.experiment()
    (key,) = STUDIES["pneumonia"].variants[variant]
    assert getattr(before, key) != getattr(after, key)
    assert before.model_copy(update={key: getattr(after, key)}) == after
    assert make_plan(before) == make_plan(after)
    assert variant in str(changed)


def test_what_was_tried_is_in_a_table_of_its_own() -> None:
    base = [replace(outcome(0.9), averaged={f"{d:g}": 0.91 for d in DECAYS})]
    shifted = outcome(0.95, variant="augmentation")
    (cell,) = cells([*base, shifted])
    assert cell.scores == (0.9,)
    rows = dict(tried("pneumonia", [*base, shifted]).lines)
    assert rows["as in the table above"] == "0.900 (1)"
    assert rows["augmentation"] == "0.950 (1)"
    assert rows["the same runs, ema_decay 0.5"] == "0.910 (1)"
    assert not tried("pneumonia", [outcome(0.9)]).lines


def test_a_runs_averages_are_what_the_same_run_with_ema_decay_keeps(sites, tmp_path: Path) -> None:
    from federation.run import approve, run_experiment

    experiment = tiny_experiment(ema_decay=0.5)
    approve(experiment, sites, approver="test")
    kept = run_experiment(experiment, sites, out=tmp_path / "out").weights
    found = average(models_of_rounds(experiment, sites), 0.5)
    assert all(np.array_equal(kept[name], found[name]) for name in kept)


def test_the_shipped_gradients_are_back_after_a_batched_run() -> None:
    shipped = steps.gradients_of
    with gradients_computed("one-by-one"):
        assert steps.gradients_of is shipped
    with pytest.raises(KeyError), gradients_computed("batched"):
        assert steps.gradients_of is not shipped
        raise KeyError
    assert steps.gradients_of is shipped


def test_the_table_says_how_gradients_under_privacy_were_computed() -> None:
    (*_, note) = section("pneumonia", [outcome(0.9, gradients="batched")]).notes
    assert note.startswith("gradients under privacy: batched, not as shipped")
    (*_, note) = section("pneumonia", [outcome(0.9)]).notes
    assert note == "gradients under privacy: one subject at a time, as shipped"
    notes = section("pneumonia", [outcome(0.9, epsilon=None)]).notes
    assert not any("gradients" in note for note in notes)


def test_a_run_with_other_settings_is_not_taken_for_this_one() -> None:
    job = Job("pneumonia", "federated", None, 8.0, 0)
    assert Outcome(job, job.experiment().digest(), 0.9, 516, 1.0).is_current
    assert not Outcome(job, replace(job, rounds=1).experiment().digest(), 0.9, 516, 1.0).is_current


def test_local_training_is_averaged_over_sites_first_and_then_over_seeds() -> None:
    local = [
        outcome(score, arrangement="local", site=site, seed=seed)
        for seed, scores in enumerate(([0.6, 0.7, 0.8], [0.8, 0.9, 1.0], [0.1, 0.1]))
        for site, score in enumerate(scores)
    ]
    (cell,) = cells(local)
    assert cell.scores == pytest.approx((0.7, 0.9))
    assert cell.mean == pytest.approx(0.8)
    assert cell.deviation == pytest.approx(np.std([0.7, 0.9], ddof=1))


def test_the_table_goes_from_no_privacy_to_most_and_shows_what_is_missing() -> None:
    found = [
        outcome(0.9),
        outcome(0.8, epsilon=1.0),
        outcome(0.99, arrangement="centralised", epsilon=None),
    ]
    table = section("pneumonia", found)
    assert table.columns == ("", "no privacy", "epsilon 8", "epsilon 1")
    assert [line[1:] for line in table.lines] == [
        ("0.990 (1)", "-", "-"),
        ("-", "0.900 (1)", "0.800 (1)"),
    ]


def test_a_run_starts_from_an_unspent_ledger_and_leaves_the_site_alone(
    federation: Path, tmp_path: Path
) -> None:
    from federation.run import approve, open_sites, quote

    site_file = federation / "north-hospital" / "site.yaml"
    ledger = site_file.parent / "state" / "ledger.jsonl"
    before = ledger.read_bytes()
    copies = open_sites([unspent(site_file, tmp_path / "copies")])
    (offer,) = quote(tiny_experiment(), copies)
    assert offer.spent == 0
    approve(tiny_experiment(), copies, approver="test")
    assert ledger.read_bytes() == before
    assert len(copies[0].ledger.approvals) == 1
