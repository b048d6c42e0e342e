"""The gate that every update passes on its way out: a closed schema of noised values only.

The request decides names and shapes; everything is float32. Of the network after training, the
gate reads the parameters that the private optimiser stepped. Buffers, frozen parameters and
whatever else training left in the network are not read into the update: their part of it is exactly
zero, so the hub sees them as they arrived, bit for bit. If one did change, the site's log says so
and nothing outside does, since what changed it may have been one subject's images.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
from torch import nn

from federation.algorithms.fedavg import client_step
from federation.errors import FederationError, OnFailure
from federation.messages import Weights
from models.build import weights_of

Arrived = Mapping[str, npt.NDArray[np.float32]]


class ReleaseError(FederationError):
    """An update, or a part of one, that must not leave the site."""


def release_update(
    network: nn.Module,
    arrived: Arrived,
    *,
    stepped: Iterable[nn.Parameter],
    on_failure: OnFailure,
) -> Weights:
    """Return trained minus arrived weights of what noised steps moved; the rest is exactly zero.

    Args:
        arrived: The weights of the request. They decide names, order and shapes.
        stepped: The parameters of the private optimiser, collected before training. One that is
            not the network's, as the audit's canaries, has no name here and stays.
        on_failure: Told, inside an ``except``, of anything else that training changed.

    Raises:
        ReleaseError: The noised values do not have the request's shapes, or are not finite. Both
            are judged on what was noised alone, so refusing tells nothing that sending would not.
    """
    moved = {n: a for n, a in _values_of(network, stepped).items() if n in arrived}
    _tell_of_changes(weights_of(network), arrived, set(moved), on_failure)
    update = {name: np.zeros(array.shape, np.float32) for name, array in arrived.items()}
    update |= _checked_step({name: arrived[name] for name in moved}, moved)
    return update


def unprotected_update(network: nn.Module, arrived: Arrived) -> Weights:
    """Return trained minus arrived weights, buffers too, where an experiment has no privacy.

    Raises:
        ReleaseError: Names or shapes are not the request's, or a value is not finite.
    """
    trained = weights_of(network)
    if trained.keys() != arrived.keys():
        raise ReleaseError("Training changed the names of the network's weights. Nothing was sent.")
    return _checked_step(arrived, trained)


def _values_of(network: nn.Module, stepped: Iterable[nn.Parameter]) -> Weights:
    """Return the stepped parameters by every name they have: one that two layers share has two."""
    wanted = {id(parameter) for parameter in stepped}
    named = network.named_parameters(remove_duplicate=False)
    return {n: p.detach().float().cpu().numpy() for n, p in named if id(p) in wanted}


def _checked_step(arrived: Arrived, trained: Arrived) -> Weights:
    for name, array in arrived.items():
        if trained[name].shape != array.shape:
            raise ReleaseError(
                f"Training changed the shape of {name!r} from {array.shape} to "
                f"{trained[name].shape}. Nothing was sent. Use a model of fixed shapes."
            )
    with np.errstate(over="ignore", invalid="ignore"):
        update = client_step(arrived, trained)
    for name, array in update.items():
        if not np.isfinite(array).all():
            raise ReleaseError(
                f"The update of {name!r} holds NaN or infinity: training diverged. Nothing was "
                "sent, and the round stays charged. Lower the learning rate."
            )
    return update


def _tell_of_changes(
    trained: Arrived, arrived: Arrived, released: set[str], on_failure: OnFailure
) -> None:
    try:
        _require_unchanged(trained, arrived, released)
    except ReleaseError:
        on_failure("keeping what no noised step moved, which was sent as it arrived,")


def _require_unchanged(trained: Arrived, arrived: Arrived, released: set[str]) -> None:
    kept = (trained.keys() | arrived.keys()) - released
    changed = sorted(name for name in kept if not _same(trained.get(name), arrived.get(name)))
    if changed:
        raise ReleaseError(
            f"Training changed {len(changed)} buffers or frozen parameters (first: "
            f"{changed[0]!r}), which only a layer with a memory does. Use one without."
        )


def _same(one: npt.NDArray[np.float32] | None, other: npt.NDArray[np.float32] | None) -> bool:
    """Compare bit for bit: -0.0 is not 0.0, and a NaN is itself."""
    if one is None or other is None:
        return False
    return one.shape == other.shape and one.tobytes() == other.tobytes()
