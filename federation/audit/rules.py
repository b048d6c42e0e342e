"""The rules over records of ``docs/ledger/format.md``, numbered as there."""

from collections.abc import Callable, Iterable
from typing import Any

from federation.audit.state import Cost, Permit, Replay
from federation.canonical import canonical_json
from federation.ledger.filter import Event, event_from_json
from federation.ledger.keys import verify_signature
from federation.ledger.records import INSECURE_RANDOMNESS, Record

_ROTATION_SIGNED_AS = b"cohortium key rotation v1\0"


def fold(replay: Replay, seq: int, record: Record) -> None:
    """Check a record against those before it, and add it to what they say."""
    if replay.genesis is None:
        if seq == 0:
            replay.problem("chain", "record 0: the first record is not a genesis")
        return
    if replay.merged_into is not None:
        replay.problem("chain", f"record {seq}: the ledger had been merged into another before")
    _RULES[record.kind](replay, seq, record)


def _genesis(replay: Replay, seq: int, _: Record) -> None:
    """Rule 1: there is one, at the start."""
    if seq:
        replay.problem("chain", f"record {seq}: a second genesis")


def _approval(replay: Replay, _: int, record: Record) -> None:
    """Rule 8: a new approval of an experiment replaces the older one."""
    replay.approvals.append(record)
    permit, experiment = Permit(record), record.body["experiment_digest"]
    replay.permits[experiment] = replay.open_permits[experiment] = permit


def _reservation(replay: Replay, seq: int, record: Record) -> None:
    """Rule 2."""
    body = record.body
    if body["run"] in replay.runs:
        replay.problem("approvals", f"record {seq}: its run was reserved before")
    replay.runs.add(body["run"])
    permit = _open_permit(replay, seq, record)
    if permit is None:
        return
    if permit.run is not None:
        replay.problem("approvals", f"record {seq}: another run has taken up the approval")
        return
    if body["charges"] != permit.record.body["charges"]:
        replay.problem("approvals", f"record {seq}: it reserves other charges than were approved")
    permit.run = body["run"]


def _charge(replay: Replay, seq: int, record: Record) -> None:
    """Rule 3."""
    body = record.body
    key = (body["run"], body["round"], body["attempt"])
    if key in replay.charged:
        replay.problem("charged", f"record {seq}: this round and attempt were charged before")
    replay.charged.add(key)
    permit = _open_permit(replay, seq, record)
    replay.charges[seq] = (record, permit.record if permit else None)
    if permit is not None:
        permit.used += 1
        _check_terms(replay, seq, record, permit)
    event = event_from_json(body["event"])
    _spend(replay, seq, [event], body["totals"])
    _check_limit(replay, seq)


def _check_terms(replay: Replay, seq: int, record: Record, permit: Permit) -> None:
    body, terms = record.body, permit.record.body
    if permit.run != body["run"]:
        replay.problem("approvals", f"record {seq}: its run did not take up the approval")
    if any(body[name] != terms[name] for name in ("plan_digest", "event")):
        replay.problem("approvals", f"record {seq}: its plan or event is not what was approved")
    if permit.used > terms["charges"]:
        replay.problem("approvals", f"record {seq}: more charges than were approved")
    if terms["expires"] is not None and record.at > terms["expires"]:
        replay.problem("approvals", f"record {seq}: charged after its approval had expired")


def _check_limit(replay: Replay, seq: int) -> None:
    spent = replay.spent
    if spent is None:
        return
    if spent.num_unprotected and not spent.policy.allow_unprotected:
        text = f"record {seq}: charged after or without noise, which the policy forbids"
        replay.problem("spent", text)
    if spent.passes_the_limit:
        limit = spent.policy.epsilon
        replay.problem("spent", f"record {seq}: this charge passes the limit epsilon {limit:g}")


def _release(replay: Replay, seq: int, record: Record) -> None:
    """Rules 4 and 9."""
    _end_charge(replay, seq, record, "an update was released")
    replay.releases.setdefault(record.body["charge_seq"], record)
    name, insecure = INSECURE_RANDOMNESS
    if record.body["versions"].get(name) == insecure:
        replay.num_insecure += 1


def _loss(replay: Replay, seq: int, record: Record) -> None:
    """Rule 4."""
    _end_charge(replay, seq, record, "an update was lost")
    replay.losses.setdefault(record.body["charge_seq"], record)


def _end_charge(replay: Replay, seq: int, record: Record, what: str) -> None:
    charged = record.body["charge_seq"]
    if charged not in replay.charges:
        replay.problem("charged", f"record {seq}: {what} without a charge")
    if charged in replay.releases:
        text = f"record {seq}: a second {record.kind} for the charge in record {charged}"
        if record.kind != "release":
            text = f"record {seq}: the charge in record {charged} was released before"
        replay.problem("charged", text)
    if charged in replay.losses:
        text = f"record {seq}: the charge in record {charged} was lost before"
        replay.problem("charged", text)


def _refusal(replay: Replay, _: int, record: Record) -> None:
    replay.refusals[record.body["code"]] += 1


def _withdrawal(replay: Replay, seq: int, record: Record) -> None:
    """Rule 5."""
    replay.withdrawals.append(record)
    if _open_permit(replay, seq, record) is not None:
        replay.end(record.body["experiment_digest"], "withdrawn")


def _closing(replay: Replay, seq: int, record: Record) -> None:
    """Rule 5."""
    replay.closings.append(record)
    permit = _open_permit(replay, seq, record)
    if permit is None:
        return
    if permit.run != record.body["run"]:
        replay.problem("approvals", f"record {seq}: it closes a run that did not take it up")
        return
    replay.end(record.body["experiment_digest"], "closed")


def _open_permit(replay: Replay, seq: int, record: Record) -> Permit | None:
    permit = replay.permits.get(record.body["experiment_digest"])
    if permit is None:
        replay.problem("approvals", f"record {seq}: its experiment was not approved")
    elif permit.ended:
        text = f"record {seq}: a {record.kind} after its approval was {permit.ended}"
        replay.problem("approvals", text)
    else:
        return permit
    return None


def _key_rotation(replay: Replay, seq: int, record: Record) -> None:
    """Rule 1: from the next record on, the new key signs."""
    if replay.genesis is None:
        return
    new = record.body["public_key"]
    said = {"ledger": replay.genesis.hash, "previous": record.previous, "public_key": new}
    proof = bytes.fromhex(record.body["proof"])
    statement = _ROTATION_SIGNED_AS + canonical_json(said)
    if not verify_signature(bytes.fromhex(new), statement, proof):
        replay.problem("chain", f"record {seq}: the new key did not sign that it takes over")
    replay.keys.append((seq + 1, new))


def _recovery(replay: Replay, seq: int, record: Record) -> None:
    """Rule 6: it spends at least what open approvals hold, and ends them."""
    events, held = _events_of(record.body), Cost()
    for permit in replay.open_permits.values():
        held.add(permit.event, permit.held)
    if not Cost.of(events).covers(held):
        text = f"record {seq}: the recovery spends less than open approvals held"
        replay.problem("spent", text)
    _spend(replay, seq, events, record.body["totals"])
    for experiment in list(replay.open_permits):
        replay.end(experiment, "ended by a recovery")
    replay.recoveries.append(record)


def _merge(replay: Replay, seq: int, record: Record) -> None:
    """Rule 7."""
    _spend(replay, seq, _events_of(record.body), record.body["totals"])
    replay.merges.append(record)


def _merged(replay: Replay, _: int, record: Record) -> None:
    """Rule 7: nothing follows."""
    replay.merged_into = record.body["into"]


def _note(replay: Replay, seq: int, record: Record) -> None:
    """It changes no approval, charge or total, however many there are."""
    replay.noted[record.body["what"]] += 1
    if record.body["what"] != "declaration":
        return
    if seq != 1:
        text = f"record {seq}: a declaration stands right after the genesis or nowhere"
        replay.problem("chain", text)
    replay.declaration = (record.body["by"], record.body["reason"])


def _spend(replay: Replay, seq: int, events: Iterable[Event], stated: list[float]) -> None:
    if replay.spent is None:
        return
    for event in events:
        if not replay.spent.add(event):
            text = f"record {seq}: too many different events to recompute in reasonable time"
            replay.problem("totals", text)
            return
    if not replay.spent.agrees(stated):
        replay.problem("totals", f"record {seq}: its totals are not those of dp-accounting")


def _events_of(body: Any) -> list[Event]:
    return [event_from_json(value) for value in body["spends"]]


_RULES: dict[str, Callable[[Replay, int, Record], None]] = {
    "genesis": _genesis,
    "approval": _approval,
    "reservation": _reservation,
    "charge": _charge,
    "release": _release,
    "loss": _loss,
    "refusal": _refusal,
    "withdrawal": _withdrawal,
    "closing": _closing,
    "key_rotation": _key_rotation,
    "recovery": _recovery,
    "merge": _merge,
    "merged": _merged,
    "note": _note,
}
