"""A tiny data set for classification: radiographs that differ in how they are textured."""

import numpy as np

from data_adapters.digests import Names
from data_adapters.inputs import SliceInput
from data_adapters.subjects import SubjectDataset
from federation.experiment import Experiment
from tests.data_adapters.scans import manifest_of, put
from tests.experiments import demo_values

FINDINGS = Names((), targets=("normal", "pneumonia"))
AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]


def classification() -> Experiment:
    values = demo_values()
    values["task"] = {"kind": "classification", "classes": list(FINDINGS.targets)}
    values["input"] = {"kind": "slices", "shape_yx": [16, 16], "spacing_mm_yx": [1, 1], "cap": 1}
    values["model"] = {"kind": "densenet", "spatial_dims": 2, "block_layers": [1], "growth": 8}
    values["loss"] = {"kind": "cross_entropy"}
    values["algorithm"] |= {"rounds": 1, "steps_per_round": 15}
    values["privacy"] |= {"sampling_rate": 0.9, "expected_batch": 10}
    return Experiment.model_validate(values)


def bright_and_dark(cache, num_subjects) -> SubjectDataset:
    """Half the subjects have a bright spot on one side and half on the other."""
    random, entries = np.random.default_rng(num_subjects), []
    for number in range(num_subjects):
        image = random.integers(0, 60, (1, 16, 16)).astype(np.uint8)
        image[0, 4:12, 2 : 6 if number % 2 else 14] += 150
        facts = {"names": FINDINGS, "planar": True, "target": float(number % 2)}
        entries.append(put(cache, f"{number:02d}", image, AFFINE, **facts))
    inputs = SliceInput(shape_yx=(16, 16), spacing_mm_yx=(1, 1), cap=1)
    manifest = manifest_of(entries, FINDINGS)
    return SubjectDataset(cache, manifest, inputs, FINDINGS.targets, learns="targets")
