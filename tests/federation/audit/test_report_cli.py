"""``cohortium audit report`` as a person runs it."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from federation.cli.audit_report import REPORT_HELP, report
from tests.federation.audit.report_sample import make


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return make(tmp_path_factory.mktemp("sample"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command(help=REPORT_HELP)(report)
    return lambda *arguments: CliRunner().invoke(app, [str(one) for one in arguments])


def test_a_folder_and_a_trust_file_are_enough(sample, run, tmp_path):
    done = run("--trust", sample.folder / "trust.txt", sample.folder)
    assert done.exit_code == 0, done.output
    assert "north-clinic: verified" in done.output and "The report is report.html." in done.output
    text = (tmp_path / "report.html").read_text()
    assert "Verified." in text and "39 signed receipts" in text


def test_names_purposes_and_self_audits_are_put_beside(sample, run, tmp_path):
    beside = [
        "--experiments",
        sample.folder / "experiments",
        "--self-audits",
        sample.folder / "audits",
    ]
    done = run("--trust", sample.folder / "trust.txt", *beside, "--out", "b.html", sample.folder)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "b.html").read_text()
    assert "memory clinics" in text and "no evidence of violation" in text


def test_without_trust_the_page_is_written_and_the_status_is_1(sample, run, tmp_path):
    done = run("--receipts", sample.folder / "receipts.json", sample.ledgers[0])
    assert done.exit_code == 1
    assert "identity unknown" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--out", "nowhere/report.html"], "cannot be written"),
        (["--experiments", "nowhere"], "no experiment file or folder"),
        (["--self-audit", "nowhere"], "no self-audit file or folder"),
        (["--receipts", "nowhere.json"], "nowhere.json"),
        (["--trust", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence_and_nothing_written(
    sample, run, tmp_path, arguments, why
):
    done = run(*arguments, sample.ledgers[0])
    assert done.exit_code == 2 and why in done.output
    assert list(tmp_path.glob("**/*.html")) == []


def test_it_needs_neither_torch_nor_anything_that_draws():
    modules = "federation.cli.audit_report, federation.audit.report_page"
    script = f"import sys, {modules}; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = {line.split(".")[0] for line in done.stdout.splitlines()}
    assert not loaded & {"torch", "matplotlib", "flwr", "mlflow", "monai", "opacus"}
