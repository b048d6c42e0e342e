"""Verify ledgers: whose they are, whether they are whole, and what they really cost."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal

from federation.audit.accounting import PldEpsilon, pld_epsilon
from federation.audit.replay import Replay, replay_file
from federation.ledger.filter import BudgetPolicy, FilterState
from federation.ledger.keys import fingerprint_of
from federation.ledger.receipts import Receipt
from federation.ledger.records import INSECURE_RANDOMNESS, Record

Trust = Mapping[str, str] | Collection[str]
"""Fingerprints by site name, or fingerprints alone."""

NOT_ANCHORED = "tail not anchored: pass --receipts"


@dataclass(frozen=True)
class Verdict:
    """What is known of one ledger after checking it.

    Attributes:
        identity: Whether the key that signed is one that the reader trusts.
        problems: Why the ledger is not to be believed; empty if it is consistent.
        notes: What a reader should know although it is no fault.
        spent_epsilon: State of the site's own filter, recomputed.
        rdp_epsilon: The same by dp-accounting, from its own totals.
        pld: Epsilon if nothing had been chosen adaptively.
        totals: dp-accounting's Rényi divergence at each order of the policy.
    """

    path: Path
    site: str
    population: str
    fingerprint: str
    identity: Literal["trusted", "unknown"]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    policy: BudgetPolicy | None
    spent_epsilon: float
    rdp_epsilon: float
    pld: PldEpsilon
    totals: tuple[float, ...]
    charges: int
    unprotected_charges: int
    releases: int
    refusals: Mapping[str, int]
    head: tuple[int, str] | None

    @property
    def consistent(self) -> bool:
        """Tell whether nothing was found wrong. Whose ledger it is is another question."""
        return not self.problems

    @property
    def ok(self) -> bool:
        """Tell whether the ledger is consistent and signed by somebody trusted."""
        return self.consistent and self.identity == "trusted"

    @property
    def summary(self) -> str:
        """The verdict in a few words."""
        if self.problems:
            return "contradicted"
        return "verified" if self.ok else "consistent, identity unknown"

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; an infinite epsilon is null beside ``unprotected_charges``."""
        return {
            "path": str(self.path),
            "site": self.site,
            "population": self.population,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "verdict": self.summary,
            "ok": self.ok,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "policy": self.policy.to_json() if self.policy else None,
            "spent_epsilon": _finite(self.spent_epsilon),
            "rdp_epsilon": _finite(self.rdp_epsilon),
            "pld_epsilon": self.pld.value,
            "pld_note": self.pld.note,
            "rdp_totals": list(self.totals),
            "charges": self.charges,
            "unprotected_charges": self.unprotected_charges,
            "releases": self.releases,
            "refusals": dict(self.refusals),
            "head": list(self.head) if self.head else None,
        }


@dataclass(frozen=True)
class Report:
    """The verdicts on several ledgers, and what is wrong between them."""

    verdicts: tuple[Verdict, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Tell whether every ledger is verified and is the one that its site's receipts name."""
        return not self.problems and all(verdict.ok for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """Return the versioned JSON object that ``cohortium audit verify --json`` prints."""
        return {
            "format": "cohortium-audit-verify/1",
            "ok": self.ok,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "ledgers": [verdict.to_json() for verdict in self.verdicts],
        }


def verify_ledger(
    path: Path, *, trust: Trust | None = None, receipts: Iterable[Receipt] = ()
) -> Verdict:
    """Check one ledger file. Never raises on what the file holds: that becomes a problem.

    Args:
        trust: Whom the reader believes. Without it the identity stays unknown.
        receipts: What left the site, kept by others. Receipts under other keys are passed over.
    """
    return _judge(path, replay_file(path), trust, tuple(receipts))


def verify_ledgers(
    paths: Sequence[Path], *, trust: Trust | None = None, receipts: Iterable[Receipt] = ()
) -> Report:
    """Check ledgers together.

    A receipt of a given site that belongs to another ledger is a problem: the site's ledger was
    replaced. Receipts of sites whose ledger was not given are noted as not checked.
    """
    replays = {path: replay_file(path) for path in paths}
    ledgers = {replay.genesis.hash for replay in replays.values() if replay.genesis}
    keys = {replay.genesis.body["public_key"] for replay in replays.values() if replay.genesis}
    given = tuple(receipts)
    verdicts = tuple(
        _judge(path, replay, trust, _receipts_for(replay, given, ledgers))
        for path, replay in replays.items()
    )
    problems = _several_ledgers(replays.values())
    problems += [f"{_name(r)}: it is not validly signed" for r in given if not r.verify()]
    strangers = Counter(
        r.site for r in given if r.ledger not in ledgers and r.public_key not in keys and r.verify()
    )
    sites = {replay.genesis.body["site"] for replay in replays.values() if replay.genesis}
    problems += [
        f"{count} receipts of {site} belong to another ledger than the one given: it was replaced "
        "or started anew, or somebody else signs under its name"
        for site, count in strangers.items()
        if site in sites
    ]
    notes = (
        f"{count} receipts of {site} were not checked: its ledger was not given"
        for site, count in strangers.items()
        if site not in sites
    )
    return Report(verdicts, tuple(problems), tuple(notes))


def _several_ledgers(replays: Iterable[Replay]) -> list[str]:
    """Find sites that show more than one ledger for one population: each would be a budget."""
    ledgers: dict[tuple[str, str], set[str]] = {}
    for replay in replays:
        if replay.genesis is not None:
            body = replay.genesis.body
            ledgers.setdefault((body["site"], body["population"]), set()).add(replay.genesis.hash)
    return [
        f"{site} has {len(hashes)} ledgers for {population}: a population has one budget"
        for (site, population), hashes in ledgers.items()
        if len(hashes) > 1
    ]


def _receipts_for(
    replay: Replay, receipts: tuple[Receipt, ...], ledgers: set[str]
) -> tuple[Receipt, ...]:
    """Return this ledger's receipts, and its key's receipts for ledgers that nobody showed."""
    if replay.genesis is None:
        return ()
    own, key = replay.genesis.hash, replay.genesis.body["public_key"]
    return tuple(
        r for r in receipts if r.ledger == own or (r.public_key == key and r.ledger not in ledgers)
    )


def _judge(
    path: Path, replay: Replay, trust: Trust | None, receipts: tuple[Receipt, ...]
) -> Verdict:
    site, fingerprint, identity = _identify(replay, trust)
    _check_receipts(replay, receipts)
    _check_randomness(replay)
    spent, policy = _spent_by_filter(replay), replay.policy
    unprotected = replay.num_unprotected
    return Verdict(
        path=path,
        site=site,
        population=replay.genesis.body["population"] if replay.genesis else "",
        fingerprint=fingerprint,
        identity=identity,
        policy=policy,
        spent_epsilon=spent,
        rdp_epsilon=inf if unprotected else replay.rdp_epsilon,
        pld=_pld(replay),
        totals=replay.totals,
        charges=len(replay.charges),
        unprotected_charges=unprotected,
        releases=len(replay.releases),
        refusals=dict(replay.refusals),
        head=(replay.head.seq, replay.head.hash) if replay.head else None,
        problems=tuple(replay.problems),
        notes=(*replay.notes, *_told(replay)),
    )


def _told(replay: Replay) -> list[str]:
    """Return what the site's notes say, in at most two sentences: they crowd out nothing else."""
    told = []
    if replay.declaration is not None:
        by, reason = replay.declaration
        told.append(f"declared to be of no human subjects by {by}: {reason}")
    others = [f"{n} {what}" for what, n in sorted(replay.noted.items()) if what != "declaration"]
    if others:
        told.append(f"the site recorded, beside training: {', '.join(others)}")
    return told


def _identify(
    replay: Replay, trust: Trust | None
) -> tuple[str, str, Literal["trusted", "unknown"]]:
    if replay.genesis is None:
        return "", "", "unknown"
    site = str(replay.genesis.body["site"])
    fingerprint = fingerprint_of(bytes.fromhex(replay.genesis.body["public_key"]))
    if trust is None:
        return site, fingerprint, "unknown"
    trusted = set(trust.values()) if isinstance(trust, Mapping) else set(trust)
    if fingerprint not in trusted:
        replay.problem(f"it is signed with {fingerprint}, which is not among the trusted keys")
        return site, fingerprint, "unknown"
    if isinstance(trust, Mapping) and trust.get(site, fingerprint) != fingerprint:
        replay.problem(f"it calls itself {site!r}, a name that is trusted with another key")
    return site, fingerprint, "trusted"


def _spent_by_filter(replay: Replay) -> float:
    """Return what the site's own filter says of the same charges."""
    if replay.policy is None:
        return 0.0
    return FilterState(dict(replay.steps), replay.num_unprotected).spent_epsilon(replay.policy)


def _pld(replay: Replay) -> PldEpsilon:
    if replay.policy is None:
        return PldEpsilon(None, "there is no policy")
    if replay.num_unprotected:
        return PldEpsilon(None, "infinite: a charge was made without noise")
    return pld_epsilon(replay.steps, delta=replay.policy.delta, rdp_epsilon=replay.rdp_epsilon)


def _check_receipts(replay: Replay, receipts: tuple[Receipt, ...]) -> None:
    genesis = replay.genesis
    if genesis is None:
        return
    key = genesis.body["public_key"]
    own = [r for r in receipts if r.public_key == key or r.ledger == genesis.hash]
    for receipt in own:
        wrong = _wrong_with(replay, receipt, ledger=genesis.hash, key=key)
        if wrong:
            replay.problem(f"{_name(receipt)}: {wrong}")
    _note_tail(replay, own)


def _check_randomness(replay: Replay) -> None:
    name, insecure = INSECURE_RANDOMNESS
    marked = [r for r in replay.releases.values() if r.body["versions"].get(name) == insecure]
    if marked:
        replay.problem(
            f"{len(marked)} updates were released with a test's randomness ({insecure}): whoever "
            "knows its seed can take the noise away, so they protected nobody"
        )


def _wrong_with(replay: Replay, receipt: Receipt, *, ledger: str, key: str) -> str:
    if receipt.public_key != key or not receipt.verify():
        return "it is not signed with this ledger's key"
    if receipt.ledger != ledger:
        return "this site's key signed it for another ledger; was the ledger started anew?"
    charge, approval = replay.charges.get(receipt.charge_seq, (None, None))
    release = replay.releases.get(receipt.charge_seq)
    if charge is None or release is None:
        return "the ledger does not hold its charge and release: records are missing"
    if (charge.previous, release.hash) != (receipt.head_before, receipt.head_after):
        return "the ledger's past is not the one that the site signed then"
    if _stated(receipt) != _recorded(replay, charge, approval):
        return "it states something else than the ledger"
    return ""


def _stated(receipt: Receipt) -> dict[str, Any]:
    stated = receipt.to_json()
    about_chain = ("public_key", "ledger", "charge_seq", "head_before", "head_after", "signature")
    return {name: value for name, value in stated.items() if name not in about_chain}


def _recorded(replay: Replay, charge: Record, approval: Record | None) -> dict[str, Any]:
    names = ("experiment_digest", "plan_digest", "run", "round", "attempt", "request_digest")
    release = replay.releases[charge.seq].body
    return {
        **{name: charge.body[name] for name in (*names, "event")},
        "site": replay.genesis.body["site"] if replay.genesis else "",
        "commitment": approval.body["commitment"] if approval else "",
        "update_digest": release["update_digest"],
        "versions": release["versions"],
    }


def _note_tail(replay: Replay, receipts: list[Receipt]) -> None:
    if not receipts:
        replay.note(NOT_ANCHORED)
        return
    seqs = Counter(receipt.charge_seq for receipt in receipts)
    missing = sum(1 for seq in replay.releases if seq not in seqs)
    if missing:
        replay.note(f"{missing} releases have no receipt here")
    anchored = max(
        (record.seq for seq, record in replay.releases.items() if seq in seqs), default=-1
    )
    after = len(replay.hashes) - 1 - anchored
    if after > 0:
        replay.note(f"{after} records after the newest receipt are not anchored")


def _name(receipt: Receipt) -> str:
    where = f"run {receipt.run}, round {receipt.round}, attempt {receipt.attempt}"
    return f"receipt of {receipt.site} ({where})"


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
