"""A site: its private settings, its keys, its ledger, its cached data. Nothing here travels."""

import os
import secrets
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from data_adapters.manifest import Manifest
from federation.authors import Signature, require_author
from federation.canonical import canonical_json, digest_bytes
from federation.data_use import public_terms
from federation.documents import parse_document, read_yaml
from federation.errors import FederationError, LedgerError, Refused
from federation.experiment import Experiment
from federation.files import private_folder, write_atomically
from federation.forecast import Budget
from federation.ledger.bounds import declared_bounds
from federation.ledger.entries import Terms
from federation.ledger.filter import BudgetPolicy, FilterState
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger
from federation.ledger.openings import Opening
from federation.ledger.records import Record
from federation.ledger.records import now as now_
from federation.ledger.upkeep import rotate
from federation.linking import LEDGER
from federation.messages import Description
from federation.privacy.plan import PrivacyPlan
from federation.site_config import Part, SiteConfig, load_site_config
from federation.site_data import Ingested, SiteData, open_site_data
from federation.site_keys import current_key, finish_rotation, first_key, next_key
from federation.software import software_digest

__all__ = ["Part", "Site", "SiteConfig", "load_site_config", "open_site"]


@dataclass(frozen=True)
class Permission:
    """Who permits a run, and on what basis. What an operator adds to the experiment's own terms.

    Attributes:
        hub_key: Of the hub that may ask, hex; None on one machine.
        author: Fingerprint of the key that signed the experiment.
        expires: Last moment, as ``ledger.records.now`` writes it.
    """

    approver: str
    second_approver: str | None = None
    ethics_reference: str | None = None
    legal_basis: str | None = None
    expires: str | None = None
    hub_key: str | None = None
    author: str | None = None


@dataclass(frozen=True)
class Site(SiteData):
    """A site with its data, keys and ledger. Make one with ``open_site``."""

    key: SiteKey
    ledger: Ledger

    @property
    def log_path(self) -> Path:
        """Return the site's own log; its text can show file names, so it is never sent."""
        return self.config.state / "site.log"

    def log_failure(self, what: str) -> None:
        """Append the current exception with its traceback to the site's log.

        A log that cannot be written raises nothing: what is told here may depend on one subject,
        and a round that failed because of it would tell the hub.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with suppress(OSError), os.fdopen(os.open(self.log_path, flags, 0o600), "a") as log:
            log.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {what} failed\n")
            log.write(traceback.format_exc() + "\n")

    def approve(self, experiment: Experiment, plan: PrivacyPlan, permission: Permission) -> Record:
        """Record in the ledger that this experiment may charge this data set, up to its limits.

        Raises:
            PrivacyBudgetError: The policy forbids it, or the budget left does not hold it.
            FederationError: The data may not be used for it.
        """
        self.require_usable(experiment, plan)
        self._keep(experiment)
        return self.ledger.approve(self.terms(experiment, plan, permission))

    def terms(self, experiment: Experiment, plan: PrivacyPlan, permission: Permission) -> Terms:
        """Return everything that an approval binds: what runs, what it costs, what leaves."""
        return Terms(
            experiment_digest=experiment.digest(),
            plan_digest=plan.digest(),
            event=plan.round_event,
            charges=plan.charges,
            commitment=self.commitment(experiment.digest()),
            software=software_digest(),
            algorithm=experiment.algorithm.kind,
            epsilon=plan.epsilon if plan.is_private else None,
            leaves=self.leaves,
            **asdict(permission),
        )

    def has_approved(self, experiment: Experiment, plan: PrivacyPlan) -> bool:
        """Tell whether just this was approved, still holds, and no run has taken it up."""
        approval = self.ledger.book.open_approval(experiment.digest())
        if approval is None or approval.run is not None or approval.expired(now_()):
            return False
        given = Terms.of(approval.record.body)
        names = {field.name for field in fields(Permission)}
        permission = Permission(**{name: getattr(given, name) for name in names})
        return self.terms(experiment, plan, permission) == given

    def require_author(self, experiment: Experiment, signature: Signature | None) -> str | None:
        """Return the fingerprint of the author who signed an experiment, or None.

        Raises:
            FederationError: The signature is not valid, or by none whom the site file names.
        """
        return require_author(self.config.authors, experiment, signature, self.name)

    @property
    def leaves(self) -> tuple[str, ...]:
        """Return what leaves for an experiment, a short text each, as approvals have it."""
        public = (
            ("scores on declared public subjects, and how many they are",)
            if self.has_public
            else ()
        )
        return (
            "noised update of the weights, each round",
            "signed receipts and a closing statement",
            "public description of the data set",
            f"counts: {self.config.policy.release_counts}",
            declared_bounds(*self.config.policy.subjects_between),
            *public,
        )

    def require_usable(self, experiment: Experiment, plan: PrivacyPlan) -> None:
        """Check the data as they are, and the site file, against what an experiment asks for.

        Raises:
            FederationError: The data may not be used for it.
        """
        self.check_subjects()
        self.require_one_budget()
        self.require_permitted(experiment.data_use)
        if not plan.is_private:
            self.require_no_people()

    def approved(
        self,
        experiment_digest: str,
        now: Ingested | None = None,
        *,
        hub_key: str | None = None,
    ) -> Experiment:
        """Return the experiment that was approved under this digest.

        Whether somebody is protected and public is looked at each time: an approval is bound to
        the protected data, and public data may have come since.

        Args:
            now: The manifests that are going to be used.
            hub_key: Of the hub that has signed the request; None on one machine.

        Raises:
            Refused: ``not_approved``: never approved here, or data or terms have changed since.
            FederationError: Nothing was ingested yet.
        """
        now = self.ingested() if now is None else now
        record = self.ledger.approval_for(experiment_digest, used_up=True)
        path = self._experiment_path(experiment_digest)
        if record is None or not path.is_file():
            raise Refused("not_approved", f"no open approval for {experiment_digest}")
        if record.body["hub_key"] != hub_key:
            whose = f"hub {hub_key[:16]}" if hub_key else "this machine, without a hub"
            raise Refused("not_approved", f"the approval is not for {whose}")
        if record.body["leaves"] != list(self.leaves):
            raise Refused(
                "not_approved",
                "the site file lets other things leave than were approved; approve the experiment "
                "again, or put the file back",
            )
        if record.body["expires"] is not None and now_() > record.body["expires"]:
            raise Refused("not_approved", f"the approval expired at {record.body['expires']}")
        if self.config.authors and record.body["author"] not in self.config.authors.values():
            raise Refused("not_approved", "its author is not in the site file any more")
        if record.body["software"] != software_digest():
            raise Refused(
                "not_approved",
                "the installed software is not that of the approval; approve the experiment again "
                "to go on with this one",
            )
        if record.body["commitment"] != self.commitment(experiment_digest, now.get("protected")):
            raise Refused(
                "not_approved",
                "the data set has changed since it was approved (new scans, or a subject was "
                "taken out); approve the experiment again to go on with the data as they are",
            )
        values = read_yaml(path, "approved experiment")
        experiment = parse_document(values, Experiment, "approved experiment")
        if experiment.digest() != experiment_digest:
            raise Refused("not_approved", f"{path} is not what was approved")
        try:
            self.check_subjects(now)
            self.require_one_budget(now)
            self.require_terms(experiment.data_use)
        except FederationError as error:
            raise Refused("not_approved", str(error)) from error
        return experiment

    def experiment_name(self, experiment_digest: str) -> str:
        """Return the name of an experiment that was approved here, or a dash."""
        path = self._experiment_path(experiment_digest)
        return str(read_yaml(path, "approved experiment")["name"]) if path.is_file() else "-"

    def commitment(self, experiment_digest: str, manifest: Manifest | None = None) -> str:
        """Return SHA-256(nonce, data root); the nonce is fresh per experiment and stays here.

        Args:
            manifest: Of the protected data, if it was read already.
        """
        root = (manifest or self.manifest("protected")).root
        return digest_bytes(self._nonce(experiment_digest) + root.encode())

    def opening(self, experiment_digest: str) -> Opening:
        """Return what opens the commitment of an approval, for an auditor alone.

        Raises:
            FederationError: It was never approved here, or on data that are others by now.
        """
        record = self.ledger.approvals.get(experiment_digest)
        if record is None:
            raise FederationError(f"{self.name}: {experiment_digest} was never approved here.")
        nonce, root = self._nonce(experiment_digest), self.manifest("protected").root
        opening = Opening(self.name, experiment_digest, nonce.hex(), root)
        if opening.commitment != record.body["commitment"]:
            raise FederationError(
                f"{self.name}: the data are not those that {experiment_digest} was approved for, "
                "so nothing here opens its commitment. Open it from a backup of the state folder "
                "of that time."
            )
        return opening

    def describe(self, experiment_digest: str, manifest: Manifest | None = None) -> Description:
        """Return what this site says of itself to the hub.

        Args:
            manifest: Of the protected data, if it was read already.
        """
        manifest = manifest or self.manifest("protected")
        commitment = self.commitment(experiment_digest, manifest)
        return describe(self, self.key.public_bytes.hex(), commitment, manifest)

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


def describe(
    data: SiteData,
    public_key: str,
    commitment: str,
    manifest: Manifest | None,
    *,
    unknown: str = "",
) -> Description:
    """Return what a site says of itself: declared in its file, or released as its policy allows.

    Args:
        manifest: Of the protected data.
        unknown: In place of the released count, before anything was ingested.
    """
    config = data.config
    return Description(
        site=data.name,
        public_key=public_key,
        commitment=commitment,
        dataset=config.dataset,
        source_kind="+".join(sorted({source.kind for source in config.protected})),
        modality=config.modality,
        num_subjects=_released_count(config, manifest) if manifest else unknown,
        licence=config.licence,
        data_use=public_terms(config.data_use),
        versions=dict(manifest.versions) if manifest else {},
    )


def _released_count(config: SiteConfig, manifest: Manifest) -> str:
    count, how = len(manifest.subjects), config.policy.release_counts
    if how == "exact":
        return str(count)
    return _rounded(count) if how == "rounded" else "withheld"


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
    config = open_site_data(path).config
    private_folder(config.state)
    if has_ledger(config):
        finish_rotation(config)
        key = current_key(config)
        return _with_every_exclusion(Site(config, key, _open_ledger(config, key)))
    _require_new(config)
    key = first_key(config)
    return Site(config, key, _new_ledger(config, key))


def open_existing(path: Path) -> SiteData:
    """Open a site as far as it exists: with keys and ledger after its first run, else its data.

    Raises:
        FederationError: See ``open_site``.
    """
    data = open_site_data(path)
    return open_site(path) if has_ledger(data.config) else data


def budget_of(path: Path, experiment_digest: str) -> Budget:
    """Return the filter of a site as it stands for an experiment; before its first ledger, empty.

    Raises:
        FederationError: See ``open_site``.
    """
    config = load_site_config(path)
    if not has_ledger(config):
        return Budget(config.site, _policy_of(config), *[FilterState()] * 3)
    ledger = open_site(path).ledger
    promised, approved = ledger.promised(experiment_digest), ledger.promised()
    return Budget(ledger.site, ledger.policy, ledger.state, promised, approved)


def has_ledger(config: SiteConfig) -> bool:
    """Tell whether the budget of this site is fixed already."""
    return (config.state / LEDGER).exists()


def replace_key(site: Site) -> str:
    """Give a site a new signing key, and return its fingerprint. Open the site again afterwards.

    Killed anywhere in between, opening the site finishes it or leaves the old key in force.
    """
    new = next_key(site.config)
    rotate(site.ledger, new)
    site.ledger.close()
    finish_rotation(site.config)
    return new.fingerprint


def open_to_recover(path: Path) -> Site:
    """Open a site whose ledger may be an older copy. For ``ledger.upkeep.recover`` alone.

    Raises:
        FederationError: See ``open_site``.
    """
    config = open_site_data(path).config
    finish_rotation(config)
    key = current_key(config)
    ledger_path = config.state / LEDGER
    return Site(
        config, key, Ledger.open(ledger_path, key, mark=config.high_water_mark, recovering=True)
    )


def _new_ledger(config: SiteConfig, key: SiteKey) -> Ledger:
    return Ledger.create(
        config.state / LEDGER,
        key,
        _policy_of(config),
        config.dataset,
        site=config.site,
        declaration=config.declaration,
        mark=config.high_water_mark,
    )


def _policy_of(config: SiteConfig) -> BudgetPolicy:
    policy = config.policy
    return BudgetPolicy.of(
        policy.epsilon, policy.delta, allow_unprotected=config.allows_unprotected
    )


def _open_ledger(config: SiteConfig, key: SiteKey) -> Ledger:
    path, policy = config.state / LEDGER, config.policy
    ledger = Ledger.open(path, key, mark=config.high_water_mark)
    opened_with = ledger.policy
    _require_same_declaration(config, ledger)
    for name, written, then in (
        ("site", config.site, ledger.site),
        ("dataset", config.dataset, ledger.population),
        ("policy.epsilon", policy.epsilon, opened_with.epsilon),
        ("policy.delta", policy.delta, opened_with.delta),
        ("policy.allow_unprotected", config.allows_unprotected, opened_with.allow_unprotected),
    ):
        if written != then:
            raise FederationError(
                f"{config.site}: {name} is {written} in the site file but {then} in the ledger "
                f"{path}. A ledger is never renamed and a budget never reset: put {then} back."
            )
    return ledger


def _require_same_declaration(config: SiteConfig, ledger: Ledger) -> None:
    """Refuse a ledger whose subjects became no people afterwards, or others than was said.

    Raises:
        FederationError: Says what the ledger has.
    """
    now, then = config.declaration, ledger.book.declaration
    if now == then:
        return
    recorded = f"'{then.by}: {then.reason}'" if then else "no such declaration"
    raise FederationError(
        f"{config.site}: 'human_subjects' in the site file is not what stands in the ledger "
        f"{ledger.path}, which has {recorded}. Protection is not taken away afterwards: put that "
        "back."
    )


def _with_every_exclusion(site: Site) -> Site:
    """Refuse a list of exclusions from which some that the ledger knows of are missing.

    Raises:
        FederationError: Subjects who were excluded would be trained on again.
    """
    noted = sum(record.body["what"] == "exclusion" for record in site.ledger.book.notes)
    known = len(site.exclusions)
    if known < noted:
        raise FederationError(
            f"{site.name}: the ledger records {noted} exclusions and {site.config.state} lists "
            f"{known}. Restore excluded.json from backup: without it subjects who were taken out "
            "would be trained on again."
        )
    return site


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
