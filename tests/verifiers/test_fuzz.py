"""Both verifiers say the same of a thousand changed ledgers, and what each kind demands."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest

from tests.verifiers import byte_changes, paper_changes, record_changes, value_changes
from tests.verifiers.forging import CHANGES, Mutant, mutant
from tests.verifiers.scenario import lay_out, three_sites
from tests.verifiers.verdicts import SCRIPT, Said, ours_said, second, second_said

SEEDS = range(11)
SCENARIOS = 5
FREE = 20  # seeds of the kinds about which nothing is known beforehand
KINDS = tuple(CHANGES)
MODULES = (byte_changes, record_changes, paper_changes, value_changes)


@cache
def scenario(number: int):
    return three_sites(number)


def seeds_of(kind: str) -> range:
    return range(FREE) if CHANGES[kind][1] is None else SEEDS


def handed_over(kind: str, seed: int) -> tuple[Mutant, dict[str, bytes], bool]:
    """Return a mutant, the files that the verifiers get, and whether any of them was changed."""
    whole = scenario(seed % SCENARIOS)
    changed = mutant(kind, seed, whole)
    sites = [name for name in changed.texts if name not in ("receipts", "closings")]
    if seed % 2:  # half of them alone, for time's sake
        sites = [changed.site, *changed.needs]
    kept = {name: changed.texts[name] for name in (*sites, "receipts", "closings")}
    before = whole.texts()
    return changed, kept, kept != {name: before[name] for name in kept}


def hash_of(texts: dict[str, bytes]) -> str:
    """Return one hash of all files by their names, with their lengths."""
    whole = hashlib.sha256()
    for name, text in sorted(texts.items()):
        whole.update(f"{name} {len(text)}\n".encode() + text)
    return whole.hexdigest()


@pytest.mark.slow
def test_a_thousand_different_changed_inputs_are_tried_and_every_kind_has_some(record_property):
    """What two seeds make alike counts once; what is as it was before, or only trusted, not."""
    different, as_before = set(), set()
    for kind in KINDS:
        tried = [handed_over(kind, seed) for seed in seeds_of(kind)]
        inputs = {hash_of(kept) for _, kept, changed in tried if changed}
        different |= inputs
        if not inputs:
            as_before.add(kind)
    record_property("counts", {"different changed inputs": len(different)})
    assert len(different) >= 1000
    assert as_before == {"untouched", "nobody_trusted", "somebody_else_trusted"}


def test_the_count_of_changed_inputs_is_of_different_ones():
    _, kept, changed = handed_over("flipped_bit", 0)
    assert changed and not handed_over("untouched", 0)[2]
    again, other = handed_over("flipped_bit", 0)[1], handed_over("flipped_bit", SCENARIOS)[1]
    assert hash_of(kept) == hash_of(again) != hash_of(other)
    moved = {"a": b"x", "b": b"yz"}, {"a": b"xy", "b": b"z"}
    assert hash_of(moved[0]) != hash_of(moved[1])


def test_every_module_of_changes_is_among_the_kinds():
    assert min(len(seeds_of(kind)) for kind in KINDS) > 0
    assert {CHANGES[kind][0].__module__ for kind in KINDS} == {m.__name__ for m in MODULES}


def assert_same_numbers(one: Said, other: Said, where: str) -> None:
    for mine, theirs in zip(one.numbers, other.numbers, strict=True):
        assert (mine is None) == (theirs is None), where
        if mine is not None:
            assert mine[0] == pytest.approx(theirs[0], rel=1e-9, abs=1e-15), where
            assert mine[1] == (theirs[1] and pytest.approx(theirs[1], rel=1e-9)), where


def test_numbers_that_differ_are_found():
    said = Said(["verified"], [([0.1, 0.2], 1.0)])
    assert_same_numbers(said, Said(["verified"], [([0.1, 0.2], 1.0 + 1e-11)]), "")
    for other in (([0.1, 0.2001], 1.0), ([0.1, 0.2], 1.01), ([0.1], 1.0), ([0.1, 0.2], None), None):
        with pytest.raises(AssertionError):
            assert_same_numbers(said, Said(["verified"], [other]), "")


@pytest.mark.parametrize("kind", KINDS)
def test_both_verifiers_say_the_same_and_what_is_expected(kind, tmp_path, record_property):
    said = Counter()
    for seed in seeds_of(kind):
        changed, kept, _ = handed_over(kind, seed)
        sites = [name for name in kept if name not in ("receipts", "closings")]
        files = lay_out(kept, tmp_path)
        told, own_told = second_said(files, changed.trust), ours_said(files, changed.trust)
        words = told.words
        assert own_told.words == words, f"{kind}, seed {seed}"
        assert_same_numbers(own_told, told, f"{kind}, seed {seed}")
        own = words[sites.index(changed.site)]
        word = "contradicted" if "problems" in words else own
        expected = changed.expected
        if expected == byte_changes.ALONE:
            expected = "verified" if len(sites) == 1 else None
        assert expected in (None, word), f"{kind}, seed {seed}"
        said[word] += 1
    record_property("verdicts", dict(said))
    sys.stdout.write(f"{kind}: {dict(said)}\n")
    assert sum(said.values()) == len(seeds_of(kind))


@pytest.mark.parametrize(
    "kind", ["untouched", "flipped_bit", "epsilon_understated", "nobody_trusted"]
)
def test_run_as_a_program_it_says_the_same(kind, tmp_path):
    changed = mutant(kind, 0, scenario(0))
    files = lay_out(changed.texts, tmp_path)
    options = [f"--trust={mark}" for mark in changed.trust]
    options += [f"--{sort}={path}" for sort in ("receipts", "closings") for path in files[sort]]
    command = [sys.executable, str(SCRIPT), *options, *map(str, files["paths"])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert not done.stderr
    words = [one["verdict"] for one in json.loads(done.stdout)["ledgers"]]
    assert [w.split(",")[0] for w in second(files, changed.trust)] == words
    assert done.returncode == (0 if kind == "untouched" else 1)
