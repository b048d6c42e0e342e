"""The names of things in exports: the same in the crate, in PROV and in Croissant.

Each is a URN made from a digest or a key that can be recomputed, so that two documents which name
the same thing agree without having met. ``urn:cohortium`` is not registered with IANA.
"""

import re

from federation.errors import FederationError
from federation.export.about import Author

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_KEY = re.compile(r"[0-9a-f]{64}")
_TERM = re.compile(r"\b([A-Za-z][A-Za-z0-9]{1,15}):([A-Za-z0-9_.]{1,32})")
_RUN = re.compile(r"[A-Za-z0-9._-]{1,64}")


def data_set(commitment: str) -> str:
    """Return the name of a site's data set in one experiment.

    The commitment is fresh for each experiment, on purpose: two on one data set have two names,
    which nobody can link but who is given the openings (docs/ledger/format.md, "Openings").

    >>> data_set("sha256:" + "a" * 64) == "urn:cohortium:data:" + "a" * 64
    True
    """
    return f"urn:cohortium:data:{_hex(commitment)}"


def model(digest: str) -> str:
    """Return the name of a model: its digest is over names, shapes and values."""
    return f"urn:cohortium:model:{_hex(digest)}"


def experiment(digest: str) -> str:
    """Return the name of an experiment."""
    return f"urn:cohortium:experiment:{_hex(digest)}"


def head(digest: str) -> str:
    """Return the name of a ledger's record, which pins all before it."""
    return f"urn:cohortium:head:{_hex(digest)}"


def weights_file(sha256: str) -> str:
    """Return the name of a file of weights that a run started from.

    Args:
        sha256: Hex.
    """
    return f"urn:cohortium:weights:{_matching(_KEY, sha256)}"


def run(name: str) -> str:
    """Return the name of a run."""
    return f"urn:cohortium:run:{_matching(_RUN, name)}"


def site(public_key: str) -> str:
    """Return the name of a site: whoever signs with this Ed25519 key, hex."""
    return f"urn:cohortium:site:{_matching(_KEY, public_key)}"


def epsilon(run_name: str, public_key: str) -> str:
    """Return the name of what one run cost one site."""
    return f"{run(run_name)}:epsilon:{_matching(_KEY, public_key)}"


def delta(run_name: str) -> str:
    """Return the name of the delta that a run's epsilons are at."""
    return f"{run(run_name)}:delta"


def terms(data_use: str) -> list[str]:
    """Return the addresses of codes of data use and of diseases, as OBO ontologies give them.

    >>> terms("DUO:0000007 MONDO:0004975; DUO:0000021")[:2]
    ['http://purl.obolibrary.org/obo/DUO_0000007', 'http://purl.obolibrary.org/obo/MONDO_0004975']
    """
    return [f"http://purl.obolibrary.org/obo/{a}_{b}" for a, b in _TERM.findall(data_use)]


def author(run_name: str, who: Author, number: int) -> str:
    """Return the ORCID of an author, or a name within the run.

    Args:
        number: Place in the list of authors, from 1.
    """
    if who.orcid is not None:
        return f"https://orcid.org/{who.orcid}"
    return f"{run(run_name)}:author:{number}"


def software(version: str) -> str:
    """Return the name of the software at the hub."""
    return f"urn:cohortium:software:{_matching(_RUN, version.replace('+', '-'))}"


def _hex(digest: str) -> str:
    found = _DIGEST.fullmatch(digest)
    if found is None:
        raise FederationError(
            f"{digest[:80]!r} in the run's record is not sha256: and 64 hex digits, so nothing can "
            "be named by it. Restore run.json."
        )
    return found[1]


def _matching(pattern: re.Pattern[str], value: str) -> str:
    if not pattern.fullmatch(value):
        raise FederationError(
            f"{value[:80]!r} in the run's record is no key, version or run's name, so nothing can "
            "be named by it. Restore run.json."
        )
    return value
