"""MONAI without the packages that it only loads to find out whether they are there.

Its first import brings in mlflow, pandas, matplotlib and scikit-learn where they are installed, for
handlers and metrics that no experiment here can name. A process that holds patients' images does
without them, and starts sooner.
"""

import sys

UNUSED = ("mlflow", "pandas", "matplotlib", "sklearn")


def import_monai() -> None:
    """Import MONAI; what it does not find of ``UNUSED`` others can import afterwards.

    None in ``sys.modules`` says "not there" (Python's documentation of ``import``).
    """
    hidden = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        import monai  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
