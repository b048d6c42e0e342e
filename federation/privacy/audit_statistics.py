"""Lower bounds on epsilon, tests of conformance, and what they could have seen. Torch-free.

*Bounds* ask what an attacker could tell from the output. They hold whatever the code does, and are
far from the truth: one run of a thousand canaries cannot tell epsilon 8 from epsilon 16, so bounds
alone pass an engine that adds half of its noise. *Tests of conformance* ask whether the numbers
follow the law that the plan says. The site knows its canaries' coins and who was sampled, so these
see a noise that is a few percent too small. They speak about the code that ran, not about every
output: both are reported, neither is called the true epsilon.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import exp, inf, log, log1p, sqrt

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Floats = npt.NDArray[np.float64]

# Guesses as parts of the canaries, and thresholds of the log-likelihood ratio: fixed before any
# output is seen, and each pays its part of the error (Bonferroni).
GUESSED_PARTS = (0.01, 0.05, 0.125, 0.25, 0.5)
THRESHOLDS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)


def one_run_p_value(
    num_canaries: int, guesses: int, correct: int, *, epsilon: float, delta: float
) -> float:
    """Return the largest chance of ``correct`` right guesses under (epsilon, delta)-DP.

    Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846), Theorem 3.1: each canary is in or out by
    a fair coin, the auditor looks at one output and guesses ``guesses`` of the coins. With W ~
    Binomial(guesses, e^epsilon / (1 + e^epsilon)),
    P[right >= v] <= P[W >= v] + 2 m delta max_{i = 1..v} P[v > W >= v - i] / i.

    >>> one_run_p_value(10, 3, 3, epsilon=0.0, delta=0.0)
    0.125
    """
    if not 0 <= correct <= guesses <= num_canaries:
        raise ValueError("correct guesses are at most the guesses, and these at most the canaries")
    accuracy = float(special.expit(epsilon))
    # bdtrc(k, n, p) is P[W > k], without the checks that make scipy.stats ten times slower.
    beta = float(special.bdtrc(correct - 1, guesses, accuracy))
    if delta == 0.0 or correct == 0:
        return min(1.0, beta)
    below = np.arange(1, correct + 1)
    between = special.bdtrc(correct - below - 1, guesses, accuracy) - beta
    return min(1.0, beta + 2 * num_canaries * delta * float(np.max(between / below)))


def one_run_epsilon(
    scores: Floats, present: npt.NDArray[np.bool_], *, delta: float, level: float
) -> float:
    """Return a lower bound on epsilon at confidence ``1 - level``, from one run's canaries.

    The highest and lowest scores are guessed in and out, as many of each; over several numbers
    of guesses the best bound counts, at ``level`` shared equally.
    """
    share = level / len(GUESSED_PARTS)
    return max(
        _one_bound(len(scores), *guess, delta=delta, level=share)
        for guess in _guesses(scores, present)
    )


def _one_bound(
    num_canaries: int, guesses: int, correct: int, *, delta: float, level: float
) -> float:
    def refuted(epsilon: float) -> bool:
        p_value = one_run_p_value(num_canaries, guesses, correct, epsilon=epsilon, delta=delta)
        return p_value < level

    return _bisected(refuted)


def one_run_conformance(
    scores: Floats, present: npt.NDArray[np.bool_], *, epsilon: float, delta: float
) -> float:
    """Return a p-value of the claim that the run was (epsilon, delta)-DP for its canaries."""
    p_values = [
        one_run_p_value(len(scores), guesses, correct, epsilon=epsilon, delta=delta)
        for guesses, correct in _guesses(scores, present)
    ]
    return bonferroni(p_values)


def _guesses(scores: Floats, present: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return (guesses, right guesses) for each of ``GUESSED_PARTS``."""
    ranked = present[np.argsort(scores, kind="stable")]
    sides = [max(1, int(part * len(scores))) for part in GUESSED_PARTS]
    return [(2 * k, int(ranked[-k:].sum() + (~ranked[:k]).sum())) for k in sides]


def _bisected(holds: Callable[[float], bool], high: float = 50.0) -> float:
    """Return the largest value in [0, high] below which ``holds`` does; 0 where it never does."""
    if not holds(0.0):
        return 0.0
    low = 0.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def clopper_pearson_epsilon(
    scores: Floats, present: npt.NDArray[np.bool_], *, delta: float, level: float
) -> float:
    """Return a lower bound on epsilon at confidence ``1 - level``, from rates of right guesses.

    (epsilon, delta)-DP holds every attack to TPR <= e^epsilon FPR + delta (Kairouz et al.
    1311.0776, Theorem 2.1), and the same for the opposite guess. Exact binomial intervals
    (Clopper and Pearson 1934) around both rates give the bound. Unlike the one-run bound it takes
    canaries as independent repetitions: true of coordinates that nothing but noise connects.
    """
    share = level / (4 * len(THRESHOLDS))
    found = 0.0
    for threshold in THRESHOLDS:
        for hit, positive in ((scores >= threshold, present), (scores <= -threshold, ~present)):
            true_rate = _lower(int((hit & positive).sum()), int(positive.sum()), share)
            false_rate = _upper(int((hit & ~positive).sum()), int((~positive).sum()), share)
            if true_rate > delta:
                found = max(found, log((true_rate - delta) / false_rate))
    return found


def _lower(hits: int, trials: int, level: float) -> float:
    return 0.0 if hits == 0 else float(stats.beta.ppf(level, hits, trials - hits + 1))


def _upper(hits: int, trials: int, level: float) -> float:
    return 1.0 if hits == trials else float(stats.beta.isf(level, hits + 1, trials - hits))


def log_likelihood_ratio(sums: Floats, *, sampling_rate: float, noise_multiplier: float) -> Floats:
    """Return each noised sum's log-likelihood ratio of a canary that is there to one that is not.

    Summed over steps it is the best score of an attacker who sees the noised sums but not who was
    sampled (Neyman and Pearson).

    Args:
        sums: Noised coordinates in units of the clip norm.
    """
    tilt = (2 * sums - 1) / (2 * noise_multiplier**2)
    if sampling_rate == 1.0:
        return tilt
    mixed: Floats = np.logaddexp(log1p(-sampling_rate), log(sampling_rate) + tilt)
    return mixed


def bonferroni(p_values: Sequence[float]) -> float:
    """Return a p-value for all together: the smallest, times how many there are."""
    return min(1.0, len(p_values) * min(p_values)) if p_values else 1.0


def two_sided(low: float, high: float) -> float:
    """Return the p-value of both tails from each one's.

    >>> two_sided(0.01, 0.99)
    0.02
    """
    return float(min(1.0, 2 * min(low, high)))


def normal_p_value(total: float, variance: float) -> float:
    """Return a p-value for a sum that should be normal around zero."""
    return 1.0 if variance == 0 else float(2 * stats.norm.sf(abs(total) / sqrt(variance)))


def variance_p_value(squares: float, count: int) -> float:
    """Return a p-value for a sum of ``count`` squares of standard normals (chi-square)."""
    law = stats.chi2(count)
    return 1.0 if count == 0 else two_sided(law.cdf(squares), law.sf(squares))


def count_p_value(hits: int, trials: int, rate: float) -> float:
    """Return a p-value for a number of independent inclusions (binomial)."""
    law = stats.binom(trials, rate)
    return 1.0 if trials == 0 else two_sided(law.cdf(hits), law.sf(hits - 1))


def shape_p_value(counts: npt.NDArray[np.int64]) -> float:
    """Return a p-value for equal chances of every cell, by Kolmogorov and Smirnov.

    The distance is taken at the cells' edges only, so it is never too large: the p-value errs on
    the side of no rejection.
    """
    count = int(counts.sum())
    if count == 0:
        return 1.0
    uniform = np.arange(1, len(counts) + 1) / len(counts)
    distance = float(np.max(np.abs(np.cumsum(counts) / count - uniform)))
    return float(stats.kstwo.sf(distance, count))


def squares_grid() -> Floats:
    """Return where moment generating functions of squared deviations are taken."""
    one_side = np.geomspace(0.005, 200.0, 60)
    return np.concatenate([-one_side, one_side])


def overlaps_grid() -> Floats:
    """Return where moment generating functions of overlaps are taken."""
    one_side = np.geomspace(0.005, 8.0, 40)
    return np.concatenate([-one_side, one_side])


@dataclass(frozen=True)
class ChernoffTally:
    """A sum of independent statistics, each of known law, and an exact bound on its tails.

    P[X >= x] <= E[exp(t X)] exp(-t x) for each t > 0, and the same below for t < 0: true for
    discrete and for very small samples, where an approximation would reject a correct engine.
    Logarithms of moment generating functions add, so rounds of any size add.

    Attributes:
        observed: The sum. Each statistic is standardised.
        log_mgf: Of the sum, on the grid.
    """

    observed: float = 0.0
    log_mgf: Floats = field(default_factory=lambda: np.zeros(0))

    def plus(self, observed: float, log_mgf: Floats) -> "ChernoffTally":
        """Return the tally with one or more statistics added."""
        kept = self.log_mgf if len(self.log_mgf) else np.zeros(len(log_mgf))
        return ChernoffTally(self.observed + observed, kept + log_mgf)

    def p_value(self, grid: Floats) -> float:
        """Return an upper bound on the chance of a sum as far out as this, two-sided."""
        if not len(self.log_mgf):
            return 1.0
        tails = self.log_mgf - grid * self.observed
        return min(1.0, 2 * exp(min(0.0, float(tails.min()))))


@lru_cache(maxsize=64)
def squares_log_mgf(trials: int, rate: float) -> Floats:
    """Return log E[exp(t Z^2)] on the grid, Z the standardised Binomial(trials, rate)."""
    values = np.arange(trials + 1)
    squares = (values - trials * rate) ** 2 / (trials * rate * (1 - rate))
    chances = stats.binom.logpmf(values, trials, rate)
    return np.array([special.logsumexp(chances + t * squares) for t in squares_grid()])


def squares(counts: npt.NDArray[np.int64], trials: int, rate: float) -> float:
    """Return the sum of squared standardised counts."""
    deviations = (counts - trials * rate) ** 2
    return float(deviations.sum() / (trials * rate * (1 - rate)))


@dataclass(frozen=True)
class Overlap:
    """How many of a batch were in the one before, standardised; its law given both sizes.

    Two batches drawn independently, given their sizes, overlap by a hypergeometric number, and
    each pair of neighbours by its own, independent of the other pairs.
    """

    deviation: float
    if_none: float
    log_mgf: Floats

    @classmethod
    def of(cls, shared: int, population: int, first: int, second: int) -> "Overlap | None":
        """Return the overlap, or nothing where its number is certain."""
        mean = first * second / population
        if population < 2 or not 0 < mean < min(first, second):
            return None
        rest = (population - first) * (population - second)
        spread = sqrt(mean * rest / (population * (population - 1)))
        low = max(0, first + second - population, int(mean - 40 * spread - 5))
        high = min(first, second, int(mean + 40 * spread + 5))
        values = np.arange(low, high + 1)
        chances = _log_hypergeometric(values, population, first, second)
        exponents = chances + overlaps_grid()[:, None] * (values - mean) / spread
        log_mgf = np.logaddexp.reduce(exponents, axis=1)
        return cls((shared - mean) / spread, -mean / spread, log_mgf)


def _log_hypergeometric(
    values: npt.NDArray[np.int64], population: int, first: int, second: int
) -> Floats:
    """Return the log-chance that ``second`` draws of ``population`` hold this many of ``first``."""
    inside = _log_choose(first, values) + _log_choose(population - first, second - values)
    log_chance: Floats = inside - _log_choose(population, second)
    return log_chance


def _log_choose(number: int, chosen: npt.NDArray[np.int64] | int) -> Floats:
    """Return the logarithm of a binomial coefficient."""
    kept = special.gammaln(number + 1) - special.gammaln(number - np.asarray(chosen) + 1)
    result: Floats = kept - special.gammaln(np.asarray(chosen) + 1)
    return result


def noise_power(factor: float, count: int, level: float) -> float:
    """Return the chance that ``variance_p_value`` of noise scaled by ``factor`` is below level."""
    if count == 0:
        return 0.0
    if factor == 0.0:
        return 1.0
    law = stats.chi2(count)
    low, high = law.ppf(level / 2), law.isf(level / 2)
    return float(law.cdf(low / factor**2) + law.sf(high / factor**2))


def smallest_noise_cut(count: int, level: float, power: float) -> float:
    """Return the smallest part by which noise can be too small and be seen with ``power``.

    >>> round(smallest_noise_cut(60_000, 1e-4, 0.9), 3)
    0.015
    """
    if count == 0:
        return inf
    law = stats.chi2(count)
    return float(1 - sqrt(law.ppf(level / 2) / law.ppf(power)))


def shift_power(shift: float, level: float) -> float:
    """Return the chance that a standard normal moved by ``shift`` is rejected, two-sided."""
    critical = stats.norm.isf(level / 2)
    return float(stats.norm.sf(critical - shift) + stats.norm.cdf(-critical - shift))


def smallest_shift(level: float, power: float) -> float:
    """Return how far a standard normal must move to be rejected with ``power``."""
    return float(stats.norm.isf(level / 2) + stats.norm.ppf(power))


def rate_power(factor: float, trials: int, rate: float, level: float) -> float:
    """Return the chance that ``count_p_value`` sees a rate of ``factor`` times ``rate``."""
    if trials == 0:
        return 0.0
    critical = stats.binom.isf(level / 2, trials, rate)
    return float(stats.binom.sf(critical, trials, min(1.0, factor * rate)))


def smallest_rate_factor(trials: int, rate: float, level: float, power: float) -> float:
    """Return the smallest factor on the sampling rate that is seen with ``power``."""
    most = 1 / rate
    if rate_power(most, trials, rate, level) < power:
        return inf
    return 1 + _bisected(lambda x: rate_power(1 + x, trials, rate, level) < power, most - 1)


def shuffle_power(none: float, pairs: int, rate: float, level: float) -> float:
    """Return about how surely the overlaps show that batches were dealt from a shuffled deck.

    A deck leaves neighbours without overlap except where a new one begins, about every 1/rate
    steps. Normal approximation; ``ChernoffTally`` needs sqrt(2 log(2/level)) deviations.

    Args:
        none: What the overlaps' sum would be with none at all.
    """
    if pairs == 0:
        return 0.0
    critical = -sqrt(2 * log(2 / level) * pairs)
    return float(stats.norm.cdf((critical - (1 - rate) * none) / sqrt(max(rate * pairs, 1e-9))))
