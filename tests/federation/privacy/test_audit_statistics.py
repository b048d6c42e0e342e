"""Bounds and tests against closed forms, other libraries' laws, and mechanisms of known epsilon."""

from fractions import Fraction
from math import comb, exp, log

import numpy as np
import pytest
from scipy import stats

from federation.privacy import audit_statistics as statistics
from federation.privacy.audit_evidence import InclusionTally, cells
from federation.privacy.sampling import PoissonSubjects
from tests.federation.privacy.randomness import SeededRandomness

LEVEL = 0.05


def tail(guesses: int, correct: int, accuracy: Fraction) -> Fraction:
    """P[Binomial(guesses, accuracy) >= correct], by exact sums of fractions."""
    rest = 1 - accuracy
    return sum(
        (
            comb(guesses, k) * accuracy**k * rest ** (guesses - k)
            for k in range(max(0, correct), guesses + 1)
        ),
        Fraction(0),
    )


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct"), [(10, 4, 3), (20, 20, 18), (50, 10, 10), (9, 5, 0)]
)
@pytest.mark.parametrize("delta", [0, Fraction(1, 1000)])
def test_the_one_run_p_value_is_theorem_3_1_in_exact_arithmetic(canaries, guesses, correct, delta):
    accuracy = Fraction(3, 4)  # epsilon = log 3
    at_least = tail(guesses, correct, accuracy)
    worst = max(
        ((tail(guesses, correct - i, accuracy) - at_least) / i for i in range(1, canaries + 1)),
        default=Fraction(0),
    )
    expected = min(1.0, float(at_least + 2 * canaries * delta * worst))
    found = statistics.one_run_p_value(
        canaries, guesses, correct, epsilon=log(3), delta=float(delta)
    )
    assert found == pytest.approx(expected, rel=1e-9)


def test_more_right_guesses_than_guesses_are_refused():
    with pytest.raises(ValueError, match="at most the guesses"):
        statistics.one_run_p_value(10, 3, 4, epsilon=1.0, delta=0.0)


def test_the_bound_for_perfect_guesses_is_the_closed_form():
    present = np.arange(400) % 2 == 1
    found = statistics.one_run_epsilon(present.astype(float), present, delta=0.0, level=LEVEL)
    accuracy = (LEVEL / len(statistics.GUESSED_PARTS)) ** (1 / 400)
    assert found == pytest.approx(log(accuracy / (1 - accuracy)), abs=1e-6)


def randomised_response(random, count, epsilon, delta):
    """Each coin is told truly with the odds of epsilon; with chance delta all are told truly."""
    present = random.random(count) < 0.5
    lies = random.random(count) > 1 / (1 + exp(-epsilon))
    told = present if random.random() < delta else present ^ lies
    # Ties between equal answers are broken at random, as any score's would be.
    return told * 2.0 - 1.0 + 1e-3 * random.random(count), present


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (1.0, 0.0), (1.0, 0.03), (3.0, 0.0)])
def test_the_one_run_bound_on_randomised_response_is_valid_and_near(epsilon, delta):
    random = np.random.default_rng(5)
    bounds = [
        statistics.one_run_epsilon(
            *randomised_response(random, 500, epsilon, delta), delta=delta, level=LEVEL
        )
        for _ in range(300)
    ]
    wrong = sum(bound > epsilon for bound in bounds)
    assert wrong <= stats.binom.isf(1e-3, 300, LEVEL)
    if delta == 0.0:
        assert np.median(bounds) >= 0.6 * epsilon


def test_a_mechanism_that_tells_more_than_its_epsilon_is_refuted():
    random = np.random.default_rng(6)
    scores, present = randomised_response(random, 1000, 3.0, 0.0)
    p_value = statistics.one_run_conformance(scores, present, epsilon=1.0, delta=0.0)
    assert p_value < 1e-6
    assert statistics.one_run_conformance(scores, present, epsilon=3.0, delta=1e-5) > 0.01


def test_clopper_pearson_limits_are_scipys():
    for hits, trials in [(0, 9), (4, 9), (9, 9)]:
        interval = stats.binomtest(hits, trials).proportion_ci(0.9, method="exact")
        assert statistics._lower(hits, trials, 0.05) == pytest.approx(interval.low)
        assert statistics._upper(hits, trials, 0.05) == pytest.approx(interval.high)


def test_the_clopper_pearson_bound_for_perfect_scores_is_the_closed_form():
    present = np.arange(400) < 200
    found = statistics.clopper_pearson_epsilon(
        np.where(present, 10.0, -10.0), present, delta=1e-5, level=LEVEL
    )
    share = LEVEL / (4 * len(statistics.THRESHOLDS))
    truly = share ** (1 / 200)
    assert found == pytest.approx(log((truly - 1e-5) / (1 - truly)))


def test_both_bounds_on_the_gaussian_mechanism_stay_below_its_epsilon():
    random, sigma, delta = np.random.default_rng(7), 1.0, 1e-3

    # Balle and Wang 2018 (1805.06530), Theorem 8: the Gaussian mechanism's exact delta.
    def exact(epsilon):
        left = stats.norm.cdf(1 / (2 * sigma) - epsilon * sigma)
        return left - exp(epsilon) * stats.norm.cdf(-1 / (2 * sigma) - epsilon * sigma)

    true = min(e for e in np.arange(0, 8, 0.01) if exact(e) <= delta)
    wrong = {"one run": 0, "rates": 0}
    for _ in range(200):
        present = random.random(600) < 0.5
        sums = present + sigma * random.standard_normal(600)
        scores = statistics.log_likelihood_ratio(sums, sampling_rate=1.0, noise_multiplier=sigma)
        known = {"delta": delta, "level": LEVEL}
        wrong["one run"] += statistics.one_run_epsilon(scores, present, **known) > true
        wrong["rates"] += statistics.clopper_pearson_epsilon(scores, present, **known) > true
    assert max(wrong.values()) <= stats.binom.isf(1e-3, 200, LEVEL)


def test_the_score_is_the_ratio_of_the_two_densities():
    sums, rate, sigma = np.linspace(-4, 5, 13), 0.2, 1.3
    absent = stats.norm.pdf(sums, 0, sigma)
    there = (1 - rate) * absent + rate * stats.norm.pdf(sums, 1, sigma)
    found = statistics.log_likelihood_ratio(sums, sampling_rate=rate, noise_multiplier=sigma)
    assert found == pytest.approx(np.log(there / absent))


def test_the_law_of_squared_counts_is_the_binomials():
    law, grid = stats.binom(7, 0.3), statistics.squares_grid()
    found = statistics.squares_log_mgf(7, 0.3)
    for place in (30, 60, 80):
        exact = law.expect(lambda k, t=grid[place]: np.exp(t * (k - 2.1) ** 2 / 1.47))
        assert exp(found[place]) == pytest.approx(exact)


def test_the_law_of_overlaps_is_hypergeometric():
    overlap = statistics.Overlap.of(3, 40, 12, 9)
    law, grid = stats.hypergeom(40, 12, 9), statistics.overlaps_grid()
    assert overlap.deviation == pytest.approx((3 - law.mean()) / law.std())
    for place in (10, 45, 60):
        exact = law.expect(lambda k, t=grid[place]: np.exp(t * (k - law.mean()) / law.std()))
        assert exp(overlap.log_mgf[place]) == pytest.approx(exact)


@pytest.mark.parametrize(("first", "second"), [(0, 5), (5, 0), (40, 5), (5, 40)])
def test_an_overlap_that_is_certain_says_nothing(first, second):
    assert statistics.Overlap.of(0, 40, first, second) is None


@pytest.mark.parametrize(("population", "rate", "steps"), [(3, 0.25, 5), (300, 0.02, 8)])
def test_inclusions_of_a_true_poisson_sampler_are_rejected_no_more_often_than_said(
    population, rate, steps
):
    rejected = dict.fromkeys(InclusionTally().p_values(rate), 0)
    for seed in range(400):
        batches = list(PoissonSubjects(population, rate, steps, SeededRandomness(seed)))
        tally = InclusionTally().after_round(batches, population, rate)
        for name, p_value in tally.p_values(rate).items():
            rejected[name] += p_value < LEVEL
    assert max(rejected.values()) <= stats.binom.isf(1e-3, 400, LEVEL)


def inclusions(batches, population, rate):
    return InclusionTally().after_round(batches, population, rate).p_values(rate)


def test_each_statistic_of_inclusion_rejects_what_it_is_for():
    random = np.random.default_rng(8)
    often = [[int(i) for i in (random.random(300) < 0.2).nonzero()[0]] for _ in range(40)]
    fixed = [sorted(random.permutation(300)[:30].tolist()) for _ in range(40)]
    rates = np.repeat([0.02, 0.18], 150)
    unequal = [[int(i) for i in (random.random(300) < rates).nonzero()[0]] for _ in range(40)]
    sticky = [batch for batch in fixed[:20] for _ in range(2)]
    assert inclusions(often, 300, 0.1)["sampling rate"] < 1e-6
    assert inclusions(fixed, 300, 0.1)["batch sizes"] < 1e-6
    assert inclusions(unequal, 300, 0.1)["inclusions per subject"] < 1e-6
    assert inclusions(sticky, 300, 0.1)["overlap of neighbouring batches"] < 1e-6


def test_a_batch_of_everybody_is_judged_by_its_count_alone():
    p_values = inclusions([[0, 1, 2]] * 4, 3, 1.0)
    assert set(p_values.values()) == {1.0}
    assert inclusions([[0, 1]] * 4, 3, 1.0)["sampling rate"] == 0.0


def test_the_shapes_p_value_is_never_below_that_of_all_values():
    random = np.random.default_rng(9)
    for _ in range(50):
        values = random.standard_normal(400)
        exact = stats.kstest(values, "norm").pvalue
        assert statistics.shape_p_value(cells(values)) >= exact - 1e-9
    assert statistics.shape_p_value(cells(random.uniform(-1.7, 1.7, 4000))) < 1e-6


def test_the_power_of_the_variance_test_is_what_simulation_shows():
    random, count, level = np.random.default_rng(10), 500, 1e-3
    factor = 1 - statistics.smallest_noise_cut(count, level, 0.9)
    assert statistics.noise_power(factor, count, level) == pytest.approx(0.9, abs=1e-6)
    squares = factor**2 * random.chisquare(count, 4000)
    rejected = np.mean([statistics.variance_p_value(s, count) < level for s in squares])
    assert rejected == pytest.approx(0.9, abs=0.02)


def test_the_power_of_the_count_test_is_what_simulation_shows():
    random, trials, rate, level = np.random.default_rng(11), 5000, 0.02, 1e-3
    factor = statistics.smallest_rate_factor(trials, rate, level, 0.9)
    hits = random.binomial(trials, factor * rate, 2000)
    rejected = np.mean([statistics.count_p_value(h, trials, rate) < level for h in hits])
    assert rejected == pytest.approx(0.9, abs=0.03)


def test_the_power_of_a_shift_is_what_simulation_shows():
    random, level = np.random.default_rng(12), 1e-3
    shift = statistics.smallest_shift(level, 0.9)
    assert statistics.shift_power(shift, level) == pytest.approx(0.9, abs=1e-6)
    draws = random.standard_normal(4000) + shift
    rejected = np.mean([statistics.normal_p_value(d, 1.0) < level for d in draws])
    assert rejected == pytest.approx(0.9, abs=0.02)


def test_nothing_seen_has_no_power_and_rejects_nothing():
    assert statistics.noise_power(0.5, 0, 1e-3) == statistics.rate_power(2.0, 0, 0.1, 1e-3) == 0
    assert statistics.smallest_noise_cut(0, 1e-3, 0.9) == float("inf")
    assert statistics.smallest_rate_factor(2, 0.9, 1e-3, 0.9) == float("inf")
    assert statistics.shuffle_power(0.0, 0, 0.1, 1e-3) == 0
    assert set(InclusionTally().p_values(0.1).values()) == {1.0}
    assert statistics.shape_p_value(np.zeros(8, dtype=np.int64)) == 1.0


def test_bonferroni_holds_the_error_of_many():
    assert statistics.bonferroni([0.01, 0.5]) == 0.02
    assert statistics.bonferroni([]) == 1.0
