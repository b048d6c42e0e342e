"""A lineage as a picture: data sets left, runs beside them, models right; SVG, made of text.

Colours have a contrast of at least 4.5 to 1 on white (WCAG 2.2, 1.4.3), and nothing is told by
colour alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from federation.audit.state import counted
from federation.lineage.graph import DataSet, Lineage, Run

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN, _TOP = 260, 82, 180, 22, 24, 92
_LONGEST = 31
_INK, _RED = "#1a1a1a", "#a3161a"
_FILL = {
    "data": ("#e6f0fa", "#1f5a94"),
    "run": ("#f2f2f2", "#4d4d4d"),
    "model": ("#e9f5e6", "#2f6b22"),
}
_HEADS = {"data": "Data set", "run": "Run", "model": "Model"}


@dataclass(frozen=True)
class _Box:
    """A thing to draw.

    Attributes:
        lines: What is written into it, from the top.
    """

    key: str
    kind: str
    lines: tuple[str, ...]
    withdrawn: bool = False


@dataclass(frozen=True)
class _Line:
    start: str
    end: str
    text: str
    withdrawn: bool = False


def svg(lineage: Lineage) -> str:
    """Return the picture."""
    boxes = [*_data_boxes(lineage), *_run_boxes(lineage), *_model_boxes(lineage)]
    lines = _lines(lineage)
    columns = _columns(boxes, lines)
    places = _places(boxes, columns)
    width = max((x for x, _ in places.values()), default=0) + _WIDTH + _MARGIN
    height = max((y for _, y in places.values()), default=0) + _HEIGHT + _MARGIN
    ends = list(zip(lines, _ends(lines, places), strict=True))
    drawn = [_drawn_line(line, start, end) for line, (start, end) in ends]
    drawn += [_words(line, start) for line, (start, _) in ends if line.text]
    drawn += [_drawn_box(box, *places[box.key]) for box in boxes]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-labelledby="title desc" '
            f'font-family="sans-serif" fill="{_INK}">',
            '<title id="title">Lineage of models and data sets</title>',
            f'<desc id="desc">{escape(told(lineage))}</desc>',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            f'<text x="{_MARGIN}" y="32" font-size="18" font-weight="bold">Lineage: '
            f"{_counts(lineage)}</text>",
            f'<text x="{_MARGIN}" y="56" font-size="13">Lines run from left to right. Dashed and '
            "red: the site has withdrawn its approval since.</text>",
            *_caution(lineage),
            *drawn,
            "</svg>",
            "",
        ]
    )


def told(lineage: Lineage) -> str:
    """Return the picture in words, a sentence for each run."""
    sentences = []
    for run in lineage.runs:
        used = []
        for use in lineage.uses_in(run):
            data = lineage.data_set_of(use)
            gone = f", withdrawn on {use.withdrawn[:10]}" if use.withdrawn else ""
            used.append(f"{_name(data)} ({counted(use.updates, 'update')}{gone})")
        start = f" started from model {_short(run.started_from)}," if run.started_from else ""
        made = f"made model {_short(run.model)}" if run.model else "made a model not known here"
        sentences.append(
            f"Run {run.name[:12]}{start} used {', '.join(used) or 'no data set shown'} and {made}."
        )
    return " ".join(sentences) or "There is nothing to show."


def _caution(lineage: Lineage) -> list[str]:
    """Return what whoever is handed the picture alone would else get wrong."""
    if all(data.linked_by for data in lineage.data_sets):
        return []
    return [
        f'<text x="{_MARGIN}" y="75" font-size="13">Boxes of one site may be the same data: '
        "each experiment has its own commitment to them.</text>"
    ]


def _counts(lineage: Lineage) -> str:
    things = ((lineage.data_sets, "data set"), (lineage.runs, "run"), (lineage.models, "model"))
    return ", ".join(counted(len(found), what) for found, what in things)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _name(data: DataSet) -> str:
    return f"{data.site}/{' or '.join(data.names)}"


def _data_boxes(lineage: Lineage) -> list[_Box]:
    boxes = []
    for data in lineage.data_sets:
        number = len(data.commitments)
        told = _short(data.commitments[0]) if number == 1 else f"{number} commitments, one ledger"
        if number > 1 and data.linked_by == "opening":
            told = f"{number} commitments, opened"
        gone = any(use.withdrawn for use in lineage.uses_of(data))
        boxes.append(_Box(data.id, "data", (data.site, " or ".join(data.names), told), gone))
    return boxes


def _run_boxes(lineage: Lineage) -> list[_Box]:
    return [
        _Box(run.id, "run", (run.experiment or "experiment not here", _when(run)))
        for run in lineage.runs
    ]


def _when(run: Run) -> str:
    return run.name[:12] + (f", {run.finished[:10]}" if run.finished else "")


def _model_boxes(lineage: Lineage) -> list[_Box]:
    boxes = []
    for digest in lineage.models:
        runs = [run for run in lineage.runs if run.model == digest]
        gone = {
            lineage.data_set_of(use).site
            for run in runs
            for use in lineage.uses_in(run)
            if use.withdrawn
        }
        told = f"withdrawn: {', '.join(sorted(gone))}" if gone else ""
        boxes.append(_Box(digest, "model", (_short(digest), told), bool(gone)))
    return boxes


def _lines(lineage: Lineage) -> list[_Line]:
    lines = []
    for use in lineage.uses:
        text = counted(use.updates, "update")
        if use.withdrawn:
            text = f"withdrawn {use.withdrawn[:10]}"
        start, end = lineage.data_set_of(use).id, lineage.run_of(use).id
        lines.append(_Line(start, end, text, bool(use.withdrawn)))
    for run in lineage.runs:
        if run.started_from:
            lines.append(_Line(run.started_from, run.id, "start"))
        if run.model:
            lines.append(_Line(run.id, run.model, ""))
    return lines


def _columns(boxes: Sequence[_Box], lines: Sequence[_Line]) -> dict[str, int]:
    """Return each box's column: right of everything that it came from."""
    columns = {box.key: {"data": 0, "run": 1, "model": 2}[box.kind] for box in boxes}
    for _ in boxes:
        moved = False
        for line in lines:
            least = columns[line.start] + 1
            if columns[line.end] < least <= 2 * len(boxes):
                columns[line.end], moved = least, True
        if not moved:
            break
    return columns


def _places(boxes: Sequence[_Box], columns: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Return the upper left corner of each box; columns are centred beside the longest."""
    by_column: dict[int, list[_Box]] = {}
    for box in boxes:
        by_column.setdefault(columns[box.key], []).append(box)
    step = _HEIGHT + _GAP_Y
    longest = max((len(column) for column in by_column.values()), default=0)
    places = {}
    for column, inside in by_column.items():
        top = _TOP + (longest - len(inside)) * step // 2
        for row, box in enumerate(inside):
            places[box.key] = (_MARGIN + column * (_WIDTH + _GAP_X), top + row * step)
    return places


_Point = tuple[int, int]


def _ends(lines: Sequence[_Line], places: dict[str, _Point]) -> list[tuple[_Point, _Point]]:
    """Return where lines leave and enter their boxes, spread over the boxes' sides.

    What goes further up leaves further up, so that lines from one box do not cross.
    """
    ends = []
    for line in lines:
        leaving = sorted((places[one.end] for one in lines if one.start == line.start), key=_height)
        entering = sorted((places[one.start] for one in lines if one.end == line.end), key=_height)
        (left, upper), (right, lower) = places[line.start], places[line.end]
        y1 = upper + _HEIGHT * (leaving.index((right, lower)) + 1) // (len(leaving) + 1)
        y2 = lower + _HEIGHT * (entering.index((left, upper)) + 1) // (len(entering) + 1)
        ends.append(((left + _WIDTH, y1), (right, y2)))
    return ends


def _height(point: _Point) -> int:
    return point[1]


def _drawn_line(line: _Line, start: _Point, end: _Point) -> str:
    (x1, y1), (x2, y2) = start, end
    middle = (x1 + x2) // 2
    colour, dash = (_RED, ' stroke-dasharray="7 5"') if line.withdrawn else ("#4d4d4d", "")
    return (
        f'<path d="M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}" fill="none" '
        f'stroke="{colour}" stroke-width="2"{dash}/>'
        f'<path d="M{x2} {y2} l-9 -5 v10 z" fill="{colour}"/>'
    )


def _words(line: _Line, start: _Point) -> str:
    """Return what a line says, over all lines and near its data set."""
    x, y = start
    colour = _RED if line.withdrawn else _INK
    return (
        f'<text x="{x + 6}" y="{y - 5}" font-size="11" fill="{colour}" stroke="#ffffff" '
        f'stroke-width="3" paint-order="stroke">{escape(line.text)}</text>'
    )


def _drawn_box(box: _Box, x: int, y: int) -> str:
    fill, border = _FILL[box.kind]
    border = _RED if box.withdrawn else border
    dash = ' stroke-dasharray="7 5"' if box.withdrawn and box.kind == "data" else ""
    full = " ".join((_HEADS[box.kind], *box.lines))
    rows = [
        f'<g role="img" aria-label={quoteattr(full)}><title>{escape(full)}</title>',
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{fill}" '
        f'stroke="{border}" stroke-width="2"{dash}/>',
        f'<text x="{x + 10}" y="{y + 16}" font-size="11" fill="{_INK}">{_HEADS[box.kind]}</text>',
    ]
    for number, line in enumerate(box.lines):
        weight = ' font-weight="bold"' if number == 0 else ""
        colour = _RED if line.startswith("withdrawn") else _INK
        rows.append(
            f'<text x="{x + 10}" y="{y + 34 + 18 * number}" font-size="13" fill="{colour}"{weight}>'
            f"{escape(_cut(line))}</text>"
        )
    return "".join([*rows, "</g>"])


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
