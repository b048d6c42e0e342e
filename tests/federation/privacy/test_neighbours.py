"""Nothing about one subject depends on the others: the ground that adjacency stands on.

One subject more, of another shape, spacing, brightness and number of scans, wherever it sorts:
every other subject's tensors, part of a split and law of sampling stay as they were.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import data_adapters.subjects as subjects
from data_adapters.inputs import PatchInput, SliceInput, VolumeInput
from data_adapters.splits import split_subjects
from data_adapters.subjects import SubjectDataset
from federation.privacy.random import SecureRandomness
from federation.privacy.sampling import PoissonSubjects
from tests.data_adapters.scans import NAMES, manifest_of, put

LEVEL = 1e-6
USUAL = np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]
COARSE = np.diag([-3.0, 2.0, 5.0, 1.0])
FRACTIONS = {"training": 0.7, "validation": 0.2, "test": 0.1}

_SHAPE = {"shape_zyx": (4, 8, 8), "spacing_mm_zyx": (1.0, 1.0, 1.0)}
INPUTS = [
    SliceInput(shape_yx=(8, 8), spacing_mm_yx=(1.0, 1.0), cap=3),
    SliceInput(shape_yx=(8, 8), spacing_mm_yx=(1.5, 0.8), cap=3),
    VolumeInput(**_SHAPE),
    PatchInput(**_SHAPE, cap=3),
    PatchInput(**_SHAPE, cap=3, foreground=0.5),
    PatchInput(**_SHAPE, cap=3, aligned=True),
]

NAMES_OF_INPUTS = ["slices", "resampled", "volumes", "patches", "foreground", "aligned"]


def put_scan(cache, subject, seed, *, shape=(8, 12, 14), affine=USUAL, scale=900, labelled=True):
    random = np.random.default_rng(seed)
    image = random.integers(0, scale, shape).astype(np.int16)
    labels = random.integers(0, 3, shape) if labelled else np.zeros(shape)
    return put(cache, subject, image, affine, labels.astype(np.uint8))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def usual(cache):
    """Three subjects, one of them with two scans."""
    return [put_scan(cache, who, seed) for seed, who in enumerate(["20", "40", "40", "60"])]


def odd_one(cache, name):
    """As unlike the others as ingest would let in, with three scans."""
    return [
        put_scan(cache, name, 70, shape=(20, 9, 9), affine=COARSE, scale=32_000),
        put_scan(cache, name, 71, shape=(8, 40, 8), scale=2, labelled=False),
        put_scan(cache, name, 72),
    ]


def own_uniforms(subject):
    """Each subject's draws from its own stream, so that data sets can be compared."""
    return np.random.default_rng(int(subject)).random


def records(entries, cache, inputs):
    """Return what each subject gives to training and to scoring, by its pseudonym."""
    dataset = SubjectDataset(cache, manifest_of(entries), inputs, NAMES.classes)
    found = {}
    for index, subject in enumerate(dataset.subjects):
        drawn = dataset.record(index, own_uniforms(subject))
        found[subject] = [drawn, *dataset.scans(index)]
    return found


def same(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs
    )


@pytest.mark.parametrize("name", ["10", "30", "90"], ids=["first", "between", "last"])
@pytest.mark.parametrize("inputs", INPUTS, ids=NAMES_OF_INPUTS)
def test_one_subject_more_changes_no_tensor_of_the_others(usual, cache, inputs, name):
    before = records(usual, cache, inputs)
    after = records([*usual, *odd_one(cache, name)], cache, inputs)
    assert after.keys() == before.keys() | {name}
    assert all(same(before[subject], after[subject]) for subject in before)


@pytest.mark.parametrize("inputs", INPUTS[::3], ids=lambda i: i.kind)
def test_nor_does_it_where_memory_is_short(usual, cache, inputs, monkeypatch):
    before = records(usual, cache, inputs)
    monkeypatch.setattr(subjects, "MEMORY_BYTES", 4000)
    after = records([*odd_one(cache, "10"), *usual], cache, inputs)
    assert all(same(before[subject], after[subject]) for subject in before)


def test_the_order_in_which_others_are_drawn_does_not_matter(usual, cache):
    dataset = SubjectDataset(cache, manifest_of(usual), INPUTS[0], NAMES.classes)
    first = dataset.record(1, own_uniforms("40"))
    for index in (2, 0, 2):
        dataset.record(index, own_uniforms("7"))
    assert same([first], [dataset.record(1, own_uniforms("40"))])


def test_this_test_would_see_a_data_set_wide_normalisation(usual, cache, monkeypatch):
    """The guard fires: scale by a statistic of all scans, and the others change."""
    prepare = subjects.prepare_scan

    def build(entries):
        highest = max(float(subjects.open_scan(cache, e, None).image().max()) for e in entries)

        def scaled(scan, wanted):
            record = prepare(scan, wanted)
            return subjects.Record(record.images / highest, record.labels)

        monkeypatch.setattr(subjects, "prepare_scan", scaled)
        return records(entries, cache, INPUTS[0])

    before, after = build(usual), build([*usual, *odd_one(cache, "10")])
    assert not any(same(before[subject], after[subject]) for subject in before)


NAMED = st.text("0123456789abcdef", min_size=4, max_size=32)


@settings(max_examples=200, deadline=None)
@given(others=st.sets(NAMED, max_size=60), one=NAMED, seed=st.integers(0, 2**32 - 1))
def test_one_subject_more_moves_nobody_to_another_part(others, one, seed):
    before = split_subjects(others - {one}, FRACTIONS, seed=seed)
    after = split_subjects(others | {one}, FRACTIONS, seed=seed)
    kept = {part: tuple(s for s in found if s != one) for part, found in after.items()}
    assert kept == before
    assert sum(one in found for found in after.values()) == 1


def by_permutation(names, seed):
    """What most libraries do, and what must not be done here."""
    order = np.random.default_rng(seed).permutation(sorted(names))
    cut = round(0.7 * len(order))
    return {"training": set(order[:cut]), "rest": set(order[cut:])}


def test_a_split_by_permutation_would_move_others():
    names = {f"{n:04x}" for n in range(40)}
    before, after = by_permutation(names, 0), by_permutation(names | {"ffff"}, 0)
    assert after["training"] - {"ffff"} != before["training"]


class Coins:
    """One coin for each subject and step, by the subject's name: the same whoever is beside it."""

    def __init__(self, names):
        self._names = names
        self._step = 0

    def uniforms(self, count):
        assert count == len(self._names)
        self._step += 1
        return np.array([np.random.default_rng([n, self._step]).random() for n in self._names])


@settings(max_examples=50, deadline=None)
@given(
    others=st.sets(st.integers(0, 99), max_size=12),
    one=st.integers(0, 99),
    rate=st.sampled_from([0.05, 0.25, 0.9]),
)
def test_one_subject_more_brings_and_drops_nobody_else(others, one, rate):
    rows = []
    for names in (sorted(others - {one}), sorted(others | {one})):
        batches = PoissonSubjects(len(names), rate, 4, Coins(names))
        rows.append([{names[index] for index in batch} for batch in batches])
    assert [batch - {one} for batch in rows[1]] == rows[0]


@pytest.mark.parametrize("num_subjects", [1, 2, 30])
def test_each_ones_law_is_the_same_coin_however_many_there_are(num_subjects):
    steps, rate = 4000, 0.1
    counts = np.zeros(num_subjects, dtype=int)
    for batch in PoissonSubjects(num_subjects, rate, steps, SecureRandomness()):
        counts[batch] += 1
    least = min(stats.binomtest(int(count), steps, rate).pvalue for count in counts)
    assert least * num_subjects > LEVEL
