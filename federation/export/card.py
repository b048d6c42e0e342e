"""A model card: README.md, the same as one HTML page that loads nothing, and its pictures."""

from base64 import b64encode
from html import escape
from pathlib import Path

from federation.audit import report_html as html
from federation.audit.report_style import STYLE, content_policy
from federation.audit.report_words import text
from federation.export.about import About
from federation.export.card_parts import Block, Code, Part, Picture, Points, Rows, parts_of
from federation.export.cover import draw_cover
from federation.export.examples import trained_network
from federation.export.markdown import plain
from federation.export.pictures import in_words
from federation.run_record import FinishedRun

COVER = "cover.png"


def write(run: FinishedRun, about: About, folder: Path) -> None:
    """Write ``README.md``, ``card.html`` and the pictures into an empty folder."""
    parts = parts_of(run, about)
    draw_cover(run, about, trained_network(run), folder / COVER)
    # Noise tells nothing that the page would need; it stands in its colours in README.md alone.
    cover = (folder / COVER).read_bytes() if about.picture else None
    words = cover_in_words(about)
    (folder / "README.md").write_text(markdown(about.title, parts, words), encoding="utf-8")
    (folder / "card.html").write_text(page(about.title, parts, words, cover), encoding="utf-8")
    for part in parts:
        for block in part.blocks:
            if isinstance(block, Picture):
                (folder / f"{block.name}.svg").write_text(block.svg, encoding="utf-8")


def cover_in_words(about: About) -> str:
    """Return what the cover shows, for those who do not see it."""
    return (
        f"On the left {in_words(about)}; beside it what the model makes of it; on the right each "
        "site's score by round."
    )


def markdown(title: str, parts: tuple[Part, ...], cover_words: str) -> str:
    """Return the card as Markdown (CommonMark with tables)."""
    lines = [f"# {plain(title)}", "", f"![{plain(cover_words)}]({COVER})", ""]
    for part in parts:
        lines += [f"## {part.title}", ""]
        for block in part.blocks:
            lines += [_in_markdown(block), ""]
    return "\n".join(lines)


def _in_markdown(block: Block) -> str:
    match block:
        case str():
            return plain(block)
        case Code():
            return f"```sh\n{block.text}\n```"
        case Points():
            return "\n".join(f"- {plain(item)}" for item in block.items)
        case Picture():
            return f"![{plain(block.words)}]({block.name}.svg)"
        case Rows():
            return _table(block)


def _table(block: Rows) -> str:
    heads = [html.Column(column) for column in block.columns]
    names = " | ".join(plain(head.words) for head in heads)
    rules = " | ".join("---:" if head.startswith("#") else "---" for head in heads)
    rows = [" | ".join(plain(cell) for cell in row) for row in block.rows]
    body = "\n".join(f"| {line} |" for line in (names, rules, *rows))
    return f"{plain(block.caption)}:\n\n{body}"


def page(
    title: str, parts: tuple[Part, ...], cover_words: str = "", cover: bytes | None = None
) -> str:
    """Return the card as one page: no script, and nothing is fetched from anywhere.

    Args:
        cover: PNG that stands in the page itself, above everything.
    """
    policy, picture = content_policy(images=cover is not None), ""
    if cover is not None:
        coded = b64encode(cover).decode()
        picture = (
            f'<figure>\n<img src="data:image/png;base64,{coded}" alt="{escape(cover_words)}" '
            f'width="100%">\n<figcaption>{text(cover_words)}</figcaption>\n</figure>\n'
        )
    body = picture + "".join(
        html.section(part.name, part.title, "".join(map(_in_html, part.blocks))) for part in parts
    )
    contents = "".join(f'<li><a href="#{p.name}">{escape(p.title)}</a></li>\n' for p in parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Model card: {escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the contents</a>\n'
        f'<header>\n<p class="eyebrow">Model card</p>\n<h1>{text(title)}</h1>\n</header>\n'
        f'<nav aria-label="Contents">\n<ol>\n{contents}</ol>\n</nav>\n'
        f'<main id="main">\n{body}</main>\n'
        "<footer>\n<p>This file is complete in itself: it loads nothing and runs nothing.</p>\n"
        "</footer>\n</body>\n</html>\n"
    )


def _in_html(block: Block) -> str:
    match block:
        case str():
            return f"<p>{text(block)}</p>\n"
        case Code():
            return f"<p><code>{text(block.text)}</code></p>\n"
        case Points():
            return html.bullets([text(item) for item in block.items])
        case Picture():
            return f"<figure>\n{block.svg}</figure>\n"
        case Rows():
            cells = [[text(cell) for cell in row] for row in block.rows]
            return html.table(block.caption, block.columns, cells)
