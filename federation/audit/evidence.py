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
    seen = _seen_by(replay)
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


def check_heads(
    replays: Sequence[Replay], said: Sequence[Statement], sound: Sequence[Replay]
) -> tuple[list[str], list[str]]:
    """Hold what sites were shown of each other against each other.

    Args:
        sound: Those of the ledgers that break no rule by themselves.

    Returns:
        What is wrong and accuses nobody, and notes.
    """
    receipts = [s for s in said if isinstance(s.of, Receipt)]
    pinned = {s.head: s for replay in replays for s in about(replay, receipts)}
    for site, head, shown_to in _shown(replays):
        own = [r for r in replays if r.site == site]
        for replay in own:
            if replay is not shown_to and replay.position(head) is not None:
                replay.anchored(HEAD, head)
        if not any(r.position(head) is not None for r in own):
            _blame(own, pinned.get(head), shown_to.site)
    return _gone(sound)


def _gone(sound: Sequence[Replay]) -> tuple[list[str], list[str]]:
    """Find heads that sites were shown and that no ledger of whose they were holds."""
    gone: dict[str, list[str]] = {}
    for site, head in dict.fromkeys((site, head) for site, head, _ in _shown(sound)):
        own = [r for r in sound if r.site == site]
        if own and all(r.position(head) is None for r in own):
            gone.setdefault(site, []).append(head)
    problems, notes = [], []
    for site, heads in gone.items():
        text = f"{counted(len(heads), 'head')} of {site}, shown to others, in no ledger of it here"
        if any(r.recoveries for r in sound if r.site == site):
            notes.append(f"{text}: lost when it fell behind, or the hub's word alone")
        else:
            problems.append(
                f"{text}: {site} or the hub rewrote the past, or a newer copy or another ledger of "
                f"{site} is missing. Ask the hub for the receipt with {heads[-1]}"
            )
    return problems, notes


def _shown(replays: Iterable[Replay]) -> Iterator[tuple[str, str, Replay]]:
    """Yield each different head once for each ledger in which it stands."""
    for replay in replays:
        charged = (record for record, _ in replay.charges.values())
        records = (*charged, *replay.closings)
        yield from dict.fromkeys(
            (site, head, replay) for r in records for site, head in r.body["heads"].items()
        )


def _blame(own: Sequence[Replay], receipt: Statement | None, shown_to: str) -> None:
    """Accuse the ledger whose site stated this head itself, if there is one."""
    if receipt is None:
        return
    for replay in own:
        if receipt in about(replay, [receipt]) and receipt.of.site == replay.site:
            if receipt.seq > _seen_by(replay):
                text = f"{shown_to} was shown a head of it that it does not hold any more"
                replay.problem("tail", f"{text}: its past was rewritten ({receipt.name})")
            return


def check_merges(sound: Sequence[Replay]) -> list[str]:
    """Hold the two ledgers of each merge against each other; return what accuses neither.

    Args:
        sound: Ledgers that break no rule by themselves. A merge of another counts as one whose
            other ledger was not given: what it charged is the site's word.
    """
    return [text for replay in sound for text in (*_merges(replay, sound), *_end(replay, sound))]


def _merges(replay: Replay, sound: Sequence[Replay]) -> Iterator[str]:
    """What a ledger has merged was charged, all of it, up to the record that the merge names."""
    charged: dict[str, Cost] = {}
    for record in replay.merges:
        name, head = record.body["ledger"], record.body["head"]
        paid = charged.setdefault(name, Cost())
        for event in record.body["spends"]:
            paid.add(event_from_json(event))
        copies = [other for other in sound if other.ledger == name]
        held = [other for other in copies if other.position(head) is not None]
        for other in held:
            _check_merge(replay, record, paid, other)
        if not held:
            _one_sided(replay, f"what record {record.seq} charged of ledger {name[:19]}")
        if copies and not held and not any(other.recoveries for other in copies):
            yield _unheld(f"the merge in record {record.seq} of {replay.site}", name)


def _check_merge(replay: Replay, record: Record, paid: Cost, other: Replay) -> None:
    if (why := _laxer(replay, other)) is not None:
        text = f"record {record.seq}: it merges {other.ledger[:19]} into {why}"
        replay.problem("spent", text)
    seq, text = record.body["head_seq"], f"record {record.seq}: it merges {other.ledger[:19]}"
    if other.position(record.body["head"]) != seq:
        replay.problem("charged", f"{text} and names another position than its head has there")
    elif not paid.covers(_cost_to(other, seq)):
        replay.problem("spent", f"{text} for less than that had been charged by its record {seq}")


def _laxer(replay: Replay, other: Replay) -> str | None:
    """A budget is never loosened, and a declaration holds for everybody in it or for nobody."""
    ours, theirs = replay.policy, other.policy
    if (replay.declaration is None) != (other.declaration is None):
        return "one of which only one is declared to be of no human subjects"
    if ours is None or theirs is None:
        return None
    more = ours.epsilon > theirs.epsilon or ours.delta > theirs.delta
    if more or ours.allow_unprotected > theirs.allow_unprotected:
        return "a budget that permits more than its subjects were promised"
    return None


def _end(replay: Replay, sound: Sequence[Replay]) -> Iterator[str]:
    """The ledger in which a merged one goes on has charged it up to its end."""
    if replay.merged_into is None or replay.head is None:
        return
    heirs = [other for other in sound if other.ledger == replay.merged_into]
    end = (replay.ledger, replay.head.seq - 1, replay.head.previous)
    named = ("ledger", "head_seq", "head")
    if any(end == tuple(r.body[n] for n in named) for other in heirs for r in other.merges):
        return
    _one_sided(replay, f"that ledger {replay.merged_into[:19]} was charged all of this")
    if heirs and not any(other.recoveries for other in heirs):
        yield _unheld(f"that a ledger of {replay.site} was merged away", replay.merged_into)


def _unheld(what: str, ledger: str) -> str:
    return (
        f"{what} is not borne out by ledger {ledger[:19]}: one of the two was rewritten, or the "
        "copy of one is older. Ask for the newest of both"
    )


def _one_sided(replay: Replay, what: str) -> None:
    replay.one_sided = True
    replay.note(f"{what} was not checked: it takes both ledgers, whole")


def _cost_to(replay: Replay, seq: int) -> Cost:
    """Return what a ledger was charged by this record."""
    charges = (record for record, _ in replay.charges.values())
    records = [r for r in (*charges, *replay.recoveries, *replay.merges) if r.seq <= seq]
    spent = (r.body.get("spends", [r.body.get("event")]) for r in records)
    return Cost.of(event_from_json(event) for events in spent for event in events)


def _seen_by(replay: Replay) -> int:
    """Return the newest record that a recovery says was there; -1 without one."""
    return max((record.body["seen_seq"] for record in replay.recoveries), default=-1)
