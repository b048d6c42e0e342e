"""Options that ``audit verify`` and ``audit report`` have in common."""

from pathlib import Path
from typing import Annotated

import typer

Files = list[Path] | None

Paths = Annotated[list[Path], typer.Argument(metavar="PATH...", show_default=False)]
Trust = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE|SHA256:...", help="Trust file, or a fingerprint. Repeatable."),
]
Receipts = Annotated[
    Files, typer.Option(metavar="FILE", help="Receipts that a run left. Repeatable.")
]
Closings = Annotated[
    Files, typer.Option(metavar="FILE", help="Closings that a run left. Repeatable.")
]
Opening = Annotated[
    Files, typer.Option(metavar="FILE", help="What a site opened its data commitment with.")
]
