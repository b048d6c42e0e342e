"""The law of who is in a step: the one that ``PoissonGaussian`` is accounted for, and no other.

Each test of a law fails for the correct sampler once in a million runs, and rejects planted ones.
"""

from itertools import combinations
from math import sqrt

import numpy as np
import pytest
from scipy import stats

from federation.privacy.random import SecureRandomness
from federation.privacy.sampling import PoissonSubjects
from tests.federation.privacy.randomness import SeededRandomness

LEVEL = 1e-6
NUM_SUBJECTS, RATE, STEPS = 20, 0.25, 8000


def included(batches, num_subjects=NUM_SUBJECTS):
    """Return 0 or 1 for (step, subject)."""
    table = np.zeros((0, num_subjects), dtype=int)
    rows = [np.bincount(batch, minlength=num_subjects) for batch in batches]
    return np.array(rows) if rows else table


def sizes(table):
    """Chi-square of batch sizes against the binomial, rare sizes pooled."""
    n, law = table.shape[1], stats.binom(table.shape[1], RATE)
    expected = law.pmf(np.arange(n + 1)) * len(table)
    observed = np.bincount(table.sum(1), minlength=n + 1)[: n + 1]
    usual = expected >= 10
    if observed[~usual].sum() > 30 + 10 * expected[~usual].sum():
        return 0.0
    rare = max(expected[~usual].sum(), 1e-9)
    statistic = ((observed - expected) ** 2 / expected)[usual].sum()
    statistic += (observed[~usual].sum() - rare) ** 2 / rare if rare > 5 else 0.0
    return stats.chi2.sf(statistic, usual.sum())


def rates(table):
    """How often each subject is in: the least of the binomial tests."""
    found = [stats.binomtest(int(c), len(table), RATE).pvalue for c in table.sum(0)]
    return min(found) * len(found)


def _z(products):
    return 2 * stats.norm.sf(abs(products.mean() / (RATE * (1 - RATE)) * sqrt(len(products))))


def pairs(table):
    """Whether two subjects come together more or less often than by chance."""
    coins = table - RATE
    found = [_z(coins[:, a] * coins[:, b]) for a, b in combinations(range(table.shape[1]), 2)]
    return min(found) * len(found)


def steps_apart(table):
    """Whether being in one step says something about one of the next."""
    coins = table - RATE
    found = [_z((coins[:-lag] * coins[lag:]).ravel()) for lag in (1, 2, 3, 4, 5)]
    return min(found) * len(found)


LAWS = [sizes, rates, pairs, steps_apart]


@pytest.fixture(scope="module")
def table():
    sampler = PoissonSubjects(NUM_SUBJECTS, RATE, STEPS, SecureRandomness())
    return included(sampler)


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
def test_inclusion_is_by_independent_coins(table, law):
    assert law(table) > LEVEL


def shuffled(random):
    """Epochs over a permutation, batches of fixed size: what data loaders do."""
    size, batches = int(NUM_SUBJECTS * RATE), []
    while len(batches) < STEPS:
        order = random.permutation(NUM_SUBJECTS)
        batches += [order[start : start + size] for start in range(0, NUM_SUBJECTS, size)]
    return batches


def fixed_size(random):
    """A fresh subset of fixed size for each step."""
    size = int(NUM_SUBJECTS * RATE)
    return [random.choice(NUM_SUBJECTS, size, replace=False) for _ in range(STEPS)]


def doubled_rate(random):
    return [np.flatnonzero(random.random(NUM_SUBJECTS) < 2 * RATE) for _ in range(STEPS)]


def one_coin_for_all(random):
    everybody = np.arange(NUM_SUBJECTS)
    return [everybody if random.random() < RATE else everybody[:0] for _ in range(STEPS)]


def one_step_twice(random):
    once = [np.flatnonzero(random.random(NUM_SUBJECTS) < RATE) for _ in range(STEPS // 2)]
    return [batch for batch in once for _ in range(2)]


def one_subject_more_often(random):
    often = np.full(NUM_SUBJECTS, RATE)
    often[0] = 0.3
    return [np.flatnonzero(random.random(NUM_SUBJECTS) < often) for _ in range(STEPS)]


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        (shuffled, sizes),
        (shuffled, pairs),
        (shuffled, steps_apart),
        (fixed_size, sizes),
        (fixed_size, pairs),
        (doubled_rate, rates),
        (one_coin_for_all, pairs),
        (one_step_twice, steps_apart),
        (one_subject_more_often, rates),
    ],
    ids=lambda f: f.__name__,
)
def test_each_law_rejects_a_sampler_that_breaks_it(fault, law):
    assert law(included(fault(np.random.default_rng(0)))) < LEVEL


def test_a_batch_may_be_empty():
    assert [] in list(PoissonSubjects(2, 0.05, 200, SeededRandomness(0)))


def test_a_site_without_subjects_takes_every_step():
    assert list(PoissonSubjects(0, 0.5, 3, SecureRandomness())) == [[], [], []]


def test_a_further_subject_does_not_change_the_law_of_the_others():
    for num_subjects in (10, 11):
        batches = PoissonSubjects(num_subjects, RATE, 20_000, SecureRandomness())
        assert rates(included(batches, num_subjects)) > LEVEL


class Scripted:
    """Coins that are given beforehand: one for each subject and step."""

    def __init__(self, coins):
        self._coins = list(coins)

    def uniforms(self, count):
        drawn, self._coins = self._coins[:count], self._coins[count:]
        return np.array(drawn)


def test_a_subject_is_in_exactly_if_its_own_coin_is_below_the_rate():
    coins = [0.1, 0.25, 0.2499, 0.9, 0.2, 0.3]
    assert list(PoissonSubjects(3, 0.25, 2, Scripted(coins))) == [[0, 2], [1]]


def test_there_are_as_many_steps_as_were_accounted_for():
    sampler = PoissonSubjects(5, 0.5, 7, SeededRandomness(0))
    assert len(sampler) == len(list(sampler)) == 7
