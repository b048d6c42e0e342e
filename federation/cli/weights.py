"""``cohortium weights``: other tools' weights for an experiment to start from."""

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer

from federation.cli.site import AsJson
from federation.errors import FederationError

WEIGHTS_HELP = """Take weights out of another tool's package, for an experiment to start from.

SOURCE is a MONAI bundle's folder, a package of the BioImage Model Zoo (folder or zip), or a file:
safetensors, or a PyTorch state dict. Only numbers are read: no configuration, no expression, no
code of it runs. The weights must be of the very network that the experiment has.

They must be public: nobody's budget pays for what they were learnt from.

\b
Examples:
  cohortium weights spleen-bundle/ experiment.yaml --out start.safetensors
  cohortium weights package.zip experiment.yaml --out start.safetensors

It prints the lines for the experiment file, which then names the weights by their digest.
"""


def weights(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", show_default=False)],
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", show_default=False)],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="A .safetensors file beside the experiment's.")
    ],
    as_json: AsJson = False,
) -> None:
    """Take weights out of another tool's package."""
    from federation.experiment import load_experiment
    from federation.files import write_where_asked
    from federation.foreign_weights import foreign_weights
    from models.weights import weights_to_bytes

    if out.suffix != ".safetensors":
        raise FederationError(f"--out {out}: its name must end in .safetensors.")
    data = weights_to_bytes(foreign_weights(source, load_experiment(experiment)))
    write_where_asked(out, data)
    digest = hashlib.sha256(data).hexdigest()
    if as_json:
        value = {"format": "cohortium-weights/1", "file": str(out), "sha256": digest}
        typer.echo(json.dumps(value, indent=1))
        return
    typer.echo(
        f"{out}, {len(data):,} bytes. For the experiment file, if they are public:\n\n"
        f"initial_weights:\n  file: {out.name}\n  sha256: {digest}\n  public: true"
    )


__all__ = ["WEIGHTS_HELP", "weights"]
