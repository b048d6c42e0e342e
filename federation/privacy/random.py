"""Randomness that privacy rests on: a cryptographic stream, seeded by the operating system."""

import os
from typing import Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

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
    float must invert all four (arXiv 2107.10138, section 5.1). This mitigates floating-point
    attacks; it does not prove them absent.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._stream = Cipher(AES(os.urandom(32)), CTR(os.urandom(16))).encryptor()

    def uniforms(self, count: int) -> Floats:
        """Return independent uniforms in (0, 1) with 53 random bits each.

        Raises:
            RuntimeError: After a fork, where parent and child would draw the same values.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                "This source of noise was made before a fork; both processes would draw the same "
                "values. Make a new SecureRandomness in the child."
            )
        words = np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")
        return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def gaussians(self, count: int) -> Floats:
        """Return independent standard normals in float64."""
        total = np.zeros(count)
        for _ in range(4):
            total += self._box_muller(count)
        return total / 2.0

    def _box_muller(self, count: int) -> Floats:
        radius = np.sqrt(-2.0 * np.log(self.uniforms(count)))
        values: Floats = radius * np.cos(2.0 * np.pi * self.uniforms(count))
        return values
