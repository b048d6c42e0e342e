"""`python -m tests.benchmarks.bench_ledger`: what a charge costs beside its wait for the disk.

A charge cannot be faster than the disk makes a line durable. Both take turns in the same run, in
the same folder, with lines of the same size; what is left is the ledger's own work.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from rich.console import Console

from federation.audit.verify import verify_ledgers
from federation.ledger.ledger import Ledger
from federation.ledger.receipts import Receipt
from tests.benchmarks.long_ledgers import (
    EVENT,
    EXPERIMENT,
    PLAN,
    REQUEST,
    LongLedger,
    key_of_round,
    long_ledger,
)
from tests.benchmarks.tables import Section, rate, seconds

SECOND = Path(__file__).parents[2] / "docs/ledger/verify.py"
VERIFIERS = {"first": "cohortium audit verify", "second": "docs/ledger/verify.py"}
LENGTHS = (100, 1_000, 10_000)
NUM_CHARGES = 300
NUM_VERIFIED = 100_000
LEAST_SHARE, MOST_VERIFY_S = 0.5, 60.0


def main() -> None:
    """Measure and print."""
    asked = _arguments()
    console = Console(width=asked.width)
    console.print(_machine(), highlight=False)
    sections = []
    for each in _sections(asked):
        each.show(console)
        sections.append(each.document())
    if asked.json:
        document = {"machine": _machine(), "sections": sections}
        asked.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _sections(asked: Any) -> Iterator[Section]:
    with tempfile.TemporaryDirectory(prefix="bench-ledger-", dir=asked.folder) as name:
        folder = Path(name)
        lengths = [_charges(folder / str(n), n, asked.charges) for n in asked.lengths]
        yield charge_section(lengths)
        yield verify_section(_verified(folder / "long", asked.verified))


def _charges(folder: Path, length: int, num_charges: int) -> dict[str, Any]:
    """Let durable lines, charges, and charges with a high-water mark take turns."""
    folder.mkdir()
    key = long_ledger(folder, length).key
    path = folder / "ledger.jsonl"
    before = perf_counter()
    ledger = Ledger.open(path, key)
    opened_s = perf_counter() - before
    (folder / "marked").mkdir()
    marked_path = folder / "marked" / "ledger.jsonl"
    marked_path.write_bytes(path.read_bytes())
    marked = Ledger.open(marked_path, key, mark=folder / "mark", recovering=True)
    marked.start_mark()
    descriptor = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    line = ledger.records[-2].line
    turns: dict[str, Callable[[int], object]] = {
        "bare_s": lambda _: _durable(descriptor, line),
        "charge_s": lambda number: _charge(ledger, number),
        "marked_s": lambda number: _charge(marked, number),
    }
    found = _in_turns(turns, range(length, length + num_charges))
    os.close(descriptor)
    return {"records": length, "line_bytes": len(line), **found, "opened_s": opened_s}


def _in_turns(turns: dict[str, Callable[[int], object]], numbers: range) -> dict[str, float]:
    """Return each one's median time: whatever else the machine does meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for number in numbers:
        for name, turn in turns.items():
            before = perf_counter()
            turn(number)
            taken[name].append(perf_counter() - before)
    return {name: median(times) for name, times in taken.items()}


def _durable(descriptor: int, line: bytes) -> None:
    os.write(descriptor, line)
    os.fsync(descriptor)


def _charge(ledger: Ledger, number: int) -> None:
    ledger.charge(
        key_of_round(number),
        request_digest=REQUEST,
        experiment_digest=EXPERIMENT,
        plan_digest=PLAN,
        event=EVENT,
    )


def _verified(folder: Path, num_records: int) -> list[dict[str, Any]]:
    """Verify one ledger, without and with the receipts of all its releases; and by the second."""
    folder.mkdir()
    made = long_ledger(folder, num_records)
    path = folder / "ledger.jsonl"
    ours = [
        _timed(path, {made.key.fingerprint}, receipts, len(made.records))
        for receipts in ([], made.receipts)
    ]
    return [*ours, _timed_second(path, made)]


def _timed_second(path: Path, made: LongLedger) -> dict[str, Any]:
    """Run docs/ledger/verify.py as anybody would, with its start."""
    receipts = path.with_name("receipts.json")
    receipts.write_text(json.dumps([receipt.to_json() for receipt in made.receipts]))
    options = ("--trust", made.key.fingerprint, "--receipts", str(receipts))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    before, worked = perf_counter(), used.ru_utime + used.ru_stime
    command = [sys.executable, str(SECOND), *options, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    wall_s, used = perf_counter() - before, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"a sound ledger was found wrong: {done.stdout[:500]}{done.stderr}")
    return {
        "by": "second",
        "records": len(made.records),
        "receipts": len(made.receipts),
        "wall_s": wall_s,
        "processor_s": used.ru_utime + used.ru_stime - worked,
    }


def _timed(
    path: Path, trust: set[str], receipts: list[Receipt], num_records: int
) -> dict[str, Any]:
    before, worked = perf_counter(), process_time()
    report = verify_ledgers([path], trust=trust, receipts=receipts)
    wall_s, processor_s = perf_counter() - before, process_time() - worked
    if not report.ok:
        raise RuntimeError(f"a sound ledger was found wrong: {report.verdicts[0].problems[:3]}")
    taken = {"wall_s": wall_s, "processor_s": processor_s}
    return {"by": "first", "records": num_records, "receipts": len(receipts), **taken}


def charge_section(found: list[dict[str, Any]]) -> Section:
    """Return the table of charges at several lengths, and how flat they are."""
    lines = tuple(
        (
            f"{row['records']:,}",
            rate(1 / row["bare_s"]),
            rate(1 / row["charge_s"], row["bare_s"] / row["charge_s"]),
            rate(1 / row["marked_s"], row["bare_s"] / row["marked_s"]),
            f"{1e3 * (row['charge_s'] - row['bare_s']):.2f}",
            seconds(row["opened_s"]),
        )
        for row in found
    )
    shares = [row["bare_s"] / row["charge_s"] for row in found]
    flat = found[-1]["charge_s"] / found[0]["charge_s"]
    return Section(
        "Charges, one after the other, each durable before it returns",
        (
            "records before",
            "bare lines a second",
            "charges a second",
            "with a mark",
            "beside the disk, ms",
            "to open, s",
        ),
        tuple(found),
        lines,
        (
            "In brackets: the share of the bare rate. Medians; all took turns in the same run.",
            "With a mark: the high-water mark is replaced durably, too, here on the same disk.",
            "Beside the disk: what a charge takes longer than a bare line, whatever the disk.",
            _met(f"smallest share {min(shares):.2f}", min(shares) >= LEAST_SHARE, LEAST_SHARE),
            f"a charge takes {flat:.2f} times as long in the longest ledger as in the shortest",
        ),
    )


def verify_section(found: list[dict[str, Any]]) -> Section:
    """Return the table of the verifier."""
    lines = tuple(
        (
            VERIFIERS[row["by"]],
            f"{row['records']:,}",
            f"{row['receipts']:,}",
            f"{row['wall_s']:.1f}",
            f"{row['processor_s']:.1f}",
            rate(row["records"] / row["wall_s"]),
        )
        for row in found
    )
    slowest = max(row["wall_s"] for row in found)
    return Section(
        "Verified: every hash, signature, rule and total",
        ("by", "records", "receipts", "s", "of a processor, s", "records a second"),
        tuple(found),
        lines,
        (_met(f"longest {slowest:.1f} s", slowest <= MOST_VERIFY_S, MOST_VERIFY_S),),
    )


def _met(what: str, met: bool, aim: float) -> str:
    """Return one line.

    >>> _met("smallest share 0.61", True, 0.5)
    'smallest share 0.61 (aim 0.5): MET'
    """
    return f"{what} (aim {aim:g}): {'MET' if met else 'MISSED'}"


def _arguments() -> Any:
    parser = argparse.ArgumentParser(prog="bench_ledger", description=__doc__)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--charges", type=int, default=NUM_CHARGES, help="at each length")
    parser.add_argument("--verified", type=int, default=NUM_VERIFIED, help="records to verify")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    parser.add_argument("--width", type=int, default=100, help="of the tables, in characters")
    return parser.parse_args()


def _machine() -> str:
    busy = f"{os.getloadavg()[0]:.1f} processes running on average in the last minute"
    return f"{os.cpu_count()} cores, {platform.machine()}, {busy}"


if __name__ == "__main__":
    main()
