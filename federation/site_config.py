"""The site file: what a site's operator declares. Nothing in it travels but what says so."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from data_adapters.decoding import USUAL, Limits
from data_adapters.sources import AnySource, Source
from federation.consent import ConsentTable
from federation.data_use import FOR_PEOPLE, Terms, parse_terms
from federation.documents import Strict, parse_document, read_yaml
from federation.experiment import Identifier, Name
from federation.ledger.bounds import most_subjects
from federation.ledger.entries import Declaration
from federation.ledger.forms import check_text

Part = Literal["protected", "public"]
PARTS: tuple[Part, ...] = get_args(Part)


def _several(value: Any) -> Any:
    """Take one source as a list of one."""
    return value if isinstance(value, list | tuple) else [value]


def _for_the_ledger(text: str) -> str:
    check_text(text)
    return text


Sources = Annotated[
    tuple[Source, ...], BeforeValidator(_several), Field(min_length=1, max_length=64)
]
LedgerText = Annotated[str, AfterValidator(_for_the_ledger)]
Fingerprint = Annotated[str, Field(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")]
DuoCode = Annotated[str, Field(pattern=r"^DUO:\d{7}$")]


class PublicData(Strict):
    """Subjects whose exact scores may leave, because somebody declared them public.

    Attributes:
        source: One source or a list of sources.
    """

    source: Sources
    declared_by: Name
    reason: Name


class HumanSubjects(Strict):
    """Whether the images are of people. Saying no takes a name and a reason, in the ledger.

    Attributes:
        value: ``false`` for phantoms, cell lines, plants: such data may run without privacy.
        headers_checked_by: Who has looked at headers that hold what a person has (a date of birth,
            an age, a sex) and says that they are of none. Stands in the ledger with the reason.
    """

    value: bool
    who: LedgerText
    why: LedgerText
    headers_checked_by: LedgerText | None = None

    @property
    def reason(self) -> str:
        """Return what the ledger says beside who declared it."""
        checked = self.headers_checked_by
        return f"{self.why}; headers checked by {checked}" if checked else self.why

    @model_validator(mode="after")
    def _the_ledger_takes_it(self) -> "HumanSubjects":
        check_text(self.reason)
        return self


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
        if high > most_subjects(self.delta):
            raise ValueError(
                f"delta {self.delta:g} is above 1/N^2 = {1 / high**2:.2g} for up to {high} "
                "subjects; a larger delta would permit giving a subject away whole. Lower delta; "
                "where a ledger has fixed it already, the upper bound may be at most "
                f"{most_subjects(self.delta)} (docs/site.md says what else can be done)"
            )
        return self


class HubConfig(Strict):
    """The one hub that this site answers, and how to reach it. The site opens no port for it.

    Attributes:
        address: Host and port of the hub's proxy.
        key: The hub's Ed25519 public key, hex: what it signs its requests with. Compare it with
            the hub's operator over the telephone; approvals are bound to it.
        ca: Who has signed the certificate of the hub's proxy, PEM.
        certificate: What this site shows to the proxy, PEM; ``cohortium hub add-site`` makes it.
        tick_s: Replies leave at multiples of so many seconds after their request was read, so
            that the time a round takes tells less. 0: at once.
    """

    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$")]
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    ca: Path
    certificate: Path
    tick_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 10.0


class TokenConfig(Strict):
    """A signing key that stays in a token: PKCS#11. Its PIN never stands in the site file.

    Attributes:
        module: The vendor's library, such as ``/usr/lib/softhsm/libsofthsm2.so``.
        token: The token's label.
        label: The key's.
    """

    module: Path
    token: Annotated[str, Field(min_length=1, max_length=32)]
    label: Annotated[str, Field(min_length=1, max_length=200)]


class KeysConfig(Strict):
    """Where the ledger's signing key is, if not in the state folder."""

    pkcs11: TokenConfig


class SiteConfig(Strict):
    """The site file. Relative paths start at the folder of the file.

    Attributes:
        site, dataset, licence, modality: Public by declaration (modality: DICOM CS, such as MR);
            none of them is read off the subjects.
        protected: One source or several that hold one protected population, with one budget.
        data_use: Codes of the Data Use Ontology: what the data may be used for. See ``data_use``.
        acknowledged: Who has seen to it that a modifier holds which no program can check, by code.
        consent: Who consented to what, and until when. Subjects without consent are not sampled.
        human_subjects: Who says that the images are of no people, and why.
        authors: Whose experiments may be approved here, fingerprints by name; empty for anybody's.
        linking: A folder that all site files of an institution share: subjects who are in several
            of its data sets are found there.
        high_water_mark: A file on other storage than ``state``, which a restored backup of the
            site does not bring back, too: it shows that the ledger is an older copy.
        keys: Where the signing key is, if not in the state folder.
        hub: The hub that this site answers; none for sites that only run on this machine.
        decoding: What the processes that decode images may use, and must be unable to do.
    """

    site: Identifier
    state: Path
    dataset: Identifier
    licence: Name
    modality: Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")] = "UNDECLARED"
    protected: Sources
    public: PublicData | None = None
    data_use: tuple[Annotated[str, Field(max_length=200)], ...] = ()
    acknowledged: dict[DuoCode, Name] = Field(default_factory=dict)
    consent: ConsentTable | None = None
    human_subjects: HumanSubjects | None = None
    authors: dict[Name, Fingerprint] = Field(default_factory=dict)
    linking: Path | None = None
    high_water_mark: Path | None = None
    keys: KeysConfig | None = None
    hub: HubConfig | None = None
    decoding: Limits = USUAL
    policy: SitePolicy

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return the parts of the data that the file declares."""
        return ("protected", "public") if self.public else ("protected",)

    def sources(self, part: Part) -> tuple[AnySource, ...]:
        """Return where one part of the data lies; nothing for a part that is not declared."""
        if part == "protected":
            return self.protected
        return self.public.source if self.public else ()

    @property
    def every_source(self) -> tuple[AnySource, ...]:
        """Return the sources of all parts."""
        return tuple(source for part in self.parts for source in self.sources(part))

    @property
    def terms(self) -> Terms | None:
        """Return what the data set may be used for; None where the file does not say."""
        return parse_terms(self.data_use, self.acknowledged) if self.data_use else None

    @property
    def declaration(self) -> Declaration | None:
        """Return who says that the images are of no human subjects; None for images of people."""
        said = self.human_subjects
        return None if said is None or said.value else Declaration(said.who, said.reason)

    @property
    def allows_unprotected(self) -> bool:
        """Tell whether experiments without privacy may run at all."""
        return self.policy.allow_unprotected or self.declaration is not None

    @property
    def tables(self) -> tuple[Path, ...]:
        """Return every table and certificate that the file names."""
        beside = tuple(path for source in self.every_source for path in _tables(source))
        hub = (self.hub.ca, self.hub.certificate) if self.hub else ()
        return beside + hub + ((self.consent.path,) if self.consent else ())

    def located(self, home: Path) -> "SiteConfig":
        """Return the settings with their relative paths starting at ``home``."""
        public, consent, hub = self.public, self.consent, self.hub
        if hub is not None:
            there = {"ca": home / hub.ca, "certificate": home / hub.certificate}
            hub = hub.model_copy(update=there)
        if public is not None:
            public = public.model_copy(update={"source": _located(public.source, home)})
        if consent is not None:
            consent = consent.model_copy(update={"path": home / consent.path})
        return self.model_copy(
            update={
                "state": home / self.state,
                "linking": home / self.linking if self.linking else None,
                "high_water_mark": home / self.high_water_mark if self.high_water_mark else None,
                "protected": _located(self.protected, home),
                "public": public,
                "consent": consent,
                "hub": hub,
            }
        )

    @model_validator(mode="after")
    def _terms_can_be_checked(self) -> "SiteConfig":
        for code in self.acknowledged:
            if code not in FOR_PEOPLE:
                raise ValueError(f"acknowledged: {code} needs nobody's word; take it out")
        try:
            _ = self.terms
        except ValueError as error:
            raise ValueError(f"data_use: {error}") from error
        return self

    @model_validator(mode="after")
    def _mark_is_apart(self) -> "SiteConfig":
        if self.high_water_mark and self.high_water_mark.is_relative_to(self.state):
            raise ValueError(
                "high_water_mark lies in 'state', and would be restored with it. Give it a place "
                "on other storage"
            )
        return self

    @model_validator(mode="after")
    def _consent_is_of_people(self) -> "SiteConfig":
        if self.declaration is not None and self.consent is not None:
            raise ValueError("'consent' names people, and 'human_subjects' says there are none")
        return self


def _located(sources: tuple[AnySource, ...], home: Path) -> tuple[AnySource, ...]:
    return tuple(source.located(home) for source in sources)


def _tables(source: AnySource) -> Iterator[Path]:
    """Yield the paths of a source but for where its images lie."""
    if source.targets is not None:
        yield source.targets.path
    for holder, name in (
        (source.subjects, "crosswalk"),
        (source, "images"),
        (source, "wells"),
        (source, "ca_file"),
    ):
        path = getattr(holder, name, None)
        if isinstance(path, Path):
            yield path


def load_site_config(path: Path) -> SiteConfig:
    """Read a site file and make its paths absolute.

    Raises:
        FederationError: Missing or invalid; says which key and what would do.
    """
    values = read_yaml(path, "site")
    config = parse_document(values, SiteConfig, f"site file {path}")
    return config.located(path.resolve().parent)
