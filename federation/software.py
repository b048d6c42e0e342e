"""Which software runs here, as one digest: an approval holds for exactly what it was given for."""

from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path

import data_adapters
import federation
import models
from federation.canonical import digest, digest_bytes

# What reads and decodes images, decides what may leave, trains, draws noise, accounts, signs and
# sends: all that the package depends on but what only prints to a screen.
DISTRIBUTIONS = (
    "cryptography",
    "dp-accounting",
    "flwr",
    "highdicom",
    "monai",
    "nibabel",
    "numpy",
    "ome-zarr",
    "ome-zarr-models",
    "opacus",
    "pydantic",
    "pydantic-core",
    "pydicom",
    "pyjpegls",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "python-gdcm",
    "pyyaml",
    "safetensors",
    "scipy",
    "tensorstore",
    "torch",
    "urllib3",
    "zarr",
)
_OWN_FILES = ("*.py", "*.json")


def installed_versions() -> dict[str, str]:
    """Return the versions of what makes an update, for its receipt."""
    return {name: version(name) for name in ("cohortium", "torch", "monai", "opacus")}


@cache
def software_digest() -> str:
    """Return one digest of our own source and policy files and of what was installed beside them.

    Of a distribution it is its list of files with their digests (``RECORD``): another build of the
    same version is another one. Whether the files on the disk are those is not looked at.
    """
    return digest({"cohortium": _own(), **{name: _installed(name) for name in DISTRIBUTIONS}})


def _own() -> str:
    files: dict[str, str] = {}
    for package in (data_adapters, federation, models):
        root = Path(str(package.__file__)).parent
        for path in sorted(path for what in _OWN_FILES for path in root.rglob(what)):
            name = f"{package.__name__}/{path.relative_to(root).as_posix()}"
            files[name] = digest_bytes(path.read_bytes())
    return digest(files)


def _installed(name: str) -> str:
    try:
        found: Distribution = distribution(name)
    except PackageNotFoundError:
        return "not installed"
    record = found.read_text("RECORD")
    return digest_bytes(record.encode()) if record else f"version {found.version}"
