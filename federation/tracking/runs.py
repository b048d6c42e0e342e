"""What is recorded about a run, as plain values. Importing this module imports no MLflow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from federation.messages import Description, RoundFinished, Weights


@dataclass(frozen=True)
class TrackedModel:
    """A trained model, and what it takes to use it without its training code.

    Attributes:
        spec: A ``models.specs`` spec as JSON values.
        classes: Class names; predictions are indices into them.
        input_example: Synthetic or public, never protected: x_BCHW or x_BCDHW, float32.
        value: Of a regression, what is learned and its ``scale`` and ``offset``; no classes then.
    """

    spec: Mapping[str, Any]
    classes: tuple[str, ...]
    weights: Weights
    input_example: npt.NDArray[np.float32]
    value: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class TrackedRun:
    """One finished run. Only what is in here reaches the store.

    Attributes:
        store: Tracking URI, from ``store.open_store``.
        experiment: Name of the experiment; the model is registered under it.
        name: Name of this run.
        parameters: JSON values; nested mappings become ``a.b`` names.
        experiment_yaml: The experiment file's text.
        events: Round 0 and one per round.
        descriptions: Of the sites that took part.
        receipts: Signed receipts as JSON values.
        heads: Site name to its ledger's head after the run, as JSON values.
        closings: What sites countersigned at the end, as JSON values.
        run: Its id: the same run is recorded once, however often it is told. Of one without, anew.
        tags: Further facts as text, for example ``{"epsilon/ward-a": "7.9"}``; they are put on
            the registered model too.
    """

    store: str
    experiment: str
    name: str
    parameters: Mapping[str, Any]
    experiment_yaml: str
    experiment_digest: str
    events: tuple[RoundFinished, ...]
    descriptions: tuple[Description, ...]
    receipts: tuple[Mapping[str, Any], ...]
    heads: Mapping[str, Any]
    model: TrackedModel
    tags: Mapping[str, str] = field(default_factory=dict)
    closings: tuple[Mapping[str, Any], ...] = ()
    run: str = ""


@dataclass(frozen=True)
class LoggedRun:
    """Where a run was recorded; ``model_uri`` is what ``mlflow.pyfunc.load_model`` takes."""

    run_id: str
    model_name: str
    model_version: str
    model_uri: str
