import numpy as np
import pytest
import torch

from data_adapters.errors import DataError
from data_adapters.prepare import to_device
from data_adapters.subjects import SubjectDataset
from federation.experiment import CrossEntropy, DiceCrossEntropy, Experiment, ForegroundDice
from federation.privacy.plan import make_plan
from federation.privacy.random import SecureRandomness
from federation.scoring import score
from federation.training import (
    initial_weights,
    loss_per_image,
    open_dataset,
    require_data_fits,
    require_trainable,
    train_locally,
)
from models.build import build_network
from models.errors import ModelError
from tests.experiments import demo_values, tiny_experiment, unprotected
from tests.federation.classification import bright_and_dark, classification
from tests.federation.privacy.randomness import NoNoise, SeededRandomness

UNIFORMS = SeededRandomness(0).uniforms


class SubjectKeyed:
    """Sampling and slices of each subject from its own stream, so that neighbours can be compared.

    The first call of a step draws the coins; each further call draws one sampled subject's slices.
    """

    def __init__(self, num_subjects):
        self.num_subjects = num_subjects
        self.sampled = []

    def uniforms(self, count):
        if count == self.num_subjects and not self.sampled:
            self.sampled = list(range(count))
            return np.zeros(count)
        return np.random.default_rng(self.sampled.pop(0)).random(count)

    def gaussians(self, count):
        return np.zeros(count)


@pytest.fixture
def north(sites):
    return next(site for site in sites if site.name == "north-hospital")


def trained(experiment, site, randomness):
    return train_locally(
        experiment,
        make_plan(experiment),
        initial_weights(experiment),
        open_dataset(experiment, site, "protected"),
        randomness=randomness,
        on_failure=site.log_failure,
    )


def test_the_same_randomness_gives_the_same_update_and_another_one_another(north):
    updates = []
    for seed in (1, 1, 2):
        updates.append(trained(tiny_experiment(), north, SeededRandomness(seed)))
    first, again, other = updates
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert not all(np.array_equal(first[n], other[n]) for n in first)


def test_without_noise_training_lowers_the_loss(north):
    values = demo_values()
    values["algorithm"] |= {"rounds": 1, "steps_per_round": 25}
    values["privacy"] |= {"sampling_rate": 0.9, "expected_batch": 4.5}
    experiment = Experiment.model_validate(values)
    weights = initial_weights(experiment)
    update = trained(experiment, north, NoNoise(0))
    public = open_dataset(experiment, north, "public")
    after = {name: weights[name] + update[name] for name in weights}
    assert (
        score(experiment, after, public)["dice"] > score(experiment, weights, public)["dice"] + 0.1
    )


@pytest.mark.parametrize(
    "loss", [DiceCrossEntropy(), ForegroundDice(), CrossEntropy()], ids=lambda v: v.kind
)
def test_batched_and_one_by_one_losses_agree(north, loss):
    experiment = tiny_experiment()
    dataset = open_dataset(experiment, north, "protected")
    network = build_network(experiment.model, num_classes=3)
    records = [dataset.record(i, UNIFORMS) for i in range(3)]
    together = loss_per_image(network, records, loss)
    apart = torch.cat([loss_per_image(network, [record], loss) for record in records])
    assert torch.allclose(together, apart, atol=1e-5)


def test_batch_norm_never_reaches_training_under_privacy():
    values = demo_values()
    values["model"]["norm"] = "batch"
    with pytest.raises(ModelError, match="BatchNorm"):
        initial_weights(Experiment.model_validate(values))
    initial_weights(unprotected(Experiment.model_validate(values)))


def test_what_no_noised_step_touched_comes_back_as_exactly_zero(north, monkeypatch):
    import federation.training as training

    make = training.build_network

    def partly_frozen(*arguments, **named):
        network = make(*arguments, **named)
        next(network.parameters()).requires_grad_(False)
        return network

    monkeypatch.setattr(training, "build_network", partly_frozen)
    update = trained(tiny_experiment(), north, SeededRandomness(0))
    first, *others = update.values()
    assert not first.any() and all(other.any() for other in others)


def test_a_grid_far_larger_than_the_scans_is_refused(north):
    values = demo_values()
    values["input"]["shape_yx"] = [512, 512]
    with pytest.raises(DataError, match=r"grid of \(512, 512\) voxels"):
        require_data_fits(Experiment.model_validate(values), north)


def test_classes_that_the_site_does_not_have_are_named(north):
    values = demo_values()
    values["task"]["classes"] = ["background", "grey matter", "tumour"]
    with pytest.raises(DataError, match=r"'tumour'.*'white matter'.*site file"):
        require_data_fits(Experiment.model_validate(values), north)


def test_classes_follow_the_experiments_order_not_the_sites(north):
    values = demo_values()
    swapped = ["background", "white matter", "grey matter"]
    usual = open_dataset(Experiment.model_validate(values), north, "public").scans(0)[0].labels
    values["task"]["classes"] = swapped
    other = open_dataset(Experiment.model_validate(values), north, "public").scans(0)[0].labels
    assert torch.equal(usual == 1, other == 2) and torch.equal(usual == 2, other == 1)


def test_a_record_is_at_most_cap_images_of_one_subject(north):
    experiment = tiny_experiment()
    dataset = open_dataset(experiment, north, "protected")
    for index in range(len(dataset)):
        record = dataset.record(index, UNIFORMS)
        assert record.images.shape == (2, 1, 80, 64)
        assert record.labels.shape == (2, 80, 64)


def test_one_subject_more_moves_a_steps_sum_by_at_most_the_clip_norm(north, monkeypatch):
    """The whole training path, with and without the last subject, same slices for the others."""
    values = demo_values()
    values["algorithm"] |= {"rounds": 1, "steps_per_round": 1}
    values["optimizer"]["learning_rate"] = 1.0
    experiment = Experiment.model_validate(values)
    plan, sums = make_plan(experiment), []
    for num_subjects in (5, 4):
        monkeypatch.setattr(SubjectDataset, "__len__", lambda _, n=num_subjects: n)
        update = trained(experiment, north, SubjectKeyed(num_subjects))
        sums.append(np.concatenate([-u.ravel() for u in update.values()]) * plan.expected_batch)
    moved = np.linalg.norm(sums[0] - sums[1])
    assert 0.5 * plan.clip_norm < moved <= plan.clip_norm * (1 + 1e-4)


def test_every_round_draws_slices_afresh_whatever_reseeds_the_global_generator(north, monkeypatch):
    drawn = []
    record = SubjectDataset.record

    def watched(self, index, uniforms):
        torch.manual_seed(0)
        found = record(self, index, uniforms)
        drawn.append((index, found.images.sum().item()))
        return found

    monkeypatch.setattr(SubjectDataset, "record", watched)
    values = demo_values()
    values["privacy"]["sampling_rate"] = 0.9
    for _ in range(6):
        trained(Experiment.model_validate(values), north, SecureRandomness())
    assert len(set(drawn)) > 3 * len({index for index, _ in drawn})


def test_a_subject_that_cannot_be_prepared_counts_as_zero_and_nothing_outside_tells(
    north, monkeypatch
):
    whole = trained(tiny_experiment(), north, NoNoise(3))
    record = SubjectDataset.record

    def fails(self, index, uniforms):
        found = record(self, index, uniforms)
        if index == 0:
            raise DataError("scan of JANE DOE is too small")
        return found

    monkeypatch.setattr(SubjectDataset, "record", fails)
    without = trained(tiny_experiment(), north, NoNoise(3))
    assert whole.keys() == without.keys()
    assert "counts as zero" in north.log_path.read_text()


def test_a_network_that_cannot_run_on_the_input_is_found_before_anybody_pays():
    values = demo_values()
    values["input"]["shape_yx"] = [2, 2]
    with pytest.raises(ModelError, match=r"cannot be trained on images of \(2, 2\) voxels"):
        require_trainable(Experiment.model_validate(values))


# Patches and tables


def patches(**changes):
    """The demo's task on three-dimensional patches."""
    values = demo_values()
    values["input"] = {
        "kind": "patches",
        "shape_zyx": [8, 16, 16],
        "spacing_mm_zyx": [3.0, 2.75, 2.75],
        "cap": 2,
    } | changes
    values["model"] |= {"spatial_dims": 3, "channels": [4, 8]}
    values["algorithm"] |= {"rounds": 1, "steps_per_round": 2}
    return Experiment.model_validate(values)


@pytest.mark.parametrize("changes", [{}, {"foreground": 0.5}, {"aligned": True}], ids=str)
def test_patches_train_and_score_like_any_input(north, changes):
    experiment = patches(**changes)
    require_trainable(experiment)
    require_data_fits(experiment, north)
    update = trained(experiment, north, SeededRandomness(0))
    assert any(array.any() for array in update.values())
    public = open_dataset(experiment, north, "public")
    assert 0 <= score(experiment, initial_weights(experiment), public)["dice"] <= 1


def test_one_subject_more_moves_a_sum_over_patches_by_at_most_the_clip_norm(north, monkeypatch):
    values = patches().model_dump(mode="json")
    values["algorithm"] |= {"steps_per_round": 1}
    values["optimizer"]["learning_rate"] = 1.0
    experiment = Experiment.model_validate(values)
    plan, sums = make_plan(experiment), []
    for num_subjects in (5, 4):
        monkeypatch.setattr(SubjectDataset, "__len__", lambda _, n=num_subjects: n)
        update = trained(experiment, north, SubjectKeyed(num_subjects))
        sums.append(np.concatenate([-u.ravel() for u in update.values()]) * plan.expected_batch)
    moved = np.linalg.norm(sums[0] - sums[1])
    assert 0.5 * plan.clip_norm < moved <= plan.clip_norm * (1 + 1e-4)


def test_subjects_without_consent_are_not_sampled(north, monkeypatch):
    everybody = open_dataset(tiny_experiment(), north, "protected").subjects
    monkeypatch.setattr(type(north), "left_out", lambda *_: frozenset(everybody[:2]))
    assert open_dataset(tiny_experiment(), north, "protected").subjects == everybody[2:]


def test_a_classifier_learns_a_table_under_privacy_and_without(tmp_path):
    experiment = classification()
    require_trainable(experiment)
    dataset, public = bright_and_dark(tmp_path, 12), bright_and_dark(tmp_path / "public", 6)
    weights = initial_weights(experiment)
    for plan in (make_plan(experiment), make_plan(unprotected(experiment))):
        update = train_locally(
            experiment if plan.is_private else unprotected(experiment),
            plan,
            weights,
            dataset,
            randomness=NoNoise(0),
            on_failure=pytest.fail,
        )
        after = {name: weights[name] + update[name] for name in weights}
        assert score(experiment, after, public)["auc"] == 1.0


def test_records_stay_where_they_are_on_a_cpu():
    tensor = torch.zeros(3)
    assert to_device(tensor, torch.device("cpu")) is tensor


def test_records_go_to_a_gpu_through_pinned_memory_beside_running_kernels(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda one: calls.append("pinned") or one)
    monkeypatch.setattr(torch.Tensor, "to", lambda one, *a, **k: calls.append((a, k)) or one)
    to_device(torch.zeros(3), torch.device("cuda"))
    assert calls == ["pinned", ((torch.device("cuda"),), {"non_blocking": True})]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_record_on_a_gpu_is_the_same_record():
    tensor = torch.arange(3.0)
    moved = to_device(tensor, torch.device("cuda"))
    assert moved.is_cuda and torch.equal(moved.cpu(), tensor)
