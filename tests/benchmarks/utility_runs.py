"""The runs behind the table of utility: which there are, and one carried out on fresh ledgers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, get_args

from federation.configs_folder import config_path
from federation.experiment import Experiment, load_experiment
from federation.messages import Weights
from federation.site import Site
from tests.benchmarks.utility_studies import NUM_SITES, STUDIES, Study

Arrangement = Literal["centralised", "federated", "local"]
ARRANGEMENTS: tuple[Arrangement, ...] = get_args(Arrangement)
# One-by-one is what ships.
Gradients = Literal["one-by-one", "batched"]
GRADIENTS: tuple[Gradients, ...] = get_args(Gradients)
# Of small images, 64 subjects at a time take half as long a subject as 8.
AT_A_TIME = 64
# Decays of the moving averages that a federated run's models are scored by as well.
DECAYS = (0.3, 0.5, 0.7, 0.9)
SITES, POOLED = "sites", "pooled"


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        site: Which site trains alone, from 0; None where it is not alone.
        epsilon: None without privacy.
        seed: Of the initial weights. Sampling and noise are never seeded.
        rounds: In place of the experiment's.
        gradients: How those of subjects are computed under privacy.
        variant: Of the study's, tried in place of its own settings.
    """

    study: str
    arrangement: Arrangement
    site: int | None
    epsilon: float | None
    seed: int
    rounds: int | None = None
    gradients: Gradients = "one-by-one"
    variant: str = ""

    def experiment(self) -> Experiment:
        """Return the study's experiment at this epsilon and seed, for this number of sites.

        Pooled training draws subjects at the same rate, so its expected batch is that of all
        sites together.
        """
        study = STUDIES[self.study]
        base = load_experiment(config_path(f"{self._config(study)}.yaml"))
        values = base.model_dump(mode="json") | {"seed": self.seed}
        values["algorithm"]["rounds"] = self.rounds or base.algorithm.rounds
        values["algorithm"]["min_sites"] = NUM_SITES if self.arrangement == "federated" else 1
        if self.arrangement == "centralised":
            values["privacy"]["expected_batch"] *= NUM_SITES
        if self.epsilon is not None:
            values["privacy"]["epsilon"] = self.epsilon
            usual = base.optimizer.learning_rate
            rate = study.learning_rates.get(self.epsilon, usual)
            values["optimizer"]["learning_rate"] = rate
        for key, change in study.variants[self.variant].items() if self.variant else ():
            # What has a kind is another thing of its sort, with settings of its own.
            values[key] = change if "kind" in change else values.get(key, {}) | change
        return Experiment.model_validate(values)

    def _config(self, study: Study) -> str:
        return study.config if self.epsilon is None else study.private_config

    def site_files(self, folder: Path) -> list[Path]:
        """Return the site files that take part, below the study's folder."""
        files = sorted((folder / self._laid_out).glob("*/site.yaml"))
        return files if self.site is None else [files[self.site]]

    @property
    def _laid_out(self) -> str:
        return POOLED if self.arrangement == "centralised" else SITES

    def __str__(self) -> str:
        where = self.arrangement if self.site is None else f"{self.arrangement} {self.site + 1}"
        level = "no privacy" if self.epsilon is None else f"epsilon {self.epsilon:g}"
        variant = f", {self.variant}" if self.variant else ""
        return f"{self.study}, {where}, {level}{variant}, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Args:
        experiment: Its digest: a run with other settings is another run.
        score: Of the last round's weights on all public subjects, of whatever site.
        averaged: Of moving averages of the same run's models, by decay.
    """

    job: Job
    experiment: str
    score: float
    num_scored: int
    seconds: float
    averaged: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Outcome":
        """Read what ``to_json`` gave; runs from before ``gradients`` was written were batched.

        Without privacy there is one way, whatever was written.
        """
        job = Job(**({"gradients": "batched"} | values["job"]))
        if job.epsilon is None:
            job = replace(job, gradients="one-by-one")
        return cls(**(values | {"job": job}))

    @property
    def is_current(self) -> bool:
        """Tell whether the run was of the settings as they are now."""
        return self.job.experiment().digest() == self.experiment


def jobs(
    study: str,
    *,
    arrangements: Sequence[Arrangement],
    levels: Sequence[float | None],
    num_seeds: int,
    rounds: int | None = None,
    gradients: Gradients = "one-by-one",
    variants: Sequence[str] = ("",),
) -> Iterator[Job]:
    """Yield every run, seed by seed, so that an interrupted table has whole seeds."""
    for seed, arrangement, variant, level in product(
        range(num_seeds), arrangements, variants, levels
    ):
        how = "one-by-one" if level is None else gradients
        whole = Job(study, arrangement, None, level, seed, rounds, how, variant)
        alone = [replace(whole, site=site) for site in range(NUM_SITES)]
        yield from alone if arrangement == "local" else [whole]


def carry_out(job: Job, folder: Path, work: Path) -> Outcome:
    """Run one job on copies of the sites whose ledgers have spent nothing.

    Args:
        folder: Of the study: sites that are laid out and ingested.
        work: An empty folder of this job.
    """
    from federation.run import approve, open_sites, run_experiment
    from federation.scoring import score
    from federation.training import open_dataset

    started, experiment = perf_counter(), job.experiment()
    sites = open_sites([unspent(path, work) for path in job.site_files(folder)])
    approve(experiment, sites, approver="benchmark")
    with gradients_computed(job.gradients):
        weights = run_experiment(experiment, sites, out=work / "run").weights
    (everybody,) = open_sites([unspent(path, work / "all") for path in pooled_file(folder)])
    public = open_dataset(experiment, everybody, "public")
    found, name = score(experiment, weights, public), experiment.task.score
    averaged = {}
    if job.arrangement == "federated":
        models = models_of_rounds(experiment, sites)
        averaged = {
            f"{decay:g}": score(experiment, average(models, decay), public)[name]
            for decay in DECAYS
        }
    taken = perf_counter() - started
    return Outcome(
        job, experiment.digest(), found[name], int(found["num_subjects"]), taken, averaged
    )


def models_of_rounds(experiment: Experiment, sites: Sequence[Site]) -> list[Weights]:
    """Return the model of each round, from what the sites' outboxes keep."""
    from federation.algorithms.fedavg import server_step
    from federation.training import initial_weights
    from models.weights import weights_from_bytes

    weights, models = initial_weights(experiment), []
    for number in range(1, experiment.algorithm.rounds + 1):
        updates = {}
        for site in sites:
            (charge,) = (
                one for one in site.ledger._current().charges.values() if one.key.round == number
            )
            updates[site.name] = weights_from_bytes(site.ledger.stored_release(charge)[0])
        weights = server_step(weights, updates)
        models.append(weights)
    return models


def average(models: Sequence[Weights], decay: float) -> Weights:
    """Return what a run with this ``ema_decay`` keeps of these rounds' models."""
    from federation.algorithms.fedavg import average_step

    kept = models[0]
    for number, model in enumerate(models):
        kept = average_step(kept, model, decay=decay, num_averaged=number)
    return kept


@contextmanager
def gradients_computed(how: Gradients) -> Iterator[None]:
    """Let private steps compute gradients this way: batched ones are equal to 1e-5, and faster.

    Noise and accounting stay. Batching is not shipped, because a hub can attack it; on published
    images nobody does. See docs/decisions/0009-gradient-paths.md.
    """
    from federation import steps
    from tests.benchmarks.batched_gradients import batched, layer_gradients

    shipped = steps.gradients_of
    if how == "batched":
        steps.gradients_of = batched(layer_gradients, AT_A_TIME)
    try:
        yield
    finally:
        steps.gradients_of = shipped


def pooled_file(folder: Path) -> list[Path]:
    """Return the site file of the site that holds everything."""
    return sorted((folder / POOLED).glob("*/site.yaml"))


def unspent(site_file: Path, parent: Path) -> Path:
    """Return the site file of a site with the same data and a ledger of its own.

    Runs of a benchmark compare settings on published images; at a real site they would add up.
    """
    site, copy = site_file.parent.resolve(), parent / site_file.parent.name
    (copy / "state").mkdir(parents=True, mode=0o700)
    for path in site.iterdir():
        # The site file is no link: a site lies where its file lies.
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
        elif path.name != "state":
            (copy / path.name).symlink_to(path)
    (copy / "state" / "cache").symlink_to(site / "state" / "cache")
    key = copy / "state" / "pseudonym-key"
    key.touch(mode=0o600)
    key.write_bytes((site / "state" / "pseudonym-key").read_bytes())
    return copy / "site.yaml"


def prepare(study: Study, data: Path, folder: Path) -> None:
    """Lay out and ingest the study's sites, unless that is done."""
    from federation.run import ingest_sites, open_sites

    for name in (SITES, POOLED):
        done = folder / f"{name}.done"
        if not done.exists():
            study.lay_out(data, folder / name, name == POOLED)
            ingest_sites(open_sites(sorted((folder / name).glob("*/site.yaml"))))
            done.touch()
