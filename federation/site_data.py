"""A site's data: its sources, its cache, and whom of them may be trained on. Needs no ledger."""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from data_adapters.aliases import NOBODY, Excluded, Identity, image_name, same_person
from data_adapters.discover import locate
from data_adapters.ingest import MANIFEST, IngestReport, Progress, ingest
from data_adapters.manifest import Manifest, ScanEntry
from data_adapters.reasons import Unusable
from data_adapters.sources import AnySource, DicomWebSource
from data_adapters.subject_ids import split_identifier, subjects_of
from data_adapters.types import Reopenable
from federation.consent import Consents, Pseudonyms, load_consents
from federation.data_use import DataUse
from federation.errors import FederationError
from federation.exclusions import Exclusion, everybody, read_exclusions
from federation.files import private_folder
from federation.headers import keep_headers, personal_headers
from federation.ledger.bounds import delta_for, most_subjects
from federation.ledger.keys import PSEUDONYM_KEY, pseudonymiser
from federation.linking import LinkingFolder, require_one_key
from federation.site_config import PARTS, Part, SiteConfig, load_site_config

# What is in the cache at one moment, read once.
Ingested = Mapping[Part, Manifest]


@dataclass(frozen=True)
class SiteData:
    """What a site knows of its data before it has keys or a ledger. See ``open_site_data``."""

    config: SiteConfig

    @property
    def name(self) -> str:
        """Return the site's public name."""
        return self.config.site

    @property
    def has_public(self) -> bool:
        """Tell whether the site declares public subjects."""
        return self.config.public is not None

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return the parts of the data that the site file declares."""
        return self.config.parts

    @property
    def pseudonymise(self) -> Callable[[str], str]:
        """Return the keyed hash of identifiers and paths; its key is made at first use.

        Raises:
            FederationError: The key was lost, and subjects are excluded under it.
        """
        folder = self.key_folder
        if self.exclusions and not (folder / PSEUDONYM_KEY).exists():
            raise FederationError(
                f"{self.name}: {folder / PSEUDONYM_KEY} is missing. Restore it from backup: under "
                "a new key nobody would know the subjects who were excluded."
            )
        return pseudonymiser(folder)

    @property
    def key_folder(self) -> Path:
        """Return where the pseudonym key lies: with the site, or where linked data sets share it.

        Raises:
            FederationError: There are both.
        """
        state, linking = private_folder(self.config.state), self.config.linking
        if linking is None:
            return state
        return require_one_key(linking, state, lambda folder: (folder / PSEUDONYM_KEY).exists())

    def cache(self, part: Part) -> Path:
        """Return the folder of the local cache of protected or public scans."""
        return self.config.state / "cache" / part

    def ingest(
        self, part: Part, progress: Progress | None = None, *, workers: int = 1
    ) -> IngestReport:
        """Gate and cache one part of the data; safe to repeat. Then ``check_subjects``.

        Raises:
            DataError: No usable scan at all. FederationError: The part is not declared.
        """
        sources = self.config.sources(part)
        if not sources:
            raise FederationError(f"{self.name}: the site file declares no {part} subjects.")
        report = ingest(
            sources,
            private_folder(self.cache(part)),
            pseudonymise=self.pseudonymise,
            excluded=lambda: self.excluded,
            progress=progress,
            workers=workers,
            limits=self.config.decoding,
        )
        keep_headers(self.cache(part), report)
        config = self.config
        if part == "protected" and config.linking:
            folder = LinkingFolder(config.linking)
            folder.keep(config.site, config.dataset, config.state, report.manifest)
        return report

    def manifest(self, part: Part) -> Manifest:
        """Return what the cache holds.

        Raises:
            FederationError: Nothing was ingested yet.
        """
        if not self.is_ingested(part):
            raise FederationError(
                f"{self.name}: the {part} data has not been ingested. Run the experiment with "
                "'cohortium run', which ingests first, or 'cohortium site ingest'."
            )
        return Manifest.load(self.cache(part) / MANIFEST)

    def is_ingested(self, part: Part) -> bool:
        """Tell whether there is something in the cache of one part."""
        return (self.cache(part) / MANIFEST).is_file()

    def ingested(self) -> Ingested:
        """Return the manifest of each declared part, so that one request sees one state of them."""
        return {part: self.manifest(part) for part in self.parts if self.is_ingested(part)}

    def in_place(self, part: Part) -> Mapping[str, Reopenable]:
        """Return the images that are read where they lie, by the name that the cache knows."""
        return locate(self.config.sources(part), self.pseudonymise)

    def check_subjects(self, now: Ingested | None = None) -> None:
        """Check what was ingested: the declared bounds, and that nobody is protected and public.

        Nobody: by no name and by no image, whatever its labels.

        Raises:
            FederationError: Says which, and how to put it right.
        """
        now = self.ingested() if now is None else now
        protected, public = (now[part].scans if part in now else () for part in PARTS)
        if protected:
            _require_within_bounds(self.config, len({scan.subject for scan in protected}))
        both = _people_in_both(protected, public)
        same = {s.image for s in protected} & {s.image for s in public}
        if both or same:
            raise FederationError(
                f"{self.name}: {len(both)} subjects and {len(same)} scans are in the protected "
                "and in the public folder. Public subjects have no protection; remove them from "
                "one of the two, and ingest again."
            )

    def require_one_budget(self, now: Ingested | None = None) -> None:
        """Check that no protected subject has a budget in another data set of the institution.

        Raises:
            FederationError: Says in which, and what to do.
        """
        manifest = (self.ingested() if now is None else now).get("protected")
        if self.config.linking is None or manifest is None:
            return
        shared = LinkingFolder(self.config.linking).shared(self.config.state, manifest)
        if shared:
            others = "; ".join(f"{count} in {name}" for name, count in shared.items())
            raise FederationError(
                f"{self.name}: protected subjects are in another data set of yours, too, which has "
                f"a ledger of its own: {others}. A subject has one budget: 'cohortium site merge "
                "THIS.yaml OTHER.yaml' charges this one with the other's history and ends the "
                "other, whose images you then name as a further source here."
            )

    def require_no_people(self) -> None:
        """Check a declaration of no human subjects against what headers say of each of them.

        Raises:
            FederationError: They have what only people and animals have, and nobody has checked.
        """
        said = self.config.human_subjects
        if said is None or said.value or said.headers_checked_by:
            return
        found = personal_headers(self.cache("protected"), self.manifest("protected"))
        if found:
            raise FederationError(
                f"{self.name}: 'human_subjects' says that the images are of no people, and their "
                f"headers hold {', '.join(found)}. Without privacy they are trained on only where "
                "somebody has checked those headers and says so before the first run: "
                "headers_checked_by: NAME, under 'human_subjects'. With privacy they can be "
                "trained on as they are."
            )

    # Whom of the subjects may be used, and for what.

    @property
    def exclusions(self) -> tuple[Exclusion, ...]:
        """Return who was excluded."""
        return read_exclusions(self.config.state)

    @property
    def excluded(self) -> Excluded:
        """Return all names and images of everybody who was excluded."""
        return everybody(self.exclusions)

    def excluded_in(self, manifest: Manifest) -> frozenset[str]:
        """Return who of a manifest was excluded, by today's pseudonyms."""
        who = self.excluded
        if who == NOBODY:
            return frozenset()
        pseudonymise = self.pseudonymise
        return frozenset(
            scan.subject
            for scan in manifest.scans
            if who.has(scan.aliases) or image_name(scan.image, pseudonymise) in who.images
        )

    @property
    def pseudonyms(self) -> Pseudonyms:
        """Return what a raw identifier may stand for, by the rule of each protected source."""
        known = _known_by(self.config.sources("protected"))
        pseudonymise = self.pseudonymise
        return lambda raw: frozenset(pseudonymise(one.subject) for one in known(raw))

    def people(self, raw: str, *, whatever_issuer: bool = False) -> tuple[Identity, ...]:
        """Return whom a raw identifier may stand for, by the rules of all sources.

        Args:
            whatever_issuer: If it names no issuer, it is also anybody's who has that identifier.
        """
        found = _known_by(self.config.every_source)(raw)
        if found and whatever_issuer:
            identifier, issuer = split_identifier(raw)
            subject = f"{identifier}^^^{issuer}" if issuer else identifier
            found += (Identity(subject, frozenset({(identifier, issuer)})),)
        return tuple(dict.fromkeys(found))

    def consents(self, subjects: Sequence[str]) -> Consents | None:
        """Read the table of consent as it is now; None where the site file names none.

        Args:
            subjects: The pseudonyms of the manifest.

        Raises:
            DataError: The table cannot be read.
        """
        if self.config.consent is None:
            return None
        return load_consents(
            self.config.consent,
            pseudonyms=self.pseudonyms,
            subjects=subjects,
            acknowledged=self.config.acknowledged,
        )

    def without_consent(
        self, use: DataUse, today: date | None = None, *, manifest: Manifest | None = None
    ) -> frozenset[str]:
        """Return the protected subjects who have not consented to ``use``, or not any more.

        Args:
            today: By the site's own calendar, if not given.
            manifest: Of the protected data, if it was read already.

        Raises:
            DataError: The table cannot be read. FederationError: Nothing was ingested yet.
        """
        subjects = (manifest or self.manifest("protected")).subjects
        consents = self.consents(subjects)
        if consents is None:
            return frozenset()
        return consents.lacking(subjects, use, today or local_day())

    def left_out(
        self, use: DataUse, part: Part, manifest: Manifest | None = None
    ) -> frozenset[str]:
        """Return the subjects of one part who are not sampled: excluded, or without consent.

        Args:
            manifest: Of that part, if it was read already.
        """
        manifest = manifest or self.manifest(part)
        excluded = self.excluded_in(manifest)
        if part == "public":
            return excluded
        return excluded | self.without_consent(use, manifest=manifest)

    def require_terms(self, use: DataUse) -> None:
        """Check what the experiment declares against what the site file says of the data set.

        Raises:
            FederationError: The terms do not permit it; says which, and what to do.
        """
        terms = self.config.terms
        against = terms.objections(use) if terms else []
        if against:
            raise FederationError(
                f"{self.name}: the terms of {self.config.dataset} do not permit this experiment, "
                f"which is declared as {use}: {'; '.join(against)}. If the experiment is for less, "
                "say so under 'data_use' in its file; else run it without this site."
            )

    def require_permitted(self, use: DataUse) -> None:
        """Check the data set's terms, and that somebody has consented.

        Raises:
            FederationError: The terms do not permit the experiment, or nobody consents to it.
        """
        self.require_terms(use)
        manifest = self.manifest("protected")
        subjects = set(manifest.subjects) - self.excluded_in(manifest)
        if subjects and subjects <= self.without_consent(use, manifest=manifest):
            raise FederationError(
                f"{self.name}: no subject has consented to this experiment, which is declared as "
                f"{use}. 'cohortium site check' shows what the table of consent says; correct "
                "'data_use' in the experiment if it is for less, or run it without this site."
            )


def _known_by(sources: Sequence[AnySource]) -> Callable[[str], tuple[Identity, ...]]:
    """Return whom a raw identifier names by each source's rule; nobody where it names nobody."""
    rules = [subjects_of(source.subjects) for source in sources]

    def known(raw: str) -> tuple[Identity, ...]:
        found = []
        for rule in rules:
            try:
                found.append(rule.identity(raw))
            except Unusable:
                continue
        return tuple(found)

    return known


def _require_within_bounds(config: SiteConfig, count: int) -> None:
    (low, high), delta = config.policy.subjects_between, config.policy.delta
    most = most_subjects(delta)
    if low <= count <= high:
        return
    if count <= most:
        way_out = (
            f"Widen policy.subjects_between in the site file, to at most {most}, which delta "
            f"{delta:g} permits (1/N^2); the ledger keeps its budget. Approve experiments again."
        )
    else:
        way_out = (
            f"The ledger's delta of {delta:g} permits at most {most} (1/N^2), and is fixed for its "
            "life. Either keep the newer subjects out of this data set, or start a site file with "
            f"a state folder of its own, wider bounds and delta {delta_for(count):g}, and charge "
            "it with this ledger's history: "
            "cohortium site merge NEW.yaml OLD.yaml (docs/site.md)."
        )
    raise FederationError(
        f"{config.site}: {count} protected subjects are outside the declared bounds {low} to "
        f"{high} (policy.subjects_between). Nothing is approved or trained meanwhile. {way_out}"
    )


def _people_in_both(one: Sequence[ScanEntry], other: Sequence[ScanEntry]) -> frozenset[str]:
    """Return the pseudonyms of ``one`` who may be somebody of ``other``."""
    by_hash: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for scan in other:
        for alias in scan.aliases:
            by_hash[alias.partition(":")[2]].add(scan.aliases)
    return frozenset(
        scan.subject
        for scan in one
        for alias in scan.aliases
        for candidate in by_hash.get(alias.partition(":")[2], ())
        if same_person(scan.aliases, candidate)
    )


def local_day() -> date:
    """Return today by the site's own calendar."""
    return datetime.now().astimezone().date()


def open_site_data(path: Path) -> SiteData:
    """Open the data that a site file describes. Neither keys nor a ledger are made.

    Raises:
        FederationError: The file is invalid, or a folder or table is missing.
    """
    config = load_site_config(path)
    require_folders(config)
    return SiteData(config)


def require_folders(config: SiteConfig) -> None:
    """Check that images and tables are where the file says; make the mirrors of PACS.

    Raises:
        FederationError: One is missing or unreadable, or the state would be read as images.
    """
    _require_own_mirrors(config)
    for source in config.every_source:
        _require_source(config, source)
    for table in config.tables:
        if not (table.is_file() and os.access(table, os.R_OK)):
            raise FederationError(
                f"{config.site}: there is no readable file {table}. Correct its path in the site "
                "file; relative paths start at the file's folder."
            )


def _require_own_mirrors(config: SiteConfig) -> None:
    """Check that nothing else is kept where a PACS is mirrored: what it has no more is deleted."""
    for mirror in config.every_source:
        if not isinstance(mirror, DicomWebSource):
            continue
        for other in config.every_source:
            if other is not mirror and root_of(other).is_relative_to(root_of(mirror)):
                raise FederationError(
                    f"{config.site}: {mirror.path} mirrors a PACS, and another source reads from "
                    "it. Give each source a 'path' of its own."
                )


def _require_source(config: SiteConfig, source: AnySource) -> None:
    if isinstance(source, DicomWebSource):
        private_folder(source.path)
        return
    if getattr(source, "images", None) is None and not _readable(source):
        raise FederationError(
            f"{config.site}: there is no readable folder {source.path}. Correct 'path' in the "
            "site file; relative paths start at the file's folder."
        )
    if config.state.resolve().is_relative_to(root_of(source)):
        raise FederationError(
            f"{config.site}: the state folder {config.state} lies inside the images' folder "
            f"{source.path}, where its cache would be taken for images. Give 'state' another place."
        )


def _readable(source: AnySource) -> bool:
    path = source.path
    kind_fits = path.is_dir() or (source.kind == "dicom" and path.is_file())
    return kind_fits and os.access(path, os.R_OK)


def root_of(source: AnySource) -> Path:
    """Return the folder that a source reads from; a DICOMDIR names files beside and below it."""
    path = source.path.resolve()
    return path.parent if path.is_file() else path
