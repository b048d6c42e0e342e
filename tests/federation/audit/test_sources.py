import json
import os
from pathlib import Path

import pytest

from federation.audit import sources
from federation.audit.sources import find_sources, read_closings, read_receipts
from federation.audit.verify import verify_ledgers
from federation.errors import FederationError


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture
def folder(make_site, tmp_path):
    """Two sites' state folders, and a run's folder with what the hub kept."""
    for name in ("hospital-a", "hospital-b"):
        site = make_site(tmp_path / name / "state", site=name)
        write(tmp_path / "out" / name / "receipts.json", [r.to_json() for r in site.receipts])
        write(tmp_path / "out" / name / "closings.json", [c.to_json() for c in site.closings])
    return tmp_path


def verified(found):
    return verify_ledgers(
        found.ledgers,
        receipts=[r for path in found.receipts for r in read_receipts(path)],
        closings=[c for path in found.closings for c in read_closings(path)],
    )


def test_everything_below_a_folder_is_found(folder):
    found = find_sources([folder])
    assert found.ledgers == [
        folder / n / "state/ledger.jsonl" for n in ("hospital-a", "hospital-b")
    ]
    assert len(found.receipts) == len(found.closings) == 2
    assert found.told == f"Found in {folder}: 2 ledgers, 2 receipts files, 2 closings files."
    assert all(verdict.notes == () for verdict in verified(found).verdicts)


def test_files_and_folders_may_be_mixed_and_nothing_counts_twice(folder):
    ledger = folder / "hospital-a/state/ledger.jsonl"
    receipts = folder / "out/hospital-a/receipts.json"
    found = find_sources([ledger, ledger.parent, folder / "out"], receipts=[receipts])
    assert found.ledgers == [ledger]
    assert found.receipts[0] == receipts and len(found.receipts) == 2
    assert find_sources([ledger]).told == ""


def test_names_say_what_a_file_is(tmp_path):
    for name in ("north.ledger.jsonl", "notledger.jsonl", "x-receipts.json", "receipts.json"):
        (tmp_path / name).touch()
    found = find_sources([tmp_path])
    assert [path.name for path in found.ledgers] == ["north.ledger.jsonl"]
    assert [path.name for path in found.receipts] == ["receipts.json"]
    named = find_sources([tmp_path / "notledger.jsonl", tmp_path / "receipts.json"])
    assert [path.name for path in named.ledgers] == ["notledger.jsonl"]
    assert [path.name for path in named.receipts] == ["receipts.json"]


def test_a_folder_without_a_ledger_gives_what_others_keep_of_them(folder):
    found = find_sources([folder / "out"])
    assert (found.ledgers, len(found.receipts), len(found.closings)) == ([], 2, 2)
    assert "0 ledgers, 2 receipts files" in found.told


def test_no_link_is_followed(folder, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "ledger.jsonl").symlink_to(folder / "hospital-a/state/ledger.jsonl")
    (inside / "state").symlink_to(folder / "hospital-a")
    with pytest.raises(FederationError, match="There is no ledger"):
        find_sources([inside])


@pytest.mark.parametrize(
    ("bound", "value", "why"),
    [
        ("MAX_DEPTH", 1, "folders deeper than 1"),
        ("MAX_ENTRIES", 3, "more than 3 files"),
        ("MAX_FOUND", 2, "more than 2 files to verify"),
    ],
)
def test_a_folder_that_is_too_large_is_an_error_not_a_part_of_the_truth(
    folder, monkeypatch, bound, value, why
):
    monkeypatch.setattr(sources, bound, value)
    with pytest.raises(FederationError, match=why):
        find_sources([folder])


def test_a_folder_that_cannot_be_read_is_an_error(folder, monkeypatch):
    def walk(top, onerror):
        onerror(PermissionError(13, "Permission denied", str(top)))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(FederationError, match=r"cannot be read \(Permission denied\)"):
        find_sources([folder])


def test_a_statement_that_is_not_one_is_named_with_its_place(tmp_path):
    write(tmp_path / "receipts.json", [{"site": "ward-a"}])
    with pytest.raises(FederationError, match=r"receipts\.json, entry 1: a receipt has exactly"):
        read_receipts(tmp_path / "receipts.json")


@pytest.mark.slow
def test_an_mlflow_run_holds_what_the_hub_kept(make_site, tmp_path):
    """A real run, recorded in a store, and its artifacts as an export has them."""
    from federation.tracking.log import log_run
    from tests.federation.tracking.test_log_run import tracked

    site = make_site(tmp_path / "site")
    kept = {
        "receipts": tuple(receipt.to_json() for receipt in site.receipts),
        "closings": tuple(closing.to_json() for closing in site.closings),
    }
    logged = log_run(tracked(tmp_path, **kept))
    found = find_sources([tmp_path / "mlflow", site.path])
    (file,), (beside,) = found.receipts, found.closings
    assert logged.run_id in file.parts and beside.parent == file.parent
    assert verified(found).verdicts[0].notes == ()
    export = tmp_path / "export"
    Path(file.parent).rename(export)  # what `mlflow artifacts download` leaves
    assert [path.parent for path in find_sources([export, site.path]).receipts] == [export]
