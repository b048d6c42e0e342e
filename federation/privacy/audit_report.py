"""What a self-audit concludes: bounds, tests, and the faults that it could have seen. Torch-free.

What catches what. ``canary noise`` tests see noise that is too small, used twice or of another law,
in the real steps, on the canaries' coordinates. ``tensor noise`` tests see the same for every
tensor of the network, in steps of pure noise. ``canary contributions`` see another clip norm and
canaries that are dropped or counted twice. The inclusion tests see another sampling rate, shuffling
and batches of a fixed size, which canaries' scores hardly show at small sampling rates. Watching
the first call of each step that adds real subjects sees one that goes past the clip norm, if any
gradient there was longer. The bounds on epsilon see only gross faults: half of the noise passes
them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import inf, isinf, sqrt
from typing import Any, Literal

from federation.privacy import audit_statistics as statistics
from federation.privacy.audit_evidence import Evidence
from federation.privacy.plan import PrivacyPlan

# Chance that a correct engine is called a violation, over all tests of one report.
FALSE_ALARM = 1e-3
POWER = 0.9
BOUND_LEVEL = 0.05
DECLARED_NOISE_CUT = 0.05
NOT_COVERED = (
    "the code that computes gradients before they are clipped",
    "which images belong to which subject",
    "what real subjects add after the first call of each step",
    "channels other than the update: timing, logs, errors, counts",
    "the calibration of the plan, which the accountants check",
)

UNCLIPPED = (
    "a real subject past the clip norm, in the first call of each step if a gradient is longer"
)

About = Literal["canaries", "noise", "subjects"]
Verdict = Literal["no_evidence_of_violation", "violation", "inconclusive"]


@dataclass(frozen=True)
class ConformanceTest:
    """One test that the engine did what the plan says; p-values near zero speak against it."""

    about: About
    name: str
    p_value: float


@dataclass(frozen=True)
class DetectableFault:
    """A fault, and how surely this run would have shown it.

    Attributes:
        declared: The size that must be seen with power 0.9 for a verdict.
        power: Chance that this run's tests would have shown the declared size.
        smallest: The smallest size seen with power 0.9; infinite: none; 0 for a fault that has no
            size and would have been seen.
    """

    about: About
    name: str
    declared: float
    power: float
    smallest: float


@dataclass(frozen=True)
class SelfAuditReport:
    """What the audit of one experiment's rounds found. It stays at the site.

    Attributes:
        rounds: Those observed. The audit failed in ``rounds_unobserved`` more.
        epsilon_one_run: Lower bound at 95 %, Steinke et al. 2023.
        epsilon_clopper_pearson: Lower bound at 95 % from rates of right guesses.
    """

    plan_digest: str
    rounds: int
    rounds_unobserved: int
    steps: int
    num_canaries: int
    num_present: int
    claimed_epsilon: float
    delta: float
    epsilon_one_run: float
    epsilon_clopper_pearson: float
    tests: tuple[ConformanceTest, ...]
    faults: tuple[DetectableFault, ...]
    not_covered: tuple[str, ...] = NOT_COVERED

    @property
    def level(self) -> float:
        """The p-value below which one test is a violation (Bonferroni)."""
        return FALSE_ALARM / max(1, len(self.tests))

    @property
    def violations(self) -> tuple[ConformanceTest, ...]:
        """Tests that a correct engine would hardly fail."""
        return tuple(test for test in self.tests if test.p_value < self.level)

    @property
    def unseen(self) -> tuple[DetectableFault, ...]:
        """Declared faults that this run was too short to show."""
        return tuple(fault for fault in self.faults if not fault.power >= POWER)

    @property
    def verdict(self) -> Verdict:
        """Return the conclusion. No verdict says that the engine is correct."""
        if self.violations:
            return "violation"
        return "inconclusive" if self.unseen else "no_evidence_of_violation"

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; an infinite number is null."""
        values = asdict(self)
        for fault in values["faults"]:
            fault["smallest"] = None if isinf(fault["smallest"]) else fault["smallest"]
        return {
            "format": "cohortium-self-audit/1",
            "verdict": self.verdict,
            "statement": self.statement(),
            "violations": [test.name for test in self.violations],
            "unseen": [fault.name for fault in self.unseen],
            "level": self.level,
            "bound_confidence": 1 - BOUND_LEVEL,
            **values,
        }

    def statement(self) -> str:
        """Return the conclusion in one line.

        With the one-run bound, always: the larger of two bounds would hold less often than 95 %.
        """
        worded = _bound(self.epsilon_one_run, self.rounds_unobserved)
        if self.verdict == "violation":
            names = ", ".join(f"{t.name} (p = {t.p_value:.1g})" for t in self.violations)
            return f"violation of the plan: {names}; {worded}"
        if self.verdict == "inconclusive":
            names = ", ".join(fault.name for fault in self.unseen)
            return f"inconclusive: these steps could not show {names}; {worded}"
        return f"no evidence of violation; {worded}"

    def text(self) -> str:
        """Return a few lines for people."""
        smallest = min(self.tests, key=lambda test: test.p_value)
        shown = "; ".join(f"{f.name}: {_size(f.smallest)}" for f in self.faults)
        return (
            f"Privacy self-audit: {self.statement()}.\n"
            f"{self.steps} steps in {self.rounds} rounds, {self.num_canaries} canaries. The plan "
            f"promises epsilon {self.claimed_epsilon:g} at delta {self.delta:g}. From rates of "
            f"right guesses: epsilon >= {self.epsilon_clopper_pearson:.2f} at 95 %. Both bounds "
            f"lie far below the truth, and half of the noise would pass them.\n"
            f"{len(self.tests)} tests of conformance; the smallest p-value is "
            f"{smallest.p_value:.2g} ({smallest.name}); below {self.level:.1g} is a violation.\n"
            f"Smallest fault that this run would have shown (power 0.9): {shown}.\n"
            f"Not covered: {'; '.join(self.not_covered)}."
        )


def for_others(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a report whoever is not the site may have: nothing counted over real subjects.

    The verdict is over all tests, as it stands; tests and faults about subjects are left out.

    Args:
        report: As ``SelfAuditReport.to_json`` gives it.
    """
    parts = {name: report[name] for name in ("tests", "faults")}
    hidden = {one["name"] for part in parts.values() for one in part if one["about"] == "subjects"}
    told = dict(report)
    for name, part in parts.items():
        told[name] = [one for one in part if one["about"] != "subjects"]
    for name in ("violations", "unseen"):
        told[name] = [one for one in report[name] if one not in hidden]
    if report["violations"] or report["unseen"]:
        bound = _bound(report["epsilon_one_run"], report["rounds_unobserved"])
        told["statement"] = f"{report['verdict'].replace('_', ' ')}; {bound}"
    return told


def _bound(epsilon: float, unobserved: int) -> str:
    missed = f"; the audit failed in {unobserved} more rounds and says nothing of them"
    return f"epsilon >= {epsilon:.2f} at 95 % confidence{missed * bool(unobserved)}"


def _size(value: float) -> str:
    if isinf(value):
        return "none"
    return f"{value:.3g}" if value else "seen"


def make_report(evidence: Evidence, plan: PrivacyPlan) -> SelfAuditReport:
    """Return what the evidence says about an engine that claims to follow the plan.

    Each report errs once in a thousand. Reports after every round err more often: the one that
    counts is the last.
    """
    tests = _tests(evidence, plan)
    bound = {"delta": plan.delta, "level": BOUND_LEVEL}
    return SelfAuditReport(
        plan_digest=evidence.plan_digest,
        rounds=evidence.rounds,
        rounds_unobserved=evidence.unobserved,
        steps=evidence.steps,
        num_canaries=len(evidence.present),
        num_present=int(evidence.present.sum()),
        claimed_epsilon=plan.epsilon,
        delta=plan.delta,
        epsilon_one_run=statistics.one_run_epsilon(evidence.scores, evidence.present, **bound),
        epsilon_clopper_pearson=statistics.clopper_pearson_epsilon(
            evidence.scores, evidence.present, **bound
        ),
        tests=tests,
        faults=_faults(evidence, plan, FALSE_ALARM / len(tests)),
    )


def _tests(evidence: Evidence, plan: PrivacyPlan) -> tuple[ConformanceTest, ...]:
    summed, total = evidence.clipped
    scale = plan.noise_multiplier**2 * summed
    one_run = statistics.one_run_conformance(
        evidence.scores, evidence.present, epsilon=plan.epsilon, delta=plan.delta
    )
    named: dict[tuple[About, str], dict[str, float]] = {
        ("noise", "canary noise"): _block_p_values(evidence),
        ("noise", "tensor noise"): evidence.tensor_p_values(),
        ("canaries", "canary inclusions"): evidence.canaries.p_values(plan.sampling_rate),
        ("canaries", "canary contributions"): {
            "clip norm": statistics.normal_p_value(total - summed, scale),
            "one-run bound": one_run,
        },
        ("subjects", "subject inclusions"): evidence.subjects.p_values(plan.sampling_rate),
        ("subjects", "subject contributions"): {
            "clip norm": 0.0 if evidence.contributions_over else 1.0
        },
    }
    return tuple(
        ConformanceTest(about, f"{group}: {name}", p_value)
        for (about, group), p_values in named.items()
        for name, p_value in p_values.items()
    )


def _block_p_values(evidence: Evidence) -> dict[str, float]:
    shape = {"shape": statistics.shape_p_value(evidence.block_cells)}
    p_values = evidence.block.p_values() | shape
    return {name: p for name, p in p_values.items() if name != "same noise for two tensors"}


def _faults(evidence: Evidence, plan: PrivacyPlan, level: float) -> tuple[DetectableFault, ...]:
    # Where no gradient is longer than the clip norm, a clip that is missing shows nowhere.
    needed = 1.0 if evidence.contributions_longer else 0.0
    over = DetectableFault("subjects", UNCLIPPED, 0.0, needed, _any(needed))
    noise = (_noise_cut(evidence, level), _missing_tensor(evidence, level))
    reuse = (_noise_twice(evidence, level), _noise_shared(evidence, level))
    return (
        *noise,
        *reuse,
        _clip_factor(evidence, plan, level),
        *_sampling(evidence, plan, level),
        over,
    )


def _any(power: float) -> float:
    return 0.0 if power >= POWER else inf


def _noise_cut(evidence: Evidence, level: float) -> DetectableFault:
    count = evidence.block.values
    return DetectableFault(
        "noise",
        "part by which all noise is too small",
        DECLARED_NOISE_CUT,
        statistics.noise_power(1 - DECLARED_NOISE_CUT, count, level),
        statistics.smallest_noise_cut(count, level, POWER),
    )


def _missing_tensor(evidence: Evidence, level: float) -> DetectableFault:
    """A tensor without noise shows at once; a cut is stated for the tensor that shows it least."""
    count = min((tally.values for tally in evidence.tensors), default=0)
    share = level / max(1, len(evidence.tensors))
    return DetectableFault(
        "noise",
        "part by which the smallest tensor's noise is too small",
        1.0,
        statistics.noise_power(0.0, count, share),
        statistics.smallest_noise_cut(count, share, POWER),
    )


def _noise_twice(evidence: Evidence, level: float) -> DetectableFault:
    block = evidence.block
    shift = sqrt(block.lags * len(evidence.present))
    name = "correlation of noise from step to step"
    return _correlation(name, shift, level)


def _noise_shared(evidence: Evidence, level: float) -> DetectableFault:
    """All tensors' noise starts alike: the pair that shows it best decides."""
    steps = max((t.nexts for t in evidence.tensors), default=0)
    sizes = [tally.values // max(1, steps) for tally in evidence.tensors]
    best = max((min(pair) for pair in pairwise(sizes)), default=0)
    share = level / max(1, len(evidence.tensors))
    return _correlation("correlation of noise between tensors", sqrt(steps * best), share)


def _correlation(name: str, shift: float, level: float) -> DetectableFault:
    needed = statistics.smallest_shift(level, POWER)
    smallest = needed / shift if shift >= needed else inf
    power = statistics.shift_power(shift, level) if shift else 0.0
    return DetectableFault("noise", name, 1.0, power, smallest)


def _clip_factor(evidence: Evidence, plan: PrivacyPlan, level: float) -> DetectableFault:
    summed, _ = evidence.clipped
    shift = sqrt(summed) / plan.noise_multiplier
    return DetectableFault(
        "canaries",
        "factor on the clip norm",
        2.0,
        statistics.shift_power(shift, level),
        1 + statistics.smallest_shift(level, POWER) / shift if shift else inf,
    )


def _sampling(evidence: Evidence, plan: PrivacyPlan, level: float) -> tuple[DetectableFault, ...]:
    rate, tally = plan.sampling_rate, evidence.canaries
    if rate == 1.0:
        return ()
    doubled = min(2.0, 1 / rate)
    shuffled = statistics.shuffle_power(tally.overlaps_if_none, tally.pairs, rate, level)
    return (
        DetectableFault(
            "canaries",
            "factor on the sampling rate",
            doubled,
            statistics.rate_power(doubled, tally.trials, rate, level),
            statistics.smallest_rate_factor(tally.trials, rate, level, POWER),
        ),
        DetectableFault(
            "canaries",
            "shuffling in place of Poisson sampling",
            0.0,
            shuffled,
            _any(shuffled),
        ),
    )
