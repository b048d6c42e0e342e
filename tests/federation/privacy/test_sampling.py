from scipy import stats

from federation.privacy.random import SecureRandomness
from federation.privacy.sampling import PoissonSubjects
from tests.federation.privacy.randomness import SeededRandomness


def test_batch_sizes_follow_the_binomial():
    sizes = [len(b) for b in PoissonSubjects(48, 0.25, 4000, SecureRandomness())]
    observed = [sum(s <= k for s in sizes) / len(sizes) for k in range(49)]
    expected = stats.binom(48, 0.25).cdf(range(49))
    assert max(abs(o - e) for o, e in zip(observed, expected, strict=True)) < 0.05


def test_a_batch_may_be_empty():
    assert [] in list(PoissonSubjects(2, 0.05, 200, SeededRandomness(0)))


def test_a_further_subject_does_not_change_the_law_of_the_others():
    rates = []
    for num_subjects in (10, 11):
        batches = list(PoissonSubjects(num_subjects, 0.25, 20_000, SecureRandomness()))
        rates.append(sum(3 in b for b in batches) / len(batches))
    assert all(abs(rate - 0.25) < 0.02 for rate in rates)


def test_there_are_as_many_steps_as_were_accounted_for():
    sampler = PoissonSubjects(5, 0.5, 7, SeededRandomness(0))
    assert len(sampler) == len(list(sampler)) == 7
