"""Randomness that privacy rests on: a cryptographic stream, seeded by the operating system."""

import os
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from federation.ledger.records import INSECURE_RANDOMNESS

# Normals at a time: they stay in a core's cache.
_BLOCK = 1 << 14
_SUMMED = 4

Floats = npt.NDArray[np.float64]


class Randomness(Protocol):
    """Where sampling and noise come from. Tests own the only other implementation."""

    def uniforms(self, count: int) -> Floats:
        """Return independent uniforms in (0, 1)."""
        ...

    def gaussians(self, count: int) -> Floats:
        """Return independent standard normals."""
        ...


class SecureRandomness:
    """AES-256 in counter mode under a key from the operating system; no seed can be given.

    A normal value is the sum of four Box-Muller values over two: an attacker who sees a noised
    float must invert all four (arXiv 2107.10138, section 5.1). Both values of each Box-Muller pair
    are used, so two noised floats speak of the same eight uniforms: six stay unknown. This
    mitigates floating-point attacks; it does not prove them absent.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._stream = Cipher(AES(os.urandom(32)), CTR(os.urandom(16))).encryptor()

    def uniforms(self, count: int) -> Floats:
        """Return independent uniforms in (0, 1), 52 random bits each.

        Raises:
            RuntimeError: After a fork, where parent and child would draw the same values.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                "This source of noise was made before a fork; both processes would draw the same "
                "values. Make a new SecureRandomness in the child."
            )
        return to_unit(np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8"))

    def gaussians(self, count: int) -> Floats:
        """Return independent standard normals in float64."""
        values = torch.empty(count, dtype=torch.float64)
        for part in values.split(_BLOCK):
            part.copy_(self._box_muller(-(-len(part) // 2))[: len(part)])
        normals: Floats = values.numpy()
        return normals

    def _box_muller(self, pairs: int) -> torch.Tensor:
        """Return 2 x pairs normals: sums over two of four, of each pair sine and cosine.

        torch's functions: numpy's logarithm, sine and cosine took seven times as long, and noise
        then longer than the step that it protects.
        """
        drawn = torch.from_numpy(self.uniforms(2 * _SUMMED * pairs)).view(2, _SUMMED, pairs)
        radius, angle = drawn[0].log_().mul_(-2.0).sqrt_(), drawn[1].mul_(2.0 * torch.pi)
        both = [(radius * angle.cos()).sum(0), (radius * angle.sin()).sum(0)]
        return torch.cat(both).div_(_SUMMED**0.5)


def to_unit(words: npt.NDArray[np.uint64]) -> Floats:
    """Map 64 random bits to the middle of one of 2^52 equal parts of (0, 1).

    With 53 bits the half is lost to rounding, and the largest value would be 1 itself.

    >>> to_unit(np.array([0, 2**64 - 1], dtype=np.uint64)).tolist()
    [1.1102230246251565e-16, 0.9999999999999999]
    """
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def randomness_told(source: Randomness) -> dict[str, str]:
    """Return what a release says of its randomness among the versions it was made with.

    Nothing for the source above. Any other one is a test's: the release says so for good, and a
    ledger that holds it never verifies.
    """
    return {} if type(source) is SecureRandomness else dict([INSECURE_RANDOMNESS])
