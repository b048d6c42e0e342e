"""Lines that are added durably, also after a crash and on a disk that is full."""

import json
import os

import pytest

from federation.files import append_durably
from tests.e2e.disks import disk


@pytest.mark.parametrize("torn", [b"ha", b"h" * 70_000, b""])
def test_what_a_crash_left_of_a_line_is_cut_off_before_the_next(tmp_path, torn):
    path = tmp_path / "lines"
    append_durably(path, b"one\n")
    path.write_bytes(path.read_bytes() + torn)
    append_durably(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_first_line_that_is_torn_is_cut_off_too(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"ha")
    append_durably(path, b"one\n")
    assert path.read_bytes() == b"one\n"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_disk_without_room_keeps_the_file_as_it_was(tmp_path):
    with disk(tmp_path / "small", 1) as small:
        path, line = small.folder / "lines", json.dumps({"x": "y" * 6_000}).encode() + b"\n"
        append_durably(path, line)
        with small.full(), pytest.raises(OSError, match=os.strerror(28)):
            for _ in range(3):
                append_durably(path, line)
        whole = path.read_bytes()
        assert whole.endswith(b"}\n") and len(whole) % len(line) == 0
        append_durably(path, line)
        assert path.read_bytes() == whole + line
