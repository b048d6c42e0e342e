"""A model card says what the record says, in Markdown and on one page."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from federation.audit.report_numbers import advantage
from federation.experiment import NoPrivacy
from federation.export.card import markdown, page, plain, write
from federation.export.card_parts import parts_of
from federation.export.summaries import curves
from federation.messages import RoundFinished
from tests.federation.export.conftest import SITES
from tests.federation.regression import regression


@pytest.fixture
def card(finished, about, tmp_path):
    folder = tmp_path / "card"
    folder.mkdir()
    write(finished, about, folder)
    return folder


def with_record(run, **changes):
    return replace(run, record=replace(run.record, **changes))


def text_of(run, about):
    return markdown(about.title, parts_of(run, about), "")


def test_both_forms_say_what_was_trained_by_whom_and_what_it_cost(card, finished):
    for name in ("README.md", "card.html"):
        told = (card / name).read_text()
        for words in (
            "Tiny brains",
            "Ada Example",
            "CC-BY-4.0",
            finished.record.model_digest,
            finished.record.experiment.digest(),
            finished.record.run,
            f"{advantage(7.5, finished.record.experiment.privacy.delta):.4f}",
            "10.1234/example",
            *SITES,
        ):
            assert words in told, (name, words)


def test_the_page_loads_nothing_and_its_markup_is_closed(card):
    html = (card / "card.html").read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"<script|src=|@import|url\(", html)
    assert (card / "cover.png").read_bytes().startswith(b"\x89PNG")
    assert "](cover.png)" in (card / "README.md").read_text()
    assert set(re.findall(r'href="([^"]*)"', html)) >= {"#privacy", "#performance"}
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', html))

    open_tags, ids = [], []

    class Check(HTMLParser):
        def handle_starttag(self, tag, attributes):
            ids.extend(value for name, value in attributes if name == "id")
            if tag not in {"meta", "line", "polyline", "img"}:
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Check().feed(html.replace("/>", ">"))
    assert open_tags == [] and len(ids) == len(set(ids))


def test_the_picture_has_a_line_for_each_site_and_says_it_in_words(card):
    svg = (card / "scores.svg").read_text()
    assert svg.count("<polyline") == len(SITES)
    for place, site in enumerate(SITES):
        assert f"{site} ends at {0.4 + 0.1 * place:.3f}" in svg
    assert svg in (card / "card.html").read_text()


def test_the_worst_site_is_named_with_the_gap(finished, about):
    told = text_of(finished, about)
    assert "worst at bio-lab (0.400), best at north-hospital (0.500), a gap of 0.100" in told
    assert "mean 0.450, deviation 0.050" in told


def test_of_an_error_the_largest_is_the_worst(finish, about):
    told = text_of(finish(regression()), about)
    assert "worst at north-hospital (0.500), best at bio-lab (0.400)" in told
    assert "less is better" in told


def test_without_scores_it_says_that_nothing_is_known(finished, about):
    events = [replace(event, scores={}) for event in finished.record.events]
    told = text_of(with_record(finished, events=tuple(events)), about)
    assert "Its performance is unknown" in told and "worst at" not in told


def test_rounds_that_lacked_sites_are_told(finished, about):
    last = RoundFinished(2, SITES[:1], {SITES[1]: "budget"}, {})
    run = with_record(finished, events=(*finished.record.events[:2], last))
    assert f"1 of 2 changed the model without some of them ({SITES[1]})" in text_of(run, about)
    assert "each of the 2 rounds" in text_of(finished, about)


def test_a_model_without_privacy_says_none(finished, about):
    experiment = finished.record.experiment
    bare = experiment.model_copy(
        update={"privacy": NoPrivacy(sampling_rate=0.5, expected_batch=2.0)}
    )
    run = with_record(finished, experiment=bare, epsilon=dict.fromkeys(SITES))
    told = text_of(run, about)
    assert "\nNone. The model" in told and "may have memorised" in told
    assert "advantage" not in told


def test_epsilon_is_never_rounded_down(finished, about):
    run = with_record(finished, epsilon=dict.fromkeys(SITES, 7.50001))
    assert "| 7.51 |" in text_of(run, about) and "| 7.50 |" not in text_of(run, about)


def test_a_site_that_returned_nothing_is_no_part_of_it(finished, about):
    alone = [replace(event, returned=event.returned[:1]) for event in finished.record.events]
    told = text_of(with_record(finished, events=tuple(alone)), about)
    assert f"brains-{SITES[0]}" in told and f"brains-{SITES[1]}" not in told


def test_scores_of_nothing_draw_no_division(finish, about):
    run = finish(regression())
    still = [
        replace(event, scores={site: {"mae": 0.0} for site in SITES}) for event in run.record.events
    ]
    assert "0.000" in text_of(with_record(run, events=tuple(still)), about)


def test_scores_that_are_no_numbers_are_left_out(finished):
    broken = replace(finished.record.events[2], scores={SITES[0]: {"dice": float("nan")}})
    record = replace(finished.record, events=(*finished.record.events[:2], broken))
    assert [curve.rounds for curve in curves(record)] == [(0, 1)] * 2


def test_what_others_wrote_cannot_become_markup(finished, about):
    nasty = "<img src=x onerror=alert(1)> | [a](http://example.org) `x` **b**"
    about = about.model_copy(update={"title": nasty, "intended_use": nasty})
    site = replace(finished.record.sites[0], dataset=nasty)
    run = with_record(finished, sites=(site, *finished.record.sites[1:]))
    html = page(about.title, parts_of(run, about))
    assert "<img" not in html and "&lt;img" in html
    told = markdown(about.title, parts_of(run, about), "")
    assert nasty not in told and plain(nasty) in told
    (row,) = (line for line in told.splitlines() if line.startswith("| bio-lab | \\<img"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 9


def test_it_names_no_place_of_this_machine(card, machines_words):
    for path in card.iterdir():
        data = path.read_bytes()
        assert not [word for word in machines_words if word.encode() in data]
