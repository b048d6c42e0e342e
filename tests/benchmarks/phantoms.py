"""Images that compress as real ones do: neither constant nor pure noise.

Seeds are fixed so that every run reads the same voxels.
"""

import numpy as np
from numpy.typing import NDArray

# Camera counts without light, and the variance of reading them out (sCMOS: about 2 counts).
OFFSET, READ_VARIANCE = 100.0, 4.0
# Hounsfield units; noise of an abdominal CT in thin slices, and of the air around it.
TISSUE, AIR, LUNG, BONE = 40.0, -1000.0, -820.0, 700.0
BODY_NOISE, AIR_NOISE = 22.0, 8.0


def microscopy(side: int) -> NDArray[np.uint16]:
    """Return a fluorescence stack (z, y, x): sparse smooth structures, photon and read noise."""
    generator = np.random.default_rng(0)
    light = _blobs(generator, max(side // 4, 8))
    volume = np.empty((side,) * 3, np.uint16)
    for z in range(side):
        plane = _enlarged(light, z * len(light) / side, side)
        noise = generator.standard_normal(plane.shape, dtype=np.float32)
        volume[z] = np.clip(plane + OFFSET + noise * np.sqrt(plane + READ_VARIANCE), 0, 65535)
    return volume


def _blobs(generator: np.random.Generator, side: int) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(generator.standard_normal((side,) * 3, dtype=np.float32), 3)
    return np.clip(field / field.std() - 0.8, 0, None) * 400


def _enlarged(light: NDArray[np.float32], z: float, side: int) -> NDArray[np.float32]:
    """Return one plane between two of ``light``, linearly enlarged to ``side``."""
    low = int(z)
    high = min(low + 1, len(light) - 1)
    plane = light[low] + (light[high] - light[low]) * (z - low)
    at = np.arange(side) * (len(light) - 1) / side
    first, part = at.astype(int), (at % 1).astype(np.float32)
    rows = plane[first] * (1 - part)[:, None] + plane[first + 1] * part[:, None]
    return rows[:, first] * (1 - part) + rows[:, first + 1] * part


def ct(shape_zyx: tuple[int, int, int]) -> NDArray[np.int16]:
    """Return a chest-like CT (z, y, x) in stored values, with scanner padding outside a circle."""
    generator = np.random.default_rng(1)
    depth, height, width = shape_zyx
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    volume = np.empty(shape_zyx, np.int16)
    for number, z in enumerate(np.linspace(-1, 1, depth)):
        body = np.hypot(y / 0.7, x / 0.95) < 1 - 0.15 * z**2
        slice_hu = _anatomy(y, x, float(z), body)
        noise = generator.standard_normal((height, width), dtype=np.float32)
        slice_hu += noise * np.where(body, BODY_NOISE, AIR_NOISE)
        volume[number] = np.where(np.hypot(y, x) < 1.2, slice_hu, -1024) + 1024
    return volume


def _anatomy(y, x, z, body):
    organs = TISSUE + 25 * np.sin(7 * x + 3 * z) * np.cos(5 * y)
    values = np.where(body, organs, AIR)
    lungs = np.hypot((y + 0.05) / 0.35, (np.abs(x) - 0.4) / 0.28) < 1 - 0.5 * abs(z)
    values = np.where(lungs & body, LUNG, values)
    spine = np.hypot((y - 0.3) / 0.12, x / 0.12) < 1
    return np.where(spine, BONE + 150 * np.cos(20 * z), values)
