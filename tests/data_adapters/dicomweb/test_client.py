"""What is asked of a DICOMweb service, and which answers count. Numbers are clauses of PS3.18."""

import gzip
import itertools
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_adapters import dicomweb_client
from data_adapters.dicomweb import mirror
from data_adapters.dicomweb_client import NotGiven
from data_adapters.dicomweb_multipart import MultipartError, media_type, only_part
from data_adapters.errors import DataError
from tests.data_adapters.dicomweb.fake_pacs import (
    STUDY,
    change,
    contents,
    multipart,
    multipart_type,
    reply,
)


class TestMultipart:
    BODY = bytes(range(256)) + b"\r\n--b\r\n--bx" + b"\r\n" * 3

    @settings(deadline=None)
    @given(cuts=st.lists(st.integers(0, 500), max_size=12), seed=st.binary(max_size=80))
    def test_a_part_comes_out_whole_however_the_network_cuts_it(self, cuts, seed):
        body = seed + self.BODY
        message = multipart(body)
        places = [0, *sorted(min(cut, len(message)) for cut in cuts), len(message)]
        chunks = [message[a:b] for a, b in itertools.pairwise(places) if a < b]
        assert b"".join(only_part(chunks, b"a-boundary")) == body

    def test_cut_anywhere_before_its_end_it_is_refused(self):
        message = multipart(self.BODY).rstrip()
        for end in range(len(message)):
            with pytest.raises(MultipartError):
                list(only_part([message[:end]], b"a-boundary"))
        assert b"".join(only_part([message], b"a-boundary")) == self.BODY

    def test_text_before_the_first_delimiter_and_parts_without_headers_are_allowed(self):
        message = b"preamble\r\n--x \t\r\n\r\nDICM\r\n--x--epilogue"
        assert b"".join(only_part([message], b"x")) == b"DICM"

    @pytest.mark.parametrize(
        "message",
        [multipart(b"1", b"2"), b"--a-boundary--\r\n", b"no delimiter", b"x" * 200_000],
        ids=["two parts", "no part", "nothing", "endless"],
    )
    def test_anything_but_one_part_is_refused(self, message):
        with pytest.raises(MultipartError):
            list(only_part([message], b"a-boundary"))

    def test_boundaries_may_be_quoted(self):
        assert media_type('Multipart/Related; boundary="a;b"') == ("multipart/related", b"a;b")
        assert media_type("application/json") == ("application/json", b"")
        assert media_type("")[1] == b""


class TestSearch:
    def test_pages_smaller_than_asked_for_are_all_taken(self, pacs, client):
        pacs.page_cap = 1
        rows, complete = client.search("/studies", STUDY, ())
        assert len(rows) == 3 and complete

    def test_a_server_that_ignores_offset_is_noticed(self, pacs, client):
        pacs.ignores_offset = True
        rows, complete = client.search("/studies", STUDY, ())
        assert len(rows) == 3 and complete

    def test_a_server_that_cuts_lists_and_ignores_offset_is_not_complete(
        self, pacs, client, monkeypatch
    ):
        monkeypatch.setattr(dicomweb_client, "PAGE", 2)
        pacs.ignores_offset = True
        assert client.search("/studies", STUDY, ())[1]  # a longer page was given at the end
        pacs.page_cap = 2
        rows, complete = client.search("/studies", STUDY, ())
        assert len(rows) == 2 and not complete

    @pytest.mark.parametrize(
        ("body", "why"),
        [
            (b"<html>", "not JSON"),
            (b"[" * 100_000, "not JSON"),
            (b'{"a": 1}', "not a list"),
            (b"[1]", "not a list"),
            (b"[{}]", "no valid UID"),
            (b'[{"0020000D": {"Value": ["../../etc"]}}]', "no valid UID"),
            (b'[{"0020000D": {"Value": 7}}]', "no valid UID"),
        ],
    )
    def test_an_answer_that_is_no_dicom_json_is_refused(self, pacs, client, body, why):
        pacs.misbehave = lambda handler: reply(handler, 200, body) or True
        with pytest.raises(NotGiven, match=why):
            client.search("/studies", STUDY, ())

    def test_an_answer_without_end_is_cut_off(self, pacs, client, monkeypatch):
        monkeypatch.setattr(dicomweb_client, "MAX_PAGE_BYTES", 100)
        with pytest.raises(NotGiven, match="larger than 100 bytes"):
            client.search("/studies", STUDY, ())

    def test_a_page_that_expands_without_end_is_cut_off_before_it_is_in_memory(self, pacs, client):
        bomb = gzip.compress(b"[" + b" " * (128 << 20))
        kind = "application/dicom+json"
        pacs.misbehave = lambda h: not reply(h, 200, bomb, kind, Content_Encoding="gzip")
        tracemalloc.start()
        try:
            with pytest.raises(NotGiven, match="larger than 16,777,216 bytes"):
                client.search("/studies", STUDY, ())
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
        finally:
            tracemalloc.stop()

    def test_of_a_result_only_what_is_wanted_is_kept(self, pacs, client):
        row = {
            STUDY: {"vr": "UI", "Value": ["1.2"]},
            "00100020": {"vr": "LO", "Value": ["x" * 5000]},
            "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A^B"}]},
            "00080060": {"vr": "CS", "Value": [{"deep": ["y" * 5000]}]},
        }
        pacs.misbehave = lambda h: not reply(h, 200, json.dumps([row]).encode())
        rows, _ = client.search("/studies", STUDY, (), ("00100020", "00080060"))
        assert rows == {"1.2": {STUDY: "1.2", "00100020": "x" * 256, "00080060": ""}}

    def test_a_list_that_grows_with_every_page_is_given_up(self, pacs, client, monkeypatch):
        monkeypatch.setattr(dicomweb_client, "MAX_PAGES", 5)

        def another(handler):
            uid = f"1.2.{pacs.asked.total()}"
            return not reply(handler, 200, json.dumps([{STUDY: {"Value": [uid]}}]).encode())

        pacs.misbehave = another
        rows, complete = client.search("/studies", STUDY, ())
        assert len(rows) == pacs.asked.total() == 5 and not complete

    def test_the_query_says_what_is_meant(self, pacs, source):
        mirror(
            change(
                source,
                study_dates=("20200101", "20200102"),
                study_description="BRAIN *",
            )
        )
        (first, *_) = pacs.asked
        for part in (
            "ModalitiesInStudy=MR",
            "StudyDate=20200101-20200102",
            "StudyDescription=BRAIN?*&",
            "limit=997",
            "offset=0",
        ):
            assert part in first


class TestPatience:
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_a_busy_server_is_asked_again(self, pacs, source, status):
        def busy_once(handler):
            return pacs.asked[handler.path] == 1 and not reply(handler, status)

        pacs.misbehave = busy_once
        mirror(source)
        assert len(contents(source)) == 15

    def test_it_says_when_to_ask_again(self, pacs, client, monkeypatch):
        waits = []
        monkeypatch.setattr(client.stopped, "wait", waits.append)
        pacs.misbehave = lambda h: pacs.asked.total() == 1 and not reply(h, 429, Retry_After="7")
        client.search("/studies", STUDY, ())
        assert waits == [7.0]

    def test_four_tries_are_enough(self, pacs, client):
        pacs.misbehave = lambda handler: not reply(handler, 503)
        with pytest.raises(NotGiven, match="HTTP 503"):
            client.search("/studies", STUDY, ())
        assert pacs.asked.total() == 4

    def test_all_requests_together_are_retried_so_often_only(self, pacs, client, monkeypatch):
        monkeypatch.setattr(client, "_retries_left", 5)
        pacs.misbehave = lambda handler: not reply(handler, 503)
        for _ in range(4):
            with pytest.raises(NotGiven):
                client.search("/studies", STUDY, ())
        assert pacs.asked.total() == 4 + 5

    @pytest.mark.parametrize("kind", ["content-length", "multipart", "nothing"])
    def test_an_answer_that_breaks_off_is_asked_for_again(self, pacs, source, kind):
        def broken(handler):
            if "/instances/" not in handler.path or pacs.asked[handler.path] > 1:
                return False
            place = tuple(handler.path.split("/")[3::2])
            body = multipart(pacs.objects[place])
            if kind == "multipart":  # the length is that of what is sent: only the end is missing
                reply(handler, 200, body[:-30], multipart_type())
            elif kind == "content-length":
                reply(handler, 200, body[:600], multipart_type(), Content_Length=str(len(body)))
            handler.close_connection = True
            return True

        pacs.misbehave = broken
        mirror(source)
        assert contents(source) == sorted(pacs.objects.values())

    def test_connections_are_used_again(self, pacs, client, tmp_path):
        ports = set()
        pacs.misbehave = lambda handler: ports.add(handler.client_address[1])
        client.search("/studies", STUDY, ())
        with (tmp_path / "x").open("w+b") as file:
            for key in list(pacs.objects)[:5]:
                client.retrieve(*key, file)
        assert len(ports) == 1

    def test_a_server_that_is_not_there(self, source, pacs):
        gone = change(source, url="http://127.0.0.1:9/dicom-web")
        with pytest.raises(DataError, match=r"does not answer: no connection.*what was fetched"):
            mirror(gone)
