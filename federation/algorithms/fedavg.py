"""Federated averaging (McMahan et al. 2017, arXiv 1602.05629), every site with equal weight.

Equal, because a weight that a site declares about itself can be wrong, and because noise sized
for equal weights protects nobody under other ones.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Weights = Mapping[str, npt.NDArray[np.float32]]


def client_step(start: Weights, trained: Weights) -> dict[str, npt.NDArray[np.float32]]:
    """Return a site's update: what local training added to the weights it started from.

    >>> one, three = np.float32([1]), np.float32([3])
    >>> client_step({"w": one}, {"w": three})
    {'w': array([2.], dtype=float32)}
    """
    return {name: trained[name] - start[name] for name in start}


def server_step(
    weights: Weights, updates: Mapping[str, Weights]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return ``weights`` plus the mean of the updates.

    The sum is taken in float64 and in the order of site names, so the order of arrival cannot
    change one bit of the result.

    Args:
        updates: Site name to update, with the names and shapes of ``weights``.

    Raises:
        ValueError: There is no update to average.

    >>> two, four = {"w": np.float32([2])}, {"w": np.float32([4])}
    >>> server_step({"w": np.float32([1])}, {"ward-a": two, "ward-b": four})
    {'w': array([4.], dtype=float32)}
    """
    if not updates:
        raise ValueError("There is no update to average; give at least one.")
    return {name: _stepped(name, weights[name], updates) for name in weights}


def average_step(
    average: Weights, weights: Weights, *, decay: float, num_averaged: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the average of the models so far with one more taken into it.

    An exponential moving average: the newest model counts 1, the one before ``decay``, then
    ``decay`` squared, divided by the sum of these, so that neither the first weights nor a start
    at zero are in it. Noise of single rounds averages out. It is post-processing of what sites
    released, and training goes on from ``weights``.

    Args:
        average: Of the ``num_averaged`` models before; not looked at if there is none.
        decay: From 0, the newest model alone, to below 1.

    >>> one, four = {"w": np.float32([1])}, {"w": np.float32([4])}
    >>> average_step(one, four, decay=0.5, num_averaged=1)
    {'w': array([3.], dtype=float32)}
    """
    # 1 / (1 + decay + decay^2 + ...), of the terms that there are.
    share = 1 / sum(decay**age for age in range(num_averaged + 1))
    if share == 1.0:
        return dict(weights)
    return {name: _between(average[name], weights[name], share) for name in weights}


def _between(
    old: npt.NDArray[np.float32], new: npt.NDArray[np.float32], share: float
) -> npt.NDArray[np.float32]:
    mixed = np.multiply(1 - share, old, dtype=np.float64)
    mixed += np.multiply(share, new, dtype=np.float64)
    return np.asarray(mixed, dtype=np.float32)


def _stepped(
    name: str, start: npt.NDArray[np.float32], updates: Mapping[str, Weights]
) -> npt.NDArray[np.float32]:
    total = np.zeros(start.shape, dtype=np.float64)
    for site in sorted(updates):
        total += updates[site][name]
    # In place: a model's worth of fresh memory costs more than the arithmetic.
    total /= len(updates)
    total += start
    return np.asarray(total, dtype=np.float32)
