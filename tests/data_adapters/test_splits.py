import doctest
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_adapters.splits import part_of, split_subjects

FRACTIONS = {"training": 0.7, "validation": 0.2, "test": 0.1}
SUBJECTS = st.sets(st.text("0123456789abcdef", min_size=4, max_size=32), max_size=40)


@given(subjects=SUBJECTS, seed=st.integers(0, 2**32 - 1))
def test_every_subject_is_in_exactly_one_part(subjects, seed):
    parts = split_subjects(subjects, FRACTIONS, seed=seed)
    assert list(parts) == list(FRACTIONS)
    assert sorted(name for part in parts.values() for name in part) == sorted(subjects)


@given(subjects=SUBJECTS, more=SUBJECTS, seed=st.integers(0, 99))
def test_adding_subjects_moves_nobody(subjects, more, seed):
    before = split_subjects(subjects, FRACTIONS, seed=seed)
    after = split_subjects(subjects | more, FRACTIONS, seed=seed)
    for name in FRACTIONS:
        assert set(before[name]) == set(after[name]) & subjects


def test_parts_have_about_their_fractions_and_another_seed_gives_another_split():
    subjects = [f"{number:08x}" for number in range(4000)]
    parts = split_subjects(subjects, FRACTIONS, seed=0)
    for name, fraction in FRACTIONS.items():
        assert abs(len(parts[name]) / len(subjects) - fraction) < 0.03
    assert split_subjects(subjects, FRACTIONS, seed=1) != parts


def test_the_split_is_the_same_on_every_machine():
    places = [part_of(f"{n:04x}", {"a": 0.5, "b": 0.5}, seed=7) for n in range(12)]
    assert "".join(places) == "abbbbbaaabaa"


def test_the_page_on_data_says_what_is_so():
    page = Path(__file__).parents[2] / "docs" / "data.md"
    found = doctest.testfile(str(page), module_relative=False)
    assert (found.failed, found.attempted > 1) == (0, True)


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 1.0, "b": 0.0}])
def test_fractions_that_are_no_split_are_refused(fractions):
    with pytest.raises(ValueError, match="1 together"):
        part_of("a", fractions, seed=0)
