"""Three accountants on one grid, and what is never used to account.

The filter decides (Rényi, ``federation.ledger.filter``), dp-accounting's privacy loss
distributions report, and Opacus' PRV accountant (Gopi et al., arXiv 2106.02848) is the third
witness. It is one in tests only: importing Opacus imports torch, which an auditor does without.
"""

import ast
import math
from dataclasses import replace
from pathlib import Path

import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.gdp import compute_eps_poisson

import data_adapters
import federation
import models
from federation.audit.accounting import pld_epsilon, rdp_of_one_step
from federation.errors import PrivacyBudgetError
from federation.experiment import Experiment
from federation.ledger.filter import (
    BudgetPolicy,
    FilterState,
    PoissonGaussian,
    calibrate_noise_multiplier,
    event_from_json,
    rdp_of,
    rdp_to_epsilon,
)
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger, RoundKey, Terms
from federation.privacy.plan import make_plan
from tests.experiments import demo_values, tiny_experiment

# (sampling rate, noise multiplier, steps): small and large rates, one step and thousands.
GRID = [
    (0.001, 0.7, 3000),
    (0.01, 0.8, 1000),
    (0.02, 2.0, 500),
    (0.1, 1.0, 20),
    (0.25, 1.575, 60),
    (0.25, 8.525, 60),
    (0.5, 3.0, 1),
    (0.9, 5.0, 10),
]
DELTAS = [1e-5, 1e-7]
# Of Opacus: its bound on the domain's size notes that a larger order would do better.
QUIET = pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha:UserWarning")


def pld_interval(event, delta):
    """Return the optimistic and the pessimistic epsilon of dp-accounting."""
    found = []
    for pessimistic in (False, True):
        step = privacy_loss_distribution.from_gaussian_mechanism(
            event.noise_multiplier,
            sampling_prob=event.sampling_rate,
            value_discretization_interval=1e-3,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        )
        found.append(step.self_compose(event.steps).get_epsilon_for_delta(delta))
    return tuple(found)


def prv_interval(event, delta):
    """Return the lower and upper epsilon of Opacus, 0.01 on each side of its estimate."""
    accountant = PRVAccountant()
    accountant.history = [(event.noise_multiplier, event.sampling_rate, event.steps)]
    composed = accountant._get_dprv(eps_error=0.01, delta_error=delta / 1000)
    low, _, high = composed.compute_epsilon(delta, delta / 1000, 0.01)
    return low, high


def filter_epsilon(event, delta):
    """Return what the filter has spent, under the policy that holds just this event."""
    policy = BudgetPolicy.of(8.0, delta)
    for epsilon in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0):
        policy = BudgetPolicy.of(epsilon, delta)
        if FilterState().admits(policy, event):
            break
    return FilterState().after(event).spent_epsilon(policy)


@QUIET
@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("numbers", GRID, ids=str)
def test_the_filter_never_says_less_than_pld_and_prv_agrees_with_pld(numbers, delta):
    event = PoissonGaussian(*numbers)
    (pld_low, pld_high), (prv_low, prv_high) = (
        pld_interval(event, delta),
        prv_interval(event, delta),
    )
    assert pld_low <= pld_high <= filter_epsilon(event, delta) + 1e-3
    assert prv_low <= pld_high and pld_low <= prv_high
    assert prv_low <= filter_epsilon(event, delta)


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("numbers", GRID, ids=str)
def test_the_report_is_within_one_percent_of_the_witness_and_never_below_it(numbers, delta):
    rate, noise, steps = numbers
    report = pld_epsilon({(rate, noise): steps}, delta=delta, rdp_epsilon=1.0)
    low, high = pld_interval(PoissonGaussian(*numbers), delta)
    assert low <= report.value <= high * 1.01 + 1e-6


@settings(max_examples=150, deadline=None)
@given(
    rate=st.floats(1e-4, 1.0),
    noise=st.floats(0.3, 50.0),
    order=st.sampled_from([2, 3, 4, 8, 13, 20, 64]),
)
def test_one_steps_cost_agrees_with_dp_accounting_wherever_both_have_digits(rate, noise, order):
    """To 1e-9, above the rounding that dp-accounting's sum near one has."""
    (theirs,) = rdp_of_one_step(rate, noise, (order,))
    ours = rdp_of(PoissonGaussian(rate, noise, 1), order)
    assert ours == pytest.approx(theirs, rel=1e-9, abs=2e-15)


# What is not used


@pytest.mark.parametrize(
    ("numbers", "times"),
    [((0.01, 0.5, 300), 1.4), ((0.002, 0.45, 500), 2.5), ((0.001, 0.4, 100), 5.5)],
    ids=str,
)
def test_the_gaussian_approximation_says_far_less_than_even_an_optimistic_pld(numbers, times):
    """Gaussian-DP by the central limit theorem is no bound: it is banned, not another witness."""
    rate, noise, steps = numbers
    approximated = compute_eps_poisson(
        steps=steps, noise_multiplier=noise, sample_rate=rate, delta=1e-5
    )
    optimistic, _ = pld_interval(PoissonGaussian(*numbers), 1e-5)
    assert optimistic > times * approximated


BANNED = {
    "opacus.accountants": "costs come from the filter and from dp-accounting",
    "opacus.PrivacyEngine": "its sampling rate and normaliser come from the size of the data",
    "opacus.privacy_engine": "the same",
    "opacus.data_loader": "the same",
    "opacus.utils.batch_memory_manager": "leaving its loop early leaves stale skip flags",
    "dp_accounting.gdp": "an approximation from below",
    "torch.utils.data": "its samplers shuffle",
    "monai.data.DataLoader": "the same",
    "random": "no part of the law of sampling may be seeded or shared",
}


def banned_in(text):
    """Return the banned names that a module imports, or mentions as a Gaussian approximation."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute | ast.Name):
            word = node.attr if isinstance(node, ast.Attribute) else node.id
            if word.lower() in {"gaussianaccountant", "gdpaccountant", "compute_eps_poisson"}:
                names.add("opacus.accountants")
    return {b for b in BANNED for n in names if n == b or n.startswith(b + ".")}


def shipped():
    return [
        path
        for package in (federation, models, data_adapters)
        for path in sorted(Path(next(iter(package.__path__))).rglob("*.py"))
    ]


def test_no_shipped_module_uses_what_is_banned():
    assert len(shipped()) > 100
    assert {path.name: banned_in(path.read_text()) for path in shipped()} == {
        path.name: set() for path in shipped()
    }


@pytest.mark.parametrize(
    "line",
    [
        "from opacus.accountants.analysis import gdp",
        "import opacus.accountants.gdp",
        "from opacus import PrivacyEngine",
        "from opacus.utils.batch_memory_manager import BatchMemoryManager",
        "opacus_accountants.GaussianAccountant()",
        "from torch.utils.data import RandomSampler",
        "from monai.data import DataLoader",
    ],
)
def test_that_guard_fires(line):
    assert banned_in(line)


def test_nothing_else_than_independent_coins_can_be_charged_as_poisson():
    """Shuffling has no event; neither has a choice of sites: nothing amplifies but the coins."""
    event = PoissonGaussian(0.1, 1.0, 5).to_json()
    for kind in ("shuffled_gaussian", "gaussian", "fixed_batch", "poisson"):
        with pytest.raises(ValueError, match="kind of event is unknown"):
            event_from_json({**event, "kind": kind})
    with pytest.raises(ValueError, match="exactly the keys"):
        event_from_json({**event, "site_fraction": 0.1})


def test_no_cost_is_lower_because_the_hub_chooses_among_sites():
    plans = [make_plan(tiny_experiment(min_sites=n)) for n in (1, 3, 100)]
    assert len({plan.round_event for plan in plans}) == 1
    assert len({plan.noise_multiplier for plan in plans}) == 1


# Each order has its own part of delta


def rounds_admitted(epsilon, deltas, orders, step):
    """Return how many steps pass if each order may use its part of delta."""
    return max(
        int((epsilon - rdp_to_epsilon(1e-300, order, delta)) / rdp_of(step, order))
        for order, delta in zip(orders, deltas, strict=True)
    )


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
def test_the_whole_delta_at_every_order_would_admit_more_and_no_policy_allows_it(epsilon):
    policy, step = BudgetPolicy.of(epsilon, 1e-5), PoissonGaussian(0.25, 4.0, 1)
    proven = rounds_admitted(epsilon, policy.order_deltas, policy.orders, step)
    wished = rounds_admitted(epsilon, [policy.delta] * 3, policy.orders, step)
    assert wished > 1.02 * proven
    assert FilterState().admits(policy, step.times(proven))
    assert not FilterState().admits(policy, step.times(wished))
    with pytest.raises(ValueError, match="add up to more than delta"):
        replace(policy, order_deltas=(policy.delta,) * len(policy.orders))


@given(
    orders=st.lists(st.integers(2, 64), min_size=1, max_size=6, unique=True).map(sorted),
    surplus=st.floats(1.0000001, 16.0),
)
def test_no_split_may_add_up_to_more_than_delta(orders, surplus):
    parts = (1e-5 * surplus / len(orders),) * len(orders)
    with pytest.raises(ValueError, match="add up to more than delta"):
        BudgetPolicy(8.0, 1e-5, tuple(orders), parts)


# A plan for exactly what is left


class Site:
    """A ledger, charged round by round."""

    def __init__(self, folder, policy):
        self.ledger = Ledger.create(folder / "ledger.jsonl", SiteKey.create(folder), policy, "x")

    def approve(self, name, event, charges):
        self.name, self.event = "sha256:" + name * 64, event
        some = "sha256:" + "0" * 64
        self.ledger.approve(Terms(self.name, self.name, event, charges, some, "Dr. Rivera", some))

    def charge(self, number, attempt=1):
        return self.ledger.charge(
            RoundKey(f"run-{self.name[-1]}", number, attempt),
            request_digest="sha256:" + f"{number:032x}{attempt:032x}",
            experiment_digest=self.name,
            plan_digest=self.name,
            event=self.event,
        )


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
@pytest.mark.parametrize("run", [(0.25, 5, 6, 2), (0.02, 40, 4, 1)], ids=str)
def test_a_plan_for_what_is_left_finishes_with_its_retries_and_one_more_step_is_refused(
    tmp_path, epsilon, run
):
    rate, steps, rounds, retries = run
    policy = BudgetPolicy.of(epsilon, 1e-5)
    site = Site(tmp_path, policy)
    site.approve("a", PoissonGaussian(0.1, 20.0 / epsilon**0.5, 3), 2)
    site.charge(1), site.charge(2)
    charges = rounds + retries
    noise = calibrate_noise_multiplier(
        policy,
        sampling_rate=rate,
        steps=charges * steps,
        tolerance=1e-6,
        spent=site.ledger.state,
    )
    site.approve("b", PoissonGaussian(rate, noise, steps), charges)
    for number in range(1, rounds + 1):
        site.charge(number)
    for attempt in range(2, retries + 2):
        site.charge(1, attempt)
    assert site.ledger.spent_epsilon <= epsilon
    with pytest.raises(PrivacyBudgetError, match="do not fit what is left"):
        site.approve("c", PoissonGaussian(rate, noise, 1), 1)


def test_less_noise_than_calibrated_does_not_fit_what_is_left():
    policy = BudgetPolicy.of(3.0, 1e-5)
    spent = FilterState().after(PoissonGaussian(0.25, 6.0, 20))
    noise = calibrate_noise_multiplier(policy, sampling_rate=0.1, steps=50, spent=spent)
    assert spent.admits(policy, PoissonGaussian(0.1, noise, 50))
    assert not spent.admits(policy, PoissonGaussian(0.1, noise - 2e-3, 50))
    assert noise > calibrate_noise_multiplier(policy, sampling_rate=0.1, steps=50)


def test_where_nothing_is_left_no_noise_fits():
    policy = BudgetPolicy.of(1.0, 1e-5)
    spent = FilterState().after(PoissonGaussian(1.0, 0.1, 1000))
    assert math.isfinite(spent.spent_epsilon(policy))
    with pytest.raises(ValueError, match="No noise multiplier"):
        calibrate_noise_multiplier(policy, sampling_rate=0.1, steps=1, spent=spent)


def test_the_demos_plan_fits_a_site_with_exactly_its_epsilon(tmp_path):
    plan = make_plan(Experiment.model_validate(demo_values()))
    site = Site(tmp_path, BudgetPolicy.of(plan.epsilon, plan.delta))
    site.approve("a", plan.round_event, plan.charges)
    for number in range(1, plan.charges + 1):
        site.charge(number)
    one_step = replace(plan.round_event, steps=1)
    with pytest.raises(PrivacyBudgetError):
        site.approve("b", one_step.times(plan.steps), 1)
