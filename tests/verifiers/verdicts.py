"""What each of the two verifiers says of the same files."""

import importlib.util
from dataclasses import dataclass
from math import isinf
from pathlib import Path

from federation.audit.sources import read_closings, read_receipts
from federation.audit.verify import verify_ledgers
from federation.errors import FederationError

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "ledger" / "verify.py"
SAME = {"consistent": "consistent, identity unknown"}


def load_script():
    """Import docs/ledger/verify.py by its path, for it belongs to no package."""
    spec = importlib.util.spec_from_file_location("second_verifier", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SECOND = load_script()


@dataclass(frozen=True)
class Said:
    """One verifier's word on each ledger, and what it computed of those it does not contradict.

    Attributes:
        words: With "problems" at the end if there are any beside the ledgers.
        numbers: Every order's total, and epsilon (None: unlimited); None of a contradicted ledger,
            whose sums each verifier ends where it stopped reading.
    """

    words: list[str]
    numbers: list[tuple[list[float], float | None] | None]


def second(laid_out: dict[str, list[Path]], trust: list[str]) -> list[str]:
    """Return the second verifier's word on each ledger, and "problems" if there are any beside."""
    return second_said(laid_out, trust).words


def ours(laid_out: dict[str, list[Path]], trust: list[str]) -> list[str]:
    """Return the project's word, in the same form."""
    return ours_said(laid_out, trust).words


def second_said(laid_out: dict[str, list[Path]], trust: list[str]) -> Said:
    """Return what the second verifier says."""
    papers = {name: [str(path) for path in laid_out[name]] for name in ("receipts", "closings")}
    report = SECOND.verify([str(path) for path in laid_out["paths"]], trust, **papers)
    words = [SAME.get(one["verdict"], one["verdict"]) for one in report["ledgers"]]
    numbers = [(one["totals"], one["epsilon"]) for one in report["ledgers"]]
    return _said(words, numbers, report["problems"])


def ours_said(laid_out: dict[str, list[Path]], trust: list[str]) -> Said:
    """Return what the project's verifier says; it refuses papers that are none."""
    problems = []
    try:
        receipts = [paper for path in laid_out["receipts"] for paper in read_receipts(path)]
        closings = [paper for path in laid_out["closings"] for paper in read_closings(path)]
    except FederationError as error:
        receipts, closings, problems = [], [], [str(error)]
    report = verify_ledgers(
        laid_out["paths"], trust=trust or None, receipts=receipts, closings=closings
    )
    words = [verdict.summary for verdict in report.verdicts]
    spent = [verdict.spent_epsilon for verdict in report.verdicts]
    epsilons = [None if isinf(epsilon) else epsilon for epsilon in spent]
    totals = [list(verdict.totals) for verdict in report.verdicts]
    return _said(words, list(zip(totals, epsilons, strict=True)), problems or report.problems)


def _said(words, numbers, problems) -> Said:
    known = [
        None if word == "contradicted" else number
        for word, number in zip(words, numbers, strict=True)
    ]
    return Said([*words, "problems"] if problems else words, known)
