"""The command line as a whole."""

from importlib.metadata import version

from typer.testing import CliRunner

from federation.cli.app import app


def test_it_says_which_version_it_is():
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.stdout) == (0, f"cohortium {version('cohortium')}\n")
