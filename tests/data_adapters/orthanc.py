"""A real PACS for tests: Orthanc with its DICOMweb plugin, as Debian packages it.

``apt-get install orthanc orthanc-dicomweb``. It answers this machine only, and asks for a password
that is drawn anew each time. (Orthanc 1.10 cannot bind to one address: it listens on all and drops
connections from elsewhere, by ``RemoteAccessAllowed``.)
"""

import json
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_S = 30.0


@dataclass
class Orthanc:
    """A running server."""

    port: int
    user: str
    password: str
    pool: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(retries=False))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Use Orthanc's own REST interface."""
        response = self.pool.request(
            method,
            f"http://127.0.0.1:{self.port}{path}",
            body=body,
            headers=urllib3.make_headers(basic_auth=f"{self.user}:{self.password}"),
            timeout=5,
        )
        assert response.status == 200, (method, path, response.status)
        return json.loads(response.data or b"null")

    def store(self, folder: Path) -> None:
        for path in sorted(folder.rglob("*.dcm")):
            self.ask("POST", "/instances", path.read_bytes())

    def delete_study(self, patient: str) -> None:
        for study in self.ask("GET", "/studies?expand"):
            if study["PatientMainDicomTags"]["PatientID"] == patient:
                self.ask("DELETE", f"/studies/{study['ID']}")

    def empty(self) -> None:
        for study in self.ask("GET", "/studies"):
            self.ask("DELETE", f"/studies/{study}")


def why_not_here() -> str:
    """Return what is missing on this machine; empty if nothing is."""
    if shutil.which("Orthanc") is None:
        return "Orthanc is not installed: apt-get install orthanc orthanc-dicomweb"
    if not PLUGIN.is_file():
        return "Orthanc's DICOMweb plugin is not installed: apt-get install orthanc-dicomweb"
    return ""


@contextmanager
def running_orthanc(folder: Path) -> Iterator[Orthanc]:
    """Start a server that keeps its files in ``folder``, and end it afterwards."""
    orthanc = Orthanc(_free_port(), "tester", secrets.token_urlsafe(12))
    configuration = folder / "orthanc.json"
    configuration.touch(mode=0o600)
    configuration.write_text(json.dumps(_configuration(orthanc, folder / "storage")))
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen(["Orthanc", str(configuration)], stdout=log, stderr=log)
        try:
            _wait_until_it_answers(orthanc, process)
            yield orthanc
        finally:
            orthanc.pool.clear()
            process.kill()  # it would take seconds to end; nothing of it is kept
            process.wait()


def _configuration(orthanc: Orthanc, storage: Path) -> dict[str, Any]:
    return {
        "Name": "cohortium-test",
        "StorageDirectory": str(storage),
        "IndexDirectory": str(storage),
        "Plugins": [str(PLUGIN)],
        "HttpPort": orthanc.port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {orthanc.user: orthanc.password},
        "DicomServerEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(orthanc: Orthanc, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, "Orthanc ended while starting"
        try:
            orthanc.ask("GET", "/system")
        except urllib3.exceptions.HTTPError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("Orthanc did not start in time")
