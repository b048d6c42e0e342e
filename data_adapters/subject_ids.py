"""When an identifier names a subject, and which identifiers name the same one."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from data_adapters.aliases import Identity
from data_adapters.errors import DataError
from data_adapters.reasons import Unusable
from data_adapters.sources import SubjectRule
from data_adapters.tables import read_table

# What de-identification and test tools write where a real identifier was.
PLACEHOLDERS = frozenset(
    {
        "anon",
        "anonymous",
        "anonymised",
        "anonymized",
        "deidentified",
        "default",
        "dummy",
        "na",
        "noid",
        "none",
        "noname",
        "null",
        "patient",
        "patientid",
        "removed",
        "subject",
        "test",
        "unknown",
        "unnamed",
    }
)
# HL7 v2 CX: the identifier, two empty components, the assigning authority.
ISSUER = "^^^"


def names_a_subject(identifier: str) -> bool:
    """Return whether ``identifier`` can tell one subject from another.

    >>> [names_a_subject(name) for name in ("MR-0042", "", "0000", "Anonymous", "n/a", "^^")]
    [True, False, False, False, False, False]
    """
    letters = re.sub(r"[\W_]+", "", identifier, flags=re.UNICODE).casefold()
    same_character_throughout = len(set(letters)) <= 1 and letters[:1] in {"", "0", "x"}
    return not same_character_throughout and letters not in PLACEHOLDERS


@dataclass(frozen=True)
class Subjects:
    """Turns the raw identifiers of one source into subjects. Make one with ``subjects_of``.

    Args:
        people: (identifier, issuer) to person, from the crosswalk; an issuer may be empty.
        issuer: Of identifiers that name none.
        unclear: Identifiers that could be two people unless their issuer is named.
        several_sources: The site has others: no identifier is clear without its issuer.
    """

    people: Mapping[tuple[str, str], str]
    issuer: str | None
    unclear: frozenset[str]
    several_sources: bool

    def identity(self, raw: str) -> Identity:
        """Return who this is at the site.

        Raises:
            Unusable: NO_SUBJECT or SUBJECT_WITHOUT_ISSUER.
        """
        identifier, issuer = split_identifier(raw)
        if not names_a_subject(identifier):
            raise Unusable("NO_SUBJECT")
        issuer = issuer or self.issuer or ""
        person = self.people.get((identifier, issuer))
        if person is None and identifier not in self.unclear:
            person = self.people.get((identifier, ""))
        if person is None:
            if not issuer and (self.several_sources or identifier in self.unclear):
                raise Unusable("SUBJECT_WITHOUT_ISSUER")
            return Identity(_written(identifier, issuer), frozenset({(identifier, issuer)}))
        known = {names for names, other in self.people.items() if other == person}
        # Apart from identifiers: a person called B2 is not the patient B2.
        return Identity(f"person\0{person}", frozenset({*known, (identifier, issuer)}))

    def subject(self, raw: str) -> str:
        """Return the one text under which this person is known; see ``identity``."""
        return self.identity(raw).subject


def split_identifier(raw: str) -> tuple[str, str]:
    """Return identifier and issuer in one form, whatever the system that wrote them.

    >>> split_identifier(" A1 ^^^ NORTH ")
    ('A1', 'NORTH')
    """
    identifier, _, issuer = unicodedata.normalize("NFC", raw).partition(ISSUER)
    return identifier.strip(), issuer.strip()


def _written(identifier: str, issuer: str) -> str:
    return f"{identifier}{ISSUER}{issuer}" if issuer else identifier


def subjects_of(
    rule: SubjectRule, *, unclear: frozenset[str] = frozenset(), several_sources: bool = False
) -> Subjects:
    """Return how the identifiers of one source are understood.

    Args:
        unclear: From ``unclear_identifiers``, over all sources of the site.
        several_sources: The site has others, so that no identifier is clear without its issuer.

    Raises:
        DataError: The crosswalk cannot be read, or gives one identifier to two people.
    """
    return Subjects(_crosswalk(rule), rule.issuer, unclear, several_sources)


def unclear_identifiers(raw: Iterable[tuple[SubjectRule, str]]) -> frozenset[str]:
    """Return identifiers that occur with an issuer and without, or with two issuers."""
    issuers: defaultdict[str, set[str]] = defaultdict(set)
    for rule, text in raw:
        identifier, issuer = split_identifier(text)
        issuers[identifier].add(issuer or rule.issuer or "")
    return frozenset(identifier for identifier, found in issuers.items() if len(found) > 1)


def _crosswalk(rule: SubjectRule) -> Mapping[tuple[str, str], str]:
    if rule.crosswalk is None:
        return {}
    people: dict[tuple[str, str], str] = {}
    rows = read_table(rule.crosswalk, (rule.id_column, rule.subject_column))
    for number, (identifier, person) in enumerate(rows, start=2):
        if not names_a_subject(person):
            raise DataError(
                f"{rule.crosswalk}, line {number}: {rule.subject_column!r} names nobody. Give each "
                "person a name of their own (it never leaves this site)."
            )
        if people.setdefault(split_identifier(identifier), person) != person:
            raise DataError(
                f"{rule.crosswalk}, line {number}: the identifier stands for two people. Keep the "
                "row that is true."
            )
    return people
