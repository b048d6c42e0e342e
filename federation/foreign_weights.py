"""Weights out of other tools' packages, for an experiment to start from: numbers, and never code.

Of a MONAI bundle or a package of the BioImage Model Zoo its weights are read: safetensors, or a
state dict with ``torch.load(weights_only=True)``, which unpickles tensors and plain containers
alone. Its configuration, expressions, TorchScript and Python files are not looked at.
"""

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load

from federation.errors import FederationError
from federation.experiment import Experiment
from federation.messages import Weights
from models.build import build_network, load_weights, weights_of
from models.errors import ModelError

MAX_BYTES = 4 * 2**30
# Where a MONAI bundle has them, best first.
_IN_BUNDLE = ("models/model.safetensors", "models/model.pt")
_IN_ZOO = ("rdf.yaml", "bioimageio.yaml")
# Around a state dict, as training scripts save it.
_AROUND = ("state_dict", "model_state_dict", "model", "network")
Read = Callable[[str], bytes | None]


def foreign_weights(source: Path, experiment: Experiment) -> Weights:
    """Return the weights in a file or package that fit an experiment's network, all of them.

    Args:
        source: A .safetensors or .pt file, a MONAI bundle's folder, or a package of the BioImage
            Model Zoo, as folder or zip.

    Raises:
        FederationError: There are no weights in it that can be read without running anything, or
            they are another network's.
    """
    found = _arrays(source)
    network = build_network(experiment.model, num_classes=experiment.task.num_outputs)
    wanted = weights_of(network)
    short = {name.removeprefix("module."): array for name, array in found.items()}
    missing = sorted(name for name in wanted if name not in short)
    if missing:
        raise FederationError(
            f"{source} lacks {len(missing)} of the {len(wanted)} arrays of the experiment's "
            f"network (first: {missing[0]!r}; it has {len(short)}, such as "
            f"{next(iter(short), 'none')!r}). Let 'model' in the experiment be the network that "
            "they were learnt with."
        )
    fitting = {name: short[name] for name in wanted}
    try:
        load_weights(network, fitting)
    except ModelError as error:
        raise FederationError(f"{source}: {error}") from error
    bad = next((name for name, array in fitting.items() if not np.isfinite(array).all()), None)
    if bad is not None:
        raise FederationError(f"{source}: {bad!r} holds numbers that are not finite.")
    return fitting


def _arrays(source: Path) -> Weights:
    if source.is_dir():
        return _of_package(source, lambda name: _file_in(source, name))
    if source.suffix == ".safetensors":
        return _safetensors(_read(source), str(source))
    if not source.is_file():
        raise FederationError(f"There is nothing at {source}. Check the path.")
    if zipfile.is_zipfile(source):  # a state dict is one, too
        with zipfile.ZipFile(source) as archive:
            if {*_IN_ZOO, *_IN_BUNDLE} & set(archive.namelist()):
                return _of_package(source, lambda name: _member(archive, name))
    return _state_dict(_read(source), str(source))


def _of_package(source: Path, read: Read) -> Weights:
    for name in _IN_BUNDLE:
        data = read(name)
        if data is not None:
            return _of_file(name, data, source)
    for name in _IN_ZOO:
        data = read(name)
        if data is not None:
            place = _in_zoo(data, source)
            weights = read(place)
            if weights is None:
                raise FederationError(f"{source} names {place!r}, which is not in it.")
            return _of_file(place, weights, source)
    raise FederationError(
        f"{source} holds none of {', '.join((*_IN_BUNDLE, *_IN_ZOO))}, so it is neither a MONAI "
        "bundle nor a package of the BioImage Model Zoo. Name the file of weights itself."
    )


def _in_zoo(data: bytes, source: Path) -> str:
    """Return where the state dict lies, by the package's description."""
    try:
        described = yaml.safe_load(data)
        place = described["weights"]["pytorch_state_dict"]["source"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise FederationError(
            f"{source} has no weights as a PyTorch state dict, and others cannot be read without "
            "running code. Ask its authors for them."
        ) from error
    parts = PurePosixPath(str(place))
    if parts.is_absolute() or ".." in parts.parts or ":" in str(place):
        raise FederationError(
            f"{source} keeps its weights elsewhere ({str(place)[:100]}). Nothing is fetched: get "
            "the package with its files."
        )
    return str(parts)


def _of_file(name: str, data: bytes, source: Path) -> Weights:
    what = f"{source}: {name}"
    if name.endswith(".safetensors"):
        return _safetensors(data, what)
    return _state_dict(data, what)


def _safetensors(data: bytes, what: str) -> Weights:
    try:
        return _numbers(load(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise FederationError(f"{what} is not safetensors. Name another file.") from error


def _state_dict(data: bytes, what: str) -> Weights:
    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # its reader raises what Python does on odd bytes
        raise FederationError(
            f"{what} is no state dict of tensors alone: it may hold code, and was not opened. Save "
            "network.state_dict() on its own."
        ) from error
    for name in _AROUND:
        if isinstance(value, Mapping) and isinstance(value.get(name), Mapping):
            value = value[name]
    if not isinstance(value, Mapping) or not value:
        raise FederationError(f"{what} is no state dict. Save network.state_dict() on its own.")
    return _numbers({str(name): one for name, one in value.items()})


def _numbers(values: Mapping[str, object]) -> Weights:
    tensors = {name: one for name, one in values.items() if isinstance(one, torch.Tensor)}
    return {
        name: one.detach().to(torch.float32).numpy()
        for name, one in tensors.items()
        if one.is_floating_point()
    }


def _file_in(folder: Path, name: str) -> bytes | None:
    path = folder / name
    if not path.is_file():
        return None
    if not path.resolve().is_relative_to(folder.resolve()):
        raise FederationError(f"{path} leads out of {folder}. Copy the file into it.")
    return _read(path)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FederationError(f"{path} is larger than {MAX_BYTES:,} bytes: not read.")
        return path.read_bytes()
    except OSError as error:
        raise FederationError(f"{path} cannot be read ({error.strerror}).") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes | None:
    if name not in archive.namelist():
        return None
    if archive.getinfo(name).file_size > MAX_BYTES:
        raise FederationError(f"{name} is larger than {MAX_BYTES:,} bytes: not read.")
    try:
        return archive.read(name)
    except (RuntimeError, zipfile.BadZipFile, NotImplementedError) as error:
        raise FederationError(
            f"{name} cannot be read out of the archive: it is damaged or encrypted. Unpack it "
            "yourself, and name the folder."
        ) from error
