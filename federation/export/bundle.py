"""A finished run as a MONAI bundle: a folder that ``monai.bundle`` loads and runs.

After the MONAI Bundle Specification. Nothing in it is ours, and the network that MONAI makes of it
must give what the run's network gives, bit for bit, or nothing is written.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from safetensors.torch import save_file

from federation.errors import FederationError
from federation.export.about import About
from federation.export.bundle_config import inference_config
from federation.export.bundle_metadata import metadata
from federation.export.bundle_network import network_config
from federation.export.bundle_readme import data_licences, licence, readme
from federation.export.examples import example_input, outputs_of, trained_network
from federation.export.torch_files import state_of, without_parametrizations
from federation.run_record import FinishedRun

CONFIG = Path("configs/inference.json")


def write(run: FinishedRun, about: About, folder: Path) -> None:
    """Fill an empty folder.

    Raises:
        FederationError: The experiment or its network cannot be told as a bundle, or MONAI makes
            another network of it.
    """
    experiment = run.record.experiment
    network = without_parametrizations(trained_network(run))
    config = inference_config(experiment, network_config(experiment, network))
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir()
    state = state_of(network)
    torch.save(state, folder / "models/model.pt")
    save_file(state, folder / "models/model.safetensors")
    _write_json(folder / CONFIG, config)
    _write_json(folder / "configs/metadata.json", metadata(run, about))
    (folder / "docs/README.md").write_text(readme(run, about))
    (folder / "docs/data_license.txt").write_text(data_licences(run))
    (folder / "LICENSE").write_text(licence(about))
    require_same(run, folder)


def require_same(run: FinishedRun, folder: Path) -> None:
    """Let MONAI make the bundle's network, and refuse it where it says anything else.

    Raises:
        FederationError: It does, or MONAI cannot make it.
    """
    parser = ConfigParser()
    parser.read_config(folder / CONFIG)
    # From the root, so that its first letter means nothing to the parser.
    parser["bundle_root"] = str(folder.resolve())
    try:
        parser.get_parsed_content("load_weights")
        network = parser.get_parsed_content("network")
    except (RuntimeError, ValueError) as error:
        raise FederationError(
            f"MONAI cannot make the network of this bundle ({error}). Use --format onnx."
        ) from error
    images = example_input(run.record.experiment)
    expected = outputs_of(trained_network(run), images)
    if not np.array_equal(outputs_of(network, images), expected):
        raise FederationError(
            "What MONAI makes of this bundle gives other numbers than the run's network, so no "
            "bundle was written. Use --format onnx, and please report this."
        )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
