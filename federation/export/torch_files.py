"""A trained network in PyTorch's own files: a state dict, and TorchScript without local paths."""

import warnings
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import parametrize

from federation.errors import FederationError
from federation.export.examples import outputs_of
from federation.run_record import FinishedRun
from models.architecture import MODULE, Architecture, architecture_of

# What two ways of running one network on one machine may differ by, in logits.
_TOLERANCE = 1e-4


def architecture_for(run: FinishedRun) -> Architecture:
    """Return the call that rebuilds a run's network for ``save_state_dict``'s file.

    ``repaired``: MONAI alone cannot rebuild it, and only TorchScript tells it.
    """
    experiment = run.record.experiment
    return architecture_of(experiment.model, num_classes=experiment.task.num_outputs)


def without_parametrizations(network: nn.Module) -> nn.Module:
    """Write weights that are computed from others (weight standardisation) out, in place.

    They depend on no image, so the network gives what it gave, and MONAI's own class holds it.
    """
    for layer in list(network.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return network


def save_state_dict(network: nn.Module, path: Path) -> None:
    """Write tensors by name, as ``torch.load(path, weights_only=True)`` reads them."""
    torch.save(state_of(network), path)


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict, each tensor with memory of its own."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def save_torchscript(network: nn.Module, images: npt.NDArray[np.float32], path: Path) -> None:
    """Trace a network on images x_BC(D)HW and write it as TorchScript, checked against itself.

    torch writes where each line of its own code lies on this machine beside the traced code; that
    part (``*.debug_pkl``) is left out, which loading allows.

    Raises:
        FederationError: What was traced gives other numbers than the network.
    """
    whole = path.with_suffix(".traced")
    with warnings.catch_warnings():
        # torch deprecates TorchScript; readers of this format have nothing newer that needs no
        # code. MONAI's layers compare shapes in Python, which a trace does not keep.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
        traced = torch.jit.trace(network, torch.from_numpy(images), check_trace=False)
        torch.jit.save(traced, whole)
    _copy_without_debug(whole, path)
    whole.unlink()
    _require_same(network, images, path)


def _copy_without_debug(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as given, zipfile.ZipFile(target, "w") as made:
        for entry in given.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                _, _, inner = entry.filename.partition("/")
                made.writestr(zipfile.ZipInfo(f"{target.stem}/{inner}"), given.read(entry))


def _require_same(network: nn.Module, images: npt.NDArray[np.float32], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        again = torch.jit.load(path)
    expected, found = outputs_of(network, images), outputs_of(again, images)
    furthest = float(np.abs(expected - found).max())
    if not furthest <= _TOLERANCE:
        raise FederationError(
            f"{path.name}: as TorchScript the network gives numbers that differ by {furthest:g} "
            f"(at most {_TOLERANCE:g} may be). Export it as 'onnx' or 'monai-bundle' instead."
        )


__all__ = [
    "MODULE",
    "architecture_for",
    "save_state_dict",
    "save_torchscript",
    "state_of",
    "without_parametrizations",
]
