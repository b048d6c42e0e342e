"""A run's network, and what it says of images; examples are noise, which shows no one."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from federation.run_record import FinishedRun, example_input
from models.build import build_network, load_weights


def trained_network(run: FinishedRun) -> nn.Module:
    """Return the run's network with its weights, ready to predict on the CPU."""
    experiment = run.record.experiment
    network = build_network(experiment.model, num_classes=experiment.task.num_outputs)
    load_weights(network, run.weights)
    return network.eval()


def outputs_of(network: nn.Module, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return what a network gives for images x_BC(D)HW: logits, or values of a regression."""
    with torch.inference_mode():
        given: npt.NDArray[np.float32] = network(torch.from_numpy(images)).numpy()
    return given


__all__ = ["example_input", "outputs_of", "trained_network"]
