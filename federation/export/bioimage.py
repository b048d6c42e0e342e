"""A package of the BioImage Model Zoo (bioimage.io, model format 0.5): a folder and a zip of it.

``rdf.yaml`` describes everything; nothing in it names code but MONAI's own classes. What is written
is checked by bioimageio.spec before it counts; ``bioimageio.core`` runs it, offline.
"""

import json
import re
import unicodedata
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from bioimageio.spec import InvalidDescr, ValidationContext, build_description
from torch import nn

from federation.errors import FederationError
from federation.experiment import SubjectDP
from federation.export.about import About
from federation.export.bioimage_tensors import (
    TEST_INPUT,
    TEST_OUTPUT,
    expected_output,
    input_tensor,
    output_tensor,
)
from federation.export.bioimage_text import documentation
from federation.export.cover import draw_cover
from federation.export.examples import example_input, trained_network
from federation.export.summaries import class_names
from federation.export.torch_files import (
    MODULE,
    architecture_for,
    save_state_dict,
    save_torchscript,
    without_parametrizations,
)
from federation.run_record import CLOSINGS, RECEIPTS, RECORD, FinishedRun
from models.build import num_parameters

FORMAT_VERSION, DATASET_FORMAT_VERSION = "0.5.12", "0.3.4"
RDF, COVER, DOCUMENTATION, PACKAGE = "rdf.yaml", "cover.png", "documentation.md", "package.zip"
STATE_DICT, TORCHSCRIPT = "weights_state_dict.pt", "weights_torchscript.pt"
_LONGEST_NAME, _LONGEST_DESCRIPTION = 128, 1024
_METHODS = (
    ("McMahan et al. 2017, Communication-efficient learning", "10.48550/arXiv.1602.05629"),
    ("Abadi et al. 2016, Deep learning with differential privacy", "10.48550/arXiv.1607.00133"),
)


def write(run: FinishedRun, about: About, folder: Path) -> None:
    """Fill the folder with a package, and a zip of the same.

    Raises:
        FederationError: The format refuses something that ``about`` says, or the network gives
            other numbers as TorchScript.
    """
    network = without_parametrizations(trained_network(run))
    weights = _weights(run, network, folder)
    _tensors(run, network, folder)
    draw_cover(run, about, network, folder / COVER)
    (folder / DOCUMENTATION).write_text(documentation(run, about, list(weights)))
    _evidence(run, folder)
    description = _description(run, about, network, folder) | {"weights": weights}
    _require_valid(description, folder)
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True, width=100)
    (folder / RDF).write_text(text)
    _pack(folder)


def _weights(run: FinishedRun, network: nn.Module, folder: Path) -> dict[str, Any]:
    """Write the weights in every form that needs no code, and return their descriptions."""
    architecture, version = architecture_for(run), torch.__version__.partition("+")[0]
    save_torchscript(network, example_input(run.record.experiment), folder / TORCHSCRIPT)
    script = _file(folder, TORCHSCRIPT) | {"pytorch_version": version}
    if architecture.repaired:
        return {"torchscript": script}
    save_state_dict(network, folder / STATE_DICT)
    call = {
        "import_from": MODULE,
        "callable": architecture.network,
        "kwargs": architecture.arguments,
    }
    state = _file(folder, STATE_DICT) | {"architecture": call, "pytorch_version": version}
    return {
        "pytorch_state_dict": state,
        "torchscript": script | {"parent": "pytorch_state_dict"},
    }


def _tensors(run: FinishedRun, network: nn.Module, folder: Path) -> None:
    experiment = run.record.experiment
    images = example_input(experiment)
    np.save(folder / TEST_INPUT, images)
    np.save(folder / TEST_OUTPUT, expected_output(experiment, network, images))


def _evidence(run: FinishedRun, folder: Path) -> None:
    for name, value in (
        (RECORD, run.record.to_json()),
        (RECEIPTS, list(run.receipts)),
        (CLOSINGS, list(run.closings)),
    ):
        text = json.dumps(value, indent=1, sort_keys=True)
        (folder / name).write_text(f"{text}\n")


def _description(
    run: FinishedRun, about: About, network: nn.Module, folder: Path
) -> dict[str, Any]:
    record, experiment = run.record, run.record.experiment
    return {
        "format_version": FORMAT_VERSION,
        "type": "model",
        "name": plain_name(about.title),
        "description": _cut(about.description, _LONGEST_DESCRIPTION),
        "authors": [author.model_dump(exclude_none=True) for author in about.authors],
        "license": about.licence,
        "cite": _cite(run, about),
        "tags": _tags(run),
        "documentation": _file(folder, DOCUMENTATION),
        "covers": [_file(folder, COVER)],
        "attachments": [_file(folder, name) for name in (RECORD, RECEIPTS, CLOSINGS)],
        "timestamp": record.finished,
        "inputs": [input_tensor(experiment, _digest(folder / TEST_INPUT))],
        "outputs": [output_tensor(experiment, _digest(folder / TEST_OUTPUT))],
        "training_data": _training_data(run, about),
        "config": {
            "bioimageio": _model_card(run, about, network),
            "cohortium": provenance(run),
        },
    }


def plain_name(title: str) -> str:
    """Return a title in the letters that the format allows, 5 to 128 of them.

    >>> plain_name("Übung: Hippocampus/MR"), plain_name("MR")
    ('Ubung Hippocampus MR', 'model MR')
    """
    letters = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    plain = " ".join(re.sub(r"[^A-Za-z0-9_+\-() ]", " ", letters).split())
    return (plain if len(plain) >= 5 else f"model {plain}".strip())[:_LONGEST_NAME]


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _cite(run: FinishedRun, about: About) -> list[dict[str, str]]:
    """Return what has a DOI or an address, as the format wants; the documentation names the rest.

    A DOI goes before an address, which the format's own validation would try to reach.
    """
    told = [
        {"text": one.text, **({"doi": one.doi} if one.doi else {"url": one.url or ""})}
        for one in about.cite
        if one.doi or one.url
    ]
    protected = isinstance(run.record.experiment.privacy, SubjectDP)
    methods = _METHODS if protected else _METHODS[:1]
    return told + [{"text": text, "doi": doi} for text, doi in methods]


def _tags(run: FinishedRun) -> list[str]:
    experiment = run.record.experiment
    modalities = sorted({site.modality for site in run.record.contributors if site.modality})
    protected = isinstance(experiment.privacy, SubjectDP)
    return [
        experiment.task.kind,
        experiment.model.kind,
        f"{experiment.input.spatial_dims}d",
        *modalities,
        "federated-learning",
        *(["differential-privacy"] if protected else []),
        "monai",
        "pytorch",
        "cohortium",
    ]


def _training_data(run: FinishedRun, about: About) -> dict[str, Any]:
    """Return the sites' data sets as one: the format has room for one, and none has an address."""
    sites = "; ".join(f"{s.site}: {s.dataset} ({s.licence})" for s in run.record.contributors)
    return {
        "type": "dataset",
        "format_version": DATASET_FORMAT_VERSION,
        "name": f"Data of {len(run.record.contributors)} sites",
        "description": _cut(f"Images stayed at their sites. {sites}", _LONGEST_DESCRIPTION),
        "authors": [{"name": site.site} for site in run.record.contributors],
        "cite": _cite(run, about),
        "tags": _tags(run),
    }


def _model_card(run: FinishedRun, about: About, network: nn.Module) -> dict[str, Any]:
    experiment = run.record.experiment
    modalities = sorted({site.modality for site in run.record.contributors if site.modality})
    return {
        "architecture_type": f"{experiment.model.spatial_dims}D {experiment.model.kind}",
        "modality": ", ".join(modalities) or None,
        "target_structure": class_names(experiment.task),
        "task": experiment.task.kind,
        "bias_risks_limitations": {"limitations": about.limits},
        "model_parameter_count": num_parameters(network),
        "training": {
            "training_batch_size": experiment.privacy.expected_batch,
            "initial_learning_rate": experiment.optimizer.learning_rate,
            "loss_function": experiment.loss.kind,
            "optimizer": experiment.optimizer.kind,
        },
    }


def provenance(run: FinishedRun) -> dict[str, Any]:
    """Return what names the run and its privacy, for programs."""
    record = run.record
    privacy = record.experiment.privacy.model_dump(mode="json")
    return {
        "experiment_digest": record.experiment.digest(),
        "run": record.run,
        "model_digest": record.model_digest,
        "privacy": privacy | {"noise_multiplier": record.noise_multiplier},
        "epsilon": dict(record.epsilon),
        "heads": dict(record.heads),
        "sites": {
            site.site: {
                "dataset": site.dataset,
                "licence": site.licence,
                "commitment": site.commitment,
            }
            for site in record.contributors
        },
    }


def _file(folder: Path, name: str) -> dict[str, Any]:
    return {"source": name, "sha256": _digest(folder / name)}


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _require_valid(description: Mapping[str, Any], folder: Path) -> None:
    """Ask bioimageio.spec, without files and without a network."""
    context = ValidationContext(
        root=folder, file_name=RDF, perform_io_checks=False, log_warnings=False
    )
    values = json.loads(json.dumps(description))
    found = build_description(values, context=context)
    if isinstance(found, InvalidDescr):
        raise FederationError(
            f"The BioImage Model Zoo's format refuses this: {_reasons(found)}. Change the file "
            "that --about names (licence: as https://spdx.org/licenses lists it; authors' names "
            "without slashes), or export in another format."
        )


def _reasons(found: InvalidDescr) -> str:
    errors = found.validation_summary.errors
    return "; ".join(f"{'.'.join(map(str, e.loc))}: {e.msg}" for e in errors[:3])


def _pack(folder: Path) -> None:
    """Write a zip of the files beside it, as bioimage.io's tools open and upload them."""
    names = sorted(path.name for path in folder.iterdir())
    with zipfile.ZipFile(folder / PACKAGE, "w", zipfile.ZIP_DEFLATED) as package:
        for name in names:
            entry = zipfile.ZipInfo(name)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            package.writestr(entry, (folder / name).read_bytes())
