"""One subject more or less moves a step's sum by at most the clip norm: over a thousand cases.

Each case is a pair of neighbouring data sets, sampled with the same coins for the subjects that
both have, through the shipped engine. The sum is read in float64, before noise. Who is removed
stands anywhere among the others, so that all behind are computed and clipped beside other subjects.
"""

from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from data_adapters.prepare import Record
from federation import steps
from federation.privacy.engine import SubjectOptimizer
from federation.privacy.plan import make_plan
from federation.privacy.sampling import PoissonSubjects
from federation.steps import LocalWork, gradients_of, stepper
from models.build import build_network
from models.specs import ResNetSpec
from tests.benchmarks.batched_gradients import (
    batched,
    layer_gradients,
    loop_gradients,
    vmap_gradients,
)
from tests.experiments import tiny_experiment
from tests.federation.classification import classification
from tests.federation.privacy.randomness import NoNoise

# Rounding in float64 of sums of a few subjects.
EXACT = 1e-12


@pytest.fixture(autouse=True)
def threads(request):
    """One thread, unless a test asks for more.

    Threads that wait for a busy core make these small steps many times slower. But reductions of
    more than 32,768 numbers are split between them, differently for one subject and for several.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request, "param", 1))
    yield torch.get_num_threads()
    torch.set_num_threads(before)


def by_threads(**cases):
    """Run a test once on one thread and once, with fewer cases, on two."""
    return pytest.mark.parametrize(
        ("threads", *cases),
        [(count, *(pair[count - 1] for pair in cases.values())) for count in (1, 2)],
        indirect=["threads"],
        ids=["1-thread", "2-threads"],
    )


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_two_threads_really_split_a_reduction_of_the_size_of_the_large_cases(threads):
    numbers = torch.randn(20, 1, 70_000, dtype=torch.float64)
    split = [row.sum(1) for row in numbers]
    torch.set_num_threads(1)
    assert any(a != row.sum(1) for a, row in zip(split, numbers, strict=True))


class Recording(SubjectOptimizer):
    """The shipped engine; the sum is noted where noise would be added to it."""

    def add_noise(self):
        self.sums.append(torch.cat([p.summed_grad.flatten() for p in self.params]))
        super().add_noise()


class Unclipped(Recording):
    """What must not pass: subjects are summed as they come."""

    def add_subjects(self, gradients):
        for parameter, gradient in zip(self.params, gradients, strict=True):
            parameter.summed_grad += torch.nan_to_num(gradient.double()).sum(0)


class OnlyWeightsClipped(Recording):
    """What must not pass: parameters of no dimension escape."""

    def add_subjects(self, gradients):
        super().add_subjects([g if g.ndim > 1 else torch.zeros_like(g) for g in gradients])
        for parameter, gradient in zip(self.params, gradients, strict=True):
            if gradient.ndim == 1:
                parameter.summed_grad += torch.nan_to_num(gradient.double()).sum(0)


class Coins(NoNoise):
    """The first coins, one a subject, are what they are with everybody there."""

    def __init__(self, seed, removed=None):
        super().__init__(seed)
        self._removed = removed

    def uniforms(self, count):
        if self._removed is None:
            return super().uniforms(count)
        coins = np.delete(super().uniforms(count + 1), self._removed)
        self._removed = None
        return coins


def moved(sums):
    return float((sums[0] - sums[1]).norm())


def position(random, count):
    """Return where the subject stands that is removed: the first in a third of the cases."""
    return int(random.integers(count)) if random.random() < 2 / 3 else 0


def without(subjects, removed):
    return [subject for index, subject in enumerate(subjects) if index != removed]


# Made-up gradients, through sampler and engine

SHAPES = (
    [(3, 2), (3,)],
    [(), (4,)],
    [(2, 1, 3, 3), (2,), ()],
    [(40, 30)],
    [()],
    [(1,), (1, 1), (), (5, 2)],
)
# Of so many numbers that two threads split what is summed over one subject's.
LARGE = ([(300, 200), (7,)], [(70_000,)], [(), (180, 300)], [(2, 20_000), (2, 20_000)])
KINDS = ("usual", "near", "aligned", "opposed", "1e30", "nan", "inf", "tiny", "zero")


def gradient_of(kind, shapes, random, clip_norm):
    """Return one subject's gradient as float32 tensors."""
    scale = 10.0 ** random.uniform(-3, 3) * clip_norm
    flat = random.standard_normal(sum(int(np.prod(s)) for s in shapes))
    if kind in ("near", "aligned", "opposed"):
        if kind != "near":
            flat = np.ones_like(flat) * (1 if kind == "aligned" else -1)
        scale = clip_norm * (1 + random.choice([-1e-6, -1e-7, 0, 1e-7, 1e-6, 1e-3]))
        flat = flat / np.linalg.norm(flat)
    flat = (flat * {"1e30": 1e30, "tiny": 1e-30, "zero": 0.0}.get(kind, scale)).astype(np.float32)
    if kind in ("nan", "inf"):
        flat[random.integers(len(flat))] = float(kind)
    parts = np.split(flat, np.cumsum([int(np.prod(s)) for s in shapes])[:-1])
    return [torch.from_numpy(p.reshape(s)) for p, s in zip(parts, shapes, strict=True)]


def sum_of(engine, shapes, plan, subjects, coins):
    """Return a step's sum over those of the subjects whom the sampler draws, in two batches."""
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    optimizer = engine(torch.optim.SGD(parameters, lr=1.0), plan=plan, randomness=NoNoise(0))
    optimizer.sums = []
    sampler = PoissonSubjects(len(subjects), plan.sampling_rate, 1, coins)
    for sampled in sampler:
        rows = [subjects[i] for i in sampled]
        for part in (rows[:2], rows[2:]):
            if part:
                optimizer.add_subjects([torch.stack(g) for g in zip(*part, strict=True)])
        optimizer.release_step()
    return optimizer.sums[0]


def moved_by_one_subject(engine, seed, of=SHAPES):
    """Return how far the sum moves, in clip norms."""
    random = np.random.default_rng(seed)
    shapes = of[seed % len(of)]
    clip_norm = float(random.choice([1e-3, 0.1, 1.0, 30.0]))
    plan = replace(make_plan(tiny_experiment()), clip_norm=clip_norm, sampling_rate=0.8)
    kinds = [random.choice(KINDS) for _ in range(random.integers(0, 6))]
    removed = position(random, len(kinds) + 1)
    kinds.insert(removed, KINDS[seed // len(of) % len(KINDS)])
    subjects = [gradient_of(kind, shapes, random, clip_norm) for kind in kinds]
    others = without(subjects, removed)
    both = [
        sum_of(engine, shapes, plan, subjects, Coins(seed)),
        sum_of(engine, shapes, plan, others, Coins(seed, removed)),
    ]
    return moved(both) / clip_norm


@by_threads(of=(SHAPES, LARGE), cases=(900, 36))
def test_one_subject_more_moves_the_sum_by_at_most_the_clip_norm_in_many_made_up_cases(of, cases):
    distances = [moved_by_one_subject(Recording, seed, of) for seed in range(cases)]
    assert max(distances) <= 1 + EXACT
    # Not by adding nothing: many come right up to the bound.
    assert sum(distance > 0.999 for distance in distances) > cases / 9


@pytest.mark.parametrize("engine", [Unclipped, OnlyWeightsClipped])
def test_an_engine_that_does_not_clip_is_found_out_by_the_same_cases(engine):
    distances = [moved_by_one_subject(engine, seed) for seed in range(180)]
    assert sum(distance > 1.001 for distance in distances) > 10


# Images, through sampler, gradients and engine


class Scaled(nn.Module):
    """A small classifier with a parameter of no dimension."""

    def __init__(self, scale):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2), nn.PReLU(), nn.GroupNorm(1, 3), nn.Flatten()
        )
        self.head = nn.Linear(27, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(scale)

    def forward(self, x):
        return self.head(self.body(x))


class WithoutDimension(Scaled):
    def __init__(self, scale):
        super().__init__(scale)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return super().forward(x) * self.temperature


@dataclass
class Subjects:
    """Stands for a data set: records are there already; a failing one raises."""

    records: list

    def __len__(self):
        return len(self.records)

    def record(self, index, uniforms):
        if self.records[index] is None:
            raise RuntimeError("this subject cannot be read")
        return self.records[index]


def images_of(kind, random, num_images):
    images = random.standard_normal((num_images, 1, 8, 8)) * 10.0 ** random.uniform(-2, 2)
    if kind == "1e30":
        images *= 1e30
    if kind in ("nan", "inf"):
        images[0, 0, 1, 1] = float(kind)
    labels = random.integers(0, 2, num_images)
    return Record(
        torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels.astype(np.uint8))
    )


def step_sums(monkeypatch, experiment, plan, network, cases, *, engine=Recording, of=gradients_of):
    """Return the sums of one step by the real stepper, for each (records, coins)."""
    sums = []
    monkeypatch.setattr(steps, "gradients_of", of)
    monkeypatch.setattr(steps, "SubjectOptimizer", engine)
    monkeypatch.setattr(engine, "sums", sums, raising=False)
    for records, coins in cases:
        work = LocalWork(experiment, plan, deepcopy(network), coins, lambda _: None)
        step = stepper(work)
        for sampled in PoissonSubjects(len(records), plan.sampling_rate, 1, coins):
            step(Subjects(records), sampled)
    return sums


def moved_by_one_records(monkeypatch, seed, **named):
    """Return how far one subject's images move a step's sum, in clip norms."""
    random, experiment = np.random.default_rng(seed), classification()
    plan = replace(make_plan(experiment), clip_norm=0.5, sampling_rate=0.9, steps=1)
    monkeypatch.setattr(steps, "subjects_at_a_time", lambda *_: 3)
    torch.manual_seed(seed)
    network = WithoutDimension(10.0 ** random.uniform(-1, 1)).train()
    num_images = int(random.choice([1, 3]))
    kinds = [random.choice(("usual", "1e30", "nan", "inf", "fails")) for _ in range(6)]
    removed = position(random, len(kinds) + 1)
    kinds.insert(removed, ("usual", "usual", "1e30", "nan")[seed % 4])
    records = [None if kind == "fails" else images_of(kind, random, num_images) for kind in kinds]
    cases = [(records, Coins(seed)), (without(records, removed), Coins(seed, removed))]
    return moved(step_sums(monkeypatch, experiment, plan, network, cases, **named)) / plan.clip_norm


def split(network, parameters, records, losses):
    """What must not pass: each image of a subject as a subject of its own."""
    images = [
        Record(r.images[i : i + 1], r.labels[i : i + 1])
        for r in records
        for i in range(len(r.images))
    ]
    return loop_gradients(network, parameters, images, losses)


@by_threads(seeds=(range(150), range(150, 190)))
def test_one_subject_more_moves_a_steps_sum_by_at_most_the_clip_norm(monkeypatch, seeds):
    distances = [moved_by_one_records(monkeypatch, seed) for seed in seeds]
    assert max(distances) <= 1 + EXACT
    assert sum(distance > 0.99 for distance in distances) > len(seeds) / 8


@pytest.mark.parametrize(
    "fault", [{"of": batched(split, 3)}, {"engine": Unclipped}], ids=["split", "unclipped"]
)
def test_a_subject_split_in_two_or_not_clipped_is_found_out(monkeypatch, fault):
    distances = [moved_by_one_records(monkeypatch, seed, **fault) for seed in range(30)]
    assert sum(distance > 1.1 for distance in distances) > 3


# A hub that makes rounding large


def wavy_subject(random, label):
    y, x = np.mgrid[-1:1:16j, -1:1:16j]
    a, b, c, d = random.uniform(0, 4, 4)
    image = np.sin(a * x + b) + np.cos(c * y + d) + 0.1 * random.standard_normal((16, 16))
    scaled = torch.from_numpy((image - image.mean()) / image.std()).float()
    return Record(scaled[None, None], torch.tensor([label], dtype=torch.uint8))


def hostile_network(random):
    """Return a shipped network whose logits are zero in real numbers, and rounding times 1e9.

    The last features are there twice, and the head takes each from its twin.
    """
    network = build_network(
        ResNetSpec(spatial_dims=2, channels=(4, 4, 8, 32)), num_classes=2
    ).train()
    half = network.fc.in_features // 2
    row = torch.from_numpy(random.standard_normal(half) * 10.0 ** random.uniform(9, 11)).float()
    with torch.no_grad():
        for parameter in network.layer4.parameters():
            if len(parameter) == 2 * half:
                parameter[half:] = parameter[:half]
        network.fc.weight[0] = torch.cat([row, -row])
        network.fc.weight[1] = -network.fc.weight[0]
        network.fc.bias.zero_()
    return network


def moved_by_one_under_attack(monkeypatch, seed, of):
    """Return how far the first subject, and one that stands anywhere, move a step's sum."""
    random, experiment = np.random.default_rng(seed), classification()
    plan = replace(make_plan(experiment), clip_norm=1.0, sampling_rate=1.0, steps=1)
    records = [wavy_subject(random, index % 2) for index in range(24)]
    few = [records, records[1:], without(records, int(random.integers(1, 24)))]
    cases = [(some, NoNoise(seed)) for some in few]
    network = hostile_network(random)
    whole, *others = step_sums(monkeypatch, experiment, plan, network, cases, of=of)
    return [moved((whole, other)) for other in others]


@by_threads(seeds=(range(25), range(25, 31)))
def test_weights_that_amplify_rounding_do_not_let_a_subject_move_the_sum_further(
    monkeypatch, seeds
):
    pairs = [moved_by_one_under_attack(monkeypatch, seed, gradients_of) for seed in seeds]
    distances = [distance for pair in pairs for distance in pair]
    assert max(distances) <= 1 + EXACT
    # The attack is on: the loss is far from zero for some, and gradients are clipped.
    assert sum(distance > 0.99 for distance in distances) > 0.4 * len(seeds)


@pytest.mark.parametrize("path", [layer_gradients, vmap_gradients])
def test_batched_gradients_let_it_which_is_why_they_are_not_shipped(monkeypatch, path):
    """See docs/decisions/0009-gradient-paths.md; it fails the day batching becomes safe."""
    of = batched(path, 8)
    firsts, others = zip(
        *(moved_by_one_under_attack(monkeypatch, seed, of) for seed in range(6)), strict=True
    )
    if max(*firsts, *others) <= 1 + EXACT:
        pytest.skip("on this processor rounding does not depend on who shares a batch")
    assert max(*firsts, *others) > 1.1
