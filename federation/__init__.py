"""Cohortium: federated training over biomedical images with privacy for each site's subjects.

Importing this package imports neither Flower nor MLflow.
"""

from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"


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
