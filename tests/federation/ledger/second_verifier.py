"""The verifier of docs/ledger, which shares no code with ours, as a function."""

import importlib.util
import json
from functools import cache
from pathlib import Path

PLACE = Path(__file__).parents[3] / "docs" / "ledger" / "verify.py"


@cache
def second_verifier():
    spec = importlib.util.spec_from_file_location("ledger_second_verifier", PLACE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def second_verdict(path, *, trust, receipts=(), closings=()):
    """Return what it says of one ledger; the papers are JSON values, written beside the ledger."""
    given = {}
    for name, papers in (("receipts", receipts), ("closings", closings)):
        given[name] = [path.with_name(f"{name}.json")]
        given[name][0].write_text(json.dumps(list(papers)))
    told = second_verifier().verify([path], (trust,), **given)
    assert told["problems"] == []
    (one,) = told["ledgers"]
    return one
