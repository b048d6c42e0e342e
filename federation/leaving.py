"""Everything that leaves a site, field by field, read off the messages themselves.

A field without an explanation here stops ``site_leaves`` with a KeyError, and a test compares the
fields with what the wire carries: this list cannot fall behind.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields

from federation.canonical import digest_bytes
from federation.ledger.closings import Closing
from federation.ledger.ledger import Ledger
from federation.ledger.receipts import Receipt
from federation.messages import REFUSAL_CODES, Description, EvaluateReply, TrainReply
from federation.site import describe
from federation.site_data import SiteData
from federation.site_keys import public_key_now
from federation.software import installed_versions

AFTER_INGEST = "known after the first ingest"
AT_FIRST_RUN = "made at the first run"
DECLARED = "declared by you in the site file"

_OF_DESCRIPTION: Mapping[str, str] = {
    "site": DECLARED,
    "public_key": "the key that the ledger and receipts are signed with; it tells of no subject",
    "commitment": "SHA-256 of a secret number and the data set's digest; another one for each "
    "experiment (this one is an example), so that nobody can compare or guess",
    "dataset": DECLARED,
    "source_kind": "the kinds of source in the site file",
    "modality": DECLARED + "; never read off the images",
    "num_subjects": "as policy.release_counts allows",
    "licence": DECLARED,
    "data_use": DECLARED + "; codes and their diseases, no other words of yours",
    "versions": "of the software that read the data",
}
_OF_RECEIPT: Mapping[str, str] = {
    "site": DECLARED,
    "public_key": "as in the description",
    "ledger": "which ledger was charged: the hash of its first record",
    "experiment_digest": "as the hub asked",
    "plan_digest": "of the privacy plan, which follows from the experiment",
    "run": "as the hub asked",
    "round": "as the hub asked",
    "attempt": "as the hub asked",
    "request_digest": "of the hub's own request",
    "event": "sampling rate, noise and number of steps, from the experiment",
    "commitment": "as in the description",
    "charge_seq": "how many records the ledger had: approvals, refusals, rounds, and notes of "
    "exclusions and purges count",
    "head_before": "hash of the record before the charge; salted, so it cannot be guessed",
    "head_after": "hash of the record of the release; salted, so it cannot be guessed",
    "update_digest": "of the update, which leaves with it",
    "versions": "of the software that made the update",
    "signature": "over all of this, with the site's key",
}
_OF_CLOSING: Mapping[str, str] = {
    "site": DECLARED,
    "public_key": "as in the description",
    "ledger": "as in a receipt",
    "experiment_digest": "as the hub asked",
    "run": "as the hub asked",
    "heads": "as the hub showed them: hashes of all sites' newest records",
    "model_digest": "as the hub said",
    "seq": "how many records the ledger has, as in a receipt",
    "head": "hash of the record that closes the run; salted, so it cannot be guessed",
    "signature": "over all of this, with the site's key",
}
_OF_REPLY: Mapping[str, tuple[str, str]] = {
    "payload": (
        "as many numbers as the network has, none of them a count",
        "the trained weights minus those that came, each step clipped to one subject's share and "
        "noised here, before it leaves (without noise only where the policy allows that)",
    ),
    "receipt": ("the fields below", "what was charged for it, signed"),
}
_FROM_REQUEST = "known in each round"
AT_THE_END = "known when a run ends"


@dataclass(frozen=True)
class Leaving:
    """One field of one message.

    Attributes:
        message: Which message carries it.
        value: What would be sent, or when it is known.
        why: Where the value comes from.
    """

    message: str
    field: str
    value: str
    why: str


def site_leaves(data: SiteData, ledger: Ledger | None) -> tuple[Leaving, ...]:
    """Return every field that leaves, with its value as far as it is known now."""
    description = description_now(data)
    return (
        *_described(description),
        *_reply(description, ledger),
        *_closing(description, ledger),
        *_scores(data),
        *_refusals(),
    )


def description_now(data: SiteData) -> Description:
    """Return the description that would be sent, around an example of a commitment."""
    key = public_key_now(data.config) or AT_FIRST_RUN
    if not data.is_ingested("protected"):
        return describe(data, key, AFTER_INGEST, None, unknown=AFTER_INGEST)
    manifest = data.manifest("protected")
    commitment = digest_bytes(secrets.token_bytes(32) + manifest.root.encode())
    return describe(data, key, commitment, manifest)


def _described(description: Description) -> list[Leaving]:
    return [
        Leaving("description", f.name, _text(getattr(description, f.name)), _OF_DESCRIPTION[f.name])
        for f in fields(Description)
    ]


def _reply(description: Description, ledger: Ledger | None) -> list[Leaving]:
    known = {
        "site": description.site,
        "public_key": description.public_key,
        "ledger": ledger.records[0].hash if ledger else AT_FIRST_RUN,
        "commitment": description.commitment,
        "versions": _text(installed_versions()),
    }
    return [Leaving("update", f.name, *_OF_REPLY[f.name]) for f in fields(TrainReply)] + [
        Leaving("receipt", f.name, known.get(f.name, _FROM_REQUEST), _OF_RECEIPT[f.name])
        for f in fields(Receipt)
    ]


def _closing(description: Description, ledger: Ledger | None) -> list[Leaving]:
    known = {
        "site": description.site,
        "public_key": description.public_key,
        "ledger": ledger.records[0].hash if ledger else AT_FIRST_RUN,
    }
    return [
        Leaving("closing", f.name, known.get(f.name, AT_THE_END), _OF_CLOSING[f.name])
        for f in fields(Closing)
    ]


def _scores(data: SiteData) -> list[Leaving]:
    if data.has_public:
        what = (
            "scores of each round's model, and of how many subjects",
            "on the subjects that you declare public only",
        )
    else:
        what = ("nothing", "the site file declares no public subjects")
    return [Leaving("scores", f.name, *what) for f in fields(EvaluateReply)]


def _refusals() -> list[Leaving]:
    why = "one of these codes, and no other text; details stay in the site's own log"
    random = "16 random hex digits, in the site's own log beside the details"
    return [
        Leaving("refusal", "code", ", ".join(REFUSAL_CODES), why),
        Leaving("refusal", "correlation", random, "so that operators can talk about one refusal"),
    ]


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {version}" for name, version in value.items()) or AFTER_INGEST
    return str(value)
