"""Decoders that do what they must not: each attempt fails, and costs the scan that tried it."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest

from data_adapters import decoding
from data_adapters.cache import prepare_cache
from data_adapters.confinement import NAMES
from data_adapters.decoding import DECODERS, Decoder, Limits, protections_here, require
from data_adapters.digests import Names
from data_adapters.errors import DataError
from data_adapters.reasons import Unusable
from data_adapters.staging import BLOCKS, Staged, Task
from data_adapters.types import Scan
from data_adapters.workers import stage_all

CLASSES = Names(("background", "a"))
PARENT = os.getpid()


@dataclass(frozen=True)
class Planted:
    """A candidate whose decoder does what its name says, and tells how it went by a pixel."""

    where: str
    place: str = ""
    subject: str = "P-1"

    @property
    def needs_codecs(self) -> Literal[True]:
        return True

    def fingerprint(self):
        return ""

    def read(self):
        return DOES[self.where.split("-")[0]](self)


def scan(value=0, **other):
    image = np.full((1, 2, 3, 4), value, np.int16)
    return Scan(image, (1.0,), (0.0,), np.eye(4), "P-1", "MR", **other)


def tried(attempt):
    """Return a scan of ones if an attempt was stopped, of zeros if it was not."""
    try:
        attempt()
    except OSError:
        return scan(1)
    return scan(0)


def grow():
    kept = []
    while True:
        kept.append(np.empty(1 << 24))


def start_a_program():
    if os.posix_spawn("/bin/true", ["true"], {}) > 0:
        return


DOES = {
    "well": lambda self: scan(7, labels_zyx=np.ones((2, 3, 4), np.uint8)),
    "refuse": lambda self: (_ for _ in ()).throw(Unusable("UNSUPPORTED_PIXELS", "12 bits")),
    "connect": lambda self: tried(lambda: socket.create_connection(("127.0.0.1", 9)).close()),
    "socket": lambda self: tried(lambda: socket.socket(socket.AF_UNIX).close()),
    "write": lambda self: tried(lambda: Path(self.place, "new").write_text("x")),
    "change": lambda self: tried(lambda: Path(self.place, "old").write_text("x")),
    "remove": lambda self: tried(lambda: Path(self.place, "old").unlink()),
    "rename": lambda self: tried(lambda: Path(self.place, "old").rename(Path(self.place, "moved"))),
    "run": lambda self: tried(start_a_program),
    "fork": lambda self: tried(os.fork),
    "kill": lambda self: tried(lambda: os.kill(int(self.place), 0)),
    "root": lambda self: tried(lambda: os.setuid(0)),
    "crash": lambda self: ctypes.string_at(0),
    "abort": lambda self: os.abort(),
    "sleep": lambda self: time.sleep(3600),
    "grow": lambda self: grow(),
    "labels": lambda self: scan(labels_zyx=np.full((2, 3, 4), 9, np.uint8)),
    "nan": lambda self: Scan(
        np.full((1, 2, 3, 4), np.nan, np.float32), (1.0,), (0.0,), np.eye(4), "P-1", "MR"
    ),
    "type": lambda self: Scan(np.zeros((1, 2, 3, 4)), (1.0,), (0.0,), np.eye(4), "P-1", "MR"),
    "modality": lambda self: Scan(
        np.zeros((1, 2, 3, 4), np.int16), (1.0,), (0.0,), np.eye(4), "P-1", "\x1b[31mDOE^JANE"
    ),
    "wrong": lambda self: (_ for _ in ()).throw(KeyError("DOE^JANE")),
    "environment": lambda self: scan(int("COHORTIUM_DICOMWEB_PASSWORD" not in os.environ)),
}


def staged(cache, *names, place="", limits=None, workers=1):
    """Return what became of each, by name."""
    prepare_cache(cache)
    (cache / BLOCKS).mkdir(exist_ok=True)
    limits = limits or Limits(timeout_s=60, memory_gib=2)
    tasks = [Task(Planted(n, str(place)), n, CLASSES, cache, limits) for n in names]
    return {task.candidate.where: result for task, result in stage_all(tasks, workers)}


@pytest.fixture(scope="module")
def active():
    return {one.name for one in protections_here(Limits()) if not one.missing}


@pytest.fixture
def decoder():
    one = Decoder(Limits(timeout_s=60, memory_gib=2))
    yield one
    one.close()


def value_of(decoder, what, place=""):
    return int(decoder.read(Planted(what, str(place)), CLASSES).image_czyx[0, 0, 0, 0])


def test_what_comes_back_is_what_was_read(decoder):
    got = decoder.read(Planted("well"), CLASSES)
    np.testing.assert_array_equal(got.image_czyx, np.full((1, 2, 3, 4), 7, np.int16))
    assert got.image_czyx.dtype == np.int16 and got.labels_zyx.all()
    assert (got.subject, got.modality, got.slopes) == ("P-1", "MR", (1.0,))
    np.testing.assert_array_equal(got.affine_ras, np.eye(4))


def test_refusals_pass_with_their_detail(tmp_path):
    refused = staged(tmp_path, "refuse")["refuse"]
    assert (refused.code, "12 bits" in refused.sentence) == ("UNSUPPORTED_PIXELS", True)


NEEDS = {
    **dict.fromkeys(("connect", "socket"), "no_network"),
    **dict.fromkeys(("write", "change", "remove", "rename"), "no_writes"),
    **dict.fromkeys(("run", "fork", "kill"), "no_programs"),
    "root": "no_new_privileges",
}


@pytest.mark.parametrize("what", NEEDS)
def test_a_decoder_cannot(what, active, decoder, tmp_path):
    if NEEDS[what] not in active:
        pytest.skip(f"{NEEDS[what]} is not to be had on this machine")
    if what in ("socket",) and sys.platform != "linux":
        pytest.skip("local sockets are stopped by the filter of system calls alone")
    tmp_path.chmod(0o777)
    (tmp_path / "old").write_text("kept")
    (tmp_path / "old").chmod(0o666)
    place = PARENT if what == "kill" else tmp_path
    assert value_of(decoder, what, place) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "kept"


def test_the_same_attempts_succeed_without_confinement(tmp_path):
    """Else the tests above would show nothing."""
    (tmp_path / "old").write_text("kept")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        socket.create_connection(server.getsockname()).close()
    for what in ("socket", "write", "change", "rename"):
        assert Planted(what, str(tmp_path)).read().image_czyx.max() == 0
    assert Planted("kill", str(os.getpid())).read().image_czyx.max() == 0


def test_it_gets_no_credentials(decoder, monkeypatch):
    monkeypatch.setenv("COHORTIUM_DICOMWEB_PASSWORD", "secret")
    with_secret = Decoder(Limits())
    try:
        assert value_of(with_secret, "environment") == 1
    finally:
        with_secret.close()


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("crash", "READER_DIED"),
        ("abort", "READER_DIED"),
        ("grow", "DECODER_MEMORY"),
        ("sleep", "DECODER_TIMEOUT"),
        ("labels", "DECODER_ANSWER"),
        ("nan", "DECODER_ANSWER"),
        ("type", "DECODER_ANSWER"),
        ("modality", "DECODER_ANSWER"),
        ("wrong", "UNEXPECTED"),
    ],
)
def test_a_decoder_that_fails_costs_one_scan(tmp_path, what, code):
    limits = Limits(timeout_s=3 if what == "sleep" else 60, memory_gib=1)
    results = staged(tmp_path, "well-1", what, "well-2", limits=limits)
    assert results[what].code == code
    assert "DOE" not in results[what].sentence
    assert isinstance(results["well-1"], Staged) and isinstance(results["well-2"], Staged)


def test_workers_have_a_decoder_each(tmp_path):
    results = staged(tmp_path, "well-1", "crash", "well-2", "well-3", workers=2)
    assert results["crash"].code == "READER_DIED"
    assert all(isinstance(results[f"well-{n}"], Staged) for n in (1, 2, 3))


class TestAnswersOfADecoderThatWasTakenOver:
    """What arrives on the pipe, whatever wrote it."""

    @pytest.fixture
    def answer(self, monkeypatch):
        """Return what reads given bytes as a decoder's answer."""
        made = []

        def answered(data: bytes):
            decoder = Decoder(Limits(timeout_s=2, memory_gib=1))
            made.append(decoder)
            _ = decoder.protections
            decoder._header(time.monotonic() + 60)
            decoder._is_ready = True
            read, write = os.pipe()
            os.write(write, data)
            os.close(write)
            os.dup2(read, decoder._answers)
            os.close(read)
            return decoder.read(Planted("well"), CLASSES)

        yield answered
        for decoder in made:
            decoder.close()

    def framed(self, text):
        return len(text).to_bytes(4, "little") + text

    HEADER = (
        b'{"dtype":"int16","shape":[1,1,1,2],"slopes":[1.0],"intercepts":[0.0],"affine":[1.0,0.0,'
        b'0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,1.0],"modality":"MR",'
        b'"labelled":false,"planar":false,"target":null}'
    )

    def test_a_right_one(self, answer):
        assert answer(self.framed(self.HEADER) + b"\1\0\2\0").image_czyx.tolist() == [[[[1, 2]]]]

    @pytest.mark.parametrize(
        "change",
        [
            (b"[1,1,1,2]", b"[1,1,1,-2]"),
            (b"[1,1,1,2]", b"[1,9999999,9999999,2]"),
            (b"[1,1,1,2]", b"[1,1,1.5,2]"),
            (b"int16", b"object"),
            (b"[1.0],", b"[1.0,2.0],"),
            (b"[1.0],", b"[NaN],"),
            (b'"MR"', b'"DOE^JANE"'),
            (b'"planar"', b'"other"'),
            (b"{", b"["),
            (HEADER, b'{"code":"NO_SUCH_REASON"}'),
            (HEADER, b'{"code":"NO_PIXELS","detail":"\\u001b[31m"}'),
            (HEADER, b"cposix\nsystem\n(S'true'\ntR."),
        ],
        ids=range(12),
    )
    def test_a_wrong_one_is_no_scan(self, answer, change):
        header = self.HEADER.replace(*change)
        with pytest.raises(decoding.Broken) as caught:
            answer(self.framed(header) + b"\1\0\2\0")
        assert caught.value.code == "DECODER_ANSWER"

    def test_a_header_of_four_gigabytes_is_not_awaited(self, answer):
        with pytest.raises(decoding.Broken, match="DECODER_ANSWER"):
            answer(b"\xff\xff\xff\xff")

    def test_too_few_bytes(self, answer):
        with pytest.raises(decoding.Broken, match="READER_DIED"):
            answer(self.framed(self.HEADER) + b"\1")


class TestWhatIsRequired:
    def test_every_protection_is_told_of(self):
        assert [one.name for one in protections_here(Limits())] == list(NAMES)

    def test_what_is_missing_stops_the_ingest(self, tmp_path, monkeypatch):
        found = [decoding.Protection(n, "not here" if n == "no_network" else "") for n in NAMES]
        monkeypatch.setattr(Decoder, "protections", property(lambda self: tuple(found)))
        with pytest.raises(DataError, match=r"no_network \(not here\).*Nothing was decoded"):
            staged(tmp_path, "well", limits=Limits(require=("no_network",)))
        DECODERS.close()

    def test_what_is_not_asked_for_is_not_missed(self):
        require((decoding.Protection("no_network", "not here"),), ("no_writes",))


def test_a_decoder_does_not_outlive_a_parent_that_was_killed(tmp_path):
    program = (
        "from tests.data_adapters.test_decoding import *\n"
        "decoder = Decoder(Limits())\n"
        "decoder.protections\n"
        "print(decoder._process.pid, flush=True)\n"
        "decoder.read(Planted('sleep'), CLASSES)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    child = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs([child], timeout=30)
    assert alive == [] and tempfile.gettempdir()
