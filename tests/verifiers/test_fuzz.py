"""Both verifiers say the same of a thousand changed ledgers, and what each kind demands."""

import json
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest

from tests.verifiers import byte_changes, paper_changes, record_changes, value_changes
from tests.verifiers.forging import CHANGES, mutant
from tests.verifiers.scenario import lay_out, three_sites
from tests.verifiers.verdicts import SCRIPT, ours, second

SEEDS = range(11)
FREE = 20  # seeds of the kinds about which nothing is known beforehand
KINDS = tuple(CHANGES)
MODULES = (byte_changes, record_changes, paper_changes, value_changes)


@cache
def scenario(number: int):
    return three_sites(number)


def seeds_of(kind: str) -> range:
    return range(FREE) if CHANGES[kind][1] is None else SEEDS


def test_there_are_a_thousand_mutations_and_every_kind_has_some():
    counts = {kind: len(seeds_of(kind)) for kind in KINDS}
    assert min(counts.values()) > 0
    assert sum(counts.values()) >= 1000
    assert {CHANGES[kind][0].__module__ for kind in KINDS} == {m.__name__ for m in MODULES}


@pytest.mark.parametrize("kind", KINDS)
def test_both_verifiers_say_the_same_and_what_is_expected(kind, tmp_path, record_property):
    said = Counter()
    for seed in seeds_of(kind):
        changed = mutant(kind, seed, scenario(seed % 3))
        sites = [name for name in changed.texts if name not in ("receipts", "closings")]
        if seed % 2:  # half of them alone, for time's sake
            sites = [changed.site, *changed.needs]
        kept = {name: changed.texts[name] for name in (*sites, "receipts", "closings")}
        files = lay_out(kept, tmp_path)
        words = second(files, changed.trust)
        assert ours(files, changed.trust) == words, f"{kind}, seed {seed}"
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
