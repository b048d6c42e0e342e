import numpy as np
import pytest
import torch

from data_adapters.errors import DataError
from federation.experiment import DiceCrossEntropy, Experiment, ForegroundDice
from federation.privacy.plan import make_plan
from federation.training import (
    initial_weights,
    loss_per_image,
    open_dataset,
    require_data_fits,
    score,
    train_locally,
)
from models.build import build_network
from models.errors import ModelError
from tests.experiments import demo_values, tiny_experiment, unprotected
from tests.federation.privacy.randomness import NoNoise, SeededRandomness


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
    )


def test_the_same_randomness_gives_the_same_update_and_another_one_another(north):
    updates = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
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


@pytest.mark.parametrize("loss", [DiceCrossEntropy(), ForegroundDice()], ids=lambda v: v.kind)
def test_batched_and_one_by_one_losses_agree(north, loss):
    experiment = tiny_experiment()
    dataset = open_dataset(experiment, north, "protected")
    network = build_network(experiment.model, num_classes=3)
    records = [dataset[i] for i in range(3)]
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
        record = dataset[index]
        assert record.images.shape == (2, 1, 80, 64)
        assert record.labels.shape == (2, 80, 64)


def test_scores_of_a_perfect_and_of_an_empty_prediction(north, monkeypatch):
    import federation.training as training

    experiment = tiny_experiment()
    public = open_dataset(experiment, north, "public")
    truth = {id(r.images): r.labels for i in range(len(public)) for r in public.scans(i)}

    class Oracle(torch.nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.answer = answer

        def forward(self, images):
            labels = self.answer(images).long()
            return torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()

    for answer, expected in (
        (lambda x: truth[id(x)], 1.0),
        (lambda x: torch.zeros(len(x), *x.shape[2:]), 0.0),
    ):
        monkeypatch.setattr(training, "_network", lambda _, a=answer: Oracle(a))
        assert score(experiment, {"weight": np.zeros(1, np.float32)}, public)["dice"] == expected
