"""Two data sets of one institution that share subjects get one budget."""

from federation.ledger.upkeep import merge, require_mergeable
from federation.linking import LinkingFolder
from federation.site import Site
from federation.withdrawal import carry_exclusions


def merge_sites(into: Site, other: Site, *, by: str, reason: str) -> None:
    """Charge one site's ledger with the other's history, and end the other; safe to repeat.

    Whoever was excluded from the other's data set is kept out of the first's from here on.

    Raises:
        LedgerError: They are one ledger, or one of them has been merged away, or the first permits
            more than the second.
        FederationError: Exclusions of the other cannot be carried over.
    """
    require_mergeable(into.ledger, other.ledger)
    carry_exclusions(into, other)
    if other.ledger.book.merged_into != into.ledger.book.genesis.hash:
        merge(into.ledger, other.ledger, by=by, reason=reason)
    for config in (into.config, other.config):
        if config.linking is not None:
            LinkingFolder(config.linking).mark_merged(other.config.state)
