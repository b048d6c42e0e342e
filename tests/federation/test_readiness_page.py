"""The readiness page: opened in a real browser where one is installed."""

import json
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product

import pytest

from data_adapters.confinement import Protection
from federation.leaving import Leaving
from federation.readiness import BudgetFound, ConsentFound, Finding, Readiness
from federation.readiness_page import DARK, LIGHT, readiness_page, write_page
from federation.readiness_parts import LabelUse, PartFound, Unusable

HOSTILE = "<script>document.title='owned'</script><img src=http://127.0.0.1:9/x>\"'&"


@pytest.fixture
def found():
    unusable = Unusable("NO_LABELS", f"why {HOSTILE}", "do this", (f"a/{HOSTILE}.dcm", "b.dcm"))
    part = PartFound(
        part="protected",
        kind="dicom",
        where=(f"/data/{HOSTILE}",),
        num_subjects=3,
        num_scans=4,
        unusable=(unusable, Unusable("BURNED_IN_UNKNOWN", "text", "look", ("c.dcm",))),
        identifiers=(("PatientName", 4),),
        notes=(HOSTILE,),
        clean_modalities=("CR",),
        modalities=((HOSTILE, 4),),
        spacings=tuple((f"{n} mm", 30 - n) for n in range(20)),
        shapes=(("1 × 2 × 3", 4),),
        labels=(LabelUse("liver", 4, 0.25), LabelUse("nothing", 0, 0.0)),
        targets=(("sick", 1), ("well", 3)),
    )
    return Readiness(
        site="lab",
        dataset="brains",
        at="2026-05-04 10:00 UTC",
        quick=False,
        parts=(part,),
        terms=("DUO:0000006",),
        consent=ConsentFound(3, 1, 1, (("health", 1),), (("whose", 2),)),
        num_excluded=1,
        budget=BudgetFound(10.0, 1e-5, 2.5, 4, ("tiny (abc)",), "Dr A: phantoms"),
        leaving=(Leaving("description", "site", HOSTILE, "declared"),),
        findings=(Finding(True, HOSTILE), Finding(False, "to know")),
    )


class Tags(HTMLParser):
    """Every tag with its attributes, and whether all are closed in order."""

    VOID = frozenset({"meta", "rect", "link", "br"})

    def __init__(self):
        super().__init__()
        self.seen, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(page):
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags.seen


def test_the_page_is_well_formed_has_no_script_and_names_no_other_place(found):
    tags = parsed(readiness_page(found))
    assert {tag for tag, _ in tags} <= {
        "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "strong",
        "code", "ul", "li", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "svg",
        "rect", "details", "summary",
    }  # fmt: skip
    for _, attributes in tags:
        assert not {"src", "href", "style", "srcset", "data"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)


def test_whatever_was_read_from_files_stays_text(found):
    page = readiness_page(found)
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;") == page.count("document.title=")


def test_every_table_has_a_caption_and_every_heading_cell_a_scope(found):
    tags = parsed(readiness_page(found))
    names = [tag for tag, _ in tags]
    assert names.count("table") == names.count("caption") > 8
    assert all(attributes.get("scope") for tag, attributes in tags if tag == "th")
    assert ("html", {"lang": "en"}) in tags


def test_verdict_in_words_and_not_in_colour_alone(found):
    assert "<strong>Not ready.</strong>" in readiness_page(found)
    assert "<strong>Ready.</strong>" in readiness_page(replace(found, findings=()))


def test_what_decoders_are_kept_from_is_said_and_what_they_are_not(found):
    kept = (Protection("no_network"), Protection("no_writes", "Landlock is <off>"))
    page = readiness_page(replace(found, decoding=kept))
    assert '<th scope="row">no network</th><td>yes</td>' in page
    assert "<td>not on this machine: Landlock is &lt;off&gt;</td>" in page
    assert "How images are decoded" not in readiness_page(replace(found, decoding=()))


def test_a_quick_look_and_no_budget_are_said(found):
    page = readiness_page(replace(found, quick=True, budget=None, consent=None))
    assert "Only headers were read" in page and "There is no ledger yet" in page
    infinite = replace(found.budget, spent=float("inf"))
    assert "infinite (no privacy)" in readiness_page(replace(found, budget=infinite))


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
    for text, back in product(("text", "muted", "good", "bad"), ("back", "panel")):
        assert contrast(colours[text], colours[back]) >= 7
    for back in ("back", "panel"):
        assert contrast(colours["bar"], colours[back]) >= 3


def test_the_page_is_for_its_owner_only(found, tmp_path):
    write_page(tmp_path / "page.html", found)
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o600


# In a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")


@pytest.fixture
def browse(found, tmp_path):
    page = tmp_path / "page.html"
    write_page(page, found)

    def run(*options, page=page):
        command = [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            # What the browser wants for itself finds nobody.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={tmp_path / 'profile'}",
            *options,
            page.as_uri(),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    return run


@in_browser
def test_a_browser_shows_it_runs_nothing_and_asks_nobody(browse, tmp_path):
    log = tmp_path / "net.json"
    shown = browse("--dump-dom", "--enable-logging=stderr", f"--log-net-log={log}")
    assert "What would leave this site" in shown.stdout
    assert "<title>lab: is it ready to train?</title>" in shown.stdout
    assert "Content Security Policy" not in shown.stderr, "its own style is allowed"
    assert not asked_by_the_page(log)


@in_browser
def test_the_log_of_requests_shows_one_that_is_planted(browse, tmp_path):
    planted, log = tmp_path / "planted.html", tmp_path / "net.json"
    planted.write_text("<!doctype html><img src='http://127.0.0.1:9/planted'>")
    browse("--dump-dom", f"--log-net-log={log}", page=planted)
    assert asked_by_the_page(log) == {"http://127.0.0.1:9/planted"}


def asked_by_the_page(log):
    """Return what a page from a file asked for; the browser's own requests have other keys."""
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    return {
        event["url"]
        for event in events
        if str(event.get("network_isolation_key", "")).startswith("file:")
        and not event.get("url", "file:").startswith("file:")
    }


@in_browser
def test_it_prints(browse, tmp_path):
    browse(f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
