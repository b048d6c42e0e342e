"""The other end of ``decoding``: gives up what it can, then reads one candidate after another."""

import os
import sys

from data_adapters.confinement import confine

_STAGE_BYTES = 1 << 20


def main() -> None:
    """Run until the parent goes away. Arguments: pipe of requests, of answers, memory in bytes."""
    requests, answers, memory_bytes = (int(text) for text in sys.argv[1:])
    import json  # after this nothing is imported that has to write

    found = confine(memory_bytes)
    _send(answers, json.dumps({one.name: one.missing for one in found}).encode())
    _import_decoders()
    _send(answers, b"ready")  # from here on it is the scan that takes time
    _serve(requests, answers, memory_bytes)


def _import_decoders() -> None:
    """Have them ready while the parent still looks for images."""
    import highdicom
    import nibabel
    import pydicom.pixels

    from data_adapters import dicom, nifti

    del highdicom, nibabel, pydicom, dicom, nifti


def _serve(requests: int, answers: int, memory_bytes: int) -> None:
    from multiprocessing.connection import Connection

    incoming = Connection(requests, writable=False)
    while True:
        try:
            candidate = incoming.recv()
        except EOFError:
            return
        _answer(answers, candidate, memory_bytes)
        del candidate


def _answer(answers: int, candidate: object, memory_bytes: int) -> None:
    import json

    from data_adapters.reasons import Unusable

    try:
        scan = candidate.read()  # type: ignore[attr-defined]
        header, parts = _packed(scan)
    except Unusable as reason:
        refused = {"code": reason.code, "detail": _shown(reason.detail)}
        _send(answers, json.dumps(refused).encode())
        return
    except MemoryError:
        refused = {"code": "DECODER_MEMORY", "detail": f"{memory_bytes / 2**30:g} GiB"}
        _send(answers, json.dumps(refused).encode())
        return
    except Exception as error:  # its text may quote a header
        refused = {"code": "UNEXPECTED", "detail": _shown(type(error).__name__)}
        _send(answers, json.dumps(refused).encode())
        return
    _send(answers, header)
    for part in parts:
        _write(answers, part)


def _packed(scan: object) -> tuple[bytes, list[memoryview]]:
    import json

    import numpy as np

    from data_adapters.decoding import header_of
    from data_adapters.types import Scan

    if not isinstance(scan, Scan):
        raise TypeError("a reader gave no scan")
    arrays = [scan.image_czyx] + ([] if scan.labels_zyx is None else [scan.labels_zyx])
    whole = [np.ascontiguousarray(array) for array in arrays]
    views = [array.reshape(-1).view(np.uint8).data for array in whole]
    return json.dumps(header_of(scan)).encode(), views


def _shown(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]


def _send(answers: int, header: bytes) -> None:
    _write(answers, memoryview(len(header).to_bytes(4, "little") + header))


def _write(answers: int, view: memoryview) -> None:
    while view:
        view = view[os.write(answers, view[: 16 * _STAGE_BYTES]) :]
