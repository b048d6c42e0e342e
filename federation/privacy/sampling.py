"""Poisson sampling of subjects: each enters each step by its own coin, whoever else is there."""

from collections.abc import Iterator
from dataclasses import dataclass

from federation.privacy.random import Randomness


@dataclass(frozen=True)
class PoissonSubjects:
    """Batches of subject indices for ``steps`` steps; a batch may be empty.

    This is the sampling that ``PoissonGaussian`` is accounted for. Shuffling is not.
    """

    num_subjects: int
    sampling_rate: float
    steps: int
    randomness: Randomness

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.steps):
            coins = self.randomness.uniforms(self.num_subjects)
            yield [int(i) for i in (coins < self.sampling_rate).nonzero()[0]]
