"""In a fresh process: what is imported when, and what a user sees on the terminal."""

import subprocess
import sys

LOG_A_RUN = """
import sys
from pathlib import Path
import numpy as np
from federation.tracking.runs import TrackedModel, TrackedRun
from federation.tracking.store import open_store
assert 'mlflow' not in sys.modules
from models.build import build_network, weights_of  # MONAI imports mlflow by itself
from models.specs import UNetSpec
from federation.tracking.log import log_run
from mlflow.telemetry.client import get_telemetry_client
assert get_telemetry_client() is None
spec = UNetSpec(spatial_dims=2, channels=(4, 8), strides=(2,))
log_run(TrackedRun(
    store=open_store(Path(sys.argv[1])), experiment='e', name='r', parameters={},
    experiment_yaml='', experiment_digest='', events=(), descriptions=(), receipts=(), heads={},
    model=TrackedModel(spec.model_dump(mode='json'), ('a', 'b'),
        weights_of(build_network(spec, num_classes=2)), np.zeros((1, 1, 8, 8), np.float32))))
"""


def test_recording_a_run_prints_nothing_and_reports_to_nobody(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOG_A_RUN, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_naming_the_package_does_not_import_mlflow():
    code = "import sys, federation.tracking.runs\nassert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
