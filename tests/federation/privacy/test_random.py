import os

import numpy as np
import pytest
from scipy import stats

from federation.privacy.random import SecureRandomness

# Kolmogorov-Smirnov at 1e-6: a correct source fails once in a million runs.
LEVEL = 1e-6


def test_gaussians_follow_the_standard_normal():
    values = SecureRandomness().gaussians(200_000)
    assert stats.kstest(values, "norm").pvalue > LEVEL
    assert abs(values.std() - 1) < 0.01


def test_a_twentieth_less_noise_would_be_noticed():
    values = SecureRandomness().gaussians(200_000) * 0.95
    assert stats.kstest(values, "norm").pvalue < LEVEL


def test_uniforms_are_uniform_and_inside_the_open_interval():
    values = SecureRandomness().uniforms(200_000)
    assert stats.kstest(values, "uniform").pvalue > LEVEL
    assert values.min() > 0 and values.max() < 1


def test_consecutive_gaussians_are_uncorrelated():
    values = SecureRandomness().gaussians(200_001)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.015


def test_two_sources_never_agree_whatever_the_global_seeds():
    np.random.seed(0)
    first = SecureRandomness().gaussians(8)
    np.random.seed(0)
    assert not np.any(first == SecureRandomness().gaussians(8))


def test_drawing_after_a_fork_is_refused():
    source = SecureRandomness()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            source.uniforms(1)
            os.write(writing, b"drew")
        except RuntimeError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"before a fork" in os.read(reading, 1000)
    assert len(source.uniforms(3)) == 3


def test_no_seed_can_be_given():
    with pytest.raises(TypeError):
        SecureRandomness(0)
