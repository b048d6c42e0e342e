"""A patient known under two identifiers in two data sets is one subject and spends one budget."""

import pytest

from federation.run import approve, ingest_sites, open_sites, quote, run_experiment
from federation.site import open_site
from federation.training import open_dataset
from tests.experiments import tiny_experiment


@pytest.fixture
def file(federation):
    """The second of a subject's two scans lies in another source, under another identifier."""
    lab = federation / "bio-lab"
    scans = sorted((lab / "protected" / "specimen-0001").iterdir())
    assert len(scans) == 2
    (lab / "more" / "P-77").mkdir(parents=True)
    scans[1].rename(lab / "more" / "P-77" / scans[1].name)
    text = (lab / "site.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("protected:"))
    rule = "subjects: {issuer: LAB, crosswalk: who.csv}, path:"
    one = line.removeprefix("protected: ").replace("path:", rule)
    other = one.replace("path: protected", "path: more")
    (lab / "site.yaml").write_text(text.replace(line, f"protected:\n- {one}\n- {other}"))
    return lab / "site.yaml"


def crosswalk(file, *rows):
    (file.parent / "who.csv").write_text("\n".join(["id,subject", *rows]) + "\n")


def subjects_and_scans(file):
    (site,) = open_sites([file])
    ingest_sites([site])
    manifest = site.manifest("protected")
    return len(manifest.subjects), len(manifest.scans)


def test_without_the_crosswalk_they_are_two_subjects(file):
    crosswalk(file)
    assert subjects_and_scans(file) == (6, 7)


def test_with_the_crosswalk_they_are_one_subject_one_record_and_one_budget(file, tmp_path):
    crosswalk(file, "specimen-0001,anna", "P-77,anna")
    assert subjects_and_scans(file) == (5, 7)
    experiment, sites = tiny_experiment(min_sites=1), open_sites([file])
    dataset = open_dataset(experiment, sites[0], "protected")
    assert len(dataset) == 5
    assert sorted(len(dataset.scans(index)) for index in range(5)) == [1, 1, 1, 2, 2]
    (quoted,) = quote(experiment, sites)
    assert quoted.admitted
    approve(experiment, sites, approver="test")
    summary = run_experiment(experiment, sites, out=tmp_path / "out")
    (ledger,) = file.parent.rglob("ledger.jsonl")
    assert ledger == sites[0].ledger.path
    assert [record.kind for record in sites[0].ledger.records].count("charge") == 2
    assert summary.sites[0].spent == pytest.approx(quoted.after)


def test_excluding_either_identifier_takes_out_the_person(file):
    from federation.withdrawal import exclude

    crosswalk(file, "specimen-0001,anna", "P-77,anna")
    assert subjects_and_scans(file) == (5, 7)
    done = exclude(open_site(file), "P-77", by="test", reason="withdrawn")
    assert done.num_scans == 2
    assert subjects_and_scans(file) == (4, 5)
