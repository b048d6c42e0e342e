"""The registered model's code: MLflow copies this file beside the weights and runs it on load.

Nothing is unpickled: ``model.json`` holds names and numbers, ``weights.safetensors`` arrays.
It needs the project's ``models`` package and no other part of it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from models.build import build_network, load_weights
from models.specs import parse_model_spec
from models.weights import weights_from_bytes

_BATCH = 8


class SegmentationModel(PythonModel):
    """Image arrays in, class-index arrays out; of a regression, values."""

    def load_context(self, context: Any) -> None:
        """Build the network from its spec and read its weights."""
        model = json.loads(Path(context.artifacts["model"]).read_text(encoding="utf-8"))
        spec = parse_model_spec(model["spec"])
        self._value = model.get("value")
        self._network = build_network(spec, num_classes=len(model["classes"]) or 1)
        load_weights(
            self._network, weights_from_bytes(Path(context.artifacts["weights"]).read_bytes())
        )
        self._network.eval()

    def predict(
        self,
        context: Any,  # noqa: ARG002 - MLflow's signature
        model_input: np.ndarray,  # MLflow warns at any other annotation
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> npt.NDArray[np.uint8] | npt.NDArray[np.float64]:
        """Return the index of the likeliest class of each voxel or image, or a value of each image.

        Args:
            model_input: x_BCHW or x_BCDHW, normalised as the experiment's input says.
        """
        images = torch.from_numpy(np.ascontiguousarray(model_input, dtype=np.float32))
        if self._value is not None:
            with torch.inference_mode():
                found = [self._network(batch).squeeze(1) for batch in images.split(_BATCH)]
            values: npt.NDArray[np.float64] = torch.cat(found).double().numpy()
            return values * self._value["scale"] + self._value["offset"]
        with torch.inference_mode():
            indices = [self._network(batch).argmax(dim=1) for batch in images.split(_BATCH)]
        return torch.cat(indices).to(torch.uint8).numpy()


set_model(SegmentationModel())
