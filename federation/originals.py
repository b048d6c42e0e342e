"""Where a site's own files hold somebody who was taken out. They are the site's to delete."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_adapters.aliases import Excluded
from data_adapters.dicomweb import forget
from data_adapters.discover import discover
from data_adapters.sources import AnySource, DicomSource, DicomWebSource
from data_adapters.types import relative
from data_adapters.unwanted import unwanted_by
from federation.site_data import SiteData


@dataclass(frozen=True)
class StillThere:
    """One folder with images of the subject. For the site's own screen.

    Attributes:
        is_mirror: It is a copy of what a PACS has.
        where: Images, or folders of DICOM files, below ``folder``.
        looked: It could be looked through.
    """

    folder: Path
    is_mirror: bool
    where: tuple[str, ...]
    looked: bool = True


def still_there(site: SiteData, aliases: Collection[str]) -> tuple[StillThere, ...]:
    """Return every folder of the site that still holds a person, as far as headers tell.

    Files whose header cannot be read name nobody, and are not found.
    """
    who = Excluded(people=(frozenset(aliases),))
    found = (_in(site, source, who) for source in site.config.every_source)
    return tuple(one for one in found if one.where or not one.looked)


def drop_from_mirrors(site: SiteData) -> None:
    """Delete what the mirrors of PACS have of everybody who was excluded; ask no PACS.

    Raises:
        DataError: Another run is writing into one, or it cannot be written.
    """
    for source in site.config.every_source:
        unwanted = unwanted_by(source.subjects, site.excluded, site.pseudonymise)
        if isinstance(source, DicomWebSource) and unwanted is not None:
            forget(source, unwanted)


def _in(site: SiteData, source: AnySource, who: Excluded) -> StillThere:
    is_mirror = isinstance(source, DicomWebSource)
    try:
        where = _scans_of(site, source, who)
    except Exception:  # the subject is out already, whatever is wrong with these files
        return StillThere(source.path, is_mirror, (), looked=False)
    return StillThere(source.path, is_mirror, where)


def _scans_of(site: SiteData, source: AnySource, who: Excluded) -> tuple[str, ...]:
    meant = unwanted_by(source.subjects, who, site.pseudonymise)
    found = {where for raw, where in _named(source) if meant and meant.has(raw)}
    return tuple(sorted(found))


def _named(source: AnySource) -> Iterator[tuple[str, str]]:
    """Yield raw identifiers and where they are: scans, or folders of DICOM files of any kind."""
    if isinstance(source, DicomSource):
        yield from _dicom_named(source.path)
        return
    for candidate in discover(source).candidates:
        yield candidate.subject, candidate.where


def _dicom_named(path: Path) -> Iterator[tuple[str, str]]:
    """Yield them for every file: also those that no series rule takes, and unfinished copies."""
    from data_adapters.dicom_found import source_files
    from data_adapters.dicom_headers import quiet_pydicom, read_header, subject_of

    with quiet_pydicom():
        root, files, _ = source_files(path)
        for file in files:
            try:
                header, _ = read_header(file)
            except Exception:  # noqa: S112 - no DICOM file, or a damaged one: it names nobody
                continue
            yield subject_of(header), relative(file.parent, root)
