"""What a run leaves beside its model is read back as it was, or refused."""

import json

import pytest

from federation.errors import FederationError
from federation.ledger.closings import Closing
from federation.run import run_experiment
from federation.run_record import MODEL, RECORD, open_finished
from models.weights import weights_digest
from tests.experiments import tiny_experiment


@pytest.fixture
def out(approved_sites, tmp_path):
    run_experiment(tiny_experiment(), approved_sites, out=tmp_path / "run")
    return tmp_path / "run"


def edit(folder, **changes):
    path = folder / RECORD
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def test_it_holds_what_the_run_was_and_the_model_that_sites_have_countersigned(out):
    run = open_finished(out)
    record, experiment = run.record, tiny_experiment()
    assert record.experiment == experiment
    assert weights_digest(run.weights) == record.model_digest
    closings = [Closing.from_json(dict(closing)) for closing in run.closings]
    assert {closing.model_digest for closing in closings} == {record.model_digest}
    assert {closing.site: closing.head for closing in closings} == record.heads
    assert [site.site for site in record.sites] == sorted(record.heads)
    assert [event.round for event in record.events] == [0, 1, 2]
    assert len(run.receipts) == 2 * len(record.sites)
    for epsilon in record.epsilon.values():
        assert 0 < epsilon <= experiment.privacy.epsilon * (1 + 1e-6)
    assert json.loads(json.dumps(record.to_json())) == json.loads((out / RECORD).read_bytes())


def test_nothing_in_it_is_of_this_machine(out, federation):
    text = (out / RECORD).read_text()
    assert str(federation) not in text and str(out) not in text


def test_files_that_do_not_fit_each_other_are_refused(out):
    model = out / MODEL
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(FederationError, match=r"is not the model that run\.json names"):
        open_finished(out)
    model.write_bytes(content)
    values = json.loads((out / RECORD).read_bytes())
    edit(out, experiment={**values["experiment"], "purpose": "another"})
    with pytest.raises(FederationError, match="not the one that its digest names"):
        open_finished(out)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format": "cohortium-run/9"}, "another version"),
        ({"sites": [{"site": "x"}]}, "is damaged"),
        ({"events": None}, "is damaged"),
    ],
)
def test_what_is_no_record_is_refused(out, changes, why):
    edit(out, **changes)
    with pytest.raises(FederationError, match=why):
        open_finished(out)


def test_statements_that_are_gone_are_named(out):
    (out / "receipts.json").unlink()
    with pytest.raises(FederationError, match=r"receipts\.json cannot be read"):
        open_finished(out)
