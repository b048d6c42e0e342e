"""Who wrote an experiment: a signature over its digest, in a file beside it.

A site that lists ``authors`` in its site file approves nothing that none of them has signed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from federation.canonical import canonical_json
from federation.errors import FederationError
from federation.experiment import Experiment
from federation.files import write_atomically
from federation.ledger.forms import check_digest, check_public_key, check_signature, require_keys
from federation.ledger.keys import SiteKey, fingerprint_of, verify_signature

AUTHOR_KEY = "author-key"
_SIGNED_AS = b"cohortium experiment v1\0"


@dataclass(frozen=True)
class Signature:
    """An author's signature over an experiment's digest.

    Attributes:
        public_key: Ed25519, hex.
        signature: Hex.
    """

    experiment_digest: str
    public_key: str
    signature: str

    @property
    def fingerprint(self) -> str:
        """Return what a site knows the author by."""
        return fingerprint_of(bytes.fromhex(self.public_key))

    def is_for(self, experiment: Experiment) -> bool:
        """Tell whether the key named here signed exactly this experiment."""
        digest = experiment.digest()
        key, signature = bytes.fromhex(self.public_key), bytes.fromhex(self.signature)
        signed = verify_signature(key, _SIGNED_AS + digest.encode(), signature)
        return signed and self.experiment_digest == digest


def signature_path(experiment: Path) -> Path:
    """Return where the signature of an experiment file lies: beside it."""
    return experiment.with_name(f"{experiment.name}.sig")


def sign(experiment: Experiment, key: SiteKey) -> Signature:
    """Sign an experiment; the layout of its file does not matter, its values do."""
    digest = experiment.digest()
    signature = key.sign(_SIGNED_AS + digest.encode()).hex()
    return Signature(digest, key.public_bytes.hex(), signature)


def write_signature(path: Path, signature: Signature) -> None:
    """Write it where ``read_signature`` looks."""
    write_atomically(path, canonical_json(asdict(signature)) + b"\n", mode=0o644)


def read_signature(path: Path) -> Signature | None:
    """Return the signature in a file; None where there is no file.

    Raises:
        FederationError: The file is no signature.
    """
    checks = {
        "experiment_digest": check_digest,
        "public_key": check_public_key,
        "signature": check_signature,
    }
    try:
        return Signature(**require_keys(json.loads(path.read_bytes()), checks, "a signature"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise FederationError(
            f"{path} is not a signature of an experiment ({error}). Let its author sign again: "
            "cohortium author sign EXPERIMENT.yaml."
        ) from error


def require_author(
    authors: Mapping[str, str], experiment: Experiment, signature: Signature | None, site: str
) -> str | None:
    """Return the fingerprint of the author who signed, or None where nobody did.

    Args:
        authors: Those whom the site knows, fingerprints by name; empty if it asks for none.

    Raises:
        FederationError: The signature is not valid, or not by an author whom the site knows.
    """
    if signature is not None and not signature.is_for(experiment):
        raise FederationError(
            f"The signature of experiment '{experiment.name}' is not over what its file says now. "
            "Let its author sign again: cohortium author sign EXPERIMENT.yaml."
        )
    found = signature.fingerprint if signature else None
    if authors and found not in authors.values():
        who = f"by {found}" if found else "by nobody"
        raise FederationError(
            f"{site}: experiment '{experiment.name}' is signed {who}, and the site file names "
            f"{', '.join(authors)} under 'authors'. Ask one of them to sign it: cohortium author "
            "sign EXPERIMENT.yaml."
        )
    return found
