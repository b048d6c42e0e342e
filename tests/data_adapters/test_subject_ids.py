"""Who is whom: issuers, crosswalks, and what cannot be told apart."""

import pytest

from data_adapters.aliases import same_person
from data_adapters.errors import DataError
from data_adapters.reasons import Unusable
from data_adapters.sources import SubjectRule
from data_adapters.subject_ids import subjects_of, unclear_identifiers


def code(subjects, raw):
    with pytest.raises(Unusable) as refused:
        subjects.subject(raw)
    return refused.value.code


def subjects(rule=None, raw=(), *, several_sources=False):
    rule = rule or SubjectRule()
    unclear = unclear_identifiers((rule, text) for text in raw)
    return subjects_of(rule, unclear=unclear, several_sources=several_sources)


def aliases(known, raw):
    return known.identity(raw).aliases(str.upper)


@pytest.fixture
def crosswalk(tmp_path):
    def write(text):
        (tmp_path / "who.csv").write_text(text)
        return SubjectRule(crosswalk=tmp_path / "who.csv")

    return write


def test_an_identifier_is_a_subject_and_its_issuer_part_of_it():
    assert subjects().subject(" A1 ") == "A1"
    assert subjects().subject("A1^^^NORTH") == "A1^^^NORTH"
    assert subjects(SubjectRule(issuer="NORTH")).subject("A1") == "A1^^^NORTH"
    assert subjects(SubjectRule(issuer="NORTH")).subject("A1^^^SOUTH") == "A1^^^SOUTH"


@pytest.mark.parametrize("raw", ["", "0", "ANON", "ANON^^^NORTH", "^^^NORTH", "Unknown"])
def test_a_placeholder_is_nobody_even_with_an_issuer_or_a_crosswalk(crosswalk, raw):
    assert code(subjects(), raw) == "NO_SUBJECT"
    assert code(subjects(crosswalk("id,subject\nANON,Anna\n0,Anna\n")), raw) == "NO_SUBJECT"


def test_two_sources_need_issuers():
    assert code(subjects(several_sources=True), "A1") == "SUBJECT_WITHOUT_ISSUER"
    assert subjects(several_sources=True).subject("A1^^^NORTH") == "A1^^^NORTH"
    rule = SubjectRule(issuer="NORTH")
    assert subjects(rule, several_sources=True).subject("A1") == "A1^^^NORTH"


def test_one_number_with_and_without_an_issuer_in_one_source_is_unclear():
    unclear = subjects(raw=["A1", "A1^^^NORTH", "B2"])
    assert code(unclear, "A1") == "SUBJECT_WITHOUT_ISSUER"
    assert unclear.subject("A1^^^NORTH") == "A1^^^NORTH"
    assert unclear.subject("B2") == "B2"


def test_a_crosswalk_joins_identifiers_with_and_without_issuer(crosswalk):
    known = subjects(
        crosswalk("id,subject\nA1^^^NORTH,Anna\nL-7,Anna\nB2,Bo\n"), several_sources=True
    )
    assert known.subject("A1^^^NORTH") == known.subject("L-7") == "person\0Anna"
    assert known.subject("B2^^^SOUTH") == "person\0Bo"
    assert code(known, "A1") == "SUBJECT_WITHOUT_ISSUER"
    assert known.subject("C3^^^NORTH") == "C3^^^NORTH"


def test_an_identifier_of_two_issuers_is_two_people_until_the_crosswalk_names_the_issuer(crosswalk):
    raw = ["A1^^^NORTH", "A1^^^SOUTH"]
    known = subjects(crosswalk("id,subject\nA1,Anna\n"), raw)
    assert [known.subject(text) for text in raw] == raw
    assert known.subject("A1") == "person\0Anna"
    known = subjects(crosswalk("id,subject\nA1^^^NORTH,Anna\n"), raw)
    assert [known.subject(text) for text in raw] == ["person\0Anna", "A1^^^SOUTH"]


def test_a_person_is_not_the_patient_whose_identifier_reads_the_same(crosswalk):
    known = subjects(crosswalk("id,subject\nA1,B2\n"))
    assert known.subject("A1") != known.subject("B2")


def test_one_identifier_however_it_is_written_is_one_person():
    known = subjects()
    assert known.subject("A1 ^^^ NORTH") == known.subject("A1^^^NORTH")
    assert known.subject("Mu\u0308ller") == known.subject("M\u00fcller")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A1", "A1", True),
        ("A1", "A1^^^NORTH", True),
        ("A1^^^NORTH", "A1^^^SOUTH", False),
        ("A1", "B2", False),
        ("A1^^^NORTH", "B2^^^NORTH", False),
    ],
)
def test_who_may_be_the_same_person(one, other, same):
    known = subjects()
    assert same_person(aliases(known, one), aliases(known, other)) is same
    assert same_person(aliases(known, other), aliases(known, one)) is same


def test_a_person_of_the_crosswalk_is_known_by_each_identifier(crosswalk):
    known = subjects(crosswalk("id,subject\nA1^^^NORTH,Anna\nL-7,Anna\n"))
    plain = subjects()
    for raw in ("A1^^^NORTH", "L-7", "L-7^^^LAB", "A1"):
        assert same_person(aliases(known, "L-7"), aliases(plain, raw))
    assert not same_person(aliases(known, "L-7"), aliases(plain, "A1^^^SOUTH"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("id,subject\nA1,Anna\nA1,Bo\n", "line 3: the identifier stands for two people"),
        ("id,subject\nA1,\n", "line 2: 'subject' names nobody"),
        ("id,person\nA1,Anna\n", "no column 'subject' among its 2"),
    ],
)
def test_a_crosswalk_that_contradicts_itself_is_refused_without_naming_anybody(
    crosswalk, text, match
):
    with pytest.raises(DataError, match=match) as caught:
        subjects(crosswalk(text))
    assert "Anna" not in str(caught.value)
