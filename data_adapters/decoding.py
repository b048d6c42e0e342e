"""Foreign pixels are decoded in another process, which could give up everything else first.

One long-lived process for each ingest worker reads candidates whose formats need codecs (DICOM,
NIfTI). What comes back is looked at as data: a short JSON header, then as many bytes as its shapes
say. A decoder that crashes, hangs or outgrows its memory costs that scan, and a new one is started.
"""

import atexit
import fcntl
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from multiprocessing.connection import Connection
from time import monotonic
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_adapters.confinement import NAMES, Name, Protection
from data_adapters.digests import Names
from data_adapters.errors import DataError
from data_adapters.reasons import REASONS, Unusable
from data_adapters.types import Candidate, Scan

MAX_HEADER_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 24
# Linux lets everybody have pipes of this size; a sixteenth of it is usual, and takes more turns.
_PIPE_BYTES = 1 << 20
# Longest time to start one, in seconds: it imports the decoders.
START_S = 120.0
_PROGRAM = "from data_adapters.decoder_process import main; main()"
# Nothing else of the environment: it may hold credentials of a PACS or of a store.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "OMP_NUM_THREADS", "SYSTEMROOT")


@runtime_checkable
class NeedsCodecs(Protocol):
    """A candidate whose whole scan is decoded from foreign bytes; it is read in a decoder."""

    @property
    def needs_codecs(self) -> Literal[True]:
        """Return that it is one."""


class Limits(BaseModel):
    """What a decoder may use, and what it must be unable to do (``decoding`` in the site file).

    Args:
        require: Protections without which nothing is read. ``site check`` says which are active.
        memory_gib: Most memory for one scan: address space beyond what the programs take.
        timeout_s: Longest time for one scan.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    require: tuple[Name, ...] = ()
    memory_gib: Annotated[float, Field(ge=0.25, le=4096)] = 16.0
    timeout_s: Annotated[float, Field(ge=1, le=86_400)] = 1800.0


USUAL = Limits()


class _Read(BaseModel):
    """The header of a scan, from a process that is not trusted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    dtype: Literal["uint8", "int16", "uint16", "float32"]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=4, max_length=4)]
    slopes: Annotated[list[float], Field(max_length=1024)]
    intercepts: Annotated[list[float], Field(max_length=1024)]
    affine: Annotated[list[float], Field(min_length=16, max_length=16)]
    modality: Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")]
    labelled: bool
    planar: bool
    target: float | None


class _Refused(BaseModel):
    """Why a scan is left out, or how reading it failed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    code: Annotated[str, Field(max_length=64)]
    detail: Annotated[str, Field(max_length=200)] = ""


class Broken(Exception):  # noqa: N818 - a state of another process
    """A decoder died, hung or sent what is none."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code)
        self.code, self.detail = code, detail


class Decoder:
    """One process that reads candidates. It ends with its parent."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        mine, theirs = os.pipe(), os.pipe()  # (read, write): requests, answers
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path or "." for path in sys.path)
        memory = str(int(limits.memory_gib * 2**30))
        self._process = subprocess.Popen(  # noqa: S603 - this program
            [sys.executable, "-c", _PROGRAM, str(mine[0]), str(theirs[1]), memory],
            pass_fds=(mine[0], theirs[1]),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(mine[0])
        os.close(theirs[1])
        self._requests = Connection(mine[1], readable=False)
        self._answers = theirs[0]
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with suppress(OSError):  # a limit of this user's pipes
                fcntl.fcntl(self._answers, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._protections: tuple[Protection, ...] | None = None
        self._is_ready = False

    @property
    def protections(self) -> tuple[Protection, ...]:
        """What is active; told by the process before it has touched a file.

        Raises:
            Broken: It did not start.
        """
        if self._protections is None:
            told = json.loads(self._header(monotonic() + START_S))
            self._protections = tuple(Protection(n, str(told.get(n, "not told"))) for n in NAMES)
        return self._protections

    def read(self, candidate: Candidate, names: Names) -> Scan:
        """Return the scan.

        Raises:
            Unusable: Why it is left out.
            Broken: The process is of no more use.
        """
        require(self.protections, self.limits.require)
        if not self._is_ready:
            self._header(monotonic() + START_S)
            self._is_ready = True
        end = monotonic() + self.limits.timeout_s
        try:
            self._requests.send(candidate)
        except OSError as error:
            raise Broken("READER_DIED") from error
        header = self._header(end)
        try:
            value = json.loads(header)
            if "code" in value:
                raise _refusal(_Refused.model_validate(value))
            read = _Read.model_validate(value)
        except (ValueError, TypeError, ValidationError) as error:
            raise Broken("DECODER_ANSWER") from error
        return self._scan(read, candidate, names, end)

    def close(self) -> None:
        """End the process."""
        for close in (self._requests.close, lambda: os.close(self._answers)):
            with suppress(OSError):
                close()
        self._process.kill()
        self._process.wait()

    def _scan(self, read: _Read, candidate: Candidate, names: Names, end: float) -> Scan:
        c, *zyx = read.shape
        size = prod(read.shape) * np.dtype(read.dtype).itemsize
        scaled = {len(read.slopes), len(read.intercepts)}
        if size > self.limits.memory_gib * 2**30 or scaled != {c}:
            raise Broken("DECODER_ANSWER")
        image = self._array(read.dtype, (c, *zyx), end)
        labels = self._array("uint8", tuple(zyx), end) if read.labelled else None
        if image.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in image[0]):
            raise Broken("DECODER_ANSWER")
        if labels is not None and labels.max() >= max(1, len(names.classes)):
            raise Broken("DECODER_ANSWER")
        return Scan(
            image_czyx=image,
            slopes=tuple(read.slopes),
            intercepts=tuple(read.intercepts),
            affine_ras=np.array(read.affine).reshape(4, 4),
            subject=candidate.subject,
            modality=read.modality,
            labels_zyx=labels,
            target=read.target,
            planar=read.planar,
        )

    def _array(self, dtype: str, shape: tuple[int, ...], end: float) -> NDArray[Any]:
        array = np.empty(shape, dtype)
        self._fill(array.reshape(-1).view(np.uint8).data, end)
        return array

    def _header(self, end: float) -> bytes:
        length = bytearray(4)
        self._fill(memoryview(length), end)
        size = int.from_bytes(length, "little")
        if not 0 < size <= MAX_HEADER_BYTES:
            raise Broken("DECODER_ANSWER")
        header = bytearray(size)
        self._fill(memoryview(header), end)
        return bytes(header)

    def _fill(self, view: memoryview, end: float) -> None:
        """Read exactly so many bytes, until a moment."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while view:
                if not selector.select(max(0.0, end - monotonic())):
                    raise Broken("DECODER_TIMEOUT", f"{self.limits.timeout_s:g} s")
                count = os.readv(self._answers, [view[:_CHUNK_BYTES]])
                if count == 0:
                    raise Broken("READER_DIED")
                view = view[count:]


class Decoders:
    """This process's decoder, started when it is first needed and again when it is broken.

    It stays for the next ingest: starting one takes a second and a half, for what it imports.
    """

    def __init__(self) -> None:
        self._decoder: Decoder | None = None
        atexit.register(self.close)

    def warm(self, limits: Limits) -> Decoder:
        """Start one, if there is none with these limits. It imports what it needs meanwhile."""
        if self._decoder is None or self._decoder.limits != limits:
            self.close()
            self._decoder = Decoder(limits)
        return self._decoder

    def read(self, candidate: Candidate, names: Names, limits: Limits) -> Scan:
        """Return a scan that a decoder has read.

        Raises:
            Unusable: Why it is left out; a decoder that failed over it is one of the reasons.
            DataError: A protection that the site file requires is missing here.
        """
        try:
            return self.warm(limits).read(candidate, names)
        except Broken as broken:
            self.close()
            raise Unusable(broken.code, broken.detail) from None

    def close(self) -> None:
        """End the decoder, if there is one."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None


DECODERS = Decoders()


def protections_here(limits: Limits) -> tuple[Protection, ...]:
    """Start a decoder and say what it could give up on this machine.

    Raises:
        DataError: It does not start.
    """
    decoder = Decoder(limits)
    try:
        return decoder.protections
    except Broken as broken:
        raise DataError(
            f"The process that decodes images does not start here ({broken.code}). See that "
            "'decoding.memory_gib' in the site file is not too small."
        ) from None
    finally:
        decoder.close()


def require(found: tuple[Protection, ...], wanted: tuple[Name, ...]) -> None:
    """Check that what a site file requires is active.

    Raises:
        DataError: Names what is missing, and why.
    """
    missing = [one for one in found if one.missing and one.name in wanted]
    if missing:
        named = "; ".join(f"{one.name} ({one.missing})" for one in missing)
        raise DataError(
            f"'decoding.require' in the site file names what this machine does not have: {named}. "
            "Nothing was decoded. Ingest where it has, or take these out of the list."
        )


def _refusal(told: _Refused) -> Unusable:
    if told.code not in REASONS or not told.detail.isprintable():
        raise Broken("DECODER_ANSWER")
    return Unusable(told.code, told.detail)


def header_of(scan: Scan) -> Mapping[str, object]:
    """Return what a decoder says of a scan before its bytes."""
    return {
        "dtype": scan.image_czyx.dtype.name,
        "shape": [int(size) for size in scan.image_czyx.shape],
        "slopes": [float(value) for value in scan.slopes],
        "intercepts": [float(value) for value in scan.intercepts],
        "affine": [float(value) for value in scan.affine_ras.reshape(-1)],
        "modality": scan.modality,
        "labelled": scan.labels_zyx is not None,
        "planar": bool(scan.planar),
        "target": None if scan.target is None else float(scan.target),
    }
