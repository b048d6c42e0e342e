"""Taking one subject out of a site's data set, and deleting the whole cache.

Both write down what they are about to do, do it, look that it is done, and leave a note in the
ledger. Killed anywhere in between, a rerun finishes; the subject is out of every round from the
first durable write on. A site without a ledger yet gets its notes once it has one.
"""

import json
import shutil
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from data_adapters.aliases import image_name, same_person
from data_adapters.errors import DataError
from data_adapters.ingest import alone
from data_adapters.ingest import exclude as take_out
from data_adapters.manifest import ScanEntry
from data_adapters.sources import DicomWebSource
from federation.canonical import canonical_json
from federation.errors import FederationError
from federation.exclusions import NO_LEDGER, Exclusion, keep_exclusion, one_at_a_time
from federation.files import private_folder, sync_folder, write_atomically
from federation.ledger.forms import check_text
from federation.ledger.keys import PSEUDONYM_KEY
from federation.originals import StillThere, drop_from_mirrors, still_there
from federation.site import Site
from federation.site_config import PARTS, Part
from federation.site_data import SiteData
from federation.usage import UsedBy, models_of, runs_by_experiment

PURGE = "purge.json"


@dataclass(frozen=True)
class Excluded:
    """What became of an exclusion. For the site's own screen.

    Attributes:
        already: The subject had been excluded before.
        num_scans: Scans that were in the cache.
        still_there: The site's own files that hold the subject as before, and folders that could
            not be looked through.
    """

    subject: str
    already: bool
    num_scans: int
    used_by: tuple[UsedBy, ...]
    still_there: tuple[StillThere, ...] = ()


@dataclass(frozen=True)
class Purged:
    """What a purge deleted. For the site's own screen.

    Attributes:
        roots: The manifest's root of each part that was cached.
        staying: Names that are still in the state folder.
        outside: Mirrors of PACS that lie elsewhere and were left alone.
    """

    num_files: int
    num_bytes: int
    roots: dict[Part, str]
    staying: tuple[str, ...]
    outside: tuple[Path, ...]


def exclude(
    site: SiteData, subject: str, *, by: str, reason: str, in_advance: bool = False
) -> Excluded:
    """Take one subject out of cache and sampling, for good; safe to repeat.

    Args:
        subject: The raw identifier, or the pseudonym.
        reason: Goes into the ledger, which auditors read: no identifier.
        in_advance: Also where no such subject was ingested: they are kept out if they come. An
            identifier without its issuer then keeps out everybody who has it.

    Raises:
        FederationError: Nobody here is meant, or several people could be, or the reason names
            them; or the cache is in use, and the subject is out of sampling alone.
    """
    _require_telling_nothing(by, reason, subject)
    with one_at_a_time(private_folder(site.config.state)):
        meant = _meant(site, subject, in_advance=in_advance)
        already = any(meant.aliases <= set(e.aliases) for e in site.exclusions)
        _finish(site)
        if not already:
            keep_exclusion(site.config.state, _intention(site, meant, by=by, reason=reason))
            _finish(site)
    entries = [e for e in site.exclusions if same_person(e.aliases, meant.aliases)]
    return Excluded(
        subject=" ".join(sorted(meant.pseudonyms)),
        already=already,
        num_scans=len(meant.scans),
        used_by=_used_by(site, entries),
        still_there=still_there(site, meant.aliases),
    )


def finish_exclusions(site: SiteData) -> None:
    """Finish what was interrupted, or was done before there was a ledger, if anything was."""
    if any(not exclusion.done for exclusion in site.exclusions):
        with one_at_a_time(site.config.state):
            _finish(site)


def carry_exclusions(into: Site, other: Site) -> None:
    """Keep out of one data set whoever was excluded from another; safe to repeat.

    Raises:
        FederationError: They know people by different keys; or see ``exclude``.
    """
    if not other.exclusions:
        return
    _require_one_key(into, other)
    with one_at_a_time(private_folder(into.config.state)):
        _finish(into)
        for exclusion in other.exclusions:
            _carry(into, exclusion)
        _finish(into)


def _carry(into: Site, exclusion: Exclusion) -> None:
    same = next((e for e in into.exclusions if e.aliases == exclusion.aliases), None)
    if same is None:
        experiments, after = _approved_on_present_data(into), _head(into)
        carried = replace(exclusion, experiments=experiments, after=after, done=False)
    else:  # its note is there; repeating it changes nothing
        images = tuple(sorted({*same.images, *exclusion.images}))
        carried = replace(same, images=images)
    if carried != same:
        keep_exclusion(into.config.state, carried)


def _require_one_key(into: Site, other: Site) -> None:
    own, others = (site.key_folder / PSEUDONYM_KEY for site in (into, other))
    if own.is_file() and own.read_bytes() == others.read_bytes():
        return
    raise FederationError(
        f"{other.name}: {len(other.exclusions)} people were excluded here, and {into.name} knows "
        "people by another pseudonym key, so it could not keep them out. Nothing was merged. "
        f"Merge the other way round if nobody was excluded from {into.name}; else take the people "
        "who are in both out of one data set, and ingest it again."
    )


def _finish(site: SiteData) -> None:
    for exclusion in site.exclusions:
        if exclusion.done:
            continue
        for part in _cached(site):
            try:
                take_out(site.cache(part), site.excluded, pseudonymise=site.pseudonymise)
            except DataError as error:
                raise FederationError(
                    f"{site.name}: no round samples the subject from now on, but the {part} cache "
                    f"could not be cleaned. {error} Then give the command again."
                ) from error
        try:
            drop_from_mirrors(site)
        except DataError as error:
            raise FederationError(
                f"{site.name}: no round samples the subject from now on, but a copy of a PACS may "
                f"still hold them. {error} Then give the command again."
            ) from error
        if isinstance(site, Site):
            _note(site, exclusion)


def _cached(site: SiteData) -> list[Part]:
    """Return the parts that have a cache, also one that the site file declares no more."""
    return [part for part in PARTS if site.cache(part).is_dir()]


def _note(site: Site, exclusion: Exclusion) -> None:
    """Record it once, whatever is interrupted: the note comes after a record that is kept here."""
    state = site.config.state
    if exclusion.after == NO_LEDGER:
        exclusion = replace(exclusion, after=_head(site))
        keep_exclusion(state, exclusion)
    site.ledger.note(
        "exclusion",
        by=exclusion.by,
        reason=exclusion.reason,
        experiments=exclusion.experiments,
        after=exclusion.after,
    )
    keep_exclusion(state, replace(exclusion, done=True))


def _head(site: SiteData) -> int:
    return site.ledger.head[0] if isinstance(site, Site) else NO_LEDGER


def _require_telling_nothing(by: str, reason: str, subject: str = "") -> None:
    """Check, before anything is done, that the ledger will take both texts."""
    for what, text in (("reason", reason), ("name of who does this", by)):
        try:
            check_text(text)
        except ValueError as error:
            raise FederationError(f"The {what} goes into the ledger: {error}.") from error
    identifier = subject.partition("^^^")[0].strip().casefold()
    if identifier and identifier in reason.casefold():
        raise FederationError(
            "The reason names the subject, and it goes into the ledger, which auditors read. Give "
            "one without identifiers, such as 'consent withdrawn'."
        )


@dataclass(frozen=True)
class _Meant:
    """Who is to be taken out.

    Attributes:
        pseudonyms: Theirs here, at their exclusion, or (in advance) those they may come with.
        aliases: Every name of theirs.
        scans: Theirs in the cache.
    """

    pseudonyms: frozenset[str]
    aliases: frozenset[str]
    scans: tuple[ScanEntry, ...] = ()


def _meant(site: SiteData, subject: str, *, in_advance: bool) -> _Meant:
    """Return who is meant: somebody here, somebody excluded before, or somebody still to come."""
    people = site.people(subject, whatever_issuer=in_advance)
    named = [identity.aliases(site.pseudonymise) for identity in people]

    def is_meant(pseudonym: str, aliases: Collection[str]) -> bool:
        return pseudonym == subject or any(same_person(aliases, one) for one in named)

    here = tuple(scan for scan in _scans(site) if is_meant(scan.subject, scan.aliases))
    if here:
        return _of_one(site, here, named, in_advance=in_advance)
    before = [e for e in site.exclusions if is_meant(e.subject, e.aliases)]
    if in_advance and named:
        every = frozenset().union(*named)
        if not any(every <= set(e.aliases) for e in before):
            return _Meant(frozenset(site.pseudonymise(one.subject) for one in people), every)
    if not before:
        raise FederationError(
            f"{site.name}: no ingested subject has this identifier or pseudonym. Check it letter "
            "by letter (with '^^^ISSUER' behind it where the images name an issuer). To keep out "
            "somebody whose images are still to come, add --in-advance."
        )
    return _Meant(frozenset(e.subject for e in before), frozenset(before[0].aliases))


def _of_one(
    site: SiteData,
    here: tuple[ScanEntry, ...],
    named: Sequence[frozenset[str]],
    *,
    in_advance: bool,
) -> _Meant:
    """Return the person whose scans these are, with every name that is theirs by any rule."""
    people = {scan.aliases for scan in here}
    if not all(same_person(one, other) for one, other in combinations(people, 2)):
        raise FederationError(
            f"{site.name}: this identifier stands for {len(people)} people in different sources. "
            "Write it with its issuer, as in 'ID^^^ISSUER'."
        )
    known = frozenset().union(*people)
    others = frozenset().union(*(one for one in named if same_person(one, known)))
    # Their issuer is known: whoever has the number from another issuer is somebody else.
    anybody = {f"bare:{alias[3:]}" for alias in known if alias.startswith("of:")}
    added = others if in_advance else others - anybody
    return _Meant(frozenset(scan.subject for scan in here), known | added, here)


def _scans(site: SiteData) -> list[ScanEntry]:
    ingested = (part for part in PARTS if site.is_ingested(part))
    return [scan for part in ingested for scan in site.manifest(part).scans]


def _intention(site: SiteData, meant: _Meant, *, by: str, reason: str) -> Exclusion:
    images = {image_name(scan.image, site.pseudonymise) for scan in meant.scans}
    return Exclusion(
        subject=min(meant.pseudonyms),
        aliases=tuple(sorted(meant.aliases)),
        images=tuple(sorted(images)),
        at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        by=by,
        reason=reason,
        experiments=_approved_on_present_data(site),
        after=_head(site),
    )


def _approved_on_present_data(site: SiteData) -> tuple[str, ...]:
    """Return digests of experiments whose approval holds for the data as they are, oldest first."""
    if not isinstance(site, Site) or not site.is_ingested("protected"):
        return ()
    approvals = sorted(site.ledger.approvals.items(), key=lambda item: item[1].seq)
    return tuple(
        digest
        for digest, record in approvals
        if record.body["commitment"] == site.commitment(digest)
    )


def _used_by(site: SiteData, exclusions: list[Exclusion]) -> tuple[UsedBy, ...]:
    """Return every experiment that may have used the subject, those on still earlier data, too."""
    if not isinstance(site, Site):
        return ()
    listed = {digest for exclusion in exclusions for digest in exclusion.experiments}
    since = min((exclusion.after for exclusion in exclusions), default=-1)
    runs = runs_by_experiment(site)
    every = [
        UsedBy(
            site.experiment_name(digest),
            digest,
            dict(runs.get(digest, {})),
            digest not in listed,
            models_of(site, runs.get(digest, ())),
        )
        for digest, record in site.ledger.approvals.items()
        if digest in listed or (record.seq <= since and digest in runs)
    ]
    return tuple(sorted(every, key=lambda used: (used.on_earlier_data, used.name)))


def purge(site: SiteData, *, by: str, reason: str = "cache deleted by the operator") -> Purged:
    """Delete the cache, look that nothing of it is left, and record it; safe to repeat.

    Ledger, keys, approvals, outbox and the site's own images stay.

    Raises:
        FederationError: Something could not be deleted; what is named is still there.
    """
    state = private_folder(site.config.state)
    with one_at_a_time(state):
        planned = _planned(site, by=by, reason=reason)
        if planned is not None:
            _delete_cache(site)
            _require_gone(site)
            if isinstance(site, Site):
                body = {name: planned[name] for name in ("by", "reason", "experiments", "after")}
                site.ledger.note("purge", **body)
            (state / PURGE).unlink()
            sync_folder(state)
    what = planned or {"num_files": 0, "num_bytes": 0, "roots": {}}
    return Purged(
        **{name: what[name] for name in ("num_files", "num_bytes", "roots")},
        staying=tuple(sorted(path.name for path in state.iterdir())),
        outside=_mirrors_elsewhere(site),
    )


def _planned(site: SiteData, *, by: str, reason: str) -> dict[str, Any] | None:
    """Return what a purge is about to delete, durable since before the first file went.

    None where there is nothing.
    """
    path = site.config.state / PURGE
    if path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    if not _cache(site).exists():
        return None
    _require_telling_nothing(by, reason)
    files = [file for file in _cache(site).rglob("*") if not file.is_dir()]
    planned = {
        "by": by,
        "reason": reason,
        "experiments": list(_approved_on_present_data(site)),
        "after": _head(site),
        "num_files": len(files),
        "num_bytes": sum(file.lstat().st_size for file in files),
        "roots": {p: site.manifest(p).root for p in PARTS if site.is_ingested(p)},
    }
    write_atomically(path, canonical_json(planned))
    return planned


def _delete_cache(site: SiteData) -> None:
    """Delete with the locks of both parts held, so that no ingest writes meanwhile."""
    with ExitStack() as locks:
        for part in _cached(site):
            locks.enter_context(alone(site.cache(part)))
        if _cache(site).exists():
            shutil.rmtree(_cache(site))
    sync_folder(site.config.state)


def _require_gone(site: SiteData) -> None:
    left = [str(path) for path in _cache(site).rglob("*")] if _cache(site).exists() else []
    if left or _cache(site).exists():
        raise FederationError(
            f"{site.name}: {len(left)} files and folders of the cache are still there, such as "
            f"{(left or [str(_cache(site))])[0]}. Delete them, then run the purge again: it is not "
            "recorded as done."
        )


def _cache(site: SiteData) -> Path:
    return site.cache("protected").parent


def _mirrors_elsewhere(site: SiteData) -> tuple[Path, ...]:
    """Return copies from a PACS that the purge did not reach: they lie outside the cache."""
    mirrors = (s.path for s in site.config.every_source if isinstance(s, DicomWebSource))
    return tuple(path for path in mirrors if path.exists() and any(path.iterdir()))
