"""The ``cohortium`` command: puts the sub-commands together and turns errors into sentences."""

import logging
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from data_adapters.errors import DataError
from federation.cli import agent as _agent  # noqa: F401 - adds its commands to the site's
from federation.cli import decide as _decide  # noqa: F401 - adds its commands to the site's
from federation.cli import keys as _keys  # noqa: F401 - adds its commands to the site's and hub's
from federation.cli.audit import app as audit_app
from federation.cli.author import app as author_app
from federation.cli.budget import app as budget_app
from federation.cli.demo import demo
from federation.cli.export import EXPORT_HELP, export
from federation.cli.hub import app as hub_app
from federation.cli.lineage import LINEAGE_HELP, lineage
from federation.cli.run import run
from federation.cli.runs import COMMANDS
from federation.cli.site import app as site_app
from federation.cli.track import TRACK_HELP, track
from federation.cli.weights import WEIGHTS_HELP, weights
from federation.errors import FederationError
from models.errors import ModelError

app = typer.Typer(
    name="cohortium",
    help="Train biomedical image models across sites that never share their images.",
    epilog="Add --debug to any command to see the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("demo")(demo)
app.command("run")(run)
app.command("export", help=EXPORT_HELP)(export)
app.command("track", help=TRACK_HELP)(track)
app.command("weights", help=WEIGHTS_HELP)(weights)
app.command("lineage", help=LINEAGE_HELP)(lineage)
for _command, _help in COMMANDS:
    app.command(_command.__name__, help=_help)(_command)
app.add_typer(site_app, name="site")
app.add_typer(hub_app, name="hub")
app.add_typer(author_app, name="author")
app.add_typer(budget_app, name="budget")
app.add_typer(audit_app, name="audit")


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cohortium {version('cohortium')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Keep the sub-commands as sub-commands."""


def main() -> None:
    """Run the command line; operating errors are one sentence and exit code 2."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR, format="%(message)s")
    # A site's log of a failed round has the traceback, which is for --debug.
    logging.getLogger("cohortium.site").setLevel(logging.DEBUG if debug else logging.CRITICAL)
    try:
        app()
    except (DataError, ModelError, FederationError) as error:
        if debug:
            raise
        Console(stderr=True, soft_wrap=True).print(f"[bold red]Error:[/] {_plain(error)}")
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. What was charged stands; the ledgers are complete.")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _plain(error: Exception) -> str:
    """Return the text with rich's markup characters taken literally."""
    return str(error).replace("[", r"\[")
