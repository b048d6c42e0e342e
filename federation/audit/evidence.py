"""What others keep of a ledger, held against it: receipts, closings, heads that sites were shown.

A site that rewrites its past can make its own file consistent again; it cannot take back what it
signed for others. ``docs/ledger/format.md`` says when such a statement contradicts a ledger.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from federation.audit.state import Cost, Replay, counted
from federation.canonical import canonical_json
from federation.ledger.closings import Closing
from federation.ledger.filter import event_from_json
from federation.ledger.receipts import Receipt
from federation.ledger.records import Record

# By what a record may be pinned; see ``Replay.anchors``.
RECEIPT, CLOSING, HEAD = "receipt", "closing", "shown head"


@dataclass(frozen=True)
class Statement:
    """A receipt or closing, and whether the key that it names signed it."""

    of: Receipt | Closing
    valid: bool

    @property
    def kind(self) -> str:
        """What it is."""
        return CLOSING if isinstance(self.of, Closing) else RECEIPT

    @property
    def name(self) -> str:
        """What it is called in a problem."""
        said = self.of
        if isinstance(said, Closing):
            return f"closing of {said.site} (run {said.run})"
        where = f"run {said.run}, round {said.round}, attempt {said.attempt}"
        return f"receipt of {said.site} ({where})"

    @property
    def seq(self) -> int:
        """The record that a recovery must have seen to excuse that it is gone."""
        return self.of.seq if isinstance(self.of, Closing) else self.of.charge_seq

    @property
    def head(self) -> str:
        """The hash that it pins."""
        return self.of.head if isinstance(self.of, Closing) else self.of.head_after


def statements(said: Iterable[Receipt | Closing]) -> list[Statement]:
    """Check every signature, once. The same statement twice counts once."""
    different = {canonical_json(_fields(one)): one for one in said}
    return [Statement(one, one.verify()) for one in different.values()]


def _fields(said: Receipt | Closing) -> dict[str, Any]:
    """Return its JSON values, as ``to_json`` does, without a copy of each: there may be many."""
    fields = dict(vars(said))
    return fields if isinstance(said, Closing) else {**fields, "event": said.event.to_json()}


def about(replay: Replay, said: Iterable[Statement]) -> list[Statement]:
    """Return those that one of this ledger's keys has signed; nothing else accuses a site."""
    keys = replay.public_keys if replay.genesis is not None else ()
    return [s for s in said if s.valid and s.of.public_key in keys]


def check_statements(replay: Replay, said: Sequence[Statement]) -> None:
    """Hold receipts and closings about a ledger against it."""
    lost: list[Statement] = []
    for statement in said:
        if wrong := _wrongly_signed(replay, statement):
            replay.problem("charged", f"{statement.name}: {wrong}")
        elif (held := _held(replay, statement)) is None:
            lost.append(statement)
        elif wrong := _differs(replay, statement.of, held):
            replay.problem("charged", f"{statement.name}: {wrong}")
        else:
            replay.anchored(statement.kind, statement.head)
    _check_lost(replay, lost)


def _wrongly_signed(replay: Replay, statement: Statement) -> str:
    said, genesis = statement.of, replay.genesis
    if said.public_key not in _keys_for(replay, statement):
        return "it is not signed with the key that was in force"
    if genesis is None or said.ledger != genesis.hash:
        return "this site's key signed it for another ledger; was the ledger started anew?"
    if said.site != replay.site:
        return "it gives the site another name"
    return ""


def _keys_for(replay: Replay, statement: Statement) -> set[str]:
    """A statement is by the key that signed the record which it pins."""
    position = replay.position(statement.head)
    if position is None:
        return replay.public_keys
    return {replay.key_at(position)}


def _held(replay: Replay, statement: Statement) -> Record | None:
    """Return the release or closing record that a statement pins."""
    position = replay.position(statement.head)
    record = replay.records[position] if position is not None else None
    kind = "closing" if isinstance(statement.of, Closing) else "release"
    return record if record is not None and record.kind == kind else None


def _differs(replay: Replay, said: Receipt | Closing, held: Record) -> str:
    if isinstance(said, Closing):
        recorded: dict[str, Any] = {"seq": held.seq, **held.body}
    else:
        recorded = _released(replay, held)
    stated = _fields(said)
    if any(stated[name] != value for name, value in recorded.items()):
        return "it states something else than the ledger"
    return ""


def _released(replay: Replay, release: Record) -> dict[str, Any]:
    """Return what the records say of what a receipt says, name by name."""
    charge, approval = replay.charges.get(release.body["charge_seq"], (None, None))
    names = ("experiment_digest", "plan_digest", "run", "round", "attempt", "request_digest")
    charged = {name: charge.body[name] for name in (*names, "event")} if charge else {}
    return {
        **release.body,
        **charged,
        "head_before": charge.previous if charge else "",
        "commitment": approval.body["commitment"] if approval else "",
    }


def _check_lost(replay: Replay, lost: Sequence[Statement]) -> None:
    """Let recoveries excuse what is gone, as far as they have seen and spent it."""
    seen = max((record.body["seen_seq"] for record in replay.recoveries), default=-1)
    for statement in lost:
        if statement.seq > seen:
            replay.problem("tail", f"{statement.name}: {_why_lost(replay, statement)}")
    excused = [s.of for s in lost if s.seq <= seen]
    cost = Cost.of(said.event for said in excused if isinstance(said, Receipt))
    if not spent_by(replay.recoveries).covers(cost):
        text = "recoveries spent less than what receipts of lost records say that these cost"
        replay.problem("spent", text)


def spent_by(recoveries: Iterable[Record]) -> Cost:
    """Return what all of these records spend together."""
    return Cost.of(event_from_json(event) for r in recoveries for event in r.body["spends"])


def _why_lost(replay: Replay, statement: Statement) -> str:
    if isinstance(statement.of, Closing):
        return "the ledger does not hold its record: records are missing"
    if statement.seq in replay.losses:
        return "the ledger says that nothing left for this charge"
    if statement.seq in replay.charges and statement.seq in replay.releases:
        return "the ledger's past is not the one that the site signed then"
    return "the ledger does not hold its charge and release: records are missing"


def check_heads(replays: Sequence[Replay], said: Sequence[Statement]) -> list[str]:
    """Hold what sites were shown of each other against each other; return notes on the rest."""
    receipts = [s for s in said if isinstance(s.of, Receipt)]
    pinned = {s.head: s for replay in replays for s in about(replay, receipts)}
    unknown: dict[str, int] = {}
    for site, head, shown_to in _shown(replays):
        for replay in (r for r in replays if r.site == site and r is not shown_to):
            if replay.position(head) is not None:
                replay.anchored(HEAD, head)
        own = [r for r in replays if r.site == site]
        if not own or any(r.position(head) is not None for r in own):
            continue
        if not _blamed(own, pinned.get(head), shown_to.site):
            unknown[site] = unknown.get(site, 0) + 1
    return [
        f"{counted(count, 'head')} of {site}, shown to others, in no receipt of it and not in its "
        "ledger: the hub's word alone"
        for site, count in unknown.items()
    ]


def _shown(replays: Iterable[Replay]) -> Iterator[tuple[str, str, Replay]]:
    """Yield each different head once for each ledger in which it stands."""
    for replay in replays:
        charged = (record for record, _ in replay.charges.values())
        records = (*charged, *replay.closings)
        yield from dict.fromkeys(
            (site, head, replay) for r in records for site, head in r.body["heads"].items()
        )


def _blamed(own: Sequence[Replay], receipt: Statement | None, shown_to: str) -> bool:
    """Find the ledger whose site stated this head itself; tell whether there is one."""
    if receipt is None:
        return False
    for replay in own:
        if receipt in about(replay, [receipt]) and receipt.of.site == replay.site:
            seen = max((r.body["seen_seq"] for r in replay.recoveries), default=-1)
            if receipt.seq > seen:
                text = f"{shown_to} was shown a head of it that it does not hold any more"
                replay.problem("tail", f"{text}: its past was rewritten ({receipt.name})")
            return True
    return False
