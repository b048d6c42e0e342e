"""The formats, by the names that ``cohortium export --format`` takes, and how a folder is made."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from federation.errors import FederationError
from federation.export.about import About
from federation.run_record import FinishedRun

Write = Callable[[FinishedRun, About, Path], None]


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        module: With a function ``write(run, about, folder)`` that fills an empty folder.
        what: One line for ``--help``.
    """

    module: str
    what: str

    def write(self) -> Write:
        """Return the function that writes it.

        Raises:
            FederationError: A package that it needs is not installed.
        """
        try:
            module = import_module(f"federation.export.{self.module}")
        except ModuleNotFoundError as error:
            raise FederationError(
                f"This format needs {error.name}, which is not installed. Install it: "
                "pip install 'cohortium[export]'"
            ) from error
        written: Write = module.write
        return written


FORMATS = {
    "monai-bundle": Format("bundle", "a folder that monai.bundle runs"),
    "bioimageio": Format("bioimage", "a package of the BioImage Model Zoo"),
    "onnx": Format("onnx_file", "the network in ONNX, checked number by number"),
    "ro-crate": Format("crate", "a Process Run Crate with W3C PROV"),
    "croissant": Format("croissant", "the data sets' metadata, of each site a file"),
    "model-card": Format("card", "Markdown and one HTML page"),
}


def export(run: FinishedRun, about: About, name: str, out: Path) -> list[Path]:
    """Write a run in one format into a new folder, whole or not at all.

    Returns:
        The files, relative to the folder.

    Raises:
        FederationError: There is something at ``out``, the format needs a package that is not
            installed, or the network cannot be told in it.
    """
    write = FORMATS[name].write()
    if out.exists():
        raise FederationError(f"{out} exists already. Name another folder with --out, or move it.")
    try:
        _fill(out, lambda folder: write(run, about, folder))
    except OSError as error:
        raise FederationError(
            f"{out} cannot be written ({error.strerror}). Nothing is left of it. Make room, or "
            "name another folder with --out."
        ) from error
    return files_of(out)


def _fill(out: Path, write: Callable[[Path], None]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    coming = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        write(coming)
        coming.chmod(0o755)
        coming.rename(out)
    except BaseException:
        shutil.rmtree(coming, ignore_errors=True)
        raise


def files_of(folder: Path) -> list[Path]:
    """Return the files below a folder, relative to it, in the order of their names."""
    found: Sequence[Path] = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder) for path in found]
