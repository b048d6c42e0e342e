"""A DICOMweb service on loopback that misbehaves on request: for what no real PACS does at will."""

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pydicom

from data_adapters.sources import DicomWebSource

BOUNDARY = "a-boundary"
STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"


@dataclass
class FakePacs:
    """Instances by UID, and what to do to whom.

    Args:
        page_cap: Most results in one page.
        misbehave: Called with the handler before each answer; True when it answered itself.
    """

    objects: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    headers: dict[str, pydicom.Dataset] = field(default_factory=dict)
    page_cap: int = 10**9
    ignores_offset: bool = False
    ignores_filters: bool = False
    bare: bool = False
    misbehave: Callable[[BaseHTTPRequestHandler], bool] = lambda _: False
    asked: Counter[str] = field(default_factory=Counter)
    seen: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    url: str = ""

    def store(self, folder: Path) -> None:
        for path in sorted(folder.rglob("*.dcm")):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            key = (header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID)
            self.objects[key] = path.read_bytes()
            self.headers.update(dict.fromkeys(key, header))

    def delete_study(self, patient: str) -> None:
        self.objects = {
            key: content
            for key, content in self.objects.items()
            if self.headers[key[0]].PatientID != patient
        }

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        self.asked[handler.path] += 1
        for name, value in handler.headers.items():
            self.seen[name].append(value)
        if self.misbehave(handler):
            return
        place = tuple(parts.path.removeprefix("/dicom-web/studies").strip("/").split("/")[::2])
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if len(place) == 3:
            self._send_instance(handler, self.objects.get(place))
        else:
            self._send_rows(handler, self._rows(tuple(filter(None, place)), query), query)

    def _rows(self, place: tuple[str, ...], query: dict[str, str]) -> list[dict]:
        level = len(place)
        uids = {key[level] for key in self.objects if key[:level] == place}
        rows = [self._row(uid, level) for uid in sorted(uids)]
        if level == 0 and not self.ignores_filters:
            wanted = query.get("StudyDate", "0-9").split("-")
            rows = [r for r in rows if wanted[0] <= r["00080020"]["Value"][0] <= wanted[1]]
        return rows

    def _row(self, uid: str, level: int) -> dict:
        header = self.headers[uid]
        values = {
            (STUDY, SERIES, INSTANCE)[level]: uid,
            "00080020": header.get("StudyDate") or "20000101",
            "00081030": header.get("StudyDescription", ""),
            "00080060": header.Modality,
            "00100020": header.PatientID,
        }
        return {tag: {"vr": "LO", "Value": [value]} for tag, value in values.items() if value}

    def _send_rows(self, handler, rows: list[dict], query: dict[str, str]) -> None:
        start = 0 if self.ignores_offset else int(query.get("offset", 0))
        page = rows[start : start + min(self.page_cap, int(query["limit"]))]
        body = json.dumps(page).encode()
        reply(handler, 200 if page else 204, body if page else b"", "application/dicom+json")

    def _send_instance(self, handler, content: bytes | None) -> None:
        if content is None:
            reply(handler, 404, b"no such instance 1.2.3")
        elif self.bare:
            reply(handler, 200, content, "application/dicom")
        else:
            reply(handler, 200, multipart(content), multipart_type())


def multipart(*contents: bytes) -> bytes:
    parts = [
        b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % (BOUNDARY.encode(), content)
        for content in contents
    ]
    return b"".join(parts) + b"--%s--\r\n" % BOUNDARY.encode()


def multipart_type() -> str:
    return f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


def reply(handler, status: int, body: bytes = b"", kind: str = "text/plain", **headers) -> None:
    handler.send_response(status)
    headers = {"Content-Type": kind, "Content-Length": str(len(body)), **headers}
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def running(pacs: FakePacs, tls=None) -> Iterator[FakePacs]:
    """Serve on a free port of this machine; with ``tls``, an ssl.SSLContext, over https."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5
        # One packet an answer: two would wait for an acknowledgement of the first.
        wbufsize = -1

        def do_GET(self):
            pacs.answer(self)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        pacs.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/dicom-web"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield pacs
        finally:
            server.shutdown()
            thread.join()


def change(source, **fields):
    return DicomWebSource.model_validate(source.model_dump() | fields)


def contents(source) -> list[bytes]:
    return sorted(path.read_bytes() for path in (source.path / "studies").rglob("*.dcm"))


def tree(folder) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def instance_requests(pacs) -> list[str]:
    return [path for path in pacs.asked.elements() if "/instances/" in path]
