"""A real browser for tests, spoken to over a pipe (DevTools protocol): standard library only."""

import base64
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
_WAIT_S = 60
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
    "--hide-scrollbars",
    # What the browser wants for itself finds nobody.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Page:
    """One tab: what it asked for, what it complained of, and what stands where."""

    def __init__(self, send, receive) -> None:
        self._send, self._receive = send, receive
        self._number, self._session = 0, None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        self._send(message | ({"sessionId": self._session} if self._session else {}))
        while True:
            answer = self._take()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _take(self) -> dict[str, Any]:
        message = self._receive()
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message.get("method") == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif message.get("method") == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(params["args"]))
        return message

    def look(self, width: int, *, height: int = 800, scheme: str = "light", media: str = "screen"):
        """Take a size, a colour scheme and a medium."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", media=media, features=[feature])

    def open(self, path: Path) -> None:
        """Open a file and wait until everything in it was loaded."""
        self.call("Page.navigate", url=path.as_uri())
        while self._take().get("method") != "Page.loadEventFired":
            pass
        self.evaluate("document.title")

    def evaluate(self, expression: str) -> Any:
        """Return the value of some script that a test brings along."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what is to be seen, or the whole page, as PNG."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self) -> bytes:
        """Return the page as it prints on A4."""
        size = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True}
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True, **size)["data"])


@contextmanager
def browser(profile: Path):
    """Start a browser, yield a page, and end it."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    arguments = " ".join(f"'{option}'" for option in (*_OPTIONS, f"--user-data-dir={profile}"))
    command = f"exec '{BROWSER}' {arguments} 3<&{to_read} 4>&{from_write}"
    process = subprocess.Popen(
        ["/bin/bash", "-c", command],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    with os.fdopen(to_write, "wb", buffering=0) as out, os.fdopen(from_read, "rb") as back:
        page = Page(lambda message: _write(out, message), lambda: _read(back))
        try:
            yield page
        finally:
            page._session = None
            page.call("Browser.close")
            process.wait(_WAIT_S)


def _write(out, message: dict[str, Any]) -> None:
    out.write(json.dumps(message).encode() + b"\0")


def _read(back) -> dict[str, Any]:
    text = bytearray()
    while (one := back.read(1)) != b"\0":
        assert one, "the browser has gone"
        text += one
    return json.loads(text)
