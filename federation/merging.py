"""Two data sets of one institution that share subjects get one budget."""

from federation.ledger.upkeep import merge
from federation.linking import LinkingFolder
from federation.site import Site


def merge_sites(into: Site, other: Site, *, by: str, reason: str) -> None:
    """Charge one site's ledger with the other's history, and end the other; safe to repeat.

    Raises:
        LedgerError: They are one ledger, or one of them has been merged away, or the first permits
            more than the second.
    """
    if other.ledger.book.merged_into != into.ledger.book.genesis.hash:
        merge(into.ledger, other.ledger, by=by, reason=reason)
    for config in (into.config, other.config):
        if config.linking is not None:
            LinkingFolder(config.linking).mark_merged(other.config.state)
