"""The only seeded randomness of the project: for tests, and importable from nowhere else."""

import numpy as np


class SeededRandomness:
    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def uniforms(self, count: int) -> np.ndarray:
        return self._generator.random(count)

    def gaussians(self, count: int) -> np.ndarray:
        return self._generator.standard_normal(count)


class NoNoise(SeededRandomness):
    def gaussians(self, count: int) -> np.ndarray:
        return np.zeros(count)


def seeded_rounds(site, seed: int):
    """The one way to train a site's rounds with known noise; each one marks the site's ledger."""
    from federation.rounds import LocalRounds

    return LocalRounds(site, randomness=lambda: SeededRandomness(seed))
