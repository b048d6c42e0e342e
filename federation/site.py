"""A site: its private settings, its keys, its ledger, its cached data. Nothing here travels."""

import os
import secrets
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_adapters.ingest import IngestReport, ingest
from data_adapters.manifest import Manifest, ScanEntry
from data_adapters.sources import Source
from federation.canonical import canonical_json, digest_bytes
from federation.documents import Strict, parse_document, read_yaml
from federation.errors import FederationError, LedgerError, Refused
from federation.experiment import Experiment, Identifier, Name
from federation.files import private_folder, write_atomically
from federation.ledger.filter import BudgetPolicy
from federation.ledger.keys import SiteKey, pseudonymiser
from federation.ledger.ledger import Ledger
from federation.messages import Description
from federation.privacy.plan import PrivacyPlan

Progress = Callable[[int, int], None]
Part = Literal["protected", "public"]
LEDGER = "ledger.jsonl"


class PublicData(Strict):
    """Subjects whose exact scores may leave, because somebody declared them public."""

    source: Source
    declared_by: Name
    reason: Name


class SitePolicy(Strict):
    """What the site allows, for the lifetime of its ledger.

    Attributes:
        epsilon, delta: Lifetime privacy budget of each protected subject.
        allow_unprotected: Permit experiments without privacy. Off unless written here.
        subjects_between: Public bounds on the number of protected subjects; the number itself
            stays private.
        release_counts: How the number of subjects is told: not at all, rounded to ten, or exactly.
            Rounding is no differential privacy: a count at an edge tells of one subject.
    """

    epsilon: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
    delta: Annotated[float, Field(gt=0, lt=0.1, allow_inf_nan=False)]
    allow_unprotected: bool = False
    subjects_between: tuple[
        Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1, le=100_000_000)]
    ]
    release_counts: Literal["withheld", "rounded", "exact"] = "withheld"

    @model_validator(mode="after")
    def _bounds_and_delta(self) -> "SitePolicy":
        low, high = self.subjects_between
        if low > high:
            raise ValueError(f"subjects_between starts at {low}, past its end {high}")
        if self.delta > 1 / high**2:
            raise ValueError(
                f"delta {self.delta:g} is above 1/N^2 = {1 / high**2:.2g} for up to {high} "
                "subjects; a larger delta would permit giving a subject away whole. Lower delta"
            )
        return self


class SiteConfig(Strict):
    """The site file. Relative paths start at the folder of the file.

    ``site``, ``dataset``, ``licence`` and ``modality`` (DICOM CS, such as MR) are public by
    declaration: none of them is read off the subjects.
    """

    site: Identifier
    state: Path
    dataset: Identifier
    licence: Name
    modality: Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")] = "UNDECLARED"
    protected: Source
    public: PublicData | None = None
    policy: SitePolicy


def load_site_config(path: Path) -> SiteConfig:
    """Read a site file and make its paths absolute.

    Raises:
        FederationError: Missing or invalid; says which key and what would do.
    """
    values = read_yaml(path, "site")
    config = parse_document(values, SiteConfig, f"site file {path}")
    home = path.resolve().parent
    public = config.public
    if public is not None:
        public = public.model_copy(update={"source": _absolute(public.source, home)})
    return config.model_copy(
        update={
            "state": home / config.state,
            "protected": _absolute(config.protected, home),
            "public": public,
        }
    )


def _absolute(source: Source, home: Path) -> Source:
    return source.model_copy(update={"path": home / source.path})


@dataclass(frozen=True)
class Site:
    """An opened site. Make one with ``open_site``."""

    config: SiteConfig
    key: SiteKey
    ledger: Ledger

    @property
    def name(self) -> str:
        """Return the site's public name."""
        return self.config.site

    @property
    def log_path(self) -> Path:
        """Return the site's own log; its text can show file names, so it is never sent."""
        return self.config.state / "site.log"

    def log_failure(self, what: str) -> None:
        """Append the current exception with its traceback to the site's log."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with os.fdopen(os.open(self.log_path, flags, 0o600), "a") as log:
            log.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {what} failed\n")
            log.write(traceback.format_exc() + "\n")

    def cache(self, part: Part) -> Path:
        """Return the folder of the local cache of protected or public scans."""
        return self.config.state / "cache" / part

    def ingest(self, part: Part, progress: Progress | None = None) -> IngestReport:
        """Gate and cache one part of the data; safe to repeat. Then ``check_subjects``.

        Raises:
            DataError: No usable scan at all.
        """
        source = self.config.protected
        if part == "public":
            source = self._public.source
        return ingest(
            source,
            private_folder(self.cache(part)),
            pseudonymise=pseudonymiser(self.config.state),
            progress=progress,
        )

    def manifest(self, part: Part) -> Manifest:
        """Return what the cache holds.

        Raises:
            FederationError: Nothing was ingested yet.
        """
        path = self.cache(part) / "manifest.json"
        if not path.is_file():
            raise FederationError(
                f"{self.name}: the {part} data has not been ingested. Run the experiment with "
                "'cohortium run', which ingests first."
            )
        return Manifest.load(path)

    @property
    def has_public(self) -> bool:
        """Tell whether the site declares public subjects."""
        return self.config.public is not None

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return the parts of the data that the site file declares."""
        return ("protected", "public") if self.has_public else ("protected",)

    def approve(self, experiment: Experiment, plan: PrivacyPlan, *, approver: str) -> None:
        """Record in the ledger that this experiment may charge this data set, up to its limits.

        Raises:
            PrivacyBudgetError: The policy forbids it, or the budget left does not hold it.
        """
        self.check_subjects()
        self._keep(experiment)
        self.ledger.approve(
            experiment.digest(),
            plan.digest(),
            event=plan.round_event,
            rounds=plan.charges,
            attempts=plan.charges,
            approver=approver,
            commitment=self.commitment(experiment.digest()),
        )

    def approved(self, experiment_digest: str) -> Experiment:
        """Return the experiment that was approved under this digest.

        Raises:
            Refused: ``not_approved``: never approved here, or the data has changed since.
        """
        record = self.ledger.approval_for(experiment_digest, used_up=True)
        path = self._experiment_path(experiment_digest)
        if record is None or not path.is_file():
            raise Refused("not_approved", f"no open approval for {experiment_digest}")
        if record.body["commitment"] != self.commitment(experiment_digest):
            raise Refused("not_approved", "the data set has changed since it was approved")
        values = read_yaml(path, "approved experiment")
        experiment = parse_document(values, Experiment, "approved experiment")
        if experiment.digest() != experiment_digest:
            raise Refused("not_approved", f"{path} is not what was approved")
        return experiment

    def commitment(self, experiment_digest: str) -> str:
        """Return SHA-256(nonce, data root); the nonce is fresh per experiment and stays here."""
        root = self.manifest("protected").root
        return digest_bytes(self._nonce(experiment_digest) + root.encode())

    def describe(self, experiment_digest: str) -> Description:
        """Return what this site says of itself to the hub."""
        manifest = self.manifest("protected")
        return Description(
            site=self.name,
            public_key=self.key.public_bytes.hex(),
            commitment=self.commitment(experiment_digest),
            dataset=self.config.dataset,
            source_kind=self.config.protected.kind,
            modality=self.config.modality,
            num_subjects=self._released_count(),
            licence=self.config.licence,
            versions=dict(manifest.versions),
        )

    @property
    def _public(self) -> PublicData:
        if self.config.public is None:
            raise FederationError(f"{self.name}: the site file declares no public subjects.")
        return self.config.public

    def _released_count(self) -> str:
        count = len({scan.subject for scan in self.manifest("protected").scans})
        how = self.config.policy.release_counts
        if how == "exact":
            return str(count)
        return _rounded(count) if how == "rounded" else "withheld"

    def check_subjects(self) -> None:
        """Check what was ingested: the declared bounds, and that nobody is protected and public.

        Raises:
            FederationError: Says which, and how to put it right.
        """
        protected = self._scans("protected")
        low, high = self.config.policy.subjects_between
        count = len({scan.subject for scan in protected})
        if protected and not low <= count <= high:
            raise FederationError(
                f"{self.name}: {count} protected subjects are outside the declared bounds "
                f"{low} to {high}. Correct policy.subjects_between in the site file; the ledger "
                "keeps its budget."
            )
        public = self._scans("public")
        both = {s.subject for s in protected} & {s.subject for s in public}
        same = {s.digest for s in protected} & {s.digest for s in public}
        if both or same:
            raise FederationError(
                f"{self.name}: {len(both)} subjects and {len(same)} scans are in the protected "
                "and in the public folder. Public subjects have no protection; remove them from "
                "one of the two."
            )

    def _scans(self, part: Part) -> tuple[ScanEntry, ...]:
        """Return what was ingested of one part, nothing if it was not yet."""
        present = part in self.parts and (self.cache(part) / "manifest.json").is_file()
        return self.manifest(part).scans if present else ()

    def _keep(self, experiment: Experiment) -> None:
        path = self._experiment_path(experiment.digest())
        private_folder(path.parent)
        write_atomically(path, canonical_json(experiment.model_dump(mode="json")))

    def _experiment_path(self, experiment_digest: str) -> Path:
        return self.config.state / "experiments" / f"{_hex(experiment_digest)}.json"

    def _nonce(self, experiment_digest: str) -> bytes:
        path = self.config.state / "nonces" / _hex(experiment_digest)
        if not path.is_file():
            private_folder(path.parent)
            write_atomically(path, secrets.token_bytes(32))
        return path.read_bytes()


def _rounded(count: int) -> str:
    """Return the count to the nearest ten, halves up.

    >>> _rounded(4), _rounded(15), _rounded(48)
    ('under 10', 'about 20', 'about 50')
    """
    nearest = (count + 5) // 10 * 10
    return f"about {nearest}" if count >= 10 else "under 10"


def _hex(experiment_digest: str) -> str:
    """Return the hex part of a digest, refusing anything that is not one (it names a file)."""
    text = experiment_digest.removeprefix("sha256:")
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise Refused("invalid_request", "the experiment digest is malformed")
    return text


def open_site(path: Path) -> Site:
    """Open the site that a site file describes; the first time makes its keys and its ledger.

    Raises:
        FederationError: The file is invalid, a folder is missing, or the ledger is damaged, gone,
            behind its outbox, or another data set's.
    """
    config = load_site_config(path)
    _require_folders(config)
    state = private_folder(config.state)
    if (state / LEDGER).exists():
        key = SiteKey.load(state)
        return Site(config, key, _open_ledger(config, key))
    _require_new(config)
    key = SiteKey.load(state) if SiteKey.exists(state) else SiteKey.create(state)
    return Site(config, key, _new_ledger(config, key))


def _new_ledger(config: SiteConfig, key: SiteKey) -> Ledger:
    policy = config.policy
    budget = BudgetPolicy.of(
        policy.epsilon, policy.delta, allow_unprotected=policy.allow_unprotected
    )
    return Ledger.create(config.state / LEDGER, key, budget, config.dataset, site=config.site)


def _open_ledger(config: SiteConfig, key: SiteKey) -> Ledger:
    path, policy = config.state / LEDGER, config.policy
    ledger = Ledger.open(path, key)
    opened_with = ledger.policy
    for name, now, then in (
        ("site", config.site, ledger.site),
        ("dataset", config.dataset, ledger.population),
        ("policy.epsilon", policy.epsilon, opened_with.epsilon),
        ("policy.delta", policy.delta, opened_with.delta),
        ("policy.allow_unprotected", policy.allow_unprotected, opened_with.allow_unprotected),
    ):
        if now != then:
            raise FederationError(
                f"{config.site}: {name} is {now} in the site file but {then} in the ledger "
                f"{path}. A ledger is never renamed and a budget never reset: put {then} back."
            )
    return ledger


def _require_new(config: SiteConfig) -> None:
    """Refuse to start a ledger where there has been one: it would forget what was spent.

    Raises:
        LedgerError: The state folder has approvals or releases, but no ledger.
    """
    for name in ("experiments", "nonces", "outbox"):
        if any((config.state / name).glob("*")):
            raise LedgerError(
                f"{config.site}: {config.state} holds '{name}' of earlier runs but no ledger. "
                "Restore ledger.jsonl from backup; a new one would forget what was spent."
            )


def _require_folders(config: SiteConfig) -> None:
    sources = [config.protected] + ([config.public.source] if config.public else [])
    for source in sources:
        if not (source.path.is_dir() and os.access(source.path, os.R_OK)):
            raise FederationError(
                f"{config.site}: there is no readable folder {source.path}. Correct 'path' in the "
                "site file; relative paths start at the file's folder."
            )
