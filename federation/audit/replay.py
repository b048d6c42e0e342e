"""Read a ledger that nobody vouches for, record by record, and say what is wrong with it.

Written apart from ``federation.ledger.book`` on purpose: only the format, the signature check
and the names of events are shared, and every cost comes from dp-accounting. The rules that
``docs/ledger/format.md`` numbers from 2 are in ``federation.audit.rules``; here is the first.
"""

from collections.abc import Iterator
from pathlib import Path

from federation.audit.accounting import Spent
from federation.audit.rules import fold
from federation.audit.state import Permit, Replay
from federation.canonical import digest_bytes
from federation.ledger.filter import BudgetPolicy
from federation.ledger.records import MAX_LINE_BYTES, NO_RECORD, Record, parse_record

__all__ = ["Permit", "Replay", "replay_file"]


def replay_file(path: Path) -> Replay:
    """Read a whole file. Whatever is in it, the answer is a ``Replay``."""
    replay = Replay()
    try:
        for seq, line in enumerate(_lines(path, replay)):
            _take(replay, seq, line)
    except OSError as error:
        replay.problem("chain", f"there is no readable ledger {path} ({error.strerror})")
    if not replay.records and not replay.problems:
        replay.problem("chain", "the file holds no record, so it is not a ledger")
    return replay


def _lines(path: Path, replay: Replay) -> Iterator[bytes]:
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                text = "a line is too long to be a record; the rest was not read"
                replay.problem("chain", text)
                return
            if line.endswith(b"\n"):
                yield line[:-1]
            else:
                replay.problem(
                    "chain",
                    "the last line is incomplete. A killed write leaves such a line: let the "
                    "site open its ledger once, which cuts it off, and ask for the file again",
                )


def _take(replay: Replay, seq: int, line: bytes) -> None:
    """Check one line and fold it in."""
    try:
        record = parse_record(line)
    except ValueError as error:
        replay.problem("chain", f"line {seq + 1}: {error}")
        return
    if seq == 0 and record.kind == "genesis":
        replay.genesis = record
        replay.keys.append((0, record.body["public_key"]))
        replay.spent = Spent(BudgetPolicy.from_json(record.body["policy"]))
    before = len(replay.problems)
    _check_chain(replay, seq, record)
    _check_seal(replay, seq, record, line)
    if len(replay.problems) == before and replay.sound_to == seq - 1:
        replay.sound_to = seq
    replay.records[seq] = replay.head = record
    fold(replay, seq, record)


def _check_chain(replay: Replay, seq: int, record: Record) -> None:
    before = replay.records.get(seq - 1)
    previous = before.hash if before else NO_RECORD
    if record.seq != seq:
        replay.problem("chain", f"record {seq}: it is numbered {record.seq}")
    if record.previous != previous and (before or not seq):
        replay.problem("chain", f"record {seq}: it does not follow the record before it")
    if record.salt in replay.salts:
        replay.problem("chain", f"record {seq}: its random bits were used before")
    replay.salts.add(record.salt)
    if replay.head is not None and record.at < replay.head.at:
        replay.num_backward += 1
        replay.note(f"record {seq}: the site's clock went back")


def _check_seal(replay: Replay, seq: int, record: Record, line: bytes) -> None:
    if digest_bytes(_content_of(line, record)) != record.hash:
        replay.problem("chain", f"record {seq}: its hash is not that of its content")
    if replay.keys and not record.signed_by(bytes.fromhex(replay.keys[-1][1])):
        whose = "of the genesis record" if len(replay.keys) == 1 else "in force by then"
        replay.problem("chain", f"record {seq}: it is not signed with the key {whose}")


def _content_of(line: bytes, record: Record) -> bytes:
    """Return what the hash is over: the line, which is canonical, without hash and signature.

    Keys are sorted, and no body comes after the hash: the last place that looks like it is it.
    """
    named, sealed = f'"hash":"{record.hash}",', f',"signature":"{record.signature}"}}'
    place = line.rindex(f'{named}"kind":'.encode())
    return line[:place] + line[place + len(named) : -len(sealed)] + b"}"
