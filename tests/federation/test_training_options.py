"""What an experiment can ask of a step beyond plain SGD, and what no step may do."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from federation import steps
from federation.configs_folder import config_path
from federation.experiment import Experiment, load_experiment
from federation.privacy.plan import make_plan
from federation.privacy.self_audit import SelfAudit
from federation.steps import LocalWork, make_optimizer
from federation.training import initial_weights, network_of, require_trainable, train_locally
from models.errors import ModelError
from tests.experiments import demo_values, tiny_experiment, unprotected
from tests.federation.classification import bright_and_dark, classification
from tests.federation.privacy.randomness import NoNoise, SeededRandomness

# Written down before any of the settings below existed.
DIGESTS = {
    "demo": "f8b2d0714cb2c470691fc24072e74c92655d0e3ca5c7b6b225641e779c7b6366",
    "hippocampus": "bf36f1145448fbb42c2d950d64ab561b54441f6137174e88f88b06b14e61fedb",
    "hippocampus-private": "347768e892aae088d41999a2b71727bd145bd2209da0d3290354c52a7c734770",
}
EVERYTHING_NEW = {
    "optimizer": {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "augment": {"copies": 2, "flips": ["x"], "shift_voxels": 1, "intensity": 0.1},
    "trainable": "head",
}


@pytest.fixture
def subjects(tmp_path):
    return bright_and_dark(tmp_path, 12)


def changed(**changes):
    return Experiment.model_validate(classification().model_dump(mode="json") | changes)


def run(experiment, dataset, randomness, **named):
    return train_locally(
        experiment,
        make_plan(experiment),
        initial_weights(experiment),
        dataset,
        randomness=randomness,
        **({"on_failure": pytest.fail} | named),
    )


def flat(update):
    return np.concatenate([np.ravel(array) for array in update.values()])


@pytest.mark.parametrize("name", DIGESTS)
def test_experiments_from_before_these_settings_keep_their_digests(name):
    experiment = load_experiment(config_path(f"{name}.yaml"))
    assert experiment.digest() == f"sha256:{DIGESTS[name]}"


def test_each_new_setting_changes_the_digest_and_survives_a_trip_as_json():
    before = tiny_experiment()
    digests = {before.digest()}
    for key, value in EVERYTHING_NEW.items():
        after = Experiment.model_validate(before.model_dump(mode="json") | {key: value})
        assert Experiment.model_validate(after.model_dump(mode="json")) == after
        digests.add(after.digest())
    assert len(digests) == 1 + len(EVERYTHING_NEW)


def test_an_average_of_rounds_is_part_of_the_digest_and_costs_nothing():
    averaged = tiny_experiment(ema_decay=0.5)
    assert averaged.digest() != tiny_experiment().digest()
    assert make_plan(averaged) == make_plan(tiny_experiment())
    assert tiny_experiment(ema_decay=0.0).digest() == tiny_experiment().digest()
    with pytest.raises(ValidationError, match="less than 1"):
        tiny_experiment(ema_decay=1.0)


@pytest.mark.parametrize(
    "asked", [{"clip_norm": "adaptive"}, {"clip_norm": None}, {"adaptive_clip_norm": True}], ids=str
)
def test_an_adaptive_clip_norm_is_refused(asked):
    """Its count query is not built, so nobody could be charged for it."""
    values = demo_values()
    values["privacy"] |= asked
    with pytest.raises(ValidationError, match="clip_norm"):
        Experiment.model_validate(values)


def test_a_flip_along_an_axis_that_is_not_there_is_refused():
    with pytest.raises(ValidationError, match="may name y, x on this input"):
        Experiment.model_validate(demo_values() | {"augment": {"flips": ["z"]}})


@pytest.mark.parametrize(
    ("spec", "kind", "decay"),
    [
        ({"kind": "sgd", "momentum": 0.9, "weight_decay": 0.1}, "SGD", 0.1),
        ({"kind": "adam", "weight_decay": 0.2}, "Adam", 0.2),
        ({"kind": "dp_adam"}, "UnbiasedAdam", None),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_optimisers_are_made_as_the_experiment_says(spec, kind, decay):
    experiment = changed(optimizer={"learning_rate": 0.01} | spec)
    network = network_of(experiment)
    work = LocalWork(experiment, make_plan(experiment), network, NoNoise(0), pytest.fail)
    made = make_optimizer(work, work.parameters)
    assert type(made).__name__ == kind
    if decay is None:
        plan = work.plan
        expected = (plan.noise_multiplier * plan.clip_norm / plan.expected_batch) ** 2
        assert made._noise_variance == pytest.approx(expected)
    else:
        assert made.param_groups[0]["weight_decay"] == decay


def test_weight_decay_comes_after_the_clip_whatever_its_size(subjects):
    """Were it a part of a subject's loss, clipping would bound what it does."""
    spec = {"kind": "sgd", "learning_rate": 1.0, "weight_decay": 0.5}
    experiment = changed(optimizer=spec).model_copy(update={"seed": 3})
    start = initial_weights(experiment)
    plan = make_plan(experiment)
    plain = run(changed(optimizer={"kind": "sgd", "learning_rate": 1.0}), subjects, NoNoise(0))
    decayed = run(changed(optimizer=spec), subjects, NoNoise(0))
    apart = np.linalg.norm(flat(plain) - flat(decayed))
    assert apart > 2 * plan.clip_norm
    assert start.keys() == decayed.keys()


@pytest.mark.parametrize(
    ("trainable", "moves"), [("head", 2), (["class_layers"], 2), ("all", None)]
)
def test_what_is_frozen_comes_back_as_exactly_zero(subjects, trainable, moves):
    experiment = changed(trainable=trainable)
    require_trainable(experiment)
    update = run(experiment, subjects, SeededRandomness(0))
    moved = [name for name, array in update.items() if array.any()]
    assert len(moved) == (len(update) if moves is None else moves)
    if moves:
        assert all(name.startswith("class_layers.out") for name in moved)


def test_a_beginning_that_no_parameter_has_is_refused():
    with pytest.raises(ModelError, match="trainable names 'decoder'"):
        network_of(changed(trainable=["decoder"]))


def test_several_versions_of_an_image_are_one_subject_still(subjects):
    """Adding a subject with eight versions of its image moves a step no further than clipping."""
    augment = {"copies": 8, "flips": ["x"], "shift_voxels": 2, "intensity": 0.3}
    optimizer = {"kind": "sgd", "learning_rate": 1.0}
    experiment = changed(augment=augment, optimizer=optimizer, algorithm=one_step())
    plan = make_plan(experiment)
    lone = subjects.subset(subjects.subjects[:1])
    moved = [np.linalg.norm(flat(run(experiment, lone, NoNoise(seed)))) for seed in range(5)]
    bound = plan.clip_norm / plan.expected_batch
    assert 0.9 * bound < max(moved) <= bound * (1 + 1e-4)


def one_step():
    return {"kind": "fedavg", "rounds": 1, "steps_per_round": 1}


def test_without_privacy_the_same_settings_train(subjects):
    experiment = unprotected(changed(**EVERYTHING_NEW | {"optimizer": dp_adam()}))
    assert flat(run(experiment, subjects, SeededRandomness(0))).any()


def dp_adam():
    return {"kind": "dp_adam", "learning_rate": 1e-3, "floor": 1e-6, "weight_decay": 0.01}


# One subject that fails


def test_a_subject_that_fails_in_a_chunk_is_left_out_and_moves_nobody_else(subjects, monkeypatch):
    """Against the same steps over a data set in which its record is a gradient of zero."""
    experiment = changed(algorithm=one_step() | {"steps_per_round": 2})
    failed, victim, updates = [], 3, []
    honest = type(subjects).record

    for kind in ("raises", "fails in the network", "not a number"):

        def spoiled(self, index, uniforms, kind=kind):
            found = honest(self, index, uniforms)
            if index == victim and kind == "raises":
                raise RuntimeError("broken file")
            if index == victim and kind == "fails in the network":
                return type(found)(found.images.repeat(1, 2, 1, 1), found.labels)
            if index == victim:
                return type(found)(found.images * float("nan"), found.labels)
            return found

        monkeypatch.setattr(type(subjects), "record", spoiled)
        updates.append(flat(run(experiment, subjects, NoNoise(1), on_failure=failed.append)))
    assert failed and updates[0].any()
    for update in updates[1:]:
        assert np.allclose(update, updates[0], atol=1e-6)


# The audit beside it


class Sums(steps.SubjectOptimizer):
    seen: list

    def add_noise(self):
        self.seen.append([p.summed_grad.clone() for p in self.params])
        super().add_noise()


class SameCoins(NoNoise):
    """The first coins of a step do not depend on how many are tossed after them."""

    def __init__(self):
        super().__init__(0)
        self._tosses = 0

    def uniforms(self, count):
        if count >= 12:
            self._tosses += 1
            return np.random.default_rng(self._tosses).random(count)
        return np.random.default_rng(count).random(count)


def test_with_an_audit_the_real_parameters_sums_are_the_same_bit_for_bit(subjects, monkeypatch):
    experiment = changed(algorithm=one_step() | {"steps_per_round": 3})
    plan = make_plan(experiment)
    sums, updates = [], []
    monkeypatch.setattr(steps, "SubjectOptimizer", Sums)
    for audited in (False, True):
        audit = None
        if audited:
            audit = SelfAudit.begin(plan, SeededRandomness(5), num_subjects=12, num_canaries=50)
        Sums.seen = []
        updates.append(run(experiment, subjects, SameCoins(), audit=audit))
        sums.append(Sums.seen)
    assert len(sums[0]) == 3
    # After its steps an audit draws pure noise on a scratch copy.
    for without, beside in zip(sums[0], sums[1][:3], strict=True):
        *real, block = beside
        assert all(map(torch.equal, without, real)) and any(t.any() for t in real)
        assert block.any()
    assert audit.evidence().steps == 3
    assert np.array_equal(flat(updates[0]), flat(updates[1]))


@pytest.mark.parametrize("kind", ["unet", "segresnet"])
def test_the_head_is_weights_and_bias_also_where_weights_are_standardised(kind):
    values = demo_values()
    if kind == "segresnet":
        values["model"] = {"kind": "segresnet", "spatial_dims": 2}
    values["model"] |= {"weight_standardisation": True}
    values |= {"trainable": "head"}
    network = network_of(Experiment.model_validate(values))
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen
    assert any(name.endswith("bias") for name in trained)
    assert any("weight" in name for name in trained)
