"""A run's privacy self-audit: canaries through the real engine, and what their coordinates show.

It stands beside training and never steers it: what fails in here is told, and the round goes on
without being observed further. In each round a site makes one (``begin`` in the
first, ``resume`` from what it wrote after the one before), hands its parameter to the optimiser as
the last one, samples from ``num_subjects + num_canaries``, and tells it of each step. After the
round it writes ``state()``. ``report()`` may be made at any time and counts at the end.

The audit draws nothing but its canaries' coins. All else that it judges is drawn by the engine.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import numpy as np
import torch
from torch import nn

from federation.errors import OnFailure
from federation.privacy.audit_evidence import Evidence, NoiseTally, cells
from federation.privacy.audit_report import SelfAuditReport, make_report
from federation.privacy.audit_statistics import Floats, log_likelihood_ratio
from federation.privacy.canaries import NUM_CANARIES, CanaryBlock, seeing_only
from federation.privacy.contributions import longer_than, moved_too_far
from federation.privacy.engine import SubjectOptimizer
from federation.privacy.plan import PrivacyPlan
from federation.privacy.random import Randomness

# A correlation between steps needs two; each costs what a real step's noise costs.
NOISE_STEPS = 2
# Of each tensor and step so many values count for the shape of the noise; all of them count for
# its size and its correlations.
SHAPED = 4096

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _raise_again(_: str) -> None:
    raise  # noqa: PLE0704 - called inside an except


def _beside(
    observed: Callable[Concatenate["SelfAudit", _P], _T],
) -> Callable[Concatenate["SelfAudit", _P], _T | None]:
    """Let nothing that goes wrong inside reach the round, and observe no more of it."""

    @wraps(observed)
    def guarded(self: "SelfAudit", /, *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        if not self.observing:
            return None
        try:
            return observed(self, *args, **kwargs)
        except Exception:
            self.observing = False
            self._on_failure("the self-audit, which says nothing of this round,")
            return None

    return guarded


class SelfAudit:
    """Follows one round's steps and adds what it sees to the evidence of the rounds before.

    After a failure inside no more canaries are added, and the evidence is that of the rounds
    before, with one more that was not observed. The parameter stays: the real ones' noise and steps
    are as they would be.

    Args:
        on_failure: Told, inside an ``except``, what failed. The default raises it again.

    Attributes:
        parameter: The canaries' coordinates, shape (canaries,): the optimiser's last parameter.
        observing: False once something failed.
    """

    def __init__(
        self,
        plan: PrivacyPlan,
        evidence: Evidence,
        *,
        num_subjects: int,
        device: torch.device | None = None,
        on_failure: OnFailure = _raise_again,
    ) -> None:
        if not plan.is_private:
            raise ValueError("a run without privacy adds no noise: there is nothing to audit")
        if evidence.plan_digest != plan.digest():
            raise ValueError(
                "this evidence is of a run under another plan. Begin a new audit for this run."
            )
        self._plan = plan
        self._earlier = evidence
        self._num_subjects = num_subjects
        self._block = CanaryBlock(evidence.present, clip_norm=plan.clip_norm, device=device)
        self.parameter = self._block.parameter
        self._evidence = replace(evidence, rounds=evidence.rounds + 1)
        self._batches: list[Sequence[int]] = []
        self._watched = 0
        self._noise: Floats | None = None
        self._optimizer: SubjectOptimizer | None = None
        self._on_failure = on_failure
        self.observing = True

    @classmethod
    def begin(  # noqa: PLR0913 - the last four are named
        cls,
        plan: PrivacyPlan,
        randomness: Randomness,
        *,
        num_subjects: int,
        num_canaries: int = NUM_CANARIES,
        device: torch.device | None = None,
        on_failure: OnFailure = _raise_again,
    ) -> Self:
        """Toss the canaries' coins: the audit of a run's first round.

        Raises:
            ValueError: The plan is not private.
        """
        present = randomness.uniforms(num_canaries) < 0.5
        evidence = Evidence(plan.digest(), present, np.zeros(num_canaries))
        return cls(plan, evidence, num_subjects=num_subjects, device=device, on_failure=on_failure)

    @classmethod
    def resume(
        cls,
        state: Mapping[str, Any],
        plan: PrivacyPlan,
        *,
        num_subjects: int,
        device: torch.device | None = None,
        on_failure: OnFailure = _raise_again,
    ) -> Self:
        """Go on with the same canaries in a further round of the run.

        Args:
            state: What ``state()`` returned after the round before.
            num_subjects: May differ from the round before.

        Raises:
            ValueError: The state is of another plan, or no state.
        """
        evidence = Evidence.from_json(dict(state))
        return cls(plan, evidence, num_subjects=num_subjects, device=device, on_failure=on_failure)

    @property
    def num_sampled_from(self) -> int:
        """Real subjects and canaries: what the sampler draws from. Canaries come last."""
        return self._num_subjects + len(self._block.present)

    @_beside
    def begin_step(self, indices: Sequence[int]) -> None:
        """Record who was sampled, before anything is added.

        Raises:
            ValueError: The last step was not ended.
        """
        if len(self._batches) != self._evidence.steps - self._earlier.steps:
            raise ValueError("begin_step was called twice with no end_step between")
        self._batches.append(indices)

    def canaries_in(self, indices: Sequence[int]) -> list[int]:
        """Return the canaries that were sampled and are there, numbered from 0."""
        sampled = [i - self._num_subjects for i in indices if i >= self._num_subjects]
        return [canary for canary in sampled if self._block.present[canary]]

    def gradient(self, canary: int, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return one canary's gradient for each of the optimiser's parameters.

        ``add_canaries`` adds a whole step's at once, cheaply, and gives the same sums.
        """
        return [rows[0] for rows in self._block.whole_gradients([canary], parameters)]

    @_beside
    def add_canaries(self, optimizer: SubjectOptimizer) -> None:
        """Clip and accumulate the begun step's canaries by the optimiser's own code."""
        self._optimizer = optimizer
        self._block.add_to(optimizer, self.canaries_in(self._batches[-1]))

    @contextmanager
    def watching(
        self, optimizer: SubjectOptimizer, gradients: Sequence[torch.Tensor]
    ) -> Iterator[None]:
        """Let real subjects be added inside as if there were no canaries, and look at the sum.

        Args:
            gradients: What is added inside, in one call, with no part for the canaries.
        """
        real = [p for p in optimizer.params if p is not self.parameter]
        with seeing_only(optimizer, real):
            yield
        self._watch([parameter.summed_grad for parameter in real], gradients)

    @_beside
    def _watch(self, sums: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
        """Keep whether the clip had to act, and whether it did.

        The first call of each step is watched, when the sum was zero: a further look costs as much
        as the clip itself and would show the same code.
        """
        if self._watched == len(self._batches):
            return
        self._watched, seen, clip_norm = len(self._batches), self._evidence, self._plan.clip_norm
        longer, over = longer_than(gradients, clip_norm), moved_too_far(sums, gradients, clip_norm)
        self._evidence = replace(
            seen,
            contributions=seen.contributions + 1,
            contributions_longer=seen.contributions_longer + longer,
            contributions_over=seen.contributions_over + over,
        )

    @_beside
    def end_step(self, released: torch.Tensor | None) -> None:
        """Read what the step does to the canaries' coordinates, then forget them.

        Args:
            released: The block's gradient as the step uses it: noised and scaled.

        Raises:
            ValueError: No step was begun, or the block had no gradient.
        """
        begun = len(self._batches) == self._evidence.steps - self._earlier.steps + 1
        if released is None or not begun:
            raise ValueError("end_step comes once after begin_step, while the gradient is there")
        clips = self._plan.clip_norm / self._plan.expected_batch
        self._see(released.detach().double().cpu().numpy() / clips)
        self._block.forget()

    def _see(self, sums: Floats) -> None:
        """Add one step's noised sums, in units of the clip norm, to the evidence."""
        entered = np.zeros(len(sums), dtype=bool)
        entered[self.canaries_in(self._batches[-1])] = True
        noise = (sums - entered) / self._plan.noise_multiplier
        seen, alone = self._evidence, noise[~entered]
        before = seen.first_noise if self._noise is None else self._noise
        count, total = seen.clipped
        self._evidence = replace(
            seen,
            steps=seen.steps + 1,
            scores=seen.scores + self._scores(sums),
            block=seen.block.plus(alone).after(noise, before if len(before) else None),
            block_cells=seen.block_cells + cells(alone),
            clipped=(count + int(entered.sum()), total + float(sums[entered].sum())),
            # A round that draws what an earlier round drew shows in its first step.
            first_noise=noise if self._noise is None else seen.first_noise,
        )
        self._noise = noise

    def _scores(self, sums: Floats) -> Floats:
        return log_likelihood_ratio(
            sums,
            sampling_rate=self._plan.sampling_rate,
            noise_multiplier=self._plan.noise_multiplier,
        )

    @_beside
    def test_noise(self, *, steps: int = NOISE_STEPS) -> None:
        """Take steps of pure noise on a scratch copy and test every tensor's noise.

        The copy is of the optimiser that ``add_canaries`` was given. Called after the last step.

        Costs ``steps`` times the noise of one step, and a second copy of the trained parameters
        while it runs. The network, its optimiser's state and its real steps are not touched.

        Raises:
            ValueError: No step was taken yet.
        """
        optimizer = self._optimizer
        if optimizer is None:
            raise ValueError("take the round's steps first; there is no optimiser to test yet")
        parameters = [nn.Parameter(torch.zeros_like(p)) for p in optimizer.params]
        # Not copy.copy: torch's optimisers keep only three attributes when copied.
        scratch = object.__new__(type(optimizer))
        scratch.__dict__.update(optimizer.__dict__)
        scratch.original_optimizer = torch.optim.SGD(parameters, lr=1.0)
        before: list[Floats] | None = None
        for _ in range(steps):
            noise = self._pure_noise(scratch, parameters)
            self._add_tensor_noise(noise, before)
            before = noise

    def _pure_noise(
        self, scratch: SubjectOptimizer, parameters: Sequence[nn.Parameter]
    ) -> list[Floats]:
        """Return one step's noise of each tensor, in units of the deviation it should have."""
        for parameter in parameters:
            parameter.data.zero_()
            parameter.summed_grad = torch.zeros_like(parameter, dtype=torch.float64)  # type: ignore[attr-defined]
        scratch.release_step()
        scale = -self._plan.expected_batch / self._plan.noise_stddev
        return [p.detach().double().cpu().numpy().ravel() * scale for p in parameters]

    def _add_tensor_noise(self, noise: Sequence[Floats], before: Sequence[Floats] | None) -> None:
        tallies = list(self._evidence.tensors) or [NoiseTally() for _ in noise]
        counted = self._evidence.tensor_cells
        for index, (tally, values) in enumerate(zip(tallies, noise, strict=True)):
            earlier = None if before is None else before[index]
            beside = noise[index - 1] if index else None
            tallies[index] = tally.plus(values).after(values, earlier).beside(values, beside)
            counted = counted + cells(values[:SHAPED])
        self._evidence = replace(self._evidence, tensors=tuple(tallies), tensor_cells=counted)

    def evidence(self) -> Evidence:
        """Return all that was seen, earlier rounds included."""
        seen = self._all_seen()
        return (
            replace(self._earlier, unobserved=self._earlier.unobserved + 1)
            if seen is None
            else seen
        )

    @_beside
    def _all_seen(self) -> Evidence:
        real = [[i for i in batch if i < self._num_subjects] for batch in self._batches]
        canaries = [
            [i - self._num_subjects for i in batch if i >= self._num_subjects]
            for batch in self._batches
        ]
        rate, seen = self._plan.sampling_rate, self._evidence
        return replace(
            seen,
            subjects=seen.subjects.after_round(real, self._num_subjects, rate),
            canaries=seen.canaries.after_round(canaries, len(seen.present), rate),
        )

    def state(self) -> dict[str, Any]:
        """Return the evidence as JSON values, for ``resume``. It holds secrets of the site."""
        return self.evidence().to_json()

    def report(self) -> SelfAuditReport:
        """Return what the evidence says so far: without this round, should it fail in there."""
        report = self._reported()
        return make_report(self.evidence(), self._plan) if report is None else report

    @_beside
    def _reported(self) -> SelfAuditReport:
        return make_report(self.evidence(), self._plan)
