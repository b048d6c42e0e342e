"""Draw what a terminal showed as an SVG, for the README.

    script -qec "stty cols 100; cohortium demo" typescript
    python docs/terminal_picture.py typescript docs/demo.svg

Needs pyte (a terminal emulator), which nothing else here does.
"""

import sys
from io import StringIO
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

COLUMNS, LINES = 100, 300


def screen_of(typescript: bytes) -> pyte.Screen:
    """Replay a typescript and return the screen, tall enough that nothing scrolled away."""
    screen = pyte.Screen(COLUMNS, LINES)
    body = typescript.split(b"\n", 1)[1].rsplit(b"\nScript done", 1)[0]
    pyte.ByteStream(screen).feed(body)
    return screen


def line_of(screen: pyte.Screen, number: int) -> Text:
    """Return one line with its colours."""
    text = Text()
    for column in range(COLUMNS):
        cell = screen.buffer[number][column]
        style = [] if cell.fg == "default" else [colour(cell.fg)]
        text.append(cell.data, " ".join(style + ["bold"] * cell.bold) or None)
    text.rstrip()
    return text


def colour(name: str) -> str:
    """Return rich's name of a pyte colour."""
    if len(name) == 6 and not name.isalpha():
        return f"#{name}"
    return {"brown": "yellow"}.get(name, name.replace("bright", "bright_"))


def main(source: Path, target: Path) -> None:
    """Write ``target`` from the typescript ``source``."""
    screen = screen_of(source.read_bytes())
    lines = [line_of(screen, n) for n in range(LINES)]
    while lines and not lines[-1].plain:
        lines.pop()
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    for line in lines:
        console.print(line, soft_wrap=True)
    target.write_text(console.export_svg(title="cohortium demo"), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
