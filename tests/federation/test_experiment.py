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


def classifying(**changes):
    values = demo_values()
    del values["loss"]
    values["task"] = {"kind": "classification", "classes": ["normal", "pneumonia"]}
    values["model"] = {"kind": "densenet", "spatial_dims": 2}
    return Experiment.model_validate(values | changes)


def test_classification_is_cross_entropy_unless_said_and_never_of_voxels():
    assert classifying().loss.kind == "cross_entropy"
    with pytest.raises(ValidationError, match="'dice_ce' does not fit a task of class"):
        classifying(loss={"kind": "dice_ce"})


def test_a_network_for_voxels_does_not_classify_nor_the_other_way_round():
    with pytest.raises(ValidationError, match="does not fit a task of classification"):
        classifying(model=demo_values()["model"])
    values = demo_values()
    values["model"] = {"kind": "densenet", "spatial_dims": 2}
    with pytest.raises(ValidationError, match="use unet or segresnet or dynunet"):
        Experiment.model_validate(values)


def test_patches_around_labels_need_labelled_voxels():
    patches = {
        "kind": "patches",
        "shape_zyx": [1, 64, 64],
        "spacing_mm_zyx": [1, "0.65 um", "0.65 um"],
        "foreground": 0.5,
    }
    with pytest.raises(ValidationError, match="foreground needs labelled voxels"):
        classifying(input=patches)
    found = classifying(input=patches | {"foreground": 0}).input
    assert found.spacing_mm_zyx == (1.0, 0.00065, 0.00065)


def test_a_model_has_as_many_channels_as_are_named():
    values = demo_values()
    values["input"]["channels"] = ["T1", "FLAIR"]
    with pytest.raises(ValidationError, match=r"in_channels is 1 but images have 2"):
        Experiment.model_validate(values)
    values["model"]["in_channels"] = 2
    assert Experiment.model_validate(values).input.num_channels == 2
    values["input"]["channels"] = ["T1", "T1"]
    with pytest.raises(ValidationError, match="same name"):
        Experiment.model_validate(values)


def test_coded_classes_may_be_explained_but_only_those_that_are_there():
    values = demo_values()
    values["task"] |= {
        "classes": ["background", "SCT:10200004"],
        "meanings": {"SCT:10200004": "liver"},
    }
    task = Experiment.model_validate(values).task
    assert [task.shown(name) for name in task.classes] == ["background", "liver"]
    for meanings, says in (
        ({"SCT:1": "spleen"}, "'SCT:1', which is none of the classes"),
        ({"SCT:10200004": "background"}, "same meaning"),
    ):
        values["task"]["meanings"] = meanings
        with pytest.raises(ValidationError, match=says):
            Experiment.model_validate(values)
