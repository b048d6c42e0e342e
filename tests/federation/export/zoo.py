"""Packages of the BioImage Model Zoo for tests, and what bioimageio.core says of them."""

import getpass
import io
import json
import os
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from federation.experiment import Experiment
from federation.export.bioimage_tensors import expected_output
from federation.export.examples import example_input, outputs_of, trained_network
from federation.run_record import FinishedRun
from tests.experiments import demo_values, tiny_experiment, unprotected
from tests.federation.classification import classification
from tests.federation.regression import regression

ROOT = Path(__file__).resolve().parents[3]
VOLUME = {"kind": "volume", "shape_zyx": [8, 16, 16], "spacing_mm_zyx": [2, 1, 1]}
PATCHES = {"kind": "patches", "shape_zyx": [1, 16, 16], "spacing_mm_zyx": [1, "0.65 um", "0.65 um"]}


def segmentation(model: dict, given: dict = VOLUME) -> Experiment:
    return Experiment.model_validate(demo_values() | {"input": given, "model": model})


UNET_3D = {"kind": "unet", "spatial_dims": 3, "channels": [4, 8], "strides": [2]}
STANDARDISED = {
    "kind": "unet",
    "spatial_dims": 2,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 1,
    "weight_standardisation": True,
}
DYNUNET = {"kind": "dynunet", "spatial_dims": 3, "channels": [4, 8, 8], "strides": [2, 2]}
ATTENTION = {"kind": "attention_unet", "spatial_dims": 3, "channels": [4, 8], "strides": [2]}
SEGRESNET = {"kind": "segresnet", "spatial_dims": 2, "blocks_down": [1, 1], "blocks_up": [1]}
RESNET = {"kind": "resnet", "spatial_dims": 2, "channels": [8, 8, 8, 8]}

EXPERIMENTS = {
    "unet-3d": lambda: segmentation(UNET_3D),
    "unet-2d": tiny_experiment,
    "standardised": lambda: segmentation(STANDARDISED, PATCHES),
    "segresnet": lambda: segmentation(SEGRESNET, PATCHES),
    "dynunet": lambda: unprotected(segmentation(DYNUNET)),
    "attention": lambda: segmentation(ATTENTION),
    "densenet": classification,
    "resnet": lambda: Experiment.model_validate(
        classification().model_dump(mode="json") | {"model": RESNET}
    ),
    "regression": regression,
}
FIRST = ("unet-3d", "unet-2d", "densenet")
REPAIRED = ("attention", "resnet")


def judge(folder: Path, packages: list[Path]) -> dict[Path, dict]:
    """Return what bioimageio.core says; it finds an empty home and no network."""
    home, attempts = folder / "home", folder / "attempts"
    home.mkdir()
    environment = os.environ | {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT / "tests/e2e/guard"),
        "COHORTIUM_TEST_ATTEMPTS": str(attempts),
        "OMP_NUM_THREADS": "1",
    }
    script, result = Path(__file__).with_name("judge_bioimage.py"), folder / "result.json"
    command = [sys.executable, str(script), str(result), *map(str, packages)]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not [path for path in home.rglob("*") if "bioimage" in path.name]
    said = json.loads(result.read_text())
    return {Path(package): told for package, told in said.items()}


def pipeline_gives_our_numbers(run: FinishedRun, rdf: Path, formats: Sequence[str]) -> None:
    """Compare what the judge's process predicted with the run's own network, here."""
    experiment, network = run.record.experiment, trained_network(run)
    images = example_input(experiment)
    expected = expected_output(experiment, network, images)
    for weight_format in formats:
        raw = np.load(f"{rdf}.{weight_format}.raw.npy")
        np.testing.assert_allclose(raw, outputs_of(network, images), atol=1e-5)
        found = np.load(f"{rdf}.{weight_format}.npy")
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def everything_in(data: bytes) -> Iterator[bytes]:
    """Yield a file's bytes, and those of what is packed in it."""
    yield data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as package:
            for entry in package.infolist():
                yield entry.filename.encode()
                yield from everything_in(package.read(entry))


def traces_in(part: bytes, tmp_path: Path) -> list[bytes]:
    """Return what of this machine is in it; of short names, whole words in text alone."""
    own = [str(tmp_path.parent), str(ROOT), sys.prefix, "site-packages"]
    found = [text.encode() for text in own if text.encode() in part]
    for name in (getpass.getuser().encode(), socket.gethostname().encode()):
        word = rb"(?<![A-Za-z0-9])" + re.escape(name) + rb"(?![A-Za-z0-9])"
        if (len(name) > 5 and name in part) or (is_text(part) and re.search(word, part)):
            found.append(name)
    return found


def is_text(part: bytes) -> bool:
    try:
        return "\0" not in part.decode()
    except UnicodeDecodeError:
        return False


def nothing_tells_of_this_machine(package: Path, tmp_path: Path) -> None:
    for path in package.iterdir():
        for part in everything_in(path.read_bytes()):
            assert not traces_in(part, tmp_path), path.name
