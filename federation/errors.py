"""Operating conditions that a person can act on. The CLI prints these without a traceback."""

from collections.abc import Callable

OnFailure = Callable[[str], None]
"""Told, inside an ``except``, what failed: a site's log, which nobody else reads."""


class FederationError(Exception):
    """Something the operator, researcher or auditor can put right; the message says how."""


class LedgerError(FederationError):
    """A ledger file is missing, damaged, or not this site's."""


class PrivacyBudgetError(FederationError):
    """What was asked for does not fit the site's remaining privacy budget."""


class Refused(FederationError):  # noqa: N818 - a refusal is an answer, not a fault
    """A site declines a request; only ``code`` may leave the site.

    Args:
        code: One of ``messages.REFUSAL_CODES``; independent of protected data.
        detail: For the site's own log and screen. It never travels.
        correlation: Random, beside the code in the reply and in the site's log: by it a hub's
            operator and a site's talk about the same refusal.
    """

    def __init__(self, code: str, detail: str = "", *, correlation: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail
        self.correlation = correlation


class CheckpointError(FederationError):
    """A run cannot go on from what is in its folder."""


class StorageError(FederationError):
    """The hub's disk takes no more. The run has not ended: it goes on from its checkpoint."""
