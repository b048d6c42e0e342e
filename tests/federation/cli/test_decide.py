"""``cohortium site approve``, ``refuse``, ``withdraw``, ``recover`` and ``rotate-key`` as typed."""

import json
import shutil
from datetime import UTC, datetime
from hashlib import sha256

import pytest
import yaml
from typer.testing import CliRunner

from data_adapters.errors import DataError
from federation.cli.app import app
from federation.errors import FederationError, LedgerError, PrivacyBudgetError
from federation.experiment import load_experiment
from federation.ledger.keys import SITE_KEY, SiteKey
from federation.run import approve as approve_all
from federation.run import run_experiment
from federation.site import open_site
from federation.site_keys import NEXT_KEY
from tests.conftest import edit
from tests.experiments import demo_values

COMMANDS = ("approve", "refuse", "withdraw", "recover", "rotate-key")


def cohortium(*arguments, answers=None):
    result = CliRunner().invoke(app, [*map(str, arguments)], input=answers)
    if isinstance(result.exception, FederationError | DataError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def experiment_file(tmp_path):
    values = demo_values()
    values["algorithm"] |= {"rounds": 2, "steps_per_round": 2, "min_sites": 1}
    values["privacy"]["epsilon"] = 3.0  # of the sites' 10: several runs fit
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def file(federation):
    return federation / "bio-lab" / "site.yaml"


def kinds(file):
    return [record.kind for record in open_site(file).ledger.records]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command):
    shown = cohortium("site", command, "--help").output
    assert f"cohortium site {command} site.yaml" in shown.split("Example")[1]


def test_approve_shows_what_runs_and_leaves_asks_and_records_all_of_it(file, experiment_file):
    options = ("--ethics-reference", "EK-7", "--legal-basis", "section 27", "--by", "Dr A")
    more = ("--second-approver", "Dr B", "--expires", "2999-12-31")
    shown = cohortium("site", "approve", file, experiment_file, *options, *more, answers="y\n")
    experiment, site = load_experiment(experiment_file), open_site(file)
    (record,) = (r for r in site.ledger.records if r.kind == "approval")
    assert record.body["experiment_digest"] == experiment.digest()
    assert record.body["approver"] == "Dr A" and record.body["second_approver"] == "Dr B"
    assert record.body["ethics_reference"] == "EK-7"
    assert record.body["legal_basis"] == "section 27"
    assert record.body["expires"] == "2999-12-31T23:59:59Z"
    flat = "".join(shown.output.split())
    for told in (experiment.name, experiment.digest(), "EK-7", "section27", "DrB", "epsilon"):
        assert told in flat, told
    for told in (experiment.purpose, *site.leaves):
        assert "".join(told.split()) in flat, told


def test_no_is_no(file, experiment_file):
    assert cohortium("site", "approve", file, experiment_file, answers="n\n").exit_code == 1
    assert kinds(file) == ["genesis"]


def test_what_does_not_fit_is_refused_and_stands_in_the_ledger(file, experiment_file):
    edit(experiment_file, "epsilon: 3.0", "epsilon: 60.0")
    with pytest.raises(PrivacyBudgetError):
        cohortium("site", "approve", file, experiment_file, "--yes")
    assert kinds(file) == ["genesis", "refusal"]


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--expires", "2001-01-01", "is over"),
        ("--expires", "next year", "write a day"),
        ("--second-approver", "dr a", "Name somebody else"),
    ],
)
def test_a_senseless_approval_is_refused(file, experiment_file, option, value, complaint):
    with pytest.raises(FederationError, match=complaint):
        cohortium("site", "approve", file, experiment_file, "--by", "Dr A", option, value)


def test_a_run_uses_the_approval_that_the_operator_gave(file, experiment_file, tmp_path):
    cohortium("site", "approve", file, experiment_file, "--yes", "--ethics-reference", "EK-7")
    experiment, site = load_experiment(experiment_file), open_site(file)
    approve_all(experiment, [site], approver="somebody else")
    assert kinds(file).count("approval") == 1
    run_experiment(experiment, [site], out=tmp_path / "run")
    assert kinds(file)[-1] == "closing"
    approve_all(experiment, [site], approver="somebody else")
    assert kinds(file).count("approval") == 2, "the first was for one run"


def test_an_approval_ends_where_the_site_file_lets_other_things_leave(
    file, experiment_file, tmp_path
):
    cohortium("site", "approve", file, experiment_file, "--yes")
    experiment = load_experiment(experiment_file)
    edit(file, "release_counts: withheld", "release_counts: exact")
    with pytest.raises(FederationError, match="lets other things leave"):
        open_site(file).approved(experiment.digest())
    edit(file, "release_counts: exact", "release_counts: withheld")
    assert open_site(file).approved(experiment.digest()) == experiment


@pytest.mark.parametrize("text", ["x" * 201, "a\nb", ""])
def test_a_text_that_the_ledger_does_not_take_is_said_before_the_question(
    file, experiment_file, text
):
    with pytest.raises(FederationError, match="goes into the ledger"):
        cohortium("site", "approve", file, experiment_file, "--legal-basis", text)


def test_a_mark_cannot_be_started_where_none_is_kept(file):
    open_site(file)
    with pytest.raises(FederationError, match="names no high_water_mark"):
        cohortium("site", "recover", file, "--start-mark")


def test_refuse_and_withdraw_stand_in_the_ledger(file, experiment_file, tmp_path):
    reason = ("--reason", "the purpose is too wide")
    cohortium("site", "refuse", file, experiment_file, *reason)
    cohortium("site", "approve", file, experiment_file, "--yes")
    with pytest.raises(LedgerError, match="Withdraw"):
        cohortium("site", "refuse", file, experiment_file, *reason)
    experiment, site = load_experiment(experiment_file), open_site(file)
    summary = run_experiment(experiment, [site], out=tmp_path / "run")
    with pytest.raises(LedgerError, match="no open approval"):
        cohortium("site", "withdraw", file, experiment_file, *reason)
    cohortium("site", "approve", file, experiment_file, "--yes")
    shown = cohortium("site", "withdraw", file, experiment.digest(), *reason, "--json")
    told = json.loads(shown.stdout)
    assert told["runs"] == {summary.run: 2}
    closing = open_site(file).ledger.book.closings[summary.run]
    assert told["models"] == {summary.run: closing.body["model_digest"]}
    assert closing.body["model_digest"].startswith("sha256:")
    cohortium("site", "approve", file, experiment_file, "--yes")
    again = cohortium("site", "withdraw", file, experiment.digest(), *reason)
    assert closing.body["model_digest"][:20] in again.output
    assert kinds(file)[-1] == "withdrawal"


def test_a_commitment_is_opened_for_an_auditor_and_not_once_the_data_are_others(
    file, experiment_file, tmp_path
):
    out, site = tmp_path / "opening.json", open_site(file)
    with pytest.raises(FederationError, match="never approved"):
        cohortium("site", "open-commitment", file, experiment_file, "--out", out)
    cohortium("site", "approve", file, experiment_file, "--yes")
    cohortium("site", "open-commitment", file, experiment_file, "--out", out)
    opening = json.loads(out.read_text())
    hidden = bytes.fromhex(opening["nonce"]) + opening["root"].encode()
    (approval,) = open_site(file).ledger.approvals.values()
    assert approval.body["commitment"] == f"sha256:{sha256(hidden).hexdigest()}"
    assert out.stat().st_mode & 0o777 == 0o600
    shown = cohortium("audit", "verify", "--opening", out, site.config.state, "--json")
    (ledger,) = json.loads(shown.stdout)["ledgers"]
    assert ("commitment to the data", "recomputed") in {
        (claim["what"], claim["status"]) for claim in ledger["claims"]
    }
    cohortium("site", "exclude", file, site.manifest("protected").subjects[0], "--reason", "asked")
    with pytest.raises(FederationError, match="not those that"):
        cohortium("site", "open-commitment", file, experiment_file, "--out", out)


def test_a_reason_that_the_ledger_does_not_take_is_refused_beforehand(file, experiment_file):
    with pytest.raises(FederationError, match="goes into the ledger"):
        cohortium("site", "refuse", file, experiment_file, "--reason", "a\nb")


class TestAuthors:
    @pytest.fixture
    def author(self, tmp_path, experiment_file, file):
        """A site that knows one author, who has not signed yet."""
        shown = cohortium("author", "keygen", tmp_path / "author").output
        fingerprint = shown.split()[-1]
        edit(file, "policy:", f"authors: {{Dr Author: '{fingerprint}'}}\npolicy:")
        return tmp_path / "author"

    def test_only_what_a_known_author_signed_is_approved(self, author, file, experiment_file):
        with pytest.raises(FederationError, match=r"signed by nobody.*Dr Author"):
            cohortium("site", "approve", file, experiment_file, "--yes")
        cohortium("author", "sign", experiment_file, "--key", author)
        cohortium("site", "approve", file, experiment_file, "--yes")
        approval = open_site(file).ledger.records[-1]
        assert approval.body["author"] == SiteKey.load(author, "author-key").fingerprint

    def test_a_change_after_signing_is_found(self, author, file, experiment_file):
        cohortium("author", "sign", experiment_file, "--key", author)
        edit(experiment_file, "rounds: 2", "rounds: 3")
        with pytest.raises(FederationError, match="not over what its file says now"):
            cohortium("site", "approve", file, experiment_file, "--yes")

    def test_another_author_is_refused(self, author, file, experiment_file, tmp_path):
        cohortium("author", "keygen", tmp_path / "stranger")
        cohortium("author", "sign", experiment_file, "--key", tmp_path / "stranger")
        with pytest.raises(FederationError, match="signed by SHA256:"):
            cohortium("site", "approve", file, experiment_file, "--yes")
        with pytest.raises(FederationError, match="signed by nobody"):
            approve_all(load_experiment(experiment_file), [open_site(file)], approver="x")

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"signature":"00"}'])
    def test_a_file_that_is_no_signature_is_refused(self, author, file, experiment_file, text):
        experiment_file.with_name("experiment.yaml.sig").write_text(text)
        with pytest.raises(FederationError, match="not a signature"):
            cohortium("site", "approve", file, experiment_file, "--yes")


def test_a_key_is_replaced_and_the_site_goes_on(file, experiment_file, tmp_path):
    cohortium("site", "approve", file, experiment_file, "--yes")
    before = open_site(file).key.fingerprint
    cohortium("site", "rotate-key", file, "--yes")
    site = open_site(file)
    assert site.key.fingerprint != before
    run_experiment(load_experiment(experiment_file), [site], out=tmp_path / "run")
    receipts, closings = (tmp_path / "run" / f"{n}.json" for n in ("receipts", "closings"))
    evidence = ("--receipts", receipts, "--closings", closings)
    verify = ("audit", "verify", "--trust", before, *evidence, site.ledger.path)
    assert cohortium(*verify).exit_code == 0


@pytest.mark.parametrize("rotated", [False, True])
def test_a_replacement_that_was_killed_is_finished_or_leaves_the_old_key(
    file, tmp_path, rotated, experiment_file
):
    site = open_site(file)
    state, old = site.config.state, site.key.fingerprint
    SiteKey.create(state, NEXT_KEY)
    new = SiteKey.load(state, NEXT_KEY)
    if rotated:
        from federation.ledger.upkeep import rotate

        rotate(site.ledger, new)
    again = open_site(file)
    assert again.key.fingerprint == (new.fingerprint if rotated else old)
    assert SiteKey.exists(state, NEXT_KEY) is not rotated
    assert SiteKey.exists(state, SITE_KEY)
    cohortium("site", "rotate-key", file, "--yes")
    assert open_site(file).key.fingerprint not in ({old, new.fingerprint} if rotated else {old})


def test_a_restored_backup_is_locked_shown_and_recovered(file, experiment_file, tmp_path):
    """The operator's whole way back, with a mark on other storage."""
    vault = tmp_path / "vault"
    vault.mkdir()
    edit(file, "policy:", f"high_water_mark: {vault / 'mark.json'}\npolicy:")
    cohortium("site", "recover", file, "--start-mark", "--yes")
    state = open_site(file).config.state
    shutil.copytree(state, tmp_path / "backup")
    cohortium("site", "approve", file, experiment_file, "--yes")
    run_experiment(load_experiment(experiment_file), [open_site(file)], out=tmp_path / "run")
    spent = open_site(file).ledger.spent_epsilon
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "backup", state)
    with pytest.raises(LedgerError, match="older copy"):
        cohortium("site", "approve", file, experiment_file, "--yes")
    receipts = ("--receipts", tmp_path / "run" / "receipts.json")
    receipts += ("--closings", tmp_path / "run" / "closings.json")
    with pytest.raises(FederationError, match="stays locked"):
        cohortium("site", "recover", file, *receipts, answers="n\n")
    shown = cohortium("site", "recover", file, *receipts, "--by", "Dr A", answers="y\n")
    assert "has been seen" in shown.output
    site = open_site(file)
    assert site.ledger.spent_epsilon >= spent > 0
    assert site.ledger.records[-1].body["by"] == "Dr A"
    shown = json.loads(cohortium("budget", "show", file, "--json").stdout)
    assert shown["spent"] == site.ledger.spent_epsilon
    assert [one["kind"] for one in shown["beside"]] == ["recovery"]
    assert "recovery" in cohortium("budget", "show", file).output
    assert "lacks nothing" in cohortium("site", "recover", file, *receipts).output
    cohortium("audit", "verify", "--trust", site.key.fingerprint, tmp_path / "run", state)


def test_a_mark_inside_the_state_folder_is_refused(file):
    edit(file, "policy:", "high_water_mark: state/mark.json\npolicy:")
    with pytest.raises(FederationError, match="restored with it"):
        open_site(file)


def test_an_expired_approval_is_not_kept_for_the_next_run(file, experiment_file, monkeypatch):
    today = datetime.now(UTC).date().isoformat()
    cohortium("site", "approve", file, experiment_file, "--yes", "--expires", today)
    monkeypatch.setattr("federation.site.now_", lambda: "2999-01-01T00:00:00Z")
    approve_all(load_experiment(experiment_file), [open_site(file)], approver="later")
    assert kinds(file).count("approval") == 2
