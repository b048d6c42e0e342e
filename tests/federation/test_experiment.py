import pytest
from pydantic import ValidationError

from federation.configs_folder import config_path
from federation.experiment import Experiment, load_experiment
from tests.experiments import demo_values


def test_the_digest_is_the_same_with_defaults_written_out_and_in_any_key_order():
    values = demo_values()
    written = Experiment.model_validate(values).model_dump(mode="json")
    assert Experiment.model_validate(dict(reversed(written.items()))).digest() == (
        Experiment.model_validate(values).digest()
    )


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("privacy", "epsilon", 7.9),
        ("privacy", "clip_norm", 2.0),
        ("algorithm", "rounds", 13),
        ("algorithm", "min_sites", 2),
        ("input", "cap", 3),
        ("task", "classes", ["background", "white matter", "grey matter"]),
        ("optimizer", "learning_rate", 0.4),
    ],
)
def test_every_setting_changes_the_digest(section, key, value):
    changed = demo_values()
    changed[section][key] = value
    assert (
        Experiment.model_validate(changed).digest()
        != load_experiment(config_path("demo.yaml")).digest()
    )


def test_an_experiment_is_frozen():
    experiment = load_experiment(config_path("demo.yaml"))
    with pytest.raises(ValidationError, match="frozen"):
        experiment.name = "other"


def test_a_model_of_other_dimensions_than_the_input_is_refused():
    values = demo_values()
    values["model"]["spatial_dims"] = 3
    with pytest.raises(ValidationError, match="gives 2-D images"):
        Experiment.model_validate(values)


def test_a_shape_that_the_model_cannot_halve_is_refused():
    values = demo_values()
    values["input"]["shape_yx"] = [80, 65]
    with pytest.raises(ValidationError, match="must divide by 2"):
        Experiment.model_validate(values)


@pytest.mark.parametrize("epsilon", [0, -1, float("nan"), float("inf"), 101])
def test_epsilon_out_of_range_is_refused(epsilon):
    values = demo_values()
    values["privacy"]["epsilon"] = epsilon
    with pytest.raises(ValidationError, match="epsilon"):
        Experiment.model_validate(values)


def test_every_config_that_ships_is_valid():
    for path in sorted(config_path("demo.yaml").parent.glob("*.yaml")):
        load_experiment(path)
