"""A site's readiness as one HTML page: no script, and nothing is fetched from anywhere."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import isinf
from pathlib import Path

from data_adapters.confinement import Protection
from federation.files import write_where_asked
from federation.readiness import BudgetFound, ConsentFound, Readiness
from federation.readiness_parts import Counts, LabelUse, PartFound, Unusable

# Colours by role. Text on its background has a contrast of at least 7 to 1 (WCAG 2.2, AAA), bars
# one of at least 3 to 1 (AA, 1.4.11); a test computes it.
LIGHT: Mapping[str, str] = {
    "back": "#ffffff",
    "panel": "#f3f5f7",
    "text": "#16191d",
    "muted": "#444c55",
    "line": "#c5ccd3",
    "bar": "#2b6cb0",
    "good": "#0f5323",
    "bad": "#8f1414",
}
DARK: Mapping[str, str] = {
    "back": "#14171a",
    "panel": "#1e2328",
    "text": "#eceff2",
    "muted": "#b9c2cb",
    "line": "#48525c",
    "bar": "#74aef0",
    "good": "#93dba1",
    "bad": "#ffb3b3",
}
_MOST_PATHS = 200
_MOST_ROWS = 16
_BAR_WIDTH = 160


def _colours(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_colours(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_colours(DARK)} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1.5rem; max-width: 70rem; background: var(--back);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ margin: 0; font-size: 1.7rem; }}
h2 {{ margin: 2.5rem 0 .5rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line);
  font-size: 1.3rem; }}
h3 {{ margin: 1.5rem 0 .3rem; font-size: 1.05rem; }}
p, ul {{ margin: .4rem 0; max-width: 50rem; }}
code {{ font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }}
.muted, caption {{ color: var(--muted); }}
.verdict {{ margin: 1rem 0; padding: .8rem 1rem; border-left: .4rem solid; background: var(--panel);
  font-size: 1.1rem; }}
.good {{ color: var(--good); }}
.bad {{ color: var(--bad); }}
.grid {{ display: flex; flex-wrap: wrap; align-items: flex-start; gap: .5rem 2.5rem; }}
.grid > div {{ max-width: 100%; overflow-x: auto; }}
.grid tbody th {{ max-width: 22rem; overflow-wrap: anywhere; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: .5rem 0; }}
caption {{ text-align: left; padding-bottom: .2rem; }}
th, td {{ padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }}
thead th {{ border-bottom: 1px solid var(--line); }}
tbody th {{ font-weight: 500; }}
tbody th code {{ white-space: nowrap; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
svg {{ display: block; margin-top: .3rem; }}
rect.bar {{ fill: var(--bar); }}
rect.rest {{ fill: var(--panel); stroke: var(--line); }}
details {{ margin: .2rem 0 .6rem; }}
summary {{ cursor: pointer; }}
:focus-visible {{ outline: 3px solid var(--bar); outline-offset: 2px; }}
@media print {{
  :root {{ {_colours(LIGHT)} }}
  body {{ padding: 0; max-width: none; font-size: 10pt; }}
  tr, .verdict {{ break-inside: avoid; }}
  h2, h3, caption {{ break-after: avoid; }}
  .scroll {{ overflow: visible; }}
}}
"""


def readiness_page(found: Readiness) -> str:
    """Return the page. Everything that was read from files is escaped."""
    title = f"{found.site}: is it ready to train?"
    body = "".join(
        [
            _head(found),
            *(_part(part, quick=found.quick) for part in found.parts),
            _decoding(found.decoding),
            _permission(found),
            _budget(found.budget),
            _leaving(found),
        ]
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_policy()}">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{body}</main>
</body>
</html>
"""


def write_page(path: Path, found: Readiness) -> None:
    """Write the page, readable by its owner only: it names files of the site.

    Raises:
        FederationError: It cannot be written there.
    """
    write_where_asked(path, readiness_page(found).encode(), "The page", mode=0o600)


def _policy() -> str:
    """Allow this page's own style and nothing else, from anywhere."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _head(found: Readiness) -> str:
    if found.ready:
        verdict = (
            '<p class="verdict good"><strong>Ready.</strong> Nothing would block training.</p>'
        )
    else:
        verdict = '<p class="verdict bad"><strong>Not ready.</strong> See what blocks it.</p>'
    quick = " Only headers were read: shapes and labels are not known." if found.quick else ""
    blocking = [f.what for f in found.findings if f.blocks]
    others = [f.what for f in found.findings if not f.blocks]
    return (
        f"<h1>{escape(found.site)}</h1>\n"
        f'<p class="muted">Data set {escape(found.dataset)}, looked at on {escape(found.at)}.'
        f"{quick} This page is for the site itself: it holds counts and file names, and only what "
        "its last section lists ever leaves.</p>\n"
        + verdict
        + _listed("What blocks training", blocking, "bad")
        + _listed("Good to know", others, "")
    )


def _listed(heading: str, items: Sequence[str], kind: str) -> str:
    if not items:
        return ""
    lines = "".join(f"<li>{escape(item)}</li>\n" for item in items)
    return f'<h3 class="{kind}">{escape(heading)}</h3>\n<ul>\n{lines}</ul>\n'


# The data


def _part(part: PartFound, *, quick: bool) -> str:
    name = {"protected": "Protected subjects", "public": "Public subjects"}[part.part]
    places = ", ".join(f"<code>{escape(path)}</code>" for path in part.where)
    what = "candidates" if quick else "scans"
    charts = [
        _bars("Scans by modality", part.modalities),
        _bars("Scans by spacing (z × y × x)", part.spacings),
        _bars("Scans by shape (z × y × x)", part.shapes),
        _bars("Subjects by number of scans", part.scans_per_subject),
        _label_bars(part.labels),
        _bars("Scans by target", part.targets),
        _bars("Identifiers in headers (files with a value; no value is kept)", part.identifiers),
    ]
    return (
        f"<h2>{name}</h2>\n"
        f"<p><strong>{part.num_subjects}</strong> subjects, <strong>{part.num_scans}</strong> "
        f"{what}, <strong>{part.num_unusable}</strong> set aside. {escape(part.kind)} in {places}."
        "</p>\n"
        f'<div class="grid">\n{"".join(charts)}</div>\n'
        + _unusable(part.unusable)
        + _burned_in(part)
        + _listed("Notes", part.notes, "")
    )


def _bars(caption: str, counts: Counts) -> str:
    """Return a histogram as a table: name, bar, number. The bar repeats the number."""
    if not counts:
        return ""
    most = max(number for _, number in counts) or 1
    shown, rest = counts[:_MOST_ROWS], counts[_MOST_ROWS:]
    rows = [_bar_row(name, number / most, str(number)) for name, number in shown]
    if rest:
        number = sum(number for _, number in rest)
        rows.append(_bar_row(f"{len(rest)} others", min(1.0, number / most), str(number)))
    return _bar_table(caption, rows)


def _label_bars(labels: Sequence[LabelUse]) -> str:
    if not labels:
        return ""
    rows = [
        _bar_row(use.name, use.share, f"{use.share:.2%} in {use.num_scans} scans") for use in labels
    ]
    return _bar_table("Classes: share of all voxels, and scans that hold them", rows)


def _bar_table(caption: str, rows: Iterable[str]) -> str:
    body = "".join(rows)
    head = f"<div><table>\n<caption>{escape(caption)}</caption>\n"
    return f"{head}<tbody>\n{body}</tbody></table></div>\n"


def _bar_row(name: str, share: float, text: str) -> str:
    filled = max(1.0, share * _BAR_WIDTH) if share else 0
    return (
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td><svg aria-hidden="true" width="{_BAR_WIDTH}" height="14">'
        f'<rect class="rest" width="{_BAR_WIDTH}" height="14"/>'
        f'<rect class="bar" width="{filled:.1f}" height="14"/></svg></td>'
        f'<td class="number">{escape(text)}</td></tr>\n'
    )


def _unusable(reasons: Sequence[Unusable]) -> str:
    if not reasons:
        return "<h3>Set aside</h3>\n<p>Nothing.</p>\n"
    rows = "".join(_unusable_row(reason) for reason in reasons)
    return _table(
        "Set aside: what cannot be used, why, and what to do",
        ("code", "how many", "why", "what to do"),
        rows,
    )


def _unusable_row(reason: Unusable) -> str:
    paths = reason.where[:_MOST_PATHS]
    lines = "".join(f"<li><code>{escape(path)}</code></li>" for path in paths)
    more = len(reason.where) - len(paths)
    also = f"<li>and {more} more; see --json</li>" if more else ""
    where = f"<details><summary>where</summary><ul>{lines}{also}</ul></details>"
    return (
        f'<tr><th scope="row"><code>{escape(reason.code)}</code></th>'
        f'<td class="number">{len(reason.where)}</td>'
        f"<td>{escape(reason.sentence)}{where}</td><td>{escape(reason.remedy)}</td></tr>\n"
    )


def _burned_in(part: PartFound) -> str:
    number = sum(len(reason.where) for reason in part.burned_in)
    refused = (
        f"{number} images were set aside for it" if number else "No image was set aside for it"
    )
    clean = ", ".join(part.clean_modalities)
    declared = f"; you have declared {escape(clean)} clean" if clean else ""
    return (
        "<h3>Text burned into the pixels</h3>\n"
        f"<p>{refused}{declared}. What a header denies is believed; CT, MR and PET whose headers "
        "are silent are taken, since they rarely carry text. No program has looked at the pixels: "
        "look at some yourself.</p>\n"
    )


def _decoding(found: Sequence[Protection]) -> str:
    if not found:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(one.name.replace("_", " "))}</th>'
        f"<td>{f'not on this machine: {escape(one.missing)}' if one.missing else 'yes'}</td></tr>\n"
        for one in found
    )
    return (
        "<h2>How images are decoded</h2>\n"
        "<p>Compressed pixels come from elsewhere, and a codec that reads them can be attacked by "
        "them. They are decoded in a process of its own, which gives up what it can.</p>\n"
        + _table("What that process is kept from", ("protection", "active"), rows)
    )


# Terms, consent, budget


def _permission(found: Readiness) -> str:
    terms = ", ".join(f"<code>{escape(code)}</code>" for code in found.terms)
    return (
        "<h2>What the data may be used for</h2>\n"
        f"<p>Terms of the data set: {terms or 'not declared'}. "
        f"Subjects excluded by you: <strong>{found.num_excluded}</strong>.</p>\n"
        + _consent(found.consent)
    )


def _consent(consent: ConsentFound | None) -> str:
    if consent is None:
        return "<p>No table of consent is read: every ingested subject may be sampled.</p>\n"
    return (
        f"<p>Of {consent.num_subjects} subjects, {consent.unknown} are not in the table of consent "
        f"and the consent of {consent.expired} has expired.</p>\n"
        + _bars("Subjects whose consent holds today", consent.with_consent)
        + _bars("Rows of the table that give no consent", consent.rows_unused)
    )


def _budget(budget: BudgetFound | None) -> str:
    heading = "<h2>Privacy budget</h2>\n"
    if budget is None:
        return heading + "<p>There is no ledger yet, or it cannot be opened.</p>\n"
    spent = "infinite (no privacy)" if isinf(budget.spent) else f"{budget.spent:.2f}"
    share = 1.0 if isinf(budget.spent) else min(1.0, budget.spent / budget.limit)
    declared = f"<p>Declared to be of no people by {escape(budget.declaration)}.</p>\n"
    return (
        heading
        + _bar_table(
            f"Epsilon spent, of {budget.limit:g} at delta {budget.delta:g}",
            [_bar_row(f"{budget.charges} rounds charged", share, spent)],
        )
        + _listed("Approvals that are open", budget.open_approvals, "")
        + (declared if budget.declaration else "")
    )


# What leaves


def _leaving(found: Readiness) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(one.message)}: {escape(one.field)}</th>'
        f"<td><code>{escape(one.value)}</code></td><td>{escape(one.why)}</td></tr>\n"
        for one in found.leaving
    )
    return (
        "<h2>What would leave this site</h2>\n"
        "<p>Every field of every message, and nothing else. A training reply is the receipt and "
        "the update.</p>\n"
        + _table("Fields that leave", ("field", "value", "where it comes from"), rows)
    )


def _table(caption: str, headings: Sequence[str], rows: str) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">\n'
        f"<table>\n<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{rows}</tbody>\n</table></div>\n"
    )
