"""A finished run's network in ONNX, checked number by number in onnxruntime."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import nn

from federation.errors import FederationError
from federation.experiment import Experiment, RegressionTask, SubjectDP
from federation.export.about import About
from federation.export.examples import example_input, outputs_of, trained_network
from federation.export.summaries import class_names
from federation.run_record import FinishedRun

MODEL = "model.onnx"
# Of the largest output: float32 in another order of sums stays some hundred times below it.
TOLERANCE = 1e-4
_BATCH, _MOST_IMAGES = "batch", 4096


def write(run: FinishedRun, about: About, folder: Path) -> None:
    """Fill an empty folder with one file.

    Input ``image``: x_BC(D)HW float32, as the network sees images in training. Output: ``logits``,
    or ``values`` of a regression as the network gives them. Batch and grid are free.

    Raises:
        FederationError: torch cannot tell the network in ONNX, or onnxruntime gives other numbers.
    """
    network = trained_network(run)
    experiment = run.record.experiment
    model = _exported(network, experiment)
    images = _batch(experiment)
    difference = difference_from(model, network, images)
    _describe(model, {**_facts(run, about), "max_absolute_difference": f"{difference:.3g}"})
    onnx.checker.check_model(model, full_check=True)
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))


def difference_from(
    model: onnx.ModelProto, network: nn.Module, images: npt.NDArray[np.float32]
) -> float:
    """Return the largest difference between onnxruntime's outputs and the network's own.

    Raises:
        FederationError: It is more than ``TOLERANCE`` of the largest output, or onnxruntime does
            not take the file.
    """
    expected = outputs_of(network, images)
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        [given] = session.run(None, {"image": images})
    except Exception as error:  # onnxruntime's errors share no base but this
        raise FederationError(
            f"onnxruntime does not take this network ({str(error)[:200]}). Nothing was written; "
            "use another format."
        ) from error
    difference = float(np.abs(given - expected).max())
    limit = TOLERANCE * float(np.abs(expected).max())
    # Not "difference > limit": a NaN must not pass.
    if not difference <= limit:
        raise FederationError(
            f"onnxruntime's outputs differ from the network's by {difference:.3g}, more than "
            f"{limit:.3g} ({TOLERANCE:g} of the largest). Nothing was written; use another format."
        )
    return difference


def _batch(experiment: Experiment) -> npt.NDArray[np.float32]:
    """Return three images of noise, so that the batch's size is seen to be free."""
    image = example_input(experiment)
    return np.concatenate([image, -image, image[..., ::-1]])


def _exported(network: nn.Module, experiment: Experiment) -> onnx.ModelProto:
    image = torch.from_numpy(example_input(experiment))
    # Of one image the exporter would take the batch for a constant.
    images = torch.cat([image, image])
    free = dict.fromkeys(range(2, images.ndim), torch.export.Dim.DYNAMIC)
    batch = torch.export.Dim(_BATCH, min=1, max=_MOST_IMAGES)
    name = "values" if isinstance(experiment.task, RegressionTask) else "logits"
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                dynamic_shapes=({0: batch, **free},),
                input_names=["image"],
                output_names=[name],
                verbose=False,
            )
    except (RuntimeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
        raise FederationError(
            f"torch cannot tell this {experiment.model.kind} in ONNX ({str(error)[:200]}). Nothing "
            "was written; use --format monai-bundle."
        ) from error
    if program is None:
        raise FederationError("torch gave no ONNX program. Please report this.")
    return _without_traces(program.model_proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of itself: optional packages and its own deprecations."""
    exporter = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch 2.13 copies its own deprecated LeafSpec.
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")
            yield
    finally:
        exporter.setLevel(level)


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take out what the exporter notes of each node: stack traces with this machine's paths."""
    model.doc_string = ""
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        graph.doc_string = ""
        graph.ClearField("metadata_props")
        for node in graph.node:
            node.ClearField("metadata_props")
            node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    for tensor in model.graph.initializer:
        tensor.ClearField("metadata_props")
    return model


def _describe(model: onnx.ModelProto, facts: Mapping[str, str]) -> None:
    model.ClearField("metadata_props")
    for name, value in sorted(facts.items()):
        model.metadata_props.add(key=name, value=value)
    model.producer_name = "cohortium"
    model.producer_version = ""


def _facts(run: FinishedRun, about: About) -> dict[str, str]:
    """Return what the file says of itself; lists and mappings as JSON."""
    record = run.record
    experiment = record.experiment
    task, plan = experiment.task, experiment.privacy
    facts = {
        "title": about.title,
        "authors": json.dumps([author.name for author in about.authors]),
        "licence": about.licence,
        "intended_use": about.intended_use,
        "limits": about.limits,
        "run": record.run,
        "finished": record.finished,
        "experiment_digest": experiment.digest(),
        "model_digest": record.model_digest,
        "task": task.kind,
        "channels": json.dumps(list(experiment.input.channels or ())),
        "input": experiment.input.model_dump_json(exclude_none=True),
        "ledger_heads": json.dumps(dict(record.heads), sort_keys=True),
        "epsilon_by_site": json.dumps(dict(record.epsilon), sort_keys=True),
        "noise_multiplier": f"{record.noise_multiplier:g}",
        "checked_with": f"onnxruntime {onnxruntime.__version__}",
    }
    if isinstance(task, RegressionTask):
        facts["value"] = f"{task.value} = output * {task.scale!r} + {task.offset!r}"
    else:
        facts["classes"] = json.dumps(class_names(task))
    if isinstance(plan, SubjectDP):
        facts |= {"privacy_unit": plan.unit, "delta": f"{plan.delta:g}"}
    return facts
