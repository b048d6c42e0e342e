"""The mirror holds what the query finds, and no kill leaves it half done."""

import hashlib
import itertools
import os
import re
import shutil
import signal
import stat
from pathlib import Path

import pytest

from data_adapters import dicomweb, dicomweb_client
from data_adapters.dicomweb import discover_dicomweb, mirror
from data_adapters.errors import DataError
from data_adapters.sources import Channel, Select
from tests.data_adapters.dicomweb.fake_pacs import (
    change,
    contents,
    instance_requests,
    multipart,
    multipart_type,
    reply,
    tree,
)

UID = re.compile(r"\d+(\.\d+){3,}")


class TestMirror:
    def test_files_are_those_of_the_pacs_byte_by_byte(self, pacs, source):
        done = []
        notes = mirror(source, lambda *count: done.append(count))
        assert contents(source) == sorted(pacs.objects.values())
        assert done[0] == (0, 0) and done[-1] == (15, 15)
        here, expected = zip(*done, strict=True)
        assert list(here) == sorted(here) and set(range(16)) == set(here)
        assert all(have <= of for have, of in done)
        assert 3 in expected, "the service announced no numbers: one a study, until it is listed"
        assert notes == ("The query finds 3 studies: 15 files were fetched, 0 were there already.",)
        assert any("transfer-syntax=*" in value for value in pacs.seen["Accept"])

    def test_servers_may_send_the_instance_without_multipart(self, pacs, source):
        pacs.bare = True
        mirror(source)
        assert contents(source) == sorted(pacs.objects.values())

    def test_names_say_nothing_and_the_folder_is_its_owners(self, pacs, source):
        mirror(source)
        folders = [source.path, *(p for p in source.path.rglob("*") if p.is_dir())]
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in folders)
        names = " ".join(path.relative_to(source.path).as_posix() for path in folders)
        assert not UID.search(names) and "P-" not in names

    def test_no_identifier_can_be_tried_against_the_names(self, pacs, source):
        mirror(source)
        guesses = {text for key in pacs.objects for text in key} | {"P-1", "P-1\0", '["P-1", ""]'}
        digests = {hashlib.sha256(guess.encode()).hexdigest()[:32] for guess in guesses}
        written = [path.read_text() for path in (source.path / "patients").iterdir()]
        names = {part for path in source.path.rglob("*") for part in path.parts}
        assert len(written) == 3 and not digests & {*written, *(n.split(".")[0] for n in names)}
        key = source.path / "names.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes()) == 32
        other = change(source, path=source.path.with_name("other"))
        mirror(other)
        assert not names_in(source) & names_in(other)

    @pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"short")])
    def test_without_its_key_the_mirror_is_fetched_anew_and_nothing_old_stays(
        self, pacs, source, damage
    ):
        mirror(source)
        before = names_in(source)
        damage(source.path / "names.key")
        pacs.asked.clear()
        assert "15 files were fetched, 0 were there" in mirror(source)[0]
        assert len(instance_requests(pacs)) == 15 and not names_in(source) & before
        assert contents(source) == sorted(pacs.objects.values())

    def test_what_is_there_is_not_fetched_again(self, pacs, source):
        mirror(source)
        before = tree(source.path)
        pacs.asked.clear()
        assert "0 files were fetched, 15 were there already" in mirror(source)[0]
        assert instance_requests(pacs) == [] and tree(source.path) == before

    def test_a_new_slice_is_all_that_is_fetched(self, pacs, source):
        late = next(iter(pacs.objects))
        content = pacs.objects.pop(late)
        mirror(source)
        pacs.objects[late] = content
        pacs.asked.clear()
        mirror(source)
        assert len(instance_requests(pacs)) == 1
        assert contents(source) == sorted(pacs.objects.values())

    def test_a_study_that_is_withdrawn_leaves_the_mirror(self, pacs, source):
        mirror(source)
        pacs.delete_study("P-2")
        assert "1 studies left the mirror" in " ".join(mirror(source))
        assert contents(source) == sorted(pacs.objects.values())
        assert len(list((source.path / "patients").iterdir())) == 2

    def test_so_does_a_segmentation_that_was_replaced(self, pacs, source):
        mirror(source)
        seg = next(key for key in pacs.objects if pacs.headers[key[1]].Modality == "SEG")
        del pacs.objects[seg]
        mirror(source)
        assert contents(source) == sorted(pacs.objects.values())

    def test_nothing_is_withdrawn_where_the_list_may_be_cut(self, pacs, source, monkeypatch):
        mirror(source)
        monkeypatch.setattr(dicomweb_client, "PAGE", 2)
        pacs.ignores_offset, pacs.page_cap = True, 2
        assert any("none were taken as withdrawn" in note for note in mirror(source))
        assert len(contents(source)) == 15

    def test_a_failed_search_withdraws_nothing(self, pacs, source):
        mirror(source)
        pacs.misbehave = lambda handler: not reply(handler, 503)
        with pytest.raises(DataError, match="HTTP 503"):
            mirror(source)
        assert len(contents(source)) == 15

    def test_a_study_that_became_another_patients_is_fetched_anew(self, pacs, source):
        mirror(source)
        study = next(iter(pacs.objects))[0]
        pacs.headers[study].PatientID = "P-9"
        pacs.asked.clear()
        mirror(source)
        assert len(instance_requests(pacs)) == 5

    def test_one_study_that_fails_does_not_stop_the_others(self, pacs, source):
        bad = next(iter(pacs.objects))
        pacs.misbehave = lambda h: h.path.endswith(bad[2]) and not reply(h, 404)
        found = discover_dicomweb(source)
        (entry,) = [q for q in found.quarantined if q.code == "UNREACHABLE"]
        assert "HTTP 404" in entry.sentence and entry.where.startswith("incoming/")
        assert len(contents(source)) == 10
        pacs.misbehave = lambda _: False
        pacs.asked.clear()
        mirror(source)
        assert contents(source) == sorted(pacs.objects.values())
        assert bad[2] in instance_requests(pacs)[0]

    def test_a_study_that_cannot_be_looked_at_now_stays_as_it_was(self, pacs, source):
        mirror(source)
        study = next(iter(pacs.objects))[0]
        pacs.misbehave = lambda h: study in h.path and not reply(h, 500)
        assert any("1 studies are used as they were" in note for note in mirror(source))
        assert len(contents(source)) == 15

    @pytest.mark.parametrize("status", [403, 404, 410])
    def test_a_study_that_is_no_longer_given_leaves_the_mirror(self, pacs, source, status):
        mirror(source)
        study = next(iter(pacs.objects))[0]
        pacs.misbehave = lambda h: study in h.path and not reply(h, status)
        found = discover_dicomweb(source)
        assert any("1 studies left the mirror: the query finds them" in n for n in found.notes)
        assert len(contents(source)) == 10 and len(names_in(source)) == 2
        assert not any((source.path / "incoming").iterdir()) and not found.quarantined
        # Never given from then on, it is not 'withdrawn' again, but said to be missing.
        assert [q.code for q in discover_dicomweb(source).quarantined] == ["UNREACHABLE"]

    def test_a_study_without_end_is_refused(self, pacs, source, monkeypatch):
        monkeypatch.setattr(dicomweb, "MAX_INSTANCES", 4)  # each study has 5
        found = discover_dicomweb(source)
        assert {q.code for q in found.quarantined} == {"UNREACHABLE"} and not contents(source)

    @pytest.mark.parametrize(
        ("body", "kind", "why"),
        [
            ("another", multipart_type(), "another object"),
            (b"not DICOM", multipart_type(), "no DICOM file"),
            (b"<html>", "text/html", "not a DICOM instance"),
            (b"x", "multipart/related", "not a DICOM instance"),
            (b"x" * 99, multipart_type(), "larger than 60 bytes"),
        ],
    )
    def test_what_was_not_asked_for_is_not_kept(self, pacs, source, monkeypatch, body, kind, why):
        other = multipart(sorted(pacs.objects.items())[0][1] if body == "another" else body)
        if "larger" in why:
            monkeypatch.setattr(dicomweb_client, "MAX_INSTANCE_BYTES", 60)
        last = sorted(pacs.objects)[-1][2]
        pacs.misbehave = lambda h: (
            h.path.endswith(last) and not reply(h, 200, other if "boundary" in kind else body, kind)
        )
        limited = change(source, study_dates=("20200101", "20201231"))
        sentences = [q.sentence for q in discover_dicomweb(limited).quarantined]
        assert any(why in sentence for sentence in sentences)

    def test_a_server_that_ignores_the_query_is_corrected(self, pacs, source):
        pacs.ignores_filters = True
        mirror(change(source, study_dates=("20200102", "20200103")))
        assert len(contents(source)) == 10
        mirror(change(source, study_description="brain [RESEARCH] ?"))
        assert len(contents(source)) == 15
        mirror(change(source, study_description="*search] 1"))
        assert len(contents(source)) == 5

    def test_images_of_another_modality_stay_in_the_pacs(self, pacs, source):
        mirror(change(source, modality="CT"))
        assert len(contents(source)) == 3  # the segmentations: what they mean, they say themselves
        select = Select(modality="MR")
        mirror(change(source, modality=None, select=select))
        assert len(contents(source)) == 15
        mirror(change(source, modality=None, channels=[Channel(name="a", select=Select())]))
        assert len(contents(source)) == 15

    def test_limit_keeps_the_studies_that_are_here_already(self, pacs, source):
        pacs.delete_study("P-1")
        held = dict(pacs.objects)
        mirror(change(source, limit=2))
        before = contents(source)
        pacs.objects |= {("1.1", "1.1.1", "1.1.1.1"): b""}
        pacs.headers |= dict.fromkeys(
            ("1.1", "1.1.1", "1.1.1.1"), pacs.headers[next(iter(held))[0]]
        )
        notes = mirror(change(source, limit=2))
        assert contents(source) == before and "1 more studies match" in " ".join(notes)

    def test_a_folder_with_something_else_in_it_is_refused(self, source):
        source.path.mkdir()
        (source.path / "thesis.txt").write_text("years of work")
        with pytest.raises(DataError, match="not a mirror's"):
            mirror(source)
        assert [path.name for path in source.path.iterdir()] == ["thesis.txt"]

    def test_two_runs_do_not_mirror_at_once(self, pacs, source):
        def second_run(_):
            pacs.misbehave = lambda _: False
            with pytest.raises(DataError, match="Another run"):
                mirror(source)

        pacs.misbehave = second_run
        mirror(source)
        assert len(contents(source)) == 15

    def test_a_full_disk_is_said_plainly(self, source, monkeypatch):
        def full(_):
            raise OSError(28, "No space left on device", "/a/path")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match="cannot be written: No space left on device"):
            mirror(source)

    def test_killed_at_any_step_a_rerun_ends_as_if_undisturbed(self, pacs, source, tmp_path):
        """One study is withdrawn, one gets a slice, one is new; each change to the disk in turn
        is the last one of a process of its own."""
        few = [key for key in sorted(pacs.objects) if pacs.headers[key[2]].InstanceNumber <= 1]
        pacs.objects = everything = {key: pacs.objects[key] for key in few}  # a slice and a SEG
        before, after = tmp_path / "before", tmp_path / "after"
        pacs.delete_study("P-3")
        del pacs.objects[next(k for k in everything if pacs.headers[k[0]].PatientID == "P-2")]
        mirror(change(source, path=before))
        pacs.objects = everything
        pacs.delete_study("P-1")
        shutil.copytree(before, after)
        mirror(change(source, path=after))
        for step in itertools.count():
            one = change(source, path=tmp_path / "killed", connections=1)
            shutil.copytree(before, one.path)
            finished = dies_at(step, lambda one=one: mirror(one))
            for study in (one.path / "studies").iterdir():  # as it was or as it is to be
                known = [tree(side / "studies" / study.name) for side in (before, after)]
                assert tree(study) in known
            mirror(one)
            assert tree(one.path) == tree(after)
            shutil.rmtree(one.path)
            if finished:
                break
        assert step > 15


def names_in(source) -> set[str]:
    return {path.name for path in (source.path / "patients").iterdir()}


def dies_at(step: int, work) -> bool:
    """Run ``work`` in a forked process that is killed before its n-th change to the disk.

    Returns:
        Whether it got to the end.
    """
    child = os.fork()
    if child == 0:
        left = [step]

        def counted(change_disk):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change_disk(*args, **kwargs)

            return call

        for owner, name in (
            (os, "fsync"),
            (Path, "replace"),
            (Path, "rename"),
            (Path, "mkdir"),
            (Path, "unlink"),
            (shutil, "rmtree"),
        ):
            setattr(owner, name, counted(getattr(owner, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
