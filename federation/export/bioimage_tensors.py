"""What goes into a network and comes out, as the BioImage Model Zoo's format says it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from data_adapters.inputs import SliceInput
from federation.experiment import Experiment, RegressionTask
from federation.export.examples import outputs_of
from federation.export.summaries import class_names

INPUT, OUTPUT = "image", "prediction"
TEST_INPUT, TEST_OUTPUT = "test_input.npy", "test_output.npy"
# bioimageio.core 0.11 adds this whatever the description says, so it has to be this.
EPSILON = 1e-6
# Below this spacing, an axis is told in micrometres.
_FINE_MM = 0.01


def spacing_of(experiment: Experiment) -> dict[str, tuple[float, str]]:
    """Return, by axis in the order of the network's, the distance of voxels and its unit."""
    axes = ("z", "y", "x")[-experiment.input.spatial_dims :]
    given = experiment.input
    steps = given.spacing_mm_yx if isinstance(given, SliceInput) else given.spacing_mm_zyx
    spacing = steps[-len(axes) :]
    if max(spacing) < _FINE_MM:
        told = [(round(step * 1000, 9), "micrometer") for step in spacing]
    else:
        told = [(float(step), "millimeter") for step in spacing]
    return dict(zip(axes, told, strict=True))


def input_tensor(experiment: Experiment, sha256: str) -> dict[str, Any]:
    """Return the description of the images that the network takes.

    Grids may be larger than the one that it was trained on where it gives one output a voxel.
    """
    axes: list[Mapping[str, Any]] = [{"type": "batch"}]
    axes.append({"type": "channel", "id": "channel", "channel_names": _channels(experiment)})
    for number, (axis, (scale, unit)) in enumerate(spacing_of(experiment).items()):
        size = _size(experiment, experiment.input.shape[number])
        axes.append({"type": "space", "id": axis, "size": size, "scale": scale, "unit": unit})
    return {
        "id": INPUT,
        "description": "Image at the stated spacing, one value a channel and voxel.",
        "axes": axes,
        "test_tensor": {"source": TEST_INPUT, "sha256": sha256},
        "data": {"type": "float32"},
        "preprocessing": [
            {
                "id": "zero_mean_unit_variance",
                "kwargs": {"axes": list(spacing_of(experiment)), "eps": EPSILON},
            }
        ],
    }


def output_tensor(experiment: Experiment, sha256: str) -> dict[str, Any]:
    """Return the description of what the network gives: logits, or a value in its own unit."""
    task = experiment.task
    names = class_names(task) or ["value"]
    axes: list[Mapping[str, Any]] = [{"type": "batch"}]
    axes.append({"type": "channel", "id": "channel", "channel_names": names})
    if task.learns == "voxels":
        for axis, (scale, unit) in spacing_of(experiment).items():
            size = {"tensor_id": INPUT, "axis_id": axis}
            axes.append({"type": "space", "id": axis, "size": size, "scale": scale, "unit": unit})
    told: dict[str, Any] = {
        "id": OUTPUT,
        "description": _output_text(experiment),
        "axes": axes,
        "test_tensor": {"source": TEST_OUTPUT, "sha256": sha256},
        "data": {"type": "float32"},
    }
    if isinstance(task, RegressionTask):
        kwargs = {"gain": task.scale, "offset": task.offset}
        told["postprocessing"] = [{"id": "scale_linear", "kwargs": kwargs}]
    return told


def expected_output(
    experiment: Experiment, network: nn.Module, images: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return what the format's pre- and postprocessing and the network make of x_BC(D)HW."""
    given = outputs_of(network, preprocessed(images))
    if isinstance(experiment.task, RegressionTask):
        given = given * np.float32(experiment.task.scale) + np.float32(experiment.task.offset)
    return given


def preprocessed(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return x_BC(D)HW as the format's zero_mean_unit_variance has it: deviation over n.

    Training divides by the deviation over n - 1 of one scan, or over n where it reads patches, and
    by 1e-6 where that is smaller; here 1e-6 is added instead.
    """
    values = torch.from_numpy(images).double()
    axes = tuple(range(2, images.ndim))
    mean = values.mean(axes, keepdim=True)
    deviation = values.std(axes, correction=0, keepdim=True)
    scaled: npt.NDArray[np.float32] = ((values - mean) / (deviation + EPSILON)).float().numpy()
    return scaled


def _channels(experiment: Experiment) -> list[str]:
    return list(experiment.input.channels or ("image",))


def _size(experiment: Experiment, trained: int) -> int | dict[str, int]:
    if experiment.task.learns != "voxels":
        return trained
    return {"min": trained, "step": experiment.model.downsampling}


def _output_text(experiment: Experiment) -> str:
    task = experiment.task
    if isinstance(task, RegressionTask):
        return task.value[:128]
    of = "voxel" if task.learns == "voxels" else "image"
    return f"Logits of each {of}'s classes; softmax gives shares, the largest names the class."
