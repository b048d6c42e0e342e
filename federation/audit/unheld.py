"""What sites have signed about ledgers that nobody handed in: a hub's folder holds no more."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from federation.audit.evidence import Statement
from federation.audit.state import counted
from federation.ledger.keys import fingerprint_of
from federation.ledger.receipts import Receipt

Standing = Literal["signed", "asserted"]


@dataclass(frozen=True)
class Unheld:
    """Receipts and closings of one site's key about one ledger.

    They show what left the site. What it was charged beside that, and whether an approval
    permitted it, only the ledger can show.

    Attributes:
        standing: ``signed``: by a key that the reader trusts for this site; else ``asserted``.
    """

    site: str
    fingerprint: str
    ledger: str
    standing: Standing
    receipts: int
    closings: int

    @property
    def told(self) -> str:
        """Say it in a sentence."""
        kinds = (("receipt", self.receipts), ("closing", self.closings))
        said = " and ".join(counted(number, what) for what, number in kinds if number)
        known = "a key that you trust" if self.standing == "signed" else "a key that nobody vouches"
        return (
            f"{said} of {self.site}: {self.standing} ({self.fingerprint}, {known}"
            f"{'' if self.standing == 'signed' else ' for'}); not held against its ledger, which "
            "was not given"
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def unheld(
    strange: Sequence[Statement], trust: Mapping[str, str] | Collection[str] | None
) -> tuple[list[Unheld], list[str]]:
    """Sum up validly signed statements about ledgers that were not given.

    Returns:
        Them by site and ledger, and what is wrong among them: two updates under one charge.
    """
    groups: dict[tuple[str, str, str], list[Statement]] = defaultdict(list)
    for statement in strange:
        said = statement.of
        groups[said.site, fingerprint_of(bytes.fromhex(said.public_key)), said.ledger].append(
            statement
        )
    found, problems = [], []
    for (site, fingerprint, ledger), every in sorted(groups.items()):
        receipts = sum(isinstance(s.of, Receipt) for s in every)
        standing = _standing(site, fingerprint, trust)
        found.append(Unheld(site, fingerprint, ledger, standing, receipts, len(every) - receipts))
        problems += _twice(every)
    return found, problems


def _standing(
    site: str, fingerprint: str, trust: Mapping[str, str] | Collection[str] | None
) -> Standing:
    if isinstance(trust, Mapping):
        # A fingerprint that was given alone is trusted under any name.
        return "signed" if fingerprint in (trust.get(site), trust.get(fingerprint)) else "asserted"
    return "signed" if fingerprint in (trust or ()) else "asserted"


def _twice(said_of_one: Sequence[Statement]) -> list[str]:
    """A site sends one update for a run, round and attempt; a second one would be for free."""
    updates: dict[tuple[str, int, int], set[str]] = defaultdict(set)
    problems = []
    for statement in said_of_one:
        said = statement.of
        if not isinstance(said, Receipt):
            continue
        sent = updates[said.run, said.round, said.attempt]
        if sent and said.update_digest not in sent:
            problems.append(f"{statement.name}: the site has signed another update under this key")
        sent.add(said.update_digest)
    return problems
