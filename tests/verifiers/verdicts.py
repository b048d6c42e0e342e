"""What each of the two verifiers says of the same files."""

import importlib.util
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


def second(laid_out: dict[str, list[Path]], trust: list[str]) -> list[str]:
    """Return the second verifier's word on each ledger, and "problems" if there are any beside."""
    papers = {name: [str(path) for path in laid_out[name]] for name in ("receipts", "closings")}
    report = SECOND.verify([str(path) for path in laid_out["paths"]], trust, **papers)
    words = [SAME.get(one["verdict"], one["verdict"]) for one in report["ledgers"]]
    return [*words, "problems"] if report["problems"] else words


def ours(laid_out: dict[str, list[Path]], trust: list[str]) -> list[str]:
    """Return the project's word, in the same form; it refuses papers that are none."""
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
    return [*words, "problems"] if problems or report.problems else words
