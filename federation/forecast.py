"""What an experiment will cost a site, before anybody pays: the filter asked beforehand.

Every figure is a state of the site's filter (``federation.ledger.filter``) or comes from asking it:
the same rule that will admit or refuse the charges. Torch-free; no data is opened.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from federation.ledger.filter import (
    MAX_STEPS,
    NOISE_MULTIPLIER_RANGE,
    BudgetPolicy,
    FilterState,
    PoissonGaussian,
    calibrate_noise_multiplier,
    largest_epsilon,
)
from federation.privacy.plan import PrivacyPlan

# Columns and rows of the tables around a plan.
SHARES_OF_ROUNDS = (0.25, 0.5, 1.0, 2.0, 4.0)
FACTORS_OF_NOISE = (0.5, 0.75, 1.0, 1.5, 2.0)
FACTORS_OF_SAMPLING = (0.25, 0.5, 1.0, 2.0)
WANTED = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0)


@dataclass(frozen=True)
class Budget:
    """One site's filter as it stands.

    Attributes:
        spent: What was charged.
        promised: The same, and every round that is approved for others and not charged yet.
        approved: The same, and those of this experiment, too: with another epsilon it is another
            experiment, beside which an approval of this one still holds its rounds.
    """

    site: str
    policy: BudgetPolicy
    spent: FilterState
    promised: FilterState
    approved: FilterState


@dataclass(frozen=True)
class Point:
    """Epsilon of a variant of the plan alone, on a site that has spent nothing.

    Attributes:
        value: The rounds charged, repeats of lost ones included; the noise multiplier, the
            sampling rate, or the epsilon wanted.
        epsilon: What the run would cost; None where no noise is enough.
        noise_multiplier: Of the run.
        fits: Whether the site's filter would admit it now, beside what was spent and promised.
    """

    value: float
    epsilon: float | None
    noise_multiplier: float | None
    fits: bool


@dataclass(frozen=True)
class Forecast:
    """What a run costs one site. Epsilons are states of the filter, not sums of separate runs.

    Attributes:
        spent, promised, after: Epsilon charged so far; with what is promised to others; with this
            run, too, with every repeat of a lost round that it permits.
        admitted: Whether the filter would let the run be approved.
        more_runs: How many further runs like it would then fit.
        noise_that_fits: The least noise multiplier with which it would fit what is left; None
            where no noise is enough.
        epsilon_that_fits: The largest epsilon that the experiment could ask for instead, to the
            same rounds, repeats and sampling, rounded down; None where none is small enough.
    """

    site: str
    limit: float
    delta: float
    spent: float
    promised: float
    after: float
    charges: int
    steps: int
    sampling_rate: float
    noise_multiplier: float
    admitted: bool
    more_runs: int
    noise_that_fits: float | None
    epsilon_that_fits: float | None
    by_rounds: tuple[Point, ...]
    by_noise: tuple[Point, ...]
    by_sampling_rate: tuple[Point, ...]
    noise_for: tuple[Point, ...]

    @property
    def cost(self) -> float:
        """Return what this run adds to the filter's state; infinite where that is already."""
        return inf if self.promised == inf else self.after - self.promised

    @property
    def left(self) -> float:
        """Return what is left of the limit before it."""
        return max(0.0, self.limit - self.promised)

    def to_json(self) -> Any:
        """Return JSON values; an infinite epsilon is null."""
        values = asdict(self) | {"cost": self.cost, "left": self.left}
        return without_infinity(values)


def forecast(plan: PrivacyPlan, budget: Budget) -> Forecast:
    """Ask the filter what a run would cost, and what its neighbours would.

    Args:
        plan: Of a private experiment.
    """
    event, policy = plan.round_event, budget.policy
    if not isinstance(event, PoissonGaussian):
        raise ValueError("an experiment without privacy has no forecast: its epsilon is infinite")
    whole = event.times(plan.charges)
    admitted = budget.promised.admits(policy, whole)
    after = budget.promised.after(whole)
    return Forecast(
        site=budget.site,
        limit=policy.epsilon,
        delta=policy.delta,
        spent=budget.spent.spent_epsilon(policy),
        promised=budget.promised.spent_epsilon(policy),
        after=after.spent_epsilon(policy),
        charges=plan.charges,
        steps=whole.steps,
        sampling_rate=event.sampling_rate,
        noise_multiplier=event.noise_multiplier,
        admitted=admitted,
        more_runs=runs_that_fit(after, policy, whole) if admitted else 0,
        noise_that_fits=_noise(policy, whole.sampling_rate, whole.steps, budget.promised),
        epsilon_that_fits=largest_epsilon(
            policy,
            delta=plan.delta,
            sampling_rate=whole.sampling_rate,
            steps=whole.steps,
            spent=budget.approved,
        ),
        by_rounds=tuple(_by_rounds(event, plan.charges, budget)),
        by_noise=tuple(_by_noise(whole, budget)),
        by_sampling_rate=tuple(_by_sampling_rate(whole, budget)),
        noise_for=tuple(_noise_for(whole, budget)),
    )


def runs_that_fit(state: FilterState, policy: BudgetPolicy, run: PoissonGaussian) -> int:
    """Return how often ``run`` fits after ``state``, one time after the other."""
    if not state.admits(policy, run):
        return 0
    fitting, most = 1, MAX_STEPS // run.steps
    while fitting < most and state.admits(policy, run.times(min(2 * fitting, most))):
        fitting = min(2 * fitting, most)
    too_many = min(2 * fitting, most + 1)
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        fits = state.admits(policy, run.times(middle))
        fitting, too_many = (middle, too_many) if fits else (fitting, middle)
    return fitting


def without_infinity(value: Any) -> Any:
    """Return JSON values with null for what is infinite."""
    if isinstance(value, dict):
        return {name: without_infinity(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinity(part) for part in value]
    return None if value == inf else value


def _point(value: float, run: PoissonGaussian, budget: Budget) -> Point:
    epsilon = FilterState().after(run).spent_epsilon(budget.policy)
    fits = budget.promised.admits(budget.policy, run)
    return Point(value, epsilon, run.noise_multiplier, fits)


def _by_rounds(event: PoissonGaussian, charges: int, budget: Budget) -> Iterator[Point]:
    for rounds in sorted({max(1, round(charges * share)) for share in SHARES_OF_ROUNDS}):
        yield _point(rounds, event.times(rounds), budget)


def _by_noise(whole: PoissonGaussian, budget: Budget) -> Iterator[Point]:
    for factor in FACTORS_OF_NOISE:
        noise = max(NOISE_MULTIPLIER_RANGE[0], round(whole.noise_multiplier * factor, 3))
        yield _point(noise, replace(whole, noise_multiplier=noise), budget)


def _by_sampling_rate(whole: PoissonGaussian, budget: Budget) -> Iterator[Point]:
    rates = {min(1.0, whole.sampling_rate * factor) for factor in FACTORS_OF_SAMPLING}
    for rate in sorted(rates):
        yield _point(rate, replace(whole, sampling_rate=rate), budget)


def _noise_for(whole: PoissonGaussian, budget: Budget) -> Iterator[Point]:
    policy = budget.policy
    for wanted in sorted({*WANTED, policy.epsilon}):
        noise = _noise(BudgetPolicy.of(wanted, policy.delta), whole.sampling_rate, whole.steps)
        if noise is None:
            yield Point(wanted, None, None, fits=False)
        else:
            run = replace(whole, noise_multiplier=noise)
            yield Point(wanted, wanted, noise, budget.promised.admits(policy, run))


def _noise(
    policy: BudgetPolicy, sampling_rate: float, steps: int, spent: FilterState | None = None
) -> float | None:
    try:
        return calibrate_noise_multiplier(
            policy, sampling_rate=sampling_rate, steps=steps, spent=spent or FilterState()
        )
    except ValueError:
        return None
