"""Faults planted in the shipped engine, audited runs of it, and the table of what was rejected.

    python -m tests.federation.privacy.planted_faults     writes docs/self-audit.md

Each fault is a subclass of what ships, or a source of randomness around the seeded one: the engine
itself has no switch for any of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from federation.privacy.audit_report import SelfAuditReport
from federation.privacy.engine import SubjectOptimizer
from federation.privacy.plan import PrivacyPlan
from federation.privacy.sampling import PoissonSubjects
from federation.privacy.self_audit import SelfAudit
from tests.federation.privacy.randomness import SeededRandomness

TABLE = Path(__file__).parents[3] / "docs" / "self-audit.md"
SEEDS = range(10)
CORRECT_SEEDS = range(20)


@dataclass(frozen=True)
class Regime:
    """One kind of run. ``rounds`` rounds share the evidence, each of ``plan.steps`` steps."""

    name: str
    plan: PrivacyPlan
    num_subjects: int
    rounds: int


def plan_of(**values) -> PrivacyPlan:
    usual = {
        "unit": "subject",
        "adjacency": "add_or_remove_one",
        "epsilon": 8.0,
        "delta": 1e-5,
        "clip_norm": 0.5,
        "cap": 2,
        "charges": 12,
    }
    return PrivacyPlan(**(usual | values))


# Noise as federation.ledger.filter calibrates it for the epsilon beside it.
REGIMES = (
    # configs/demo.yaml: 12 rounds of 5 steps.
    Regime(
        "demo: q 0.25, 60 steps",
        plan_of(sampling_rate=0.25, noise_multiplier=1.575, expected_batch=12, steps=5),
        num_subjects=48,
        rounds=12,
    ),
    Regime(
        "rare: q 0.02, 120 steps",
        plan_of(
            epsilon=2.0, sampling_rate=0.02, noise_multiplier=1.034, expected_batch=4, steps=20
        ),
        num_subjects=200,
        rounds=6,
    ),
    Regime(
        "loud: q 0.1, 60 steps",
        plan_of(epsilon=1.0, sampling_rate=0.1, noise_multiplier=3.637, expected_batch=6, steps=10),
        num_subjects=60,
        rounds=6,
    ),
)


class Scaled(SeededRandomness):
    """Noise of another size."""

    factor = 1.0

    def gaussians(self, count):
        return self.factor * super().gaussians(count)


class FivePercentLess(Scaled):
    factor = 0.95


class TwentyPercentLess(Scaled):
    factor = 0.8


class Halved(Scaled):
    factor = 0.5


class RewoundEachStep(SubjectOptimizer):
    """Each step's noise starts from the same seed."""

    def add_noise(self):
        self._randomness = SeededRandomness(7)
        super().add_noise()


class RewoundEachRound(SeededRandomness):
    """Each round's optimiser draws from one seed."""

    def __init__(self, seed):
        super().__init__(7)


class SameForEachTensor(SubjectOptimizer):
    """Each tensor of one step gets the first numbers of one stream."""

    def add_noise(self):
        longest = max(parameter.numel() for parameter in self.params)
        noise = torch.from_numpy(self._randomness.gaussians(longest)) * self._plan.noise_stddev
        for parameter in self.params:
            mine = noise[: parameter.numel()].view(parameter.shape)
            parameter.grad = (parameter.summed_grad + mine).to(parameter.dtype)


class OneTensorSilent(SubjectOptimizer):
    """The network's second tensor gets no noise."""

    def add_noise(self):
        super().add_noise()
        quiet = self.params[1]
        quiet.grad = quiet.summed_grad.to(quiet.dtype)


class ClipsAt(SubjectOptimizer):
    """Clips at a multiple of the plan's norm, but noises as the plan says."""

    factor = 2.0

    def clip_and_accumulate(self):
        honest = self.max_grad_norm
        self.max_grad_norm = self.factor * honest
        super().clip_and_accumulate()
        self.max_grad_norm = honest

    def add_subjects(self, gradients):
        honest = self._plan
        self._plan = replace(honest, clip_norm=self.factor * honest.clip_norm)
        super().add_subjects(gradients)
        self._plan = honest


class DividesByRealBatch(SubjectOptimizer):
    """Divides by who came, canaries and all, in place of the plan's public constant."""

    def add_subjects(self, gradients):
        super().add_subjects(gradients)
        self._came = getattr(self, "_came", 0) + len(gradients[0])

    def scale_grad(self):
        self.expected_batch_size = max(1, getattr(self, "_came", 0))
        super().scale_grad()
        self._came = 0


class RealSubjectsUnclipped(SubjectOptimizer):
    """Sums real subjects as they come; only the canaries go through the clip."""

    def add_subjects(self, gradients):
        if len(gradients) == 1:
            super().add_subjects(gradients)
            return
        for parameter, gradient in zip(self.params, gradients, strict=True):
            parameter.summed_grad += gradient.sum(0)


class TwiceAsOften(PoissonSubjects):
    """Samples at twice the rate."""

    def __iter__(self) -> Iterator[list[int]]:
        yield from PoissonSubjects(
            self.num_subjects, 2 * self.sampling_rate, self.steps, self.randomness
        )


class Shuffled(PoissonSubjects):
    """Deals everybody once, then shuffles again."""

    def __iter__(self) -> Iterator[list[int]]:
        size = round(self.num_subjects * self.sampling_rate)
        deck: list[int] = []
        for _ in range(self.steps):
            if len(deck) < size:
                deck = np.argsort(self.randomness.uniforms(self.num_subjects)).tolist()
            batch, deck = deck[:size], deck[size:]
            yield sorted(batch)


@dataclass(frozen=True)
class Engine:
    """The parts of an engine; the default is what ships."""

    optimizer: type[SubjectOptimizer] = SubjectOptimizer
    sampler: type[PoissonSubjects] = PoissonSubjects
    noise: Callable[[list[int]], SeededRandomness] = SeededRandomness


FAULTS = {
    "noise 5 % too small": Engine(noise=FivePercentLess),
    "noise 20 % too small": Engine(noise=TwentyPercentLess),
    "noise halved": Engine(noise=Halved),
    "one tensor without noise": Engine(optimizer=OneTensorSilent),
    "clip norm doubled": Engine(optimizer=ClipsAt),
    "real subjects not clipped": Engine(optimizer=RealSubjectsUnclipped),
    "divided by the realised batch": Engine(optimizer=DividesByRealBatch),
    "sampling rate doubled": Engine(sampler=TwiceAsOften),
    "shuffling instead of Poisson": Engine(sampler=Shuffled),
    "noise used again in each step": Engine(optimizer=RewoundEachStep),
    "noise used again in each round": Engine(noise=RewoundEachRound),
    "one noise for all tensors": Engine(optimizer=SameForEachTensor),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def gradients_of(subjects: list[int], net: nn.Module, clip_norm: float) -> list[torch.Tensor]:
    """Return made-up gradients, about half of them longer than the clip norm."""
    random = np.random.default_rng(subjects)
    rows = []
    for parameter in net.parameters():
        values = random.standard_normal((len(subjects), *parameter.shape))
        rows.append(torch.from_numpy(values * clip_norm * 0.14).float())
    return rows


def audited(regime: Regime, engine: Engine, seed: int) -> SelfAuditReport:
    """Run all rounds of a regime and return the report, evidence passing through JSON values."""
    net = network()
    state = None
    for number in range(regime.rounds):
        # Streams of their own for each regime, run, round and use.
        place = [[r.name for r in REGIMES].index(regime.name), seed, number]
        random, noise = SeededRandomness([*place, 0]), engine.noise([*place, 1])
        audit = open_audit(regime, random, state)
        audited_round(regime, engine, audit, net, random, noise)
        state = audit.state()
    return audit.report()


def open_audit(regime: Regime, random: SeededRandomness, state) -> SelfAudit:
    if state is None:
        return SelfAudit.begin(regime.plan, random, num_subjects=regime.num_subjects)
    return SelfAudit.resume(state, regime.plan, num_subjects=regime.num_subjects)


def audited_round(regime, engine, audit, net, random, noise) -> None:
    """Take one round's steps as a site takes them."""
    plan = regime.plan
    parameters = [*net.parameters(), audit.parameter]
    optimizer = engine.optimizer(torch.optim.SGD(parameters, lr=0.1), plan=plan, randomness=noise)
    for indices in engine.sampler(audit.num_sampled_from, plan.sampling_rate, plan.steps, random):
        audit.begin_step(indices)
        add_real(optimizer, audit, [i for i in indices if i < regime.num_subjects], net, plan)
        audit.add_canaries(optimizer)
        optimizer.release_step(observe=lambda: audit.end_step(audit.parameter.grad))
    audit.test_noise()


def add_real(optimizer, audit, subjects, net, plan) -> None:
    if not subjects:
        return
    rows = gradients_of(subjects, net, plan.clip_norm)
    with audit.watching(optimizer, rows):
        optimizer.add_subjects(rows)
    optimizer.forget_samples()


def bounds_alone_reject(report: SelfAuditReport) -> bool:
    return max(report.epsilon_one_run, report.epsilon_clopper_pearson) > report.claimed_epsilon


@dataclass(frozen=True)
class Row:
    """What came of one engine: rejected runs and runs whose bounds pass epsilon, by regime."""

    name: str
    runs: int
    rejected: tuple[int, ...]
    bounds: int
    sure: bool

    @property
    def text(self) -> str:
        counts = " | ".join(f"{count} of {self.runs}" for count in self.rejected)
        return f"| {self.name} | {counts} | {self.bounds} of {self.runs * len(REGIMES)} |"


CORRECT = "none: the engine as it ships"


def row_of(name: str) -> Row:
    """Run one engine in every regime with its seeds."""
    engine, seeds = (Engine(), CORRECT_SEEDS) if name == CORRECT else (FAULTS[name], SEEDS)
    reports = [[audited(regime, engine, seed) for seed in seeds] for regime in REGIMES]
    every = [report for row in reports for report in row]
    return Row(
        name=name,
        runs=len(seeds),
        rejected=tuple(sum(r.verdict == "violation" for r in row) for row in reports),
        bounds=sum(bounds_alone_reject(report) for report in every),
        sure=all(not report.unseen for report in every),
    )


HEAD = """# What the privacy self-audit rejects

Each row is a fault planted in the engine that ships (`tests/federation/privacy/planted_faults.py`),
run and audited with ten seeds in three regimes: a thousand canaries, a tiny network, every number
from `python -m tests.federation.privacy.planted_faults`. A correct engine is run with twenty. The
last column is how often a lower bound on epsilon alone, at 95 %, passes the epsilon that the plan
promises: bounds let these faults through, which is why the audit tests conformance.

Halved noise and real subjects that are not clipped are planted in `train_locally` too, on a real
network and images. That a real subject went past the clip norm is seen in the first call of each
step, and only where a gradient was longer than it. An audit that fails stops no round: it adds no
more canaries, and the next report says that a round was not observed. Reports stay at the site.

"""


def page(rows: list[Row]) -> str:
    """Return the page that is committed."""
    heads = " | ".join(regime.name for regime in REGIMES)
    lines = [f"| planted fault | {heads} | bounds alone |", "|---|" + "---|" * (len(REGIMES) + 1)]
    return HEAD + "\n".join(lines + [row.text for row in rows]) + "\n"


if __name__ == "__main__":
    TABLE.write_text(page([row_of(name) for name in (CORRECT, *FAULTS)]))
