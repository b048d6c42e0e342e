"""``configs/metadata.json`` of a MONAI bundle: what it is, for people and for MONAI's tools."""

import json
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import jsonschema

from data_adapters.inputs import PatchInput
from federation.errors import FederationError
from federation.experiment import Experiment, RegressionTask, SubjectDP
from federation.export.about import About
from federation.export.summaries import class_names
from federation.run_record import FinishedRun, RunRecord

Values = dict[str, Any]
BUNDLE_VERSION = "0.1.0"
_SCHEMA = "monai_bundle.schema.json"
# At the start of text, MONAI's parser takes these for Python, a reference or a file to read.
_MEANS_SOMETHING = ("$", "@", "%")


def metadata(run: FinishedRun, about: About) -> Values:
    """Return the file's values.

    Raises:
        FederationError: They are not what the schema asks for.
    """
    record = run.record
    experiment = record.experiment
    values = {
        "version": BUNDLE_VERSION,
        "changelog": {BUNDLE_VERSION: f"Run {record.run}, finished {record.finished}."},
        "monai_version": _release("monai"),
        "pytorch_version": _release("torch"),
        "numpy_version": _release("numpy"),
        "required_packages_version": {"nibabel": _release("nibabel")},
        "name": about.title,
        "task": f"{experiment.task.kind} of {experiment.input.spatial_dims}-D images",
        "description": about.description,
        "authors": "; ".join(author.name for author in about.authors),
        "copyright": f"{'; '.join(author.name for author in about.authors)}. {about.licence}",
        "licence": about.licence,
        "data_source": "; ".join(
            f"{site.dataset} at {site.site} (licence: {site.licence})"
            for site in record.contributors
        )
        or "none stated",
        "data_type": "nibabel",
        "intended_use": about.intended_use,
        "limits": about.limits,
        "references": [one.line for one in about.cite],
        "network_data_format": _data_format(record),
        "privacy": privacy(record),
        "provenance": _provenance(record),
    }
    harmless: Values = _as_plain_text(values)
    require_valid(harmless)
    return harmless


def privacy(record: RunRecord) -> Values:
    """Return what the run cost each site's subjects, as receipts add up to it.

    An epsilon of null is none at all: no protection.
    """
    plan = record.experiment.privacy
    promised: Values = dict.fromkeys(("unit", "adjacency", "delta", "clip_norm"))
    if isinstance(plan, SubjectDP):
        promised = {name: getattr(plan, name) for name in promised}
    return {
        **promised,
        "noise_multiplier": record.noise_multiplier,
        "epsilon_of_this_run": [
            {"site": site, "epsilon": epsilon} for site, epsilon in sorted(record.epsilon.items())
        ],
    }


def require_valid(values: Values) -> None:
    """Refuse what the project's schema of the specification's fields does not allow.

    Raises:
        FederationError: Names the place.
    """
    problem = jsonschema.exceptions.best_match(_validator().iter_errors(values))
    if problem is not None:
        place = "/".join(str(step) for step in problem.absolute_path) or "the whole"
        raise FederationError(
            f"metadata.json would not be valid at {place}: {problem.message[:200]}. Change what "
            "about.yaml says of it; if it is not from there, please report this."
        )


@cache
def _validator() -> jsonschema.Draft202012Validator:
    text = files("federation.export").joinpath(_SCHEMA).read_text()
    return jsonschema.Draft202012Validator(json.loads(text))


def _release(package: str) -> str:
    """Return a version without the build that follows its plus."""
    return version(package).split("+")[0]


def _as_plain_text(value: Any) -> Any:
    """Put a space before text that MONAI would take for more than text.

    Its parser reads this file too, and data sets' names come from sites.
    """
    if isinstance(value, dict):
        return {key: _as_plain_text(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_plain_text(inner) for inner in value]
    if isinstance(value, str) and value.startswith(_MEANS_SOMETHING):
        return f" {value}"
    return value


def _provenance(record: RunRecord) -> Values:
    return {
        "run": record.run,
        "finished": record.finished,
        "experiment": record.experiment.name,
        "experiment_digest": record.experiment.digest(),
        "model_digest": record.model_digest,
        "ledger_heads": [
            {"site": site, "head": head} for site, head in sorted(record.heads.items())
        ],
        "commitments": [
            {"site": site.site, "commitment": site.commitment} for site in record.contributors
        ],
    }


def _data_format(record: RunRecord) -> Values:
    experiment = record.experiment
    inputs = experiment.input
    patches = isinstance(inputs, PatchInput)
    modalities = sorted({site.modality for site in record.contributors})
    names = inputs.channels or ("image",)
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": ", ".join(modalities) or "not stated",
        "num_channels": inputs.num_channels,
        "spatial_shape": list(inputs.shape),
        "dtype": "float32",
        # Zero mean and unit deviation: no bounds.
        "value_range": [],
        "is_patch_data": patches,
        "channel_def": _numbered(names),
    }
    return {"inputs": {"image": image}, "outputs": {"pred": _output(experiment, patches)}}


def _output(experiment: Experiment, patches: bool) -> Values:
    task = experiment.task
    of_voxels = task.learns == "voxels"
    names = [task.value] if isinstance(task, RegressionTask) else class_names(task)
    return {
        "type": "image" if of_voxels else "probabilities",
        "format": task.kind,
        "num_channels": task.num_outputs,
        "spatial_shape": list(experiment.input.shape) if of_voxels else [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": patches and of_voxels,
        "channel_def": _numbered(names),
    }


def _numbered(names: Any) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}
