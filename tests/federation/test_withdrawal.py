import json
import shutil

import pytest

from data_adapters.errors import DataError
from federation import withdrawal
from federation.errors import FederationError, Refused
from federation.exclusions import read_exclusions
from federation.ledger.ledger import Ledger
from federation.messages import CloseRequest, TrainRequest
from federation.rounds import LocalRounds
from federation.run import approve, ingest_sites
from federation.site import open_existing, open_site
from federation.training import initial_weights, open_dataset
from federation.withdrawal import exclude, finish_exclusions, purge
from tests.conftest import edit
from tests.experiments import tiny_experiment

SUBJECT = "specimen-0002"
DIGEST = tiny_experiment().digest()


@pytest.fixture
def file(federation):
    return federation / "bio-lab" / "site.yaml"


@pytest.fixture
def lab(file):
    """A site with an approved experiment."""
    site = open_site(file)
    approve(tiny_experiment(), [site], approver="test")
    return site


def out(site, subject=SUBJECT, **options):
    return exclude(site, subject, **({"by": "op", "reason": "consent withdrawn"} | options))


def subjects(site):
    return set(site.manifest("protected").subjects)


def exclusions(site):
    return [note.body for note in site.ledger.book.notes if note.body["what"] == "exclusion"]


def test_an_excluded_subject_leaves_cache_and_sampling_and_the_ledger_says_so(lab):
    before, root = subjects(lab), lab.manifest("protected").root
    done = out(lab)
    assert before - subjects(lab) == {done.subject}
    assert lab.manifest("protected").root != root
    cached = {path.name for path in (lab.cache("protected") / "scans").iterdir()}
    assert cached == {path.path.split("/")[1] for path in lab.manifest("protected").scans}
    assert len(open_dataset(tiny_experiment(), lab, "protected")) == 4
    (note,) = exclusions(lab)
    assert note == {
        "what": "exclusion",
        "by": "op",
        "reason": "consent withdrawn",
        "experiments": [DIGEST],
    }


def test_the_approval_of_the_earlier_data_ends_and_a_new_one_works(lab):
    out(lab)
    with pytest.raises(Refused, match=r"not_approved.*taken out.*approve"):
        lab.approved(DIGEST)
    approve(tiny_experiment(), [lab], approver="test")
    assert lab.approved(DIGEST) == tiny_experiment()


def test_it_tells_which_runs_used_the_earlier_data(lab):
    weights = initial_weights(tiny_experiment())
    LocalRounds(lab).train(TrainRequest(DIGEST, "ab" * 16, 1, 1, weights))
    (used,) = out(lab).used_by
    assert (used.name, used.digest, used.runs) == ("tiny", DIGEST, {"ab" * 16: 1})
    assert not used.on_earlier_data
    (of_second,) = out(lab, "specimen-0003").used_by
    assert (of_second.digest, of_second.on_earlier_data) == (DIGEST, True)


def test_it_names_the_models_that_came_of_the_earlier_data(lab):
    run, model = "ab" * 16, "sha256:" + "7" * 64
    rounds = LocalRounds(lab)
    rounds.train(TrainRequest(DIGEST, run, 1, 1, initial_weights(tiny_experiment())))
    assert out(lab).used_by[0].models == {}, "this run has not ended"
    rounds.close(CloseRequest(DIGEST, run, {}, model))
    (used,) = out(lab, "specimen-0003").used_by
    assert used.models == {run: model}


def test_by_pseudonym_or_identifier_it_is_the_same_subject(lab):
    done = out(lab)
    again = out(lab, done.subject)
    assert again.already and again.subject == done.subject
    assert len(exclusions(lab)) == 1


def test_a_later_ingest_keeps_the_subject_out(lab, file):
    done = out(lab)
    shutil.rmtree(lab.cache("protected"))
    ingest_sites([open_site(file)])
    assert done.subject not in subjects(lab)
    assert len(subjects(lab)) == 4


def test_a_public_subject_is_taken_out_of_the_public_data(lab):
    out(lab, "specimen-0006")
    assert len(lab.manifest("public").subjects) == 1
    assert len(open_dataset(tiny_experiment(), lab, "public")) == 1


def test_nothing_that_is_kept_names_the_subject(lab):
    out(lab)
    for path in lab.config.state.rglob("*"):
        assert path.is_dir() or SUBJECT.encode() not in path.read_bytes(), path


class KilledError(BaseException):
    """The process dies here."""


STEPS = ("take_out", "note", "done")


@pytest.fixture
def die_before(monkeypatch):
    """Die before a step of an exclusion: the cache, the note, or the mark that it is done."""

    def die(step):
        def killed(*_, **__):
            raise KilledError

        if step == "take_out":
            monkeypatch.setattr(withdrawal, "take_out", killed)
        elif step == "note":
            monkeypatch.setattr(Ledger, "note", killed)
        else:
            keep = withdrawal.keep_exclusion
            monkeypatch.setattr(
                withdrawal,
                "keep_exclusion",
                lambda state, entry: killed() if entry.done else keep(state, entry),
            )

    return die


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("finish", ["again", "ingest"])
def test_killed_at_any_step_the_subject_is_out_at_once_and_a_rerun_finishes(
    lab, file, die_before, monkeypatch, step, finish
):
    die_before(step)
    with pytest.raises(KilledError):
        out(lab)
    monkeypatch.undo()
    assert len(open_dataset(tiny_experiment(), open_site(file), "protected")) == 4
    site = open_site(file)
    if finish == "again":
        out(site)
    else:
        ingest_sites([site])
    assert len(subjects(site)) == 4
    (note,) = exclusions(site)
    assert note["experiments"] == [DIGEST]
    assert [entry.done for entry in read_exclusions(site.config.state)] == [True]


def test_two_exclusions_in_a_row_are_two_notes_also_with_the_same_reason(
    lab, die_before, monkeypatch
):
    die_before("note")
    with pytest.raises(KilledError):
        out(lab)
    monkeypatch.undo()
    out(lab, "specimen-0003")
    assert len(exclusions(lab)) == 2
    assert len(subjects(lab)) == 3


def test_a_lost_list_of_exclusions_is_noticed(lab, file):
    out(lab)
    (lab.config.state / "excluded.json").unlink()
    with pytest.raises(FederationError, match=r"records 1 exclusions and .* lists 0"):
        open_site(file)


def test_a_damaged_list_of_exclusions_stops_everything(lab):
    out(lab)
    (lab.config.state / "excluded.json").write_text("{}")
    with pytest.raises(FederationError, match="Restore it from backup"):
        open_dataset(tiny_experiment(), lab, "protected")


def test_a_lost_pseudonym_key_is_not_replaced_where_subjects_are_excluded(lab):
    out(lab)
    (lab.config.state / "pseudonym-key").unlink()
    with pytest.raises(FederationError, match="nobody would know the subjects"):
        lab.ingest("protected")


def test_nobody_by_that_name_is_an_error_unless_it_is_for_later(lab, file):
    with pytest.raises(FederationError, match=r"letter by letter.*--in-advance"):
        out(lab, "specimen-9999")
    assert not lab.exclusions
    later = file.parent / "protected" / "specimen-9999"
    out(lab, "specimen-9999", in_advance=True)
    shutil.move(min((file.parent / "protected").iterdir()), later)
    lab.ingest("protected")
    assert len(subjects(lab)) == 4


@pytest.mark.parametrize("reason", [f"{SUBJECT} asked", "SPECIMEN-0002", "a\nb", ""])
def test_a_reason_that_names_the_subject_or_is_no_line_is_refused(lab, reason):
    with pytest.raises(FederationError, match="ledger"):
        out(lab, reason=reason)
    assert not lab.exclusions and not lab.ledger.book.notes


@pytest.mark.parametrize("by", ["", "\x1b[31m", "x" * 201])
def test_a_name_that_the_ledger_does_not_take_stops_before_anything_is_done(lab, by):
    with pytest.raises(FederationError, match="name of who does this"):
        out(lab, by=by)
    with pytest.raises(FederationError, match="name of who does this"):
        purge(lab, by=by)
    assert not lab.exclusions and (lab.config.state / "cache").exists()


def test_an_identifier_that_two_sources_know_as_two_people_needs_its_issuer(lab, file):
    text = file.read_text()
    line = next(line for line in text.splitlines() if line.startswith("protected:"))
    one = line.removeprefix("protected: ").replace("path:", "subjects: {issuer: A}, path:")
    other = one.replace("issuer: A", "issuer: B").replace("path: protected", "path: more")
    file.write_text(text.replace(line, f"protected:\n- {one}\n- {other}"))
    (file.parent / "more").mkdir()
    (file.parent / "protected" / "specimen-0003").rename(file.parent / "more" / SUBJECT)
    site = open_site(file)
    site.ingest("protected")
    with pytest.raises(FederationError, match=r"stands for 2 people.*ID\^\^\^ISSUER"):
        out(site)
    assert len(subjects(site)) == 5
    out(site, f"{SUBJECT}^^^B")
    assert len(subjects(site)) == 4


def test_before_the_first_run_no_ledger_is_made_and_the_note_follows_later(federation, file):
    (file.parent / "state" / "ledger.jsonl").unlink()
    out(open_existing(file))
    out(open_existing(file), "specimen-0003")
    assert not (file.parent / "state" / "ledger.jsonl").exists()
    site = open_site(file)
    finish_exclusions(site)
    assert len(exclusions(site)) == 2
    assert len(subjects(site)) == 3


def test_the_last_subject_can_be_taken_out(lab):
    for number in range(1, 6):
        out(lab, f"specimen-{number:04d}")
    with pytest.raises(FederationError, match="has not been ingested"):
        lab.manifest("protected")
    with pytest.raises(DataError):
        lab.ingest("protected")


# Purge


def test_a_purge_deletes_the_cache_and_nothing_else(lab, file):
    root, state = lab.manifest("protected").root, lab.config.state
    images = sorted((file.parent / "protected").rglob("*"))
    kept = {path: path.read_bytes() for path in state.iterdir() if path.is_file()}
    done = purge(lab, by="op")
    assert not (state / "cache").exists()
    assert done.roots["protected"] == root
    assert done.num_files > 10 and done.num_bytes > 1000
    assert set(done.staying) >= {"ledger.jsonl", "site-key", "pseudonym-key", "experiments"}
    assert sorted((file.parent / "protected").rglob("*")) == images
    ledger = state / "ledger.jsonl"
    assert all(path.read_bytes() == was for path, was in kept.items() if path != ledger)
    (note,) = open_site(file).ledger.book.notes
    assert (note.body["what"], note.body["experiments"]) == ("purge", [DIGEST])


def test_after_a_purge_the_same_data_can_be_ingested_and_the_approval_holds(lab):
    purge(lab, by="op")
    with pytest.raises(FederationError, match="has not been ingested"):
        lab.approved(DIGEST)
    ingest_sites([lab])
    assert lab.approved(DIGEST) == tiny_experiment()


def test_with_nothing_to_delete_nothing_is_recorded(lab):
    purge(lab, by="op")
    assert purge(lab, by="op").num_files == 0
    assert len(lab.ledger.book.notes) == 1


def test_a_purge_that_was_killed_is_finished_and_recorded_once(lab, monkeypatch):
    files = sum(path.is_file() for path in (lab.config.state / "cache").rglob("*"))
    remove = shutil.rmtree

    def half(path):
        remove(path / "protected")
        raise KilledError

    monkeypatch.setattr(withdrawal.shutil, "rmtree", half)
    with pytest.raises(KilledError):
        purge(lab, by="op")
    monkeypatch.undo()
    assert not lab.ledger.book.notes
    assert purge(lab, by="somebody else").num_files == files
    (note,) = lab.ledger.book.notes
    assert note.body["by"] == "op"
    assert not (lab.config.state / "purge.json").exists()


def test_what_could_not_be_deleted_is_said_and_not_recorded(lab, monkeypatch):
    monkeypatch.setattr(withdrawal.shutil, "rmtree", lambda path: None)
    with pytest.raises(FederationError, match=r"are still there, such as .*cache"):
        purge(lab, by="op")
    assert not lab.ledger.book.notes


def test_a_purge_deletes_nothing_under_a_running_ingest(lab):
    from data_adapters.ingest import alone

    with alone(lab.cache("public")), pytest.raises(DataError, match="Another process"):
        purge(lab, by="op")
    assert (lab.cache("protected") / "manifest.json").is_file()


def test_a_mirror_in_the_cache_goes_and_one_elsewhere_is_named(lab, file):
    text = file.read_text()
    line = next(line for line in text.splitlines() if line.startswith("protected:"))
    one = "{kind: dicomweb, path: %s, url: 'http://127.0.0.1:1/%s', classes: {A: a}}"
    sources = [one % ("state/cache/mirror", 1), one % ("mirror", 2)]
    file.write_text(text.replace(line, "protected:\n- " + "\n- ".join(sources)))
    site = open_site(file)
    for source in site.config.protected:
        (source.path / "image.dcm").write_bytes(b"pixels")
    done = purge(site, by="op")
    assert not site.config.protected[0].path.exists()
    assert done.outside == (site.config.protected[1].path,)


def test_the_list_of_exclusions_is_plain_json_with_pseudonyms_only(lab):
    done = out(lab)
    (entry,) = json.loads((lab.config.state / "excluded.json").read_text())["excluded"]
    assert entry["subject"] == done.subject
    assert (lab.config.state / "excluded.json").stat().st_mode & 0o777 == 0o600
    edit(lab.config.state / "excluded.json", '"format":2', '"format":3')
    with pytest.raises(FederationError, match="cannot be read"):
        _ = lab.excluded
