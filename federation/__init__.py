"""Cohortium: federated training over biomedical images with privacy for each site's subjects.

Importing this package imports neither Flower nor MLflow.
"""

import os
from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"


# No telemetry and no call home. Flower and MLflow read these when they are imported, and MONAI
# imports MLflow by itself where it is installed, so they are set before anything else can.
os.environ.update(
    {
        "DO_NOT_TRACK": "true",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
)


def _require_own_siblings() -> None:
    """Refuse a ``models`` or ``data_adapters`` that is not the one installed with this package.

    Both names are common, and a folder of that name where Python starts can shadow ours.

    Raises:
        ImportError: Names the path that was found and the one that was expected.
    """
    home = Path(__file__).resolve().parent.parent
    for name in ("models", "data_adapters"):
        spec = find_spec(name)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != home / name:
            where = found or (list(spec.submodule_search_locations or []) if spec else "nowhere")
            raise ImportError(
                f"cohortium needs its own package '{name}' at {home / name}, but Python finds "
                f"{where}. Start from another folder, or take that folder off PYTHONPATH."
            )


_require_own_siblings()
