"""Judges what a killed site left, from its bare files and from what the witness saw leave."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.kills.site import RUN
from tests.federation.ledger.second_verifier import second_verdict

PHASES = (
    "before the charge",
    "charged, nothing read",
    "training",
    "update kept, not released",
    "released, not sent",
    "half sent",
    "sent",
    "asked again, not answered",
)


@dataclass
class Left:
    """What left a site, as an outsider saw it.

    Attributes:
        reading: Attempts for which protected data was opened.
        refused: Codes by attempt.
        replies: Attempt, payload as far as it came, and the receipt if it was whole.
    """

    reading: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    replies: list[tuple[int, bytes, dict[str, Any] | None]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Left":
        left, rest = cls(), path.read_bytes()
        while rest:
            head, newline, rest = rest.partition(b"\n")
            if not newline:
                break
            said = json.loads(head)
            if said["what"] == "reading":
                left.reading.append(said["attempt"])
            elif said["what"] == "refused":
                left.refused[said["attempt"]] = said["code"]
            else:
                rest = left._take(said, rest)
        return left

    def _take(self, said: dict[str, Any], rest: bytes) -> bytes:
        """Take a reply; where the next process wrote behind half of one, go on from there."""
        attempt, size = said["attempt"], said["bytes"]
        cut = rest.find(b'{"what": ')
        if 0 <= cut < size or (cut < 0 and len(rest) < size):
            payload = rest[:cut] if cut >= 0 else rest
            self.replies.append((attempt, payload, None))
            return rest[len(payload) :]
        payload, rest = rest[:size], rest[size:]
        line, newline, after = rest.partition(b"\n")
        if newline and b'{"what": ' not in line:
            self.replies.append((attempt, payload, json.loads(line)))
            return after
        self.replies.append((attempt, payload, None))
        cut = rest.find(b'{"what": ')
        return rest[cut:] if cut >= 0 else b""

    @property
    def whole(self) -> list[tuple[int, bytes, dict[str, Any]]]:
        return [(a, payload, receipt) for a, payload, receipt in self.replies if receipt]

    @property
    def attempt(self) -> int:
        """Return the attempt that the hub asks for next: lost ones it asks for anew."""
        lost = [attempt for attempt, code in self.refused.items() if code == "lost"]
        return max(lost, default=0) + 1


@dataclass
class Kept:
    """What a site's files say, read without its code.

    Attributes:
        released_at: Of a charge's release.
        marked: Newest record that the mark has seen.
    """

    charges: dict[int, dict[str, Any]] = field(default_factory=dict)
    releases: dict[int, str] = field(default_factory=dict)
    released_at: dict[int, int] = field(default_factory=dict)
    updates: set[int] = field(default_factory=set)
    marked: int = -1
    num_records: int = 0

    @classmethod
    def read(cls, state: Path) -> "Kept":
        kept = cls()
        for line in (state / "ledger.jsonl").read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
            kept.num_records += 1
            if record["kind"] == "charge":
                kept.charges[record["seq"]] = record["body"]
            elif record["kind"] == "release":
                body = record["body"]
                kept.releases[body["charge_seq"]] = body["update_digest"]
                kept.released_at[body["charge_seq"]] = record["seq"]
        kept.marked = json.loads((state.parent / "vault" / "mark.json").read_bytes())["seq"]
        paths = (state / "outbox").glob("[0-9]*.update")
        kept.updates = {int(path.name[:8]) for path in paths}
        return kept

    def of(self, attempt: int) -> list[int]:
        key = [RUN, 1, attempt]
        return [
            seq for seq, b in self.charges.items() if [b["run"], b["round"], b["attempt"]] == key
        ]


def phase(state: Path, witness: Path, *, num_records: int, num_bytes: int) -> str:
    """Return how far a process had come that began with this many records and bytes sent."""
    kept, left = Kept.read(state), Left.read(witness)
    found = kept.of(left.attempt)
    if not found:
        return PHASES[0]
    (seq,) = found
    replies = [reply for reply in left.replies if reply[0] == left.attempt]
    if seq < num_records:
        return PHASES[6] if witness.stat().st_size > num_bytes and replies else PHASES[7]
    if replies:
        return PHASES[6] if replies[-1][2] else PHASES[5]
    if seq in kept.releases:
        return PHASES[4]
    if seq in kept.updates:
        return PHASES[3]
    return PHASES[2] if left.attempt in left.reading else PHASES[1]


def judge(state: Path, witness: Path) -> list[str]:
    """Return what is wrong: at any moment, as a killed process left it."""
    kept, left, wrong = Kept.read(state), Left.read(witness), []
    for attempt in {*left.reading, *(attempt for attempt, _, _ in left.replies)}:
        if len(kept.of(attempt)) != 1:
            wrong.append(f"attempt {attempt} was read or sent, charges: {kept.of(attempt)}")
    for attempt in {attempt for attempt, _, _ in left.replies}:
        if any(kept.marked < kept.released_at.get(seq, kept.marked) for seq in kept.of(attempt)):
            wrong.append(f"attempt {attempt} was sent before the mark had seen its release")
    longest: dict[int, bytes] = {}
    for attempt, payload, _ in sorted(left.replies, key=lambda reply: -len(reply[1])):
        if not longest.setdefault(attempt, payload).startswith(payload):
            wrong.append(f"attempt {attempt} was answered with two different updates")
    digests = Counter("sha256:" + hashlib.sha256(p).hexdigest() for _, p, _ in left.whole)
    for digest in digests:
        seqs = [seq for seq, released in kept.releases.items() if released == digest]
        if len(seqs) != 1 or seqs[0] not in kept.charges:
            wrong.append(f"{digest} was sent, and its releases are {seqs}")
    if sum(bool(payload) for payload in longest.values()) > len(kept.charges):
        wrong.append("more was sent than was charged")
    return wrong


def judge_in_the_end(
    state: Path, witness: Path, *, trust: str, num_kills: int, num_asked: int
) -> list[str]:
    """Return what is wrong once everything that was asked for was answered."""
    wrong, kept, left = judge(state, witness), Kept.read(state), Left.read(witness)
    if len(kept.charges) > num_asked + num_kills:
        wrong.append(f"{num_kills} kills, and {len(kept.charges)} charges for {num_asked} updates")
    updates = {payload for _, payload, _ in left.whole}
    if len(updates) < num_asked:
        wrong.append(f"{num_asked} updates were asked for, {len(updates)} came")
    if len(left.reading) != len(set(left.reading)):
        wrong.append("one charge paid for protected data to be opened twice")
    told = second_verdict(
        state / "ledger.jsonl", trust=trust, receipts=[receipt for *_, receipt in left.whole]
    )
    if told["verdict"] != "verified":
        wrong.append(f"the ledger is {told['verdict']}: {told['problems']}")
    return wrong
