"""Images that show no one, and what a run's model says of them."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from federation.experiment import Experiment
from federation.run_record import FinishedRun
from models.build import build_network, load_weights


def example_input(experiment: Experiment) -> npt.NDArray[np.float32]:
    """Return one image of noise, x_1CHW or x_1CDHW, normalised as the network sees images.

    Made from the experiment's seed and shape alone: no site's image has a part in it.
    """
    random = np.random.default_rng(experiment.seed)
    shape = (1, experiment.input.num_channels, *experiment.input.shape)
    return random.standard_normal(shape, dtype=np.float32)


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
