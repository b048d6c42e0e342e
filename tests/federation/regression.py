"""A tiny data set for regression: radiographs with a bright bar, whose width is the value."""

import numpy as np

from data_adapters.digests import Names
from data_adapters.inputs import SliceInput
from data_adapters.prepare import ValueScale
from data_adapters.subjects import SubjectDataset
from federation.experiment import Experiment
from tests.data_adapters.scans import manifest_of, put
from tests.experiments import demo_values

VALUES = Names(())
AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]
WIDTH = {"kind": "regression", "value": "width, mm", "offset": 8.0, "scale": 4.0}


def regression_values() -> dict:
    values = demo_values()
    values["name"] = "widths"
    values["task"] = dict(WIDTH)
    values["input"] = {"kind": "slices", "shape_yx": [16, 16], "spacing_mm_yx": [1, 1], "cap": 1}
    values["model"] = {"kind": "densenet", "spatial_dims": 2, "block_layers": [1], "growth": 8}
    values["loss"] = {"kind": "smooth_l1"}
    values["optimizer"] = {"kind": "adam", "learning_rate": 0.02}
    values["algorithm"] |= {"rounds": 1, "steps_per_round": 40}
    values["privacy"] |= {"sampling_rate": 0.9, "expected_batch": 16}
    return values


def regression(**changes) -> Experiment:
    return Experiment.model_validate(regression_values() | changes)


def bar(width: int, seed: int):
    """Return (1, y, x): noise and a bar of so many columns."""
    image = np.random.default_rng(seed).integers(0, 40, (1, 16, 16)).astype(np.uint8)
    image[0, :, 8 - width // 2 : 8 - width // 2 + width] += 150
    return image


def bars(cache, num_subjects, *, names=VALUES, target=float) -> SubjectDataset:
    """Return subjects with bars of 2 to 14 columns, and those numbers as their values."""
    entries = []
    for number in range(num_subjects):
        width = 2 + (number * 5) % 13
        facts = {"names": names, "planar": True, "target": target(width)}
        entries.append(put(cache, f"{number:02d}", bar(width, number), AFFINE, **facts))
    inputs = SliceInput(shape_yx=(16, 16), spacing_mm_yx=(1, 1), cap=1)
    scale = ValueScale(WIDTH["offset"], WIDTH["scale"])
    return SubjectDataset(
        cache, manifest_of(entries, names), inputs, (), learns="values", values=scale
    )
