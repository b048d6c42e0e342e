"""From the files that a board was handed to verdicts: what its commands have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from federation.audit.report_sources import SelfAuditSeen, read_self_audits
from federation.audit.sources import (
    Sources,
    find_sources,
    read_closings,
    read_opening,
    read_receipts,
    read_text,
)
from federation.audit.verify import Report, verify_ledgers
from federation.errors import FederationError


@dataclass(frozen=True)
class Checked:
    """Verdicts, and what they were made from."""

    report: Report
    found: Sources
    self_audits: Sequence[SelfAuditSeen]
    num_receipts: int


def check(  # noqa: PLR0913 - all but one are named
    paths: Sequence[Path],
    *,
    trust: Sequence[str] = (),
    receipts: Sequence[Path] = (),
    closings: Sequence[Path] = (),
    self_audits: Sequence[Path] = (),
    openings: Sequence[Path] = (),
) -> Checked:
    """Read what is in these files and folders, and verify it.

    Raises:
        FederationError: A file is missing, not what it was named as, or nothing can be verified.
    """
    trusted = read_trust(trust) if trust else None
    found = find_sources(paths, receipts=receipts, closings=closings)
    left = [receipt for path in found.receipts for receipt in read_receipts(path)]
    audits = read_self_audits(list(self_audits))
    report = verify_ledgers(
        found.ledgers,
        trust=trusted,
        receipts=left,
        closings=[closing for path in found.closings for closing in read_closings(path)],
        self_audits=audits,
        openings=[read_opening(path) for path in openings],
    )
    return Checked(report, found, audits, len(left))


def read_trust(values: Sequence[str]) -> dict[str, str]:
    """Return fingerprints by site name, from trust files and bare fingerprints.

    Raises:
        FederationError: A file is missing, or a line is not a name and a fingerprint.
    """
    trusted: dict[str, str] = {}
    for value in values:
        if value.startswith("SHA256:"):
            trusted.update({part: _fingerprint(part, "--trust") for part in value.split(",")})
        else:
            trusted.update(_trust_file(Path(value)))
    return trusted


def _trust_file(path: Path) -> dict[str, str]:
    trusted: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "trust").splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        where = f"{path}, line {number}"
        if len(words) != 2 or words[0] in trusted:
            raise FederationError(
                f"{where}: expected a site's name once, and its fingerprint, as in "
                "'hospital-a SHA256:...'. Correct the line."
            )
        trusted[words[0]] = _fingerprint(words[1], where)
    if not trusted:
        raise FederationError(f"{path} names no site. Write lines such as 'hospital-a SHA256:...'.")
    return trusted


def _fingerprint(text: str, where: str) -> str:
    if not (text.startswith("SHA256:") and len(text) == len("SHA256:") + 43):
        raise FederationError(
            f"{where}: {text!r} is not a fingerprint, which is SHA256: and 43 characters. "
            "Copy it whole from the site."
        )
    return text
