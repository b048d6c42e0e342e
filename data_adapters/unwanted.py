"""Whose images are out, told by the raw identifiers of one source before anything is read."""

from collections.abc import Callable
from dataclasses import dataclass

from data_adapters.aliases import NOBODY, Excluded, with_some_issuer
from data_adapters.reasons import Unusable
from data_adapters.sources import SubjectRule
from data_adapters.subject_ids import Subjects, subjects_of


@dataclass(frozen=True)
class Unwanted:
    """Those who were excluded, by the rule of one source. Make one with ``unwanted_by``."""

    subjects: Subjects
    excluded: Excluded
    pseudonymise: Callable[[str], str]

    def has(self, raw: str, *, issuer_may_follow: bool = False) -> bool:
        """Return whether a raw identifier names somebody who is out; what names nobody does not.

        Args:
            issuer_may_follow: The images may name an issuer that ``raw`` leaves out, and so be
                another person's than the excluded one with that number from a known issuer.
        """
        try:
            aliases = self.subjects.identity(raw).aliases(self.pseudonymise)
        except Unusable:
            return False
        return self.excluded.has(with_some_issuer(aliases) if issuer_may_follow else aliases)


def unwanted_by(
    rule: SubjectRule, excluded: Excluded, pseudonymise: Callable[[str], str]
) -> Unwanted | None:
    """Return whom a source's images must not be of; None where nobody was excluded.

    Raises:
        DataError: The source's crosswalk cannot be read.
    """
    if excluded == NOBODY:
        return None
    return Unwanted(subjects_of(rule), excluded, pseudonymise)
