"""Values from a table are learned, scored and handed out in their own unit, and nothing else is."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data_adapters.digests import Names
from data_adapters.errors import DataError
from data_adapters.prepare import Record
from federation import scoring
from federation.experiment import Experiment, MeanSquaredError, SmoothL1
from federation.losses import loss_per_image
from federation.privacy.plan import make_plan
from federation.scoring import score
from federation.training import (
    initial_weights,
    predict,
    require_trainable,
    train_locally,
    value_scale,
)
from tests.experiments import demo_values, unprotected
from tests.federation.privacy.randomness import NoNoise
from tests.federation.regression import WIDTH, bars, regression, regression_values


def no_uniforms(number):
    return np.full(number, 0.5)


def test_labels_are_the_tables_values_on_the_declared_scale(tmp_path):
    dataset = bars(tmp_path, 3)
    labels = [dataset.record(index, no_uniforms).labels for index in range(3)]
    assert [label.dtype for label in labels] == [torch.float32] * 3
    # Widths of 2, 7 and 12: (width - 8) / 4.
    assert [float(label[0]) for label in labels] == [-1.5, -0.25, 1.0]


def test_a_table_of_classes_is_not_a_table_of_values(tmp_path):
    with pytest.raises(DataError, match=r"holds classes.*kind: classification"):
        bars(tmp_path, 2, names=Names((), targets=("narrow", "wide")), target=lambda _: 1.0)


def test_a_data_set_without_a_table_is_refused(tmp_path):
    dataset = bars(tmp_path, 1, target=lambda _: None)
    with pytest.raises(DataError, match=r"no table of targets.*Name one under 'targets'"):
        dataset.check(0)


class Fixed(torch.nn.Module):
    """Answers what it was given, whatever it sees."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = torch.nn.Parameter(torch.tensor(answers)[:, None])

    def forward(self, images):
        return self.answers[: len(images)]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(MeanSquaredError(), [0.25, 9.0]), (SmoothL1(), [0.125, 2.5])],
)
def test_losses_are_one_number_an_image(loss, expected):
    record = Record(torch.zeros(2, 1, 4, 4), torch.tensor([1.0, -1.0]))
    found = loss_per_image(Fixed(1.5, 2.0), [record], loss)
    assert found.shape == (2,) and found.tolist() == pytest.approx(expected)


def test_the_score_is_the_mean_absolute_error_in_the_tables_unit(tmp_path, monkeypatch):
    public = bars(tmp_path, 3)
    answers = iter([-1.5, 0.25, 0.0])

    class Oracle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            return torch.tensor([[next(answers)]])

    monkeypatch.setattr(scoring, "network_of", lambda _: Oracle())
    found = score(regression(), {"weight": np.zeros(1, np.float32)}, public)
    # Off by 0, 0.5 and 1 of 4 mm each.
    assert found == {"mae": pytest.approx((0 + 2 + 4) / 3), "num_subjects": 3.0}


@pytest.mark.parametrize("loss", ["smooth_l1", "mean_squared_error"])
def test_a_value_is_learned_without_privacy_and_on_the_private_path(tmp_path, loss):
    """The private path without its noise, which a dozen subjects would drown in."""
    experiment = regression(loss={"kind": loss})
    require_trainable(experiment)
    dataset, public = bars(tmp_path, 16), bars(tmp_path / "public", 13)
    weights = initial_weights(experiment)
    before = score(experiment, weights, public)["mae"]
    # Whoever always says the middle is off by 3.2 mm.
    assert before > 2.5
    for tried in (experiment, unprotected(experiment)):
        update = train_locally(
            tried,
            make_plan(tried),
            weights,
            dataset,
            randomness=NoNoise(0),
            on_failure=pytest.fail,
        )
        after = {name: weights[name] + update[name] for name in weights}
        assert score(experiment, after, public)["mae"] < 1.2


def test_predictions_are_in_the_tables_unit():
    experiment = regression()
    weights = initial_weights(experiment)
    images = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = predict(experiment, weights, images)
    assert found.shape == (3,) and found.dtype == np.float64
    moved = regression(task=WIDTH | {"offset": 108.0})
    np.testing.assert_allclose(predict(moved, weights, images), found + 100, rtol=1e-6)


def test_scale_and_offset_are_part_of_what_is_approved():
    assert regression().digest() != regression(task=WIDTH | {"scale": 5.0}).digest()
    scale = value_scale(regression().task)
    assert (scale.offset, scale.scale) == (8.0, 4.0)


def test_the_usual_loss_is_taken_where_none_is_given():
    values = regression_values()
    del values["loss"]
    assert Experiment.model_validate(values).loss == SmoothL1()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"kind": "cross_entropy"}}, "use smooth_l1 or mean_squared_error"),
        ({"model": demo_values()["model"]}, "does not fit a task of regression; use densenet"),
        ({"task": WIDTH | {"scale": 0.0}}, "greater than 0"),
        ({"task": WIDTH | {"offset": float("nan")}}, "finite number"),
        ({"task": WIDTH | {"classes": ["a", "b"]}}, "Extra inputs"),
        ({"task": {"kind": "regression", "value": "width"}}, "Field required"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        regression(**changes)


def test_a_loss_of_values_fits_no_other_task():
    values = demo_values() | {"loss": {"kind": "smooth_l1"}}
    with pytest.raises(ValidationError, match="does not fit a task of segmentation; use dice_ce"):
        Experiment.model_validate(values)


def test_patches_of_values_have_no_foreground():
    patches = {"kind": "patches", "shape_zyx": [1, 16, 16], "spacing_mm_zyx": [1, 1, 1]}
    with pytest.raises(ValidationError, match="foreground needs labelled voxels"):
        regression(input=patches | {"foreground": 0.5})
    assert regression(input=patches).input.foreground == 0
