"""Each kind of source and the adapter that looks through it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from data_adapters.aliases import NOBODY, Excluded
from data_adapters.errors import DataError
from data_adapters.sources import AnySource, DicomWebSource
from data_adapters.types import Candidate, Discovery, Reopenable
from data_adapters.unwanted import unwanted_by

# Adapters are imported when their kind is used: each brings a heavy package.
ADAPTERS = {
    "dicom": ("data_adapters.dicom", "discover_dicom"),
    "dicomweb": ("data_adapters.dicomweb", "discover_dicomweb"),
    "ome_zarr": ("data_adapters.ome_zarr", "discover_ome_zarr"),
    "nifti": ("data_adapters.nifti", "discover_nifti"),
}


@dataclass(frozen=True)
class Fetching:
    """How images that are not at the site yet are fetched.

    Args:
        excluded: Whose images are not fetched, and are dropped where they had been.
        pseudonymise: The keyed hash that ``excluded`` is made with.
        progress: Called with the number of files there, and of all that are awaited; both 0 while
            the service is still asked what it has.
    """

    excluded: Excluded = NOBODY
    pseudonymise: Callable[[str], str] = str
    progress: Callable[[int, int], None] | None = None


EVERYBODY = Fetching()


@dataclass(frozen=True)
class Found:
    """One source and what a look at it found.

    Args:
        number: Its place among the sources of the data set, from 0.
    """

    number: int
    source: AnySource
    discovery: Discovery


def discover(source: AnySource, fetching: Fetching = EVERYBODY) -> Discovery:
    """Find what may be a scan in ``source``, without decoding pixels.

    Raises:
        DataError: The folder does not exist, or the server does not answer.
    """
    _require_present(source)
    module, function = ADAPTERS[source.kind]
    look: Callable[..., Discovery] = getattr(import_module(module), function)
    if isinstance(source, DicomWebSource):
        unwanted = unwanted_by(source.subjects, fetching.excluded, fetching.pseudonymise)
        return look(source, unwanted=unwanted, progress=fetching.progress)
    return look(source)


def _require_present(source: AnySource) -> None:
    if isinstance(source, DicomWebSource):
        return
    if source.path.is_dir() or (source.kind == "dicom" and source.path.is_file()):
        return
    raise DataError(
        f"There is no folder {source.path}. Correct `path` in the site file, or mount the "
        "folder it names."
    )


def discover_all(sources: Sequence[AnySource], fetching: Fetching = EVERYBODY) -> tuple[Found, ...]:
    """Look at every source of one data set.

    Raises:
        DataError: A source is missing, or the sources mean different things by their numbers.
    """
    first = sources[0]
    for other in sources[1:]:
        for what, one, two in (
            ("classes", first.class_names(), other.class_names()),
            ("target classes", first.target_names(), other.target_names()),
            ("channels", first.channel_names(), other.channel_names()),
        ):
            if one != two:
                raise DataError(
                    f"The sources {first.path} and {other.path} have different {what}: "
                    f"{list(one)} and {list(two)}. One data set has one list: map both onto it."
                )
    return tuple(Found(n, source, discover(source, fetching)) for n, source in enumerate(sources))


def location(number: int, source: AnySource, candidate: Candidate) -> str:
    """Return the one name of a candidate in a data set, which survives a move of its folder.

    Another reading of the same file (other classes, channels, level) is another candidate. The
    name holds a path below the source: hash it, keyed, before it is written anywhere.

    Args:
        number: Of the source.
    """
    return f"{number}\0{reading(source)}\0{candidate.where}"


# Where things lie and who they are of: neither changes what is read of one image.
_NOT_READING: dict[str, Any] = {
    "path": True,
    "subjects": True,
    "images": True,
    "wells": True,
    "ca_file": True,
    "targets": {"path"},
}
# Which studies a PACS is asked for, and how: a wider query reads no study anew that is here.
_QUERY = ("url", "modality", "study_dates", "study_description", "limit", "connections")


def reading(source: AnySource) -> str:
    """Return everything a source says about how an image is read, whoever is in it."""
    names = (source.class_names(), source.target_names(), source.channel_names())
    query = dict.fromkeys(_QUERY, True) if isinstance(source, DicomWebSource) else {}
    said = source.model_dump_json(exclude=_NOT_READING | query)
    return f"{said}\0{names}"


def locate(
    sources: Sequence[AnySource], pseudonymise: Callable[[str], str]
) -> Mapping[str, Reopenable]:
    """Return every candidate that may be read in place, by the keyed name the cache knows it by."""
    return {
        pseudonymise(location(number, source, candidate)): candidate
        for number, source in enumerate(sources)
        if source.kind == "ome_zarr" and Path(source.path).is_dir()
        for candidate in discover(source).candidates
        if isinstance(candidate, Reopenable)
    }
