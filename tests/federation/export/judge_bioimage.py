"""What bioimageio.core says of packages and computes from them; run in a process of its own.

    python judge_bioimage.py RESULT.json PACKAGE...

Whatever would leave the machine raises here. ``PACKAGE.FORMAT.npy`` is what bioimageio.core's own
pipeline predicts from the package's test input, ``PACKAGE.FORMAT.raw.npy`` without preprocessing.
"""

import gc
import json
import sys
from pathlib import Path

import numpy as np


def block(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise OSError(f"this test is offline: {event} {arguments[-1]}")


def judged(package: str) -> dict:
    from bioimageio.core import load_model_description, test_model

    summary = test_model(package)
    formats: dict = {}
    for detail in summary.details:
        if detail.loc[:1] == ("weights",):
            formats.setdefault(detail.loc[1], []).append(detail.status)
    told = {"status": summary.status, "formats": formats, "errors": [e.msg for e in summary.errors]}
    if summary.status == "passed":
        predict(load_model_description(package), package)
    return told


def predict(model, package: str) -> None:
    from bioimageio.core import create_prediction_pipeline
    from bioimageio.core.digest_spec import get_test_input_sample

    for weight_format in (name for name, entry in model.weights if entry is not None):
        with create_prediction_pipeline(model, weight_format=weight_format) as pipeline:
            for suffix, skip in (("", False), (".raw", True)):
                found = pipeline.predict_sample_without_blocking(
                    get_test_input_sample(model), skip_preprocessing=skip, skip_postprocessing=skip
                )
                values = found.members["prediction"].data.to_numpy()
                np.save(f"{package}.{weight_format}{suffix}.npy", values)


if __name__ == "__main__":
    sys.addaudithook(block)
    # Each adapter that bioimageio.core unloads collects garbage: not among what was imported.
    import bioimageio.core  # noqa: F401
    import monai.networks.nets  # noqa: F401

    gc.freeze()
    result, *packages = sys.argv[1:]
    Path(result).write_text(json.dumps({package: judged(package) for package in packages}))
