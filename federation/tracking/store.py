"""Where runs are recorded: an MLflow tracking store and model registry on SQLite."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOISY_LOGGERS = ("mlflow", "alembic", "urllib3.connectionpool")


def open_store(folder: Path) -> str:
    """Return the tracking URI of the store in ``folder``, which is created if need be.

    >>> from tempfile import mkdtemp
    >>> open_store(Path(mkdtemp())).startswith("sqlite:////")
    True
    """
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def artifact_location(uri: str) -> str | None:
    """Return where a SQLite store keeps artifacts: beside its file. Servers choose themselves."""
    if not uri.startswith("sqlite:///"):
        return None
    return str(Path(uri.removeprefix("sqlite:///")).parent / "artifacts")


def key(name: str) -> str:
    """Return the name with characters that MLflow refuses in names replaced.

    >>> key("ward-a/dice (grey)")
    'ward-a/dice _grey_'
    """
    return re.sub(r"[^/\w.\- :]", "_", name)


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Keep MLflow's and its libraries' notices off the terminal; errors still show."""
    levels = {name: logging.getLogger(name).level for name in _NOISY_LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # SQLAlchemy's and MLflow's own deprecations: nothing a user of ours can act on.
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
