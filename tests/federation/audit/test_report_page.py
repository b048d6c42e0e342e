"""The report's page as text: what it says, how it is built, what hostile text does to it."""

from html.parser import HTMLParser
from itertools import pairwise

import pytest

from federation.audit import report_words as words
from federation.audit.report import board_report
from federation.audit.report_checks import STATUS
from federation.audit.report_page import page
from federation.audit.report_plots import dates, ticks
from federation.audit.report_records import day_of
from federation.audit.report_sources import Experiments
from federation.audit.report_style import DARK, LIGHT, SEEN_ON, TEXT_ON
from federation.audit.verify import verify_ledgers
from tests.federation.audit.report_sample import HOSTILE, hostile, make


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return make(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def shown(sample):
    return page(sample.report())


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    return page(hostile(tmp_path_factory.mktemp("hostile")).report())


class Tags(HTMLParser):
    """Every tag with its attributes, the text, and whether all are closed in order."""

    VOID = frozenset({"meta", "rect", "path", "circle", "br"})

    def __init__(self):
        super().__init__()
        self.seen, self.open, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def attributes(self, tag):
        return [attributes for name, attributes in self.seen if name == tag]


def parsed(text):
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    return tags


class TestWhatItSays:
    def test_whose_data_what_was_promised_what_is_spent_and_the_verdict_come_first(self, shown):
        first = parsed(shown).text.split("Who trained what, on whose data, and why")[0]
        for said in (
            "Verified.",
            "Memory clinic MRI, 2015–2024",
            "each person loses at most 8 of privacy",
            "3.91 of 8 spent",
            "1 in 100,000",
            "which by itself promises next to nothing",
        ):
            assert said in first

    @pytest.mark.parametrize(
        "said",
        [
            "shrinking over the years can be measured in memory clinics",
            "research on a specific disease (MONDO:0004975), not for profit",
            "Dr. M. Rivera and Prof. A. Okafor",
            "EC 2025/118, of 3 December 2025",
            "GDPR Art. 6(1)(e), 9(2)(j); § 27 BDSG",
            "not recorded in the approval",
            "the hub with key SHA256:",
            "counts: exact",
            "withdrawn on 11 May 2026",
            "The patients’ council asked for a pause",
            "refused (2 times)",
            "new signing key",
            "people excluded",
            "cache purged",
            "take it that copies for training are still there",
            "monai 1.6.1",
            "nearly vacuous",
            "0.46",
            "0.91",
            "0.9993",
            "The guarantee is the limit (ε, δ).",
            "as if nothing had been chosen adaptively",
            "A person whose data are at several sites.",
            "One person under two identifiers",
            "Relatives.",
            "What is true of everybody alike.",
            "Rounding in computers.",
            "Receipts do not prove that noise was drawn.",
            "replace one",
        ],
    )
    def test_it_says(self, shown, said):
        assert said in parsed(shown).text

    def test_every_claim_is_shown_as_the_verifier_words_it(self, sample, shown):
        text = parsed(shown).text
        for site in sample.report().sites:
            assert site.claims
            for claim in site.claims:
                assert claim.status in STATUS
                assert " ".join(claim.why.split()) in text
            for line in site.verdict.notes:
                assert line in text

    def test_without_trust_nobody_is_identified(self, sample):
        bare = sample.report()
        text = page(board_report(verify_ledgers(sample.ledgers), made_at=bare.made_at))
        assert "Consistent, identity unknown." in parsed(text).text
        assert "its name, purpose and data use are not known here" in parsed(text).text

    def test_a_contradiction_is_said_first(self, sample, tmp_path):
        path = tmp_path / "ledger.jsonl"
        path.write_bytes(sample.ledgers[0].read_bytes().replace(b"Rivera", b"Riviera"))
        text = parsed(page(board_report(verify_ledgers([path]), made_at=sample.made_at))).text
        assert text.index("Do not rely on the figures") < text.index("of 8 spent")
        assert "Problems, as the verifier wrote them" in text
        assert text.index("its hash is not that of its content") < text.index("of 8 spent")

    def test_an_epsilon_that_a_site_only_states_is_shown_as_that_and_counts_for_nothing(self, site):
        shown = {}
        for stated in (0.01, 7.5, None):
            values = site.values
            (approval,) = [v["body"] for v in values if v["kind"] == "approval"]
            approval["epsilon"] = stated
            site.rewrite(values)
            report = board_report(verify_ledgers([site.path]), made_at="2026-06-30T00:00:00Z")
            label = f"ε {stated:g}" if stated else "no ε"
            said = f"(stated by the site, not recomputed: {label})"
            text = parsed(page(report)).text
            assert text.count(said) == 1
            shown[stated] = text
            (share,) = report.sites[0].shares
            assert share.epsilon > 1
            assert f"(ε {words.spent(share.epsilon)})" in text
            assert f"ε {words.spent(share.epsilon)} for 3 permitted rounds" in text
        # The table of attacks, which once was made of the stated figure.
        tables = {text.split("by the filter’s ε alone")[1][:200] for text in shown.values()}
        assert len(tables) == 1

    def test_rounds_without_noise_are_said_first(self, site):
        values = site.values
        for value in values:
            if value["kind"] == "charge":
                value["body"]["event"] = {"kind": "unprotected"}
        site.rewrite(values)
        report = board_report(verify_ledgers([site.path]), made_at="2026-06-30T00:00:00Z")
        first = parsed(page(report)).text.split("Who trained what")[0]
        assert "unlimited spent, of 8 promised" in first
        assert "At hospital-a rounds were trained without noise." in first

    def test_files_of_nothing_make_a_page_that_says_so(self, tmp_path):
        path = tmp_path / "empty.jsonl"
        path.write_bytes(b"")
        report = board_report(verify_ledgers([path]), made_at="2026-06-30T00:00:00Z")
        assert "does not say what was promised" in parsed(page(report)).text
        assert "Contradicted." in parsed(page(report)).text


class TestHowItIsBuilt:
    def test_no_script_no_form_nothing_fetched(self, shown):
        tags = parsed(shown)
        assert not {"script", "img", "link", "iframe", "form", "object", "base"} & {
            tag for tag, _ in tags.seen
        }
        for tag, attributes in tags.seen:
            assert not {"src", "style", "srcset", "data"} & set(attributes)
            assert not any(name.startswith("on") for name in attributes)
            if "href" in attributes:
                assert tag == "a" and attributes["href"].startswith("#")

    def test_language_title_landmarks_and_a_way_past_the_contents(self, shown):
        tags = parsed(shown)
        names = [tag for tag, _ in tags.seen]
        assert tags.attributes("html") == [{"lang": "en"}]
        assert [names.count(tag) for tag in ("title", "main", "header", "footer", "nav", "h1")] == [
            1 + 6,  # the page's, and one of each of six pictures
            *[1] * 5,
        ]
        assert tags.attributes("a")[0] == {"class": "skip", "href": "#main"}
        ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
        assert len(ids) == len(set(ids))
        links = {attributes["href"][1:] for attributes in tags.attributes("a")}
        assert links <= set(ids)

    def test_headings_never_skip_a_level(self, shown):
        levels = [int(tag[1]) for tag, _ in parsed(shown).seen if tag in {"h1", "h2", "h3", "h4"}]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))

    def test_tables_have_captions_scopes_and_regions_a_keyboard_can_scroll(self, shown):
        tags = parsed(shown)
        names = [tag for tag, _ in tags.seen]
        assert names.count("table") == names.count("caption") > 10
        assert all(a.get("scope") in {"col", "row"} for a in tags.attributes("th"))
        regions = [a for a in tags.attributes("div") if a.get("role") == "region"]
        assert len(regions) == names.count("table")
        assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)

    def test_pictures_are_named_or_hidden(self, shown):
        for attributes in parsed(shown).attributes("svg"):
            named = attributes.get("role") == "img" and "aria-labelledby" in attributes
            assert named != (attributes.get("aria-hidden") == "true")


def luminance(colour):
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, two):
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(colours):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for back, texts in TEXT_ON.items():
        for text in texts:
            assert contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for back, lines in SEEN_ON.items():
        for line in lines:
            assert contrast(colours[line], colours[back]) >= 3, (line, back)


class TestHostileText:
    def test_it_stays_text(self, attacked):
        tags = parsed(attacked)
        assert not {"script", "img"} & {tag for tag, _ in tags.seen}
        assert attacked.count("&lt;script&gt;") == attacked.count("document.title=")
        assert HOSTILE in tags.text
        assert "&amp;lt;" not in attacked, "escaped twice"

    def test_what_is_hidden_in_it_is_shown(self, attacked):
        assert "\u202e" not in attacked and "‹U+202E›" in attacked
        assert "e\u0301\u0301\u0301‹97 more marks›" in attacked


def test_a_bare_report_names_files_that_are_no_experiment(sample):
    known = Experiments({}, ("site.yaml: Unknown key 'site'.",))
    assert "site.yaml: Unknown key" in parsed(page(sample.report(experiments=known))).text


@pytest.mark.parametrize(
    ("days", "most", "first"),
    [
        (0.5, 4, "00:00"),
        (20, 8, "2 Jan"),
        (170, 3, "Mar 26"),
        (900, 8, "Jul 26"),
        (9000, 6, "2030"),
    ],
)
def test_dates_under_a_plot_are_round_and_few(days, most, first):
    start = day_of("2026-01-01T00:00:00Z")
    found = dates(start, (day_of("2026-01-02T00:00:00Z") - start) * days, most)
    assert 1 <= len(found) <= most
    assert found[0][1] == first
    assert all(start <= at for at, _ in found)


def test_dates_of_a_wrong_clock_end():
    start = day_of("2026-01-01T00:00:00Z")
    assert len(dates(start, day_of("9999-12-31T00:00:00Z") - start, 8)) <= 8


def test_ticks_reach_from_nothing_to_the_top():
    for top in (0.01, 0.9, 3.3, 8.6, 1080.0):
        found = ticks(top)
        assert found[0] == 0 and 2 <= len(found) <= 7 and found[-1] <= top


def test_what_is_shown_as_spent_is_never_less_than_what_is():
    for epsilon in (0.001, 1.0, 3.9012, 2.0000001, 7.999):
        assert float(words.spent(epsilon)) >= round(epsilon, 6)
        assert float(words.left(epsilon)) <= epsilon
