import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

import federation.scoring as scoring
from data_adapters.prepare import Record
from federation.experiment import Experiment
from federation.scoring import score
from federation.training import initial_weights, network_of, open_dataset
from tests.experiments import demo_values, tiny_experiment
from tests.federation.classification import bright_and_dark, classification


@pytest.fixture
def north(sites):
    return next(site for site in sites if site.name == "north-hospital")


def test_scores_of_a_perfect_and_of_an_empty_prediction(north, monkeypatch):
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
        monkeypatch.setattr(scoring, "network_of", lambda _, a=answer: Oracle(a))
        assert score(experiment, {"weight": np.zeros(1, np.float32)}, public)["dice"] == expected


def test_a_class_that_no_public_subject_shows_has_no_score(north, monkeypatch):
    experiment = tiny_experiment()
    monkeypatch.setattr(scoring, "_scan_dice", lambda *_: np.array([0.5, np.nan]))
    public = open_dataset(experiment, north, "public")
    found = score(experiment, initial_weights(experiment), public)
    assert found == {"dice": 0.5, "dice/grey matter": 0.5, "num_subjects": 2.0}


def test_dice_of_a_scan_is_monais_over_its_images_side_by_side(north):
    experiment = tiny_experiment()
    network = network_of(experiment).eval()
    record = open_dataset(experiment, north, "public").scans(0)[0]
    with torch.no_grad():
        predicted = network(record.images).argmax(1)
        found = scoring._scan_dice(network, [record])

    def volume(classes):
        return torch.nn.functional.one_hot(classes.long(), 3).movedim(-1, 0)[None]

    expected = compute_dice(volume(predicted), volume(record.labels), include_background=False)
    np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-6)


def test_a_scan_seen_in_parts_scores_as_the_whole_and_padding_does_not_count(north):
    experiment = tiny_experiment()
    network = network_of(experiment).eval()
    record = open_dataset(experiment, north, "public").scans(0)[0]
    parts = [
        Record(record.images[i : i + 4], record.labels[i : i + 4])
        for i in range(0, len(record.images), 4)
    ]
    again = Record(record.images, record.labels, torch.zeros_like(record.labels, dtype=torch.bool))
    with torch.no_grad():
        whole = scoring._scan_dice(network, [record])
        np.testing.assert_array_equal(scoring._scan_dice(network, [*parts, again]), whole)


def test_scores_of_coded_classes_are_named_by_what_they_mean(north):
    values = demo_values()
    values["task"]["meanings"] = {"grey matter": "cortex"}
    experiment = Experiment.model_validate(values)
    public = open_dataset(experiment, north, "public")
    assert "dice/cortex" in score(experiment, initial_weights(experiment), public)


def test_accuracy_and_area_of_a_classifier(tmp_path, monkeypatch):
    public = bright_and_dark(tmp_path, 4)
    answers = iter([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])

    class Oracle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            return torch.tensor([next(answers)]).log()

    monkeypatch.setattr(scoring, "network_of", lambda _: Oracle())
    found = score(classification(), {"weight": np.zeros(1, np.float32)}, public)
    # Truth is 0, 1, 0, 1: two answers are right, and 3 of the 4 pairs are in order.
    assert found == {"accuracy": 0.5, "auc": 0.75, "num_subjects": 4.0}


def test_the_area_of_several_classes_is_the_mean_of_one_against_the_rest():
    probabilities = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    assert scoring._auc(probabilities, torch.tensor([0, 1, 2, 0])) == {"auc": 1.0}
    assert scoring._auc(probabilities, torch.tensor([1, 1, 1, 1])) == {}
