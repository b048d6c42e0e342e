"""When an identifier names a subject, and when it only fills a field."""

import re

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


def names_a_subject(identifier: str) -> bool:
    """Return whether ``identifier`` can tell one subject from another.

    >>> [names_a_subject(name) for name in ("MR-0042", "", "0000", "Anonymous", "n/a", "^^")]
    [True, False, False, False, False, False]
    """
    letters = re.sub(r"[\W_]+", "", identifier, flags=re.UNICODE).casefold()
    same_character_throughout = len(set(letters)) <= 1 and letters[:1] in {"", "0", "x"}
    return not same_character_throughout and letters not in PLACEHOLDERS
