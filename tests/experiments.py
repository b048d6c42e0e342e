"""Experiments for tests: the demo's, cut down."""

import copy
from typing import Any

import yaml

from federation.configs_folder import config_path
from federation.experiment import Experiment

_DEMO = yaml.safe_load(config_path("demo.yaml").read_text())


def demo_values() -> dict[str, Any]:
    return copy.deepcopy(_DEMO)


def tiny_experiment(**algorithm: Any) -> Experiment:
    values = demo_values()
    values["name"] = "tiny"
    values["algorithm"] |= {"rounds": 2, "steps_per_round": 2} | algorithm
    values["privacy"] |= {"expected_batch": 2}
    return Experiment.model_validate(values)


def unprotected(experiment: Experiment) -> Experiment:
    values = experiment.model_dump(mode="json")
    privacy = values["privacy"]
    values["privacy"] = {
        "kind": "none",
        "sampling_rate": privacy["sampling_rate"],
        "expected_batch": privacy["expected_batch"],
    }
    return Experiment.model_validate(values)
