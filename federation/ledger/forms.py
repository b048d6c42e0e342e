"""What a value in a record, receipt or closing may look like: a check a form."""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from math import isfinite
from typing import Any

from federation.ledger.filter import MAX_EPSILON, event_from_json

# Sites whose heads one request may show, events that one record may spend, and digests of a note.
MAX_HEADS = 256
MAX_SPENDS = 400
MAX_NOTED_EXPERIMENTS = 800

Check = Callable[[Any], object]


def require_keys(value: object, checks: Mapping[str, Check], what: str) -> dict[str, Any]:
    """Return ``value`` as an object with exactly these keys, each of them checked.

    Raises:
        ValueError: A key is missing or unknown, or a value has the wrong form.
    """
    if not isinstance(value, dict) or set(value) != set(checks):
        raise ValueError(f"{what} has exactly the keys {', '.join(sorted(checks))}")
    for name, check in checks.items():
        try:
            check(value[name])
        except ValueError as error:
            raise ValueError(f"{what}: {name}: {error}") from error
    return value


def matches(pattern: str, meaning: str) -> Check:
    """Return a check for text that a pattern describes whole; ``meaning`` says so to people."""
    compiled = re.compile(pattern, re.ASCII)

    def check(value: Any) -> None:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise ValueError(f"expected {meaning}")

    return check


def check_text(value: Any) -> None:
    """Accept 1 to 200 printable characters: nothing that could steer a terminal or a page.

    Raises:
        ValueError: Anything else.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or not value.isprintable():
        raise ValueError("expected 1 to 200 printable characters")


def check_versions(value: Any) -> None:
    """Accept up to 32 pairs of text.

    Raises:
        ValueError: Anything else.
    """
    if not isinstance(value, dict) or len(value) > 32:
        raise ValueError("expected at most 32 names with versions")
    for part in (*value, *value.values()):
        check_text(part)


def count_to(high: int) -> Check:
    """Return a check for whole numbers from 0 to ``high``."""

    def check(value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
            raise ValueError(f"expected a whole number from 0 to {high}")

    return check


def check_totals(value: Any) -> None:
    """Accept one float from 0 for each order of a policy.

    Raises:
        ValueError: Anything else.
    """
    if not isinstance(value, list) or len(value) > 16:
        raise ValueError("expected a list of at most 16 numbers")
    for total in value:
        if not isinstance(total, float) or total < 0:
            raise ValueError("expected numbers from 0")


def one_of(*values: str) -> Check:
    """Return a check for one of these texts."""
    return matches("|".join(values), f"one of {', '.join(values)}")


check_digest = matches("sha256:[0-9a-f]{64}", "sha256: and 64 hex digits")
check_public_key = matches("[0-9a-f]{64}", "64 hex digits")
check_signature = matches("[0-9a-f]{128}", "128 hex digits")
check_run = matches("[A-Za-z0-9._-]{1,64}", "1 to 64 letters, digits, '.', '_' or '-'")
check_seq = count_to(10**9)
check_round = count_to(10**6)

check_fingerprint = matches("SHA256:[A-Za-z0-9+/]{43}", "SHA256: and 43 characters")


def check_time(value: Any) -> None:
    """Accept a UTC time to the second that the calendar has, as ``2026-11-27T20:23:00Z``.

    Raises:
        ValueError: Anything else.
    """
    _looks_like_a_time(value)
    try:
        datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError("expected a UTC time that the calendar has") from error


_looks_like_a_time = matches(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "a UTC time")


def optional(check: Check) -> Check:
    """Return a check that lets null pass, too."""
    return lambda value: None if value is None else check(value)


def check_epsilon(value: Any) -> None:
    """Accept a finite number from 0.

    Raises:
        ValueError: Anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected a number")
    if not (isfinite(value) and 0 <= value <= MAX_EPSILON):
        raise ValueError(f"expected a number from 0 to {MAX_EPSILON:g}")


def listed(check: Check, most: int) -> Check:
    """Return a check for a list of at most so many values."""

    def check_list(value: Any) -> None:
        if not isinstance(value, list) or len(value) > most:
            raise ValueError(f"expected a list of at most {most}")
        for part in value:
            check(part)

    return check_list


def check_heads(value: Any) -> None:
    """Accept digests by site name.

    Raises:
        ValueError: Anything else.
    """
    if not isinstance(value, dict) or len(value) > MAX_HEADS:
        raise ValueError(f"expected digests of at most {MAX_HEADS} sites")
    for site, head in value.items():
        check_text(site)
        check_digest(head)


check_spends = listed(event_from_json, MAX_SPENDS)
