import pytest

from federation.documents import load_document, parse_document
from federation.errors import FederationError
from federation.experiment import Experiment, load_experiment
from tests.experiments import demo_values


def test_an_unknown_key_is_refused_and_the_nearest_known_one_named():
    values = demo_values()
    values["algorithm"]["round"] = values["algorithm"].pop("rounds")
    with pytest.raises(FederationError, match=r"Unknown key 'round' in 'algorithm'.*'rounds'"):
        parse_document(values, Experiment, "here")


def test_an_unknown_key_inside_a_tagged_union_is_matched_with_that_kind_only():
    values = demo_values()
    values["privacy"]["clip"] = 1.0
    with pytest.raises(FederationError, match=r"Unknown key 'clip'.*Did you mean 'clip_norm'"):
        parse_document(values, Experiment, "here")


def test_an_unknown_model_names_the_known_ones():
    values = demo_values()
    values["model"]["kind"] = "unett"
    with pytest.raises(FederationError, match=r"'model' has kind 'unett'. Did you mean 'unet'"):
        parse_document(values, Experiment, "here")


def test_a_missing_key_is_named():
    values = demo_values()
    del values["task"]
    with pytest.raises(FederationError, match="'task' is missing"):
        parse_document(values, Experiment, "here")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FederationError, match="no experiment file at"):
        load_experiment(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "name: !!python/name:os.system ''",
        "[1, 2",
        "just text",
        "",
    ],
)
def test_yaml_that_names_code_or_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(FederationError, match=r"bad\.yaml"):
        load_document(path, Experiment, "experiment")


def test_a_very_large_file_is_refused_unread(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_bytes(b"a: 1\n" * 300_000)
    with pytest.raises(FederationError, match="larger than 1,000,000 bytes"):
        load_document(path, Experiment, "experiment")


@pytest.mark.parametrize("value", ["$import os", "os.system", "monai.networks.nets.UNet"])
def test_no_value_of_a_model_spec_can_be_a_class_path(value):
    values = demo_values()
    values["model"]["_target_"] = value
    with pytest.raises(FederationError, match="Unknown key '_target_'"):
        parse_document(values, Experiment, "here")
