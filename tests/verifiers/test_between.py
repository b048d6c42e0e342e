"""Several ledgers and papers at once: copies, forks, a second ledger, a past that was replaced."""

import copy

import pytest

from tests.verifiers.scenario import lay_out, site_begun_anew, three_sites
from tests.verifiers.verdicts import ours, second
from tests.verifiers.writer import canonical, new_key, public, signed, text_of

CONTRADICTED, VERIFIED = "contradicted", "verified"
NOTHING = {"receipts": b"[]", "closings": b"[]"}


@pytest.fixture(scope="module")
def sites():
    return three_sites("between")


@pytest.fixture
def said(sites, tmp_path):
    """Return both verifiers' word on texts, once they are found to agree."""

    def judge(texts, *more_trust):
        files, trust = lay_out(texts, tmp_path), [*sites.trust, *more_trust]
        words = second(files, trust)
        assert ours(files, trust) == words
        return words

    return judge


def test_copies_of_one_ledger_do_not_contradict_each_other(sites, said):
    text = sites.texts()["north"]
    older = b"".join(text.splitlines(keepends=True)[:9])
    assert said({"a": text, "b": text, "c": older, **NOTHING}) == [VERIFIED] * 3


def test_two_ledgers_of_one_population_contradict_each_other(sites, said):
    other = site_begun_anew(sites.books["north"])
    texts = {"a": sites.texts()["north"], "b": text_of(other.records), **NOTHING}
    assert said(texts, other.fingerprint) == [CONTRADICTED] * 2


def test_a_fork_contradicts_both_of_its_arms(sites, said):
    north = copy.deepcopy(sites.books["north"])
    del north.records[8:]
    north.key = north.first_key
    north.note("purge")
    texts = {"a": sites.texts()["north"], "b": text_of(north.records), **NOTHING}
    assert said(texts) == [CONTRADICTED] * 2


def test_a_fork_that_the_site_has_not_signed_accuses_nobody(sites, said):
    north, west = copy.deepcopy(sites.books["north"]), sites.books["west"]
    del north.records[9:]
    north.key = west.first_key
    north.note("purge")
    texts = {"a": sites.texts()["north"], "b": text_of(north.records), **NOTHING}
    assert said(texts) == [VERIFIED, CONTRADICTED]


def test_two_populations_of_one_site_are_two_ledgers(sites, said):
    other = site_begun_anew(sites.books["north"], "legs")
    texts = {**sites.texts(), "other": text_of(other.records)}
    assert said(texts, other.fingerprint) == [VERIFIED] * 4


def test_papers_of_a_ledger_that_was_replaced_are_a_problem(sites, said):
    other = site_begun_anew(sites.books["north"])
    texts = {**sites.texts(), "north": text_of(other.records)}
    assert said(texts, other.fingerprint)[-1] == "problems"


def test_withheld_with_its_papers_a_replaced_ledger_is_shown_by_heads_and_accuses_nobody(
    sites, said
):
    """Only the heads in the others' records remain: the site or the hub rewrote the past."""
    other = site_begun_anew(sites.books["north"])
    papers = {
        sort: canonical([p for p in getattr(sites, sort) if p["site"] != "north"])
        for sort in NOTHING
    }
    texts = {**sites.texts(), "north": text_of(other.records), **papers}
    assert said(texts, other.fingerprint) == [VERIFIED] * 3 + ["problems"]


def test_heads_of_a_ledger_that_is_not_given_are_no_problem(sites, said):
    texts = {name: text for name, text in sites.texts().items() if name not in ("north", *NOTHING)}
    assert said({**texts, **NOTHING}) == [VERIFIED] * 2


def test_a_recovery_excuses_heads_that_are_gone(sites, said):
    """South's copy ends before its newest releases, which north was shown; it had recovered."""
    south = sites.books["south"]
    recovery = next(r["seq"] for r in south.records if r["kind"] == "recovery")
    text = text_of(south.records[: recovery + 1])
    assert said({**sites.texts(), "south": text, **NOTHING}) == [VERIFIED] * 3


def test_a_stranger_who_signs_in_a_sites_name_does_not_contradict_it(sites, said):
    key = new_key(sites.books["north"].rng)
    forged = sites.receipts[0] | {"public_key": public(key), "ledger": "sha256:" + "7" * 64}
    receipts = canonical([*sites.receipts, signed(forged, "receipt", key)])
    assert said({**sites.texts(), "receipts": receipts}) == [VERIFIED] * 3 + ["problems"]


NONE = (b"", b"{}", b'""', b"[1]", b"[[]]", b"null", b"[" * 100_000, b"\xff")


@pytest.mark.parametrize("text", NONE)
def test_papers_that_are_none_are_a_problem(sites, said, text):
    assert "problems" in said({**sites.texts(), "receipts": text})


def test_a_broken_copy_does_not_contradict_the_whole_one(sites, said):
    text = sites.texts()["north"]
    broken = b"".join(text.splitlines(keepends=True)[:3]) + b"x\n"
    assert said({"a": text, "b": broken, **NOTHING}) == [VERIFIED, CONTRADICTED]
