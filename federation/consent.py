"""Consent of each subject: a table that the site keeps, read anew whenever it matters.

A row says that one subject consents to uses within some terms, until a day. Of several rows of one
subject one is enough. A row that cannot be understood gives no consent.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from data_adapters.tables import read_table
from federation.data_use import DataUse, Terms, parse_terms
from federation.documents import Strict

# What a raw identifier may stand for: one pseudonym a source, for the sources of one population.
Pseudonyms = Callable[[str], frozenset[str]]

UNKNOWN_PURPOSE = "whose purpose is not understood"
UNKNOWN_DAY = "whose day of expiry is no date (write 2027-12-31)"
NOBODY = "whose identifier names nobody, or could be several people (write ID^^^ISSUER)"


class ConsentTable(Strict):
    """Where consent is written down: CSV or Parquet, one row for each subject and purpose.

    Attributes:
        path: The table.
        id_column: Raw subject identifiers, as in the images (``id^^^issuer`` or ``id``).
        purpose_column: DUO codes as in ``data_use``, separated by semicolons.
        expires_column: The last day on which the consent holds, ``YYYY-MM-DD``; empty for no end.
    """

    path: Path
    id_column: str = "subject"
    purpose_column: str = "purpose"
    expires_column: str = "expires"


@dataclass(frozen=True)
class Consent:
    """One row: what for, and the last day on which it holds (None: no end)."""

    terms: Terms
    expires: date | None

    def holds(self, use: DataUse, today: date) -> bool:
        """Tell whether this row permits ``use`` on that day."""
        return not self.expired(today) and self.terms.permit(use)

    def expired(self, today: date) -> bool:
        """Tell whether the last day is past."""
        return self.expires is not None and today > self.expires


@dataclass(frozen=True)
class Consents:
    """What the table says, by pseudonym. Make one with ``load_consents``.

    Attributes:
        num_rows_unused: Rows that give no consent, by why not.
    """

    by_subject: Mapping[str, tuple[Consent, ...]]
    num_rows_unused: Mapping[str, int]

    def lacking(self, subjects: Iterable[str], use: DataUse, today: date) -> frozenset[str]:
        """Return the subjects without consent to ``use`` on that day."""
        return frozenset(
            subject
            for subject in subjects
            if not any(consent.holds(use, today) for consent in self.by_subject.get(subject, ()))
        )

    def expired(self, subjects: Iterable[str], today: date) -> frozenset[str]:
        """Return the subjects whose every consent has come to its end."""
        return frozenset(
            subject
            for subject in subjects
            if (rows := self.by_subject.get(subject)) and all(row.expired(today) for row in rows)
        )

    def unknown(self, subjects: Iterable[str]) -> frozenset[str]:
        """Return the subjects of whom the table says nothing that can be used."""
        return frozenset(subject for subject in subjects if not self.by_subject.get(subject))


def load_consents(
    table: ConsentTable,
    *,
    pseudonyms: Pseudonyms,
    subjects: Collection[str],
    acknowledged: Collection[str] = (),
) -> Consents:
    """Read the table.

    Args:
        pseudonyms: What a raw identifier may stand for; nothing where it names nobody.
        subjects: Pseudonyms of the data set. An identifier that could be two of them is nobody's.
        acknowledged: Codes of modifiers that a person has taken on.

    Raises:
        DataError: It is missing, no table, or without the named columns.
    """
    found: defaultdict[str, list[Consent]] = defaultdict(list)
    unused: Counter[str] = Counter()
    columns = (table.id_column, table.purpose_column, table.expires_column)
    for raw, purpose, expires in read_table(table.path, columns):
        row = _consent(purpose, expires, acknowledged)
        meant = pseudonyms(raw)
        here = meant & frozenset(subjects)
        if isinstance(row, str):
            unused[row] += 1
        elif not meant or len(here) > 1:
            unused[NOBODY] += 1
        else:
            for subject in here:
                found[subject].append(row)
    return Consents({name: tuple(rows) for name, rows in found.items()}, dict(unused))


def _consent(purpose: str, expires: str, acknowledged: Collection[str]) -> Consent | str:
    """Return the row's consent, or why it gives none."""
    try:
        last_day = date.fromisoformat(expires) if expires else None
    except ValueError:
        return UNKNOWN_DAY
    try:
        codes = [code for code in purpose.split(";") if code.strip()]
        return Consent(parse_terms(codes, acknowledged), last_day)
    except ValueError:
        return UNKNOWN_PURPOSE
