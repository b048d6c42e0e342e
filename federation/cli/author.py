"""``cohortium author``: for researchers who sign their experiments."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Sign experiments, so that sites know whose they are.")

KEYGEN_HELP = """Make a key to sign experiments with, and print what sites know it by.

\b
Example:
  cohortium author keygen ~/.cohortium
"""

SIGN_HELP = """Sign an experiment; the signature lies beside its file, and both go to the sites.

The signature is over the experiment's values: comments and layout do not matter. Sign again after
every change.

\b
Example:
  cohortium author sign experiment.yaml --key ~/.cohortium
"""


@app.callback()
def author() -> None:
    """Sign experiments."""


@app.command(help=KEYGEN_HELP)
def keygen(folder: Annotated[Path, typer.Argument(help="Where the key is kept.")]) -> None:
    """Make a key."""
    from federation.authors import AUTHOR_KEY
    from federation.ledger.keys import SiteKey

    key = SiteKey.create(folder, AUTHOR_KEY)
    typer.echo(f"Your fingerprint, for 'authors' in site files: {key.fingerprint}")


@app.command(help=SIGN_HELP)
def sign(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", show_default=False)],
    key: Annotated[Path, typer.Option(help="The folder that keygen was given.")],
) -> None:
    """Sign an experiment."""
    from federation import authors
    from federation.experiment import load_experiment
    from federation.ledger.keys import SiteKey

    signature = authors.sign(load_experiment(experiment), SiteKey.load(key, authors.AUTHOR_KEY))
    path = authors.signature_path(experiment)
    authors.write_signature(path, signature)
    typer.echo(f"Signed {signature.experiment_digest[:19]}… as {signature.fingerprint}: {path}")
