"""Check ledgers against format.md: a second opinion that shares no code with Cohortium.

    python verify.py [--trust FINGERPRINT]... [--receipts FILE]... [--closings FILE]... LEDGER...

Prints one JSON object; exit code 0: all verified, 1: not, 2: wrong usage. Needs no key or network.
"""
# ruff: noqa: C901, D, PLR0911, PLR0912, PLR0915 - short enough to be read as a whole
import argparse
import base64
import functools
import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, rdp

# fmt: off
# A form is a pattern, a range, (least, greatest), {words}, or [type, form of each, how many at most].
FORMS: dict[str, Any] = {key: form for keys, form in {
    "previous hash experiment_digest plan_digest request_digest update_digest model_digest software "
    "commitment seen_hash ledger head into head_before head_after digest": "sha256:[0-9a-f]{64}",
    "public_key hub_key": "[0-9a-f]{64}", "signature proof": "[0-9a-f]{128}", "salt": "[0-9a-f]{32}",
    "run": "[A-Za-z0-9._-]{1,64}", "author": "SHA256:[A-Za-z0-9+/]{43}",
    "site population approver second_approver ethics_reference legal_basis algorithm by reason text":
    "(?s:.{1,200})", "at expires": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "seq charge_seq seen_seq head_seq": range(10**9 + 1), "round attempt": range(10**6 + 1),
    "charges": range(1, 10**6 + 1), "steps": range(1, 10**9 + 1), "order": range(2, 1025),
    "epsilon total": (-1e300, 1e300), "delta sampling_rate": (5e-324, 1),
    "noise_multiplier": (0.01, 1e6), "orders": [list, "order", 16], "totals": [list, "total", 16],
    "order_deltas": [list, "delta", 16], "leaves": [list, "text", 32], "heads": [dict, "digest", 256],
    "spends": [list, "event", 64], "experiments": [list, "digest", 800],
    "versions": [dict, "text", 32], "format": {"cohortium-ledger/2"}, "unit": {"subject"},
    "adjacency": {"add_or_remove_one"}, "allow_unprotected": {True, False},
    "what": {"declaration", "exclusion", "purge"}, "code": {"not_approved", "approval_used_up",
        "budget", "equivocation", "lost", "behind", "operator"},
}.items() for key in keys.split()}
PLAN, REQUEST = "experiment_digest plan_digest event", "run round attempt request_digest"
SENT, ENDED = "update_digest versions", "experiment_digest run heads model_digest?"
SIGNED, SPENT = "site public_key ledger", "by? reason? spends totals"
KINDS = {kind: keys.split() for kind, keys in {
    "genesis": "format site population public_key policy",
    "approval": f"{PLAN} charges commitment approver second_approver? author? hub_key? "
        "ethics_reference? legal_basis? expires? algorithm epsilon? leaves software",
    "reservation": "experiment_digest run charges",
    "charge": f"{PLAN} {REQUEST} heads totals",
    "release": f"charge_seq {SENT}",
    "loss": "charge_seq",
    "refusal": "experiment_digest plan_digest? event? code request? by? reason?",
    "withdrawal": "experiment_digest by? reason?",
    "closing": ENDED,
    "key_rotation": "public_key proof",
    "recovery": f"{SPENT} seen_seq seen_hash",
    "merge": f"{SPENT} ledger head_seq head",
    "merged": "into",
    "note": "what by? reason? experiments",
}.items()}
RECORD = "seq kind at salt previous body"
OBJECTS = {name: keys.split() for name, keys in {
    "record": f"{RECORD} hash signature", "request": REQUEST,
    "policy": "epsilon delta orders order_deltas unit adjacency allow_unprotected",
    "event": "kind sampling_rate noise_multiplier steps",
    "receipt": f"{SIGNED} {PLAN} {REQUEST} commitment charge_seq head_before head_after {SENT} signature",
    "statement": f"{SIGNED} {ENDED} seq head signature",
}.items()}
OPEN, BY_OPEN = {"kind": "unprotected"}, (None, None)
# fmt: on


def need(holds: Any, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def fits(v: Any, name: str) -> bool:
    match FORMS.get(name):
        case str(pattern):
            fit = isinstance(v, str) and re.fullmatch(pattern, v, re.ASCII) and v.isprintable()
            return bool(fit and (name not in ("at", "expires") or datetime.fromisoformat(v)))
        case range() as numbers:
            return type(v) is int and v in numbers
        case (low, high):
            return type(v) in (int, float) and low <= v <= high
        case set(words):
            return type(v) in (str, bool) and v in words
        case [kind, each, most]:
            ...
    return 
