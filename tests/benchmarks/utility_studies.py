"""What is trained in the table of utility: two data sets, and variants of settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federation.demo.hippocampus import lay_out_hippocampus
from federation.demo.pneumonia import lay_out_pneumonia

NUM_SITES = 3


@dataclass(frozen=True)
class Study:
    """A published data set and its two experiments.

    Args:
        lay_out: Writes sites from (data, folder, whether one site holds everything).
        learning_rates: By epsilon, in place of the private experiment's, which is tuned for
            epsilon 8: more noise wants smaller steps.
        variants: By name, what is changed of the experiments.
    """

    name: str
    title: str
    config: str
    private_config: str
    lay_out: Callable[[Path, Path, bool], object]
    learning_rates: Mapping[float, float] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _pneumonia(data: Path, out: Path, pooled: bool) -> None:
    lay_out_pneumonia(data, out, num_sites=1 if pooled else NUM_SITES, allow_unprotected=True)


def _hippocampus(data: Path, out: Path, pooled: bool) -> None:
    lay_out_hippocampus(data, out, pooled=pooled, allow_unprotected=True)


_VARIANTS = {
    # No flips: a chest has its heart on one side.
    "augmentation": {"augment": {"copies": 4, "shift_voxels": 2, "intensity": 0.1}},
    "weight standardisation": {"model": {"weight_standardisation": True}},
    # The floor is about the variance of the noise in a gradient, and the learning rate such that
    # the largest steps are near those of the study's own.
    "dp_adam": {"optimizer": {"kind": "dp_adam", "learning_rate": 0.005, "floor": 5e-5}},
}

STUDIES = {
    study.name: study
    for study in (
        Study(
            "pneumonia",
            "PneumoniaMNIST",
            "pneumonia",
            "pneumonia-private",
            _pneumonia,
            learning_rates={1.0: 0.5},
            variants=_VARIANTS,
        ),
        Study(
            "hippocampus",
            "Hippocampus at 2 mm",
            "hippocampus-coarse",
            "hippocampus-coarse-private",
            _hippocampus,
        ),
    )
}
