"""The source of noise and coins: its law, and that nobody can choose or repeat it.

Each test of a law fails for a correct source once in a million runs (``LEVEL``), and each is shown
a source that it must reject.
"""

import copy
import os
import pickle
import subprocess
import sys
from math import sqrt

import numpy as np
import pytest
import torch
from scipy import stats

import federation.privacy.random as module
from federation.privacy.random import SecureRandomness, to_unit

LEVEL = 1e-6
NUM = 400_000


def z_test(z):
    """Two-sided p-value of a standard normal statistic."""
    return 2 * stats.norm.sf(abs(z))


def ks(values):
    return stats.kstest(values, "norm").pvalue


def variance(values):
    """Of n values with known mean zero: n times the mean square is chi-square."""
    total = float(np.sum(values**2))
    return 2 * min(stats.chi2.cdf(total, len(values)), stats.chi2.sf(total, len(values)))


def kurtosis(values):
    """The fourth moment of a normal value is 3, with variance 96."""
    return z_test((np.mean(values**4) - 3) / sqrt(96 / len(values)))


def skewness(values):
    return z_test(np.mean(values**3) / sqrt(15 / len(values)))


def tails(values):
    """How many lie past 3, 4 and 5 deviations."""
    worst = 1.0
    for limit in (3.0, 4.0, 5.0):
        count = int(np.sum(np.abs(values) > limit))
        worst = min(worst, stats.binomtest(count, len(values), 2 * stats.norm.sf(limit)).pvalue)
    return 3 * worst


def dependence(values):
    """Correlation with the next values, also of their squares and signs, at a few lags."""
    worst, tried = 1.0, 0
    for form, deviation in ((values, 1.0), (values**2 - 1, 2.0), (np.sign(values), 1.0)):
        for lag in (1, 2, 3, 4, 8, 16, 17, 4096):
            pairs = form[:-lag] * form[lag:]
            worst = min(worst, z_test(pairs.mean() / deviation * sqrt(len(pairs))))
            tried += 1
    return tried * worst


LAWS = [ks, variance, kurtosis, skewness, tails, dependence]


@pytest.fixture(scope="module")
def gaussians():
    return SecureRandomness().gaussians(NUM)


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
def test_gaussians_follow_the_standard_normal(gaussians, law):
    assert law(gaussians) > LEVEL


def repeated(values):
    return np.repeat(values[: len(values) // 2], 2)


def one_uniform_sum(values):
    """Twelve uniforms less six: right variance, light tails."""
    return np.random.default_rng(0).random((12, len(values))).sum(0) - 6


def cut_at_four(values):
    return np.clip(values, -4, 4)


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        (lambda v: v * 0.95, variance),
        (lambda v: v * 0.98, variance),
        (lambda v: v * 0.95, ks),
        (lambda v: v + 0.02, ks),
        (one_uniform_sum, kurtosis),
        (one_uniform_sum, tails),
        (cut_at_four, tails),
        (lambda v: np.abs(v), skewness),
        (repeated, dependence),
        (lambda v: np.tile(v[:4096], 100), dependence),
        (lambda v: np.zeros_like(v), variance),
    ],
    ids=lambda f: f.__name__.strip("<>"),
)
def test_each_law_rejects_a_source_that_breaks_it(gaussians, fault, law):
    assert law(fault(gaussians)) < LEVEL


def test_uniforms_are_uniform_and_inside_the_open_interval():
    values = SecureRandomness().uniforms(NUM)
    assert stats.kstest(values, "uniform").pvalue > LEVEL
    counts = np.bincount((values * 256).astype(int), minlength=256)
    assert stats.chisquare(counts).pvalue > LEVEL
    assert values.min() > 0 and values.max() < 1
    # The lowest bits, which Kolmogorov and Smirnov do not see.
    low = (values * 2.0**52 - 0.5).astype(np.uint64) & np.uint64(255)
    assert stats.chisquare(np.bincount(low.astype(int), minlength=256)).pvalue > LEVEL


def test_not_even_the_largest_word_gives_one_nor_the_smallest_zero():
    """With 53 bits and a half, rounding made the largest value exactly 1."""
    edges = to_unit(np.array([0, 2**12 - 1, 2**63, 2**64 - 1], dtype=np.uint64))
    assert edges[0] == edges[1] == 2.0**-53
    assert edges[2] == 0.5 + 2.0**-53
    assert edges[3] == 1 - 2.0**-53
    assert ((2**64 - 1 >> 11) + 0.5) * 2.0**-53 == 1.0


def test_a_gaussian_is_the_sum_of_four_and_two_share_their_uniforms(monkeypatch):
    """Holohan and Braghin, arXiv 2107.10138: whoever sees a sum must invert all of its parts."""
    source, drawn = SecureRandomness(), []
    draw = SecureRandomness.uniforms

    def watched(self, count):
        drawn.append(draw(self, count).copy())
        return drawn[-1].copy()

    monkeypatch.setattr(SecureRandomness, "uniforms", watched)
    values = source.gaussians(6)
    (uniforms,) = drawn
    radius, angle = uniforms.reshape(2, 4, 3)
    radius, angle = np.sqrt(-2 * np.log(radius)), 2 * np.pi * angle
    expected = np.concatenate([(radius * turn(angle)).sum(0) / 2 for turn in (np.cos, np.sin)])
    np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_an_odd_number_and_more_than_a_block_of_gaussians_come_from_fresh_uniforms(monkeypatch):
    source, asked = SecureRandomness(), []
    draw = SecureRandomness.uniforms

    def watched(self, count):
        asked.append(count)
        return draw(self, count)

    monkeypatch.setattr(SecureRandomness, "uniforms", watched)
    assert len(np.unique(source.gaussians(7))) == 7
    count = module._BLOCK + 5
    assert len(np.unique(source.gaussians(count))) == count
    assert asked == [8 * 4, 4 * module._BLOCK, 8 * 3]
    assert len(source.gaussians(0)) == 0


def test_every_source_asks_the_operating_system_for_its_own_key_and_nonce(monkeypatch):
    asked, urandom = [], os.urandom
    monkeypatch.setattr(module.os, "urandom", lambda n: asked.append(n) or urandom(n))
    SecureRandomness()
    SecureRandomness()
    assert asked == [32, 16] * 2


def test_two_sources_never_agree_whatever_the_global_seeds():
    drawn = []
    for _ in range(2):
        np.random.seed(0)
        torch.manual_seed(0)
        drawn.append(SecureRandomness().gaussians(8))
    assert not np.any(drawn[0] == drawn[1])


def test_global_generators_are_neither_read_nor_moved():
    np.random.seed(0)
    torch.manual_seed(0)
    expected = np.random.random(), torch.rand(1).item()
    np.random.seed(0)
    torch.manual_seed(0)
    SecureRandomness().gaussians(100)
    assert (np.random.random(), torch.rand(1).item()) == expected


def test_no_environment_variable_seeds_it():
    script = (
        "from federation.privacy.random import SecureRandomness as S;"
        "print(S().gaussians(4).tolist())"
    )
    names = ("PYTHONHASHSEED", "SEED", "COHORTIUM_SEED", "RANDOM_SEED", "PL_GLOBAL_SEED")
    environment = os.environ | dict.fromkeys(names, "0")
    said = {
        subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(said) == 2


@pytest.mark.parametrize("arguments", [(0,), (None,), (b"key",)])
def test_no_seed_can_be_given(arguments):
    with pytest.raises(TypeError):
        SecureRandomness(*arguments)
    with pytest.raises(TypeError):
        SecureRandomness(seed=arguments[0])


def test_a_source_cannot_be_kept_or_doubled():
    for double in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            double(SecureRandomness())
    source = SecureRandomness()
    assert not np.any(copy.copy(source).uniforms(8) == source.uniforms(8))


@pytest.mark.parametrize("draw", ["uniforms", "gaussians"])
def test_drawing_after_a_fork_is_refused(draw):
    source = SecureRandomness()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            getattr(source, draw)(1)
            os.write(writing, b"drew")
        except RuntimeError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"before a fork" in os.read(reading, 1000)
    assert len(source.uniforms(3)) == 3


def test_drawing_nothing_is_possible():
    assert SecureRandomness().uniforms(0).shape == SecureRandomness().gaussians(0).shape == (0,)
