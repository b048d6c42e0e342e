"""The public weights that an experiment starts from: a file beside its own. Torch-free."""

import hashlib
from pathlib import Path

import numpy as np

from federation.errors import FederationError
from federation.experiment import Experiment
from federation.messages import Weights
from models.weights import weights_from_bytes


def read_start(experiment: Experiment, folder: Path | None) -> Weights | None:
    """Return the weights as the file has them; None where the experiment names none.

    Args:
        folder: Where the experiment's own file is.

    Raises:
        FederationError: The file is missing, not the one that the experiment means, or holds
            numbers that are not finite. ModelError: It is not safetensors of float32.
    """
    wanted = experiment.initial_weights
    if wanted is None:
        return None
    if folder is None:
        raise FederationError(
            f"'{experiment.name}' starts from {wanted.file}, which is looked for beside its file. "
            "Say where that is."
        )
    path = folder / wanted.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FederationError(
            f"{path}, which '{experiment.name}' starts from, cannot be read ({error.strerror}). "
            "Put it beside the experiment's file, or leave initial_weights out."
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != wanted.sha256:
        raise FederationError(
            f"{path} has SHA-256 {found}, and '{experiment.name}' starts from {wanted.sha256}. "
            "Get the file that was meant, or write its SHA-256 into initial_weights.sha256 (sites "
            "then approve another experiment)."
        )
    weights = weights_from_bytes(data)
    bad = next((name for name, values in weights.items() if not np.isfinite(values).all()), None)
    if bad is not None:
        raise FederationError(f"{path}: {bad!r} holds numbers that are not finite.")
    return weights


def require_start_for_head(experiment: Experiment) -> None:
    """Refuse to train a head alone on weights that were drawn.

    Raises:
        FederationError: Says what to write.
    """
    if experiment.trainable == "head" and experiment.initial_weights is None:
        raise FederationError(
            f"'{experiment.name}' has trainable: head: all that is below the head would stay as it "
            "was drawn, and sites would pay for a model that has learnt next to nothing. Give it "
            "public weights (initial_weights: {file: NAME.safetensors, sha256: ..., public: true}) "
            "or trainable: all."
        )
