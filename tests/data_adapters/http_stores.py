"""Zarr stores behind http, served from a folder on this machine's loopback."""

import functools
import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; an answer of another kind where the test asks for one."""

    answer: int | None = None
    etags = False

    def do_GET(self):
        if self.answer is None:
            super().do_GET()
        else:
            self.send_error(self.answer)

    def do_HEAD(self):
        if self.answer is None:
            super().do_HEAD()
        else:
            self.send_error(self.answer)

    def end_headers(self):
        path = Path(self.translate_path(self.path))
        if self.etags and path.is_file():
            self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}"')
        super().end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def serving(
    folder: Path,
    *,
    kind: type[Quiet] = Quiet,
    context: ssl.SSLContext | None = None,
    **members: object,
) -> Iterator[str]:
    """Serve a folder, and give its URL.

    Args:
        members: Of the handler: ``answer``, ``etags``, or what ``kind`` has beside these.
    """
    handler = type("Handler", (kind,), members)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=folder)
    )
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
