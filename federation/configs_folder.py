"""Where the complete examples of ``configs/`` are, installed or in a checkout."""

from pathlib import Path

from federation.errors import FederationError


def config_path(name: str) -> Path:
    """Return the path of a file of ``configs/``.

    A wheel carries them inside this package, so that a folder named ``configs`` where somebody
    stands cannot shadow them; in a checkout they are beside it.

    Raises:
        FederationError: There is no such example.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "configs", here.parent / "configs"):
        if (folder / name).is_file():
            return folder / name
    raise FederationError(f"There is no example {name!r} beside {here}. Reinstall cohortium.")
