"""The report in a real browser: what it asks for, what it complains of, and where things stand."""

import pytest

from federation.audit.report_page import page
from federation.audit.report_style import DARK, LIGHT
from tests.federation.audit.report_browser import BROWSER, browser
from tests.federation.audit.report_sample import hostile, make

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")

WIDTHS = (320, 768, 1280)

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

# Pieces of text that cover each other by more than a hair, in pixels of both directions.
OVERLAPS = """(() => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    const hidden = parent.closest('.skip, .glance > h2, title, desc');
    if (!node.data.trim() || hidden || !parent.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (box.width > 1) found.push([box, node.data.trim().slice(0, 40)]);
  }
  found.sort((a, b) => a[0].top - b[0].top);
  const covered = [];
  for (let i = 0; i < found.length; i++)
    for (let j = i + 1; j < found.length && found[j][0].top < found[i][0].bottom - 5; j++) {
      const [a, b] = [found[i][0], found[j][0]];
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2)
        covered.push([found[i][1], found[j][1]]);
    }
  return [found.length, covered.slice(0, 5)];
})()"""

# Elements that reach out of the box that they stand in, other than what may scroll.
OUTSIDE = """[...document.querySelectorAll('.card *, .verdict *')].filter(one => {
  const box = one.getBoundingClientRect();
  return box.width && box.right > one.closest('.card, .verdict').getBoundingClientRect().right + 1;
}).map(one => one.textContent.slice(0, 40))"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module", params=["usual", "hostile"])
def path(request, folder):
    made = {"usual": make, "hostile": hostile}[request.param](folder / request.param)
    path = folder / f"{request.param}.html"
    path.write_text(page(made.report()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tab(folder):
    with browser(folder / "profile") as page_:
        yield page_


@pytest.fixture
def opened(tab, path):
    tab.requests.clear()
    tab.complaints.clear()
    tab.look(1280)
    tab.open(path)
    return tab


def test_it_asks_nobody_runs_nothing_and_complains_of_nothing(opened, path):
    opened.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert opened.requests == [path.as_uri()]
    assert opened.complaints == []
    assert opened.evaluate("document.scripts.length") == 0
    assert opened.evaluate("document.title").startswith("Privacy report: ")


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off_and_no_text_covers_another(opened, width):
    opened.look(width)
    assert opened.evaluate(OVERFLOW) == 0
    assert opened.evaluate(OUTSIDE) == []
    pieces, covered = opened.evaluate(OVERLAPS)
    assert pieces > 100 and covered == []


def test_at_twice_the_size_it_still_fits(opened):
    """200 % on a screen of 1280 pixels leaves 640 CSS pixels, 400 % leaves 320 (WCAG 1.4.10)."""
    opened.look(640, height=400)
    assert opened.evaluate(OVERFLOW) == 0
    opened.evaluate("document.documentElement.style.fontSize = '32px'")
    opened.look(1280)
    assert opened.evaluate(OVERFLOW) == 0
    assert opened.evaluate(OVERLAPS)[1] == []


@pytest.mark.parametrize(("scheme", "colours"), [("light", LIGHT), ("dark", DARK)])
def test_colours_follow_the_reader_and_paper_is_white(opened, scheme, colours):
    back = "getComputedStyle(document.body).backgroundColor"
    opened.look(1280, scheme=scheme)
    assert opened.evaluate(back) == rgb(colours["back"])
    opened.look(720, scheme=scheme, media="print")
    assert opened.evaluate(back) == rgb(LIGHT["back"])


def rgb(colour):
    return "rgb({}, {}, {})".format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))


def test_one_picture_of_each_pair_is_shown(opened):
    shown = "[...document.querySelectorAll('svg.plot')].filter(s => s.checkVisibility()).length"
    everything = opened.evaluate("document.querySelectorAll('svg.plot').length")
    for width in WIDTHS:
        opened.look(width)
        assert opened.evaluate(shown) * 2 == everything > 0


def test_everything_can_be_reached_by_keyboard_and_shows_it(opened):
    assert opened.evaluate("document.querySelector('.skip').getBoundingClientRect().right") < 0
    opened.evaluate("document.querySelector('.skip').focus({focusVisible: true})")
    assert opened.evaluate("document.querySelector('.skip').getBoundingClientRect().left") >= 0
    opened.evaluate("document.querySelector('.scroll').focus({focusVisible: true})")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert opened.evaluate(outline) == "solid"


def test_it_prints_with_its_tables_open(opened):
    opened.look(720, media="print")
    assert opened.evaluate(OVERFLOW) == 0
    assert opened.evaluate(OVERLAPS)[1] == []
    closed = "[...document.querySelectorAll('details table')].filter(t => !t.checkVisibility())"
    assert opened.evaluate(f"{closed}.length") == 0
    assert opened.evaluate("document.querySelector('nav').checkVisibility()") is False
    printed = opened.pdf()
    assert printed.startswith(b"%PDF")
    assert 2 <= printed.count(b"/Type /Page\n") <= 40


class TestThatTheseTestsSee:
    def show(self, tab, folder, body):
        path = folder / "planted.html"
        path.write_text(f"<!doctype html><title>planted</title><body>{body}")
        tab.requests.clear()
        tab.complaints.clear()
        tab.look(1280)
        tab.open(path)

    def test_a_request_and_a_complaint(self, tab, folder):
        self.show(tab, folder, "<img src=http://127.0.0.1:9/x><script>console.log(1)</script>")
        assert "http://127.0.0.1:9/x" in tab.requests
        assert tab.complaints

    def test_what_is_too_wide_and_what_covers_something(self, tab, folder):
        wide = "<div style='width:2000px'>wide</div>"
        covered = "<p>below<p style='margin-top:-2.2em'>above"
        self.show(tab, folder, wide + covered)
        assert tab.evaluate(OVERFLOW) > 0
        assert tab.evaluate(OVERLAPS)[1] == [["above", "below"]]
