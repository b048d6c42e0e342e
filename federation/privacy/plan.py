"""One frozen plan of public constants: sampler, noise, scaling and ledger event all read it.

An experiment's wish (epsilon, delta) is *calibrated* once, with the accountant that will enforce
it, into the numbers that training uses. Nothing here depends on a site's data. Torch-free.
"""

from dataclasses import asdict, dataclass
from math import inf, isinf

from federation.canonical import digest
from federation.errors import FederationError
from federation.experiment import Experiment, SubjectDP
from federation.ledger.filter import (
    BudgetPolicy,
    Event,
    PoissonGaussian,
    Unprotected,
    calibrate_noise_multiplier,
)


@dataclass(frozen=True)
class PrivacyPlan:
    """What a run does to each site's subjects, in numbers that everybody may know.

    Attributes:
        epsilon: Bound for the whole run; infinite means no privacy.
        noise_multiplier: Noise standard deviation over ``clip_norm`` (a ratio).
        cap: Most images that form one subject's record.
        expected_batch: What a noised sum over subjects is divided by.
        steps: Noised steps in one round.
        charges: Most rounds that a site may be asked for, repeats of lost ones included.
    """

    unit: str
    adjacency: str
    epsilon: float
    delta: float
    sampling_rate: float
    noise_multiplier: float
    clip_norm: float
    cap: int
    expected_batch: float
    steps: int
    charges: int

    @property
    def is_private(self) -> bool:
        """Tell whether noise is added at all."""
        return not isinf(self.epsilon)

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise on each coordinate of a step's sum."""
        return self.noise_multiplier * self.clip_norm if self.is_private else 0.0

    @property
    def round_event(self) -> Event:
        """Return what one round costs, as the ledger charges it."""
        if not self.is_private:
            return Unprotected()
        return PoissonGaussian(
            sampling_rate=self.sampling_rate,
            noise_multiplier=self.noise_multiplier,
            steps=self.steps,
        )

    def digest(self) -> str:
        """Return the digest of every number; infinity is written as text."""
        values = asdict(self)
        return digest({k: "infinity" if v == inf else v for k, v in values.items()})


def make_plan(experiment: Experiment) -> PrivacyPlan:
    """Calibrate the noise for the whole run and return the plan.

    Raises:
        FederationError: No amount of noise makes this many steps fit this epsilon.
    """
    privacy, algorithm = experiment.privacy, experiment.algorithm
    charges = algorithm.charges
    epsilon, delta, noise, clip = inf, 0.0, 0.0, inf
    if isinstance(privacy, SubjectDP):
        epsilon, delta, clip = privacy.epsilon, privacy.delta, privacy.clip_norm
        noise = _calibrated(privacy, charges * algorithm.steps_per_round)
    return PrivacyPlan(
        unit="subject",
        adjacency="add_or_remove_one",
        epsilon=epsilon,
        delta=delta,
        sampling_rate=privacy.sampling_rate,
        noise_multiplier=noise,
        clip_norm=clip,
        cap=experiment.input.cap,
        expected_batch=privacy.expected_batch,
        steps=algorithm.steps_per_round,
        charges=charges,
    )


def _calibrated(privacy: SubjectDP, steps: int) -> float:
    try:
        return calibrate_noise_multiplier(
            BudgetPolicy.of(privacy.epsilon, privacy.delta),
            sampling_rate=privacy.sampling_rate,
            steps=steps,
        )
    except ValueError as error:
        raise FederationError(f"The experiment's privacy cannot be had: {error}") from error
