"""How the report looks: on bright and dark screens, on telephones and on paper."""

import base64
import hashlib
from collections.abc import Mapping

# Text on each background has a contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3), bars, lines and
# outlines one of at least 3 to 1 (1.4.11); a test computes both.
LIGHT: Mapping[str, str] = {
    "back": "#ffffff",
    "panel": "#f4f6f9",
    "text": "#171b21",
    "muted": "#49535f",
    "line": "#ccd3db",
    "edge": "#7b8794",
    "accent": "#1d5a9e",
    "soft": "#d9e6f5",
    "limit": "#a31515",
    "good": "#0d5a27",
    "good-back": "#e7f4ea",
    "bad": "#9a1212",
    "bad-back": "#fcebea",
    "warn": "#6f4700",
    "warn-back": "#fdf3da",
}
DARK: Mapping[str, str] = {
    "back": "#13161a",
    "panel": "#1c2127",
    "text": "#e9edf1",
    "muted": "#b3bdc8",
    "line": "#3d4751",
    "edge": "#7f8b97",
    "accent": "#7db4f2",
    "soft": "#22354a",
    "limit": "#ff9c94",
    "good": "#8fdda2",
    "good-back": "#15301d",
    "bad": "#ffaaa3",
    "bad-back": "#3a1a1a",
    "warn": "#f1cb7a",
    "warn-back": "#332812",
}
# Which text stands on what, and what must be seen against what.
TEXT_ON: Mapping[str, tuple[str, ...]] = {
    "back": ("text", "muted", "accent", "limit", "good", "bad", "warn"),
    "panel": ("text", "muted", "accent", "limit", "good", "bad", "warn"),
    "soft": ("text", "accent"),
    "good-back": ("text", "good"),
    "bad-back": ("text", "bad"),
    "warn-back": ("text", "warn"),
}
SEEN_ON: Mapping[str, tuple[str, ...]] = {
    "back": ("accent", "limit", "edge"),
    "panel": ("accent", "edge"),
    "soft": ("accent", "limit"),
}


def _colours(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


_PAGE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--back); color: var(--text); overflow-wrap: break-word;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
header, nav, main, footer { max-width: 66rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 2.2rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 2px; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: .5rem; padding: .4rem .8rem; background: var(--back); z-index: 1; }
h1 { margin: .1rem 0 .4rem; font-size: clamp(1.5rem, 1.1rem + 1.6vw, 2.1rem); line-height: 1.2;
  letter-spacing: -.015em; text-wrap: balance; }
h2 { margin: 0 0 .6rem; font-size: 1.4rem; line-height: 1.25; letter-spacing: -.01em; }
h3 { margin: 2rem 0 .4rem; font-size: 1.12rem; line-height: 1.3; }
h4 { margin: 0 0 .5rem; font-size: 1rem; line-height: 1.3; }
p, ul, ol { margin: .5rem 0; max-width: 44rem; }
li { margin: .25rem 0; }
section { margin-top: 3.2rem; padding-top: 1.4rem; border-top: 1px solid var(--line); }
.glance { margin-top: 1.4rem; padding-top: 0; border-top: 0; }
.glance > h2 { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }
code { font: .88em ui-monospace, "SF Mono", Consolas, monospace; overflow-wrap: anywhere; }
bdi { overflow-wrap: anywhere; }
strong { font-weight: 650; }
time { white-space: nowrap; }
.eyebrow { margin: 0; font-size: .85rem; font-weight: 600; color: var(--accent); }
.muted, caption, .absent { color: var(--muted); }
.absent { font-style: italic; }
.lead { margin-top: 1.5rem; max-width: 54rem; font-size: 1.08rem; text-wrap: pretty; }
header p { max-width: none; }
.small { font-size: .9rem; }
"""

_PARTS = """
.verdict { display: flex; gap: .8rem; margin: 1.2rem 0; padding: .8rem 1.1rem;
  border-left: .35rem solid; border-radius: .3rem; }
.verdict p { margin: 0; max-width: 56rem; color: var(--text); text-wrap: pretty; }
.verdict strong { font-size: 1.1rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.verdict.good, .chip.good { background: var(--good-back); }
.verdict.bad, .chip.bad { background: var(--bad-back); }
.verdict.warn, .chip.warn { background: var(--warn-back); }
.icon { flex: none; width: 1.15em; height: 1.15em; vertical-align: -.2em; fill: none;
  stroke: currentColor; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round; }
.verdict .icon { width: 1.6rem; height: 1.6rem; }
.chip { display: inline-block; padding: .1rem .55rem; border-radius: 1rem; font-size: .88rem;
  font-weight: 600; }
td .chip { white-space: nowrap; }
.letter { display: inline-block; min-width: 1.6em; padding: 0 .35em; border-radius: .25rem;
  background: var(--soft); color: var(--accent); font-weight: 650; text-align: center; }
.cards { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 18.5rem), 1fr)); }
.card { padding: 1.1rem 1.2rem; background: var(--panel); border: 1px solid var(--line);
  border-radius: .5rem; min-width: 0; }
.card h3 { margin: 0 0 .1rem; font-size: 1.15rem; }
.card p { margin: .35rem 0; }
.card .figure { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 .5rem;
  margin: .9rem 0 0; }
.figure b { font-size: 1.7rem; font-weight: 650; line-height: 1.2; letter-spacing: -.02em; }
.meter { display: block; width: 100%; height: .75rem; margin: .35rem 0 .3rem;
  background: var(--back); border: 1px solid var(--edge); border-radius: .2rem; }
td .meter { height: .5rem; margin: .2rem 0; }
.meter .filled { fill: var(--accent); }
.meter .held { fill: var(--accent); fill-opacity: .35; }
nav { margin-top: 2rem; }
nav ol { columns: 17rem; max-width: none; margin: 0; padding-left: 1.4rem; }
nav li { break-inside: avoid; margin: 0; padding: .15rem 0; }
.facts { display: grid; grid-template-columns: fit-content(11rem) 1fr; gap: .3rem 1rem; margin: 0; }
.card .stack { display: block; margin-top: .8rem; } .card .stack dd { margin-bottom: .5rem; }
.card .stack dt { font-size: .88rem; }
.facts dt { color: var(--muted); } .facts dd { margin: 0; min-width: 0; }
.sites { display: grid; gap: 1rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
blockquote { margin: .6rem 0; padding: .1rem 0 .1rem 1rem; border-left: .25rem solid var(--line);
  max-width: 44rem; font-size: 1.05rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { max-width: min(60rem, 100vw - 2rem); padding-bottom: .4rem; text-align: left;
  font-size: .92rem; }
th, td { padding: .45rem 1rem .45rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); min-width: 5rem; }
thead th { font-size: .88rem; line-height: 1.35; border-bottom: 2px solid var(--edge);
  vertical-align: bottom; }
tbody th { min-width: 8.5rem; font-weight: 550; }
tr.here th, tr.here td { background: var(--soft); }
.number { text-align: right; white-space: nowrap; }
td.wide { min-width: 14rem; }
.plot { width: 100%; height: auto; margin: .8rem 0 .2rem; }
.plot.narrow { display: none; }
.plot text { font-size: 13px; fill: var(--muted); }
.plot .line-text, .plot .limit-text { paint-order: stroke; stroke: var(--back); stroke-width: 4px; }
.plot .limit-text { fill: var(--limit); font-weight: 600; }
.plot .line-text { fill: var(--accent); font-weight: 600; }
.plot .mark-text { fill: var(--accent); font-weight: 650; }
.plot path { fill: none; }
.plot .rule, .plot .tick { stroke: var(--line); }
.plot .axis { stroke: var(--edge); }
.plot .area { fill: var(--soft); }
.plot .line { stroke: var(--accent); stroke-width: 2.5; stroke-linejoin: round; }
.plot .limit { stroke: var(--limit); stroke-width: 2; stroke-dasharray: 7 5; }
.plot .dot { fill: var(--accent); stroke: var(--back); stroke-width: 1.5; }
.plot .mark { fill: var(--soft); }
details { margin: .4rem 0; } summary { cursor: pointer; color: var(--accent); }
.plain { padding: 0; list-style: none; }
.said { margin: .4rem 0; padding-left: 1.2rem; }
footer { margin-top: 3rem; padding-top: 1.2rem; padding-bottom: 3rem; color: var(--muted);
  font-size: .9rem; }
"""

_SCREENS = f"""
@media (max-width: 40rem) {{
  header, nav, main, footer {{ padding-left: 1rem; padding-right: 1rem; }}
  header {{ padding-top: 1.2rem; }}
  section {{ margin-top: 2.2rem; }}
  .plot.wide {{ display: none; }} .plot.narrow {{ display: block; }}
  .facts {{ grid-template-columns: 1fr; gap: 0; }} .facts dd {{ margin-bottom: .5rem; }}
  th, td {{ padding-right: .7rem; }}
}}
@media print {{
  @page {{ margin: 16mm 15mm 18mm; }}
  :root {{ color-scheme: light; {_colours(LIGHT)} }}
  html {{ font-size: 9.5pt; }}
  body {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  header, nav, main, footer {{ max-width: none; padding-left: 0; padding-right: 0; }}
  header {{ padding-top: 0; }}
  nav, .skip {{ display: none; }}
  section {{ margin-top: 1.6rem; padding-top: 1rem; }}
  h2, h3, h4, caption {{ break-after: avoid; }}
  tr, .card, .verdict, .plot, li {{ break-inside: avoid; }}
  p {{ orphans: 3; widows: 3; }}
  .cards {{ grid-template-columns: repeat(3, 1fr); gap: .6rem; }}
  .cards .card {{ padding: .7rem .8rem; }}
  .sites {{ grid-template-columns: 1fr 1fr; }}
  .scroll {{ overflow: visible; }}
  thead {{ display: table-header-group; }}
  th, td, tbody th {{ padding: .25rem .6rem .25rem 0; min-width: 0; }}
  td.wide {{ min-width: 0; }}
  .plot.wide {{ display: block; }} .plot.narrow {{ display: none; }}
  details::details-content {{ content-visibility: visible; block-size: auto; }}
  summary {{ color: var(--muted); list-style: none; }}
  a {{ color: inherit; text-decoration: none; }}
}}
"""

STYLE = (
    f"\n:root {{ color-scheme: light dark; {_colours(LIGHT)} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_colours(DARK)} }} }}" + _PAGE + _PARTS
) + _SCREENS


def content_policy(*, images: bool = False) -> str:
    """Allow this page's own style and nothing else, from anywhere.

    Args:
        images: Also those that stand in the page itself.
    """
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    own = " img-src data:;" if images else ""
    return (
        f"default-src 'none'; style-src 'sha256-{digest}';{own} base-uri 'none'; form-action 'none'"
    )
