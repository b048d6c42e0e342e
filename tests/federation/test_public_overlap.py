"""Nobody is protected and scored in the open: looked at before anything is opened, each time."""

import shutil

import pytest
import zarr

from federation.errors import FederationError, Refused
from federation.messages import DescribeRequest, EvaluateRequest
from federation.rounds import LocalRounds
from federation.run import approve, ingest_sites
from federation.site import open_site
from federation.training import initial_weights
from tests.experiments import tiny_experiment

SUBJECT = "specimen-0001"


@pytest.fixture
def file(federation):
    return federation / "bio-lab" / "site.yaml"


def evaluate(site):
    experiment = tiny_experiment()
    request = EvaluateRequest(experiment.digest(), "ab" * 16, 0, initial_weights(experiment))
    return LocalRounds(site).evaluate(request)


def test_the_same_image_with_other_labels_under_another_name_is_refused(file):
    image = min((file.parent / "protected" / SUBJECT).iterdir())
    copy = file.parent / "public" / "somebody-else" / image.name
    shutil.copytree(image, copy)
    labels = zarr.open_array(copy / "labels" / "tissue" / "0", mode="r+")
    labels[:] = 1 - (labels[:] > 0)
    site = open_site(file)
    with pytest.raises(FederationError, match="0 subjects and 1 scans"):
        ingest_sites([site])
    with pytest.raises(FederationError, match="0 subjects and 1 scans"):
        approve(tiny_experiment(), [site], approver="test")


def test_the_same_person_with_an_issuer_on_one_side_only_is_refused(file):
    scans = sorted((file.parent / "protected" / SUBJECT).iterdir())
    (file.parent / "public" / SUBJECT).mkdir()
    scans[1].rename(file.parent / "public" / SUBJECT / scans[1].name)
    line = "protected: {subjects: {issuer: LAB}, "
    file.write_text(file.read_text().replace("protected: {", line, 1))
    with pytest.raises(FederationError, match="1 subjects and 0 scans"):
        ingest_sites([open_site(file)])


def test_an_overlap_that_comes_after_the_approval_stops_every_request(file, monkeypatch):
    site = open_site(file)
    approve(tiny_experiment(), [site], approver="test")
    assert evaluate(site).scores
    shutil.copytree(file.parent / "protected" / SUBJECT, file.parent / "public" / SUBJECT)
    site.ingest("public")
    import federation.rounds as rounds

    monkeypatch.setattr(rounds, "open_dataset", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(Refused, match=r"not_approved.*1 subjects") as refusal:
        evaluate(site)
    assert refusal.value.code == "not_approved"
    with pytest.raises(Refused, match="not_approved"):
        LocalRounds(site).describe(DescribeRequest(tiny_experiment().digest(), "ab" * 16))
    shutil.rmtree(file.parent / "public" / SUBJECT)
    site.ingest("public")
    monkeypatch.undo()
    assert evaluate(site).scores


def test_a_public_image_that_became_a_protected_one_is_not_scored(file):
    """Read in place, after ingest: its stamp tells before a voxel is read."""
    site = open_site(file)
    approve(tiny_experiment(), [site], approver="test")
    public = min((file.parent / "public").glob("*/*"))
    shutil.rmtree(public)
    shutil.copytree(min((file.parent / "protected" / SUBJECT).iterdir()), public)
    with pytest.raises(Refused, match="not_approved"):
        evaluate(site)
