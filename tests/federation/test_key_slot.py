"""Secrets at rest: what opens them, what does not, and that a kill loses nothing."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from federation import key_slot, passphrase
from federation.errors import FederationError
from federation.key_slot import (
    SLOT,
    create_secret,
    is_protected,
    protect,
    protection,
    read_secret,
    unlock,
    unprotect,
)

FIRST, SECOND = "correct horse battery", "staple of another kind"
NAMES = ("one", "two")
CONTENT = {"one": b"a" * 65, "two": b"-----BEGIN PRIVATE KEY-----\n"}


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    """Each test begins as a new process would, with nobody at a terminal."""
    monkeypatch.setattr(key_slot, "_opened", {})
    for asked in (passphrase.PASSPHRASE, passphrase.NEW_PASSPHRASE, passphrase.PIN):
        monkeypatch.delenv(asked.variable, raising=False)
    monkeypatch.delenv(passphrase.CREDENTIALS, raising=False)


@pytest.fixture
def give(tmp_path_factory, monkeypatch):
    """Return what puts a passphrase where a service has it, and forgets what was opened."""
    path = tmp_path_factory.mktemp("given") / "passphrase"

    def given(text: str) -> None:
        path.write_text(text + "\n")
        path.chmod(0o600)
        monkeypatch.setenv("COHORTIUM_PASSPHRASE_FILE", str(path))
        key_slot._opened.clear()

    return given


@pytest.fixture
def folder(tmp_path):
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    for name, content in CONTENT.items():
        create_secret(state / name, content)
    return state


def contents(folder):
    return {name: read_secret(folder / name) for name in NAMES}


def test_sealed_files_open_with_the_passphrase_alone(folder, give):
    assert protect(folder, NAMES, FIRST).sealed == NAMES
    for name in NAMES:
        assert CONTENT[name] not in (folder / name).read_bytes()
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    give(FIRST)
    assert contents(folder) == CONTENT
    give(SECOND)
    with pytest.raises(FederationError, match=r"passphrase of the keys in .* is wrong"):
        contents(folder)


def test_without_a_terminal_or_a_file_the_remedy_is_told(folder):
    protect(folder, NAMES, FIRST)
    key_slot._opened.clear()
    with pytest.raises(FederationError, match=r"no terminal .*COHORTIUM_PASSPHRASE_FILE"):
        read_secret(folder / "one")


def test_a_service_has_it_as_a_credential(folder, tmp_path, monkeypatch):
    protect(folder, NAMES, FIRST)
    key_slot._opened.clear()
    (tmp_path / "cohortium-passphrase").write_text(FIRST)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert contents(folder) == CONTENT


def test_somebody_at_a_terminal_is_asked_once(folder, monkeypatch):
    protect(folder, NAMES, FIRST)
    key_slot._opened.clear()
    prompts = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(passphrase.getpass, "getpass", lambda text: prompts.append(text) or FIRST)
    assert contents(folder) == CONTENT == contents(folder)
    assert prompts == [f"Passphrase of the keys in {folder}: "]


@pytest.mark.parametrize("text", ["", "two\nlines\n"])
def test_a_file_that_holds_no_passphrase_is_refused(folder, give, text):
    protect(folder, NAMES, FIRST)
    give(text)
    with pytest.raises(FederationError, match="on one line"):
        read_secret(folder / "one")


def test_a_passphrase_that_others_can_read_is_refused(folder, give):
    protect(folder, NAMES, FIRST)
    give(FIRST)
    Path(os.environ["COHORTIUM_PASSPHRASE_FILE"]).chmod(0o644)
    with pytest.raises(FederationError, match="chmod 600"):
        read_secret(folder / "one")


def test_a_short_new_passphrase_is_refused(tmp_path, monkeypatch):
    (tmp_path / "new").write_text("short")
    (tmp_path / "new").chmod(0o600)
    monkeypatch.setenv("COHORTIUM_NEW_PASSPHRASE_FILE", str(tmp_path / "new"))
    with pytest.raises(FederationError, match="at least 12"):
        passphrase.new_passphrase("the keys")


def test_it_is_changed_and_taken_away(folder, give):
    protect(folder, NAMES, FIRST)
    sealed = (folder / "one").read_bytes()
    give(FIRST)
    protect(folder, NAMES, SECOND)
    assert (folder / "one").read_bytes() == sealed, "one file is replaced, so nothing is half done"
    give(SECOND)
    assert contents(folder) == CONTENT
    assert unprotect(folder, NAMES).plain == NAMES
    assert not is_protected(folder)
    assert {name: (folder / name).read_bytes() for name in NAMES} == CONTENT


def test_a_new_secret_is_sealed_like_those_beside_it(folder):
    protect(folder, NAMES, FIRST)
    create_secret(folder / "three", b"new")
    assert (folder / "three").read_bytes() != b"new" == read_secret(folder / "three")
    with pytest.raises(FileExistsError):
        create_secret(folder / "three", b"other")


def test_two_seals_of_one_secret_differ(folder):
    protect(folder, NAMES, FIRST)
    create_secret(folder / "again", CONTENT["one"])
    assert (folder / "again").read_bytes() != (folder / "one").read_bytes()


class TestDamage:
    @pytest.fixture(autouse=True)
    def sealed(self, folder, give):
        protect(folder, NAMES, FIRST)
        give(FIRST)

    def test_every_changed_byte_of_a_sealed_file_is_found(self, folder):
        whole = (folder / "one").read_bytes()
        for place in range(19, len(whole) - 1, 7):
            (folder / "one").write_bytes(
                whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
            )
            with pytest.raises(FederationError, match="damaged"):
                read_secret(folder / "one")

    def test_a_slot_that_is_gone_is_asked_for_and_not_replaced(self, folder):
        (folder / SLOT).unlink()
        with pytest.raises(FederationError, match="from the backup of the keys"):
            read_secret(folder / "one")
        with pytest.raises(FederationError, match="from the backup of the keys"):
            protect(folder, NAMES, SECOND)
        assert not (folder / SLOT).exists()

    @pytest.mark.parametrize(
        "change", [{"n": 2**30}, {"kdf": "none"}, {"salt": "zz"}, {"n": 2**16}]
    )
    def test_a_changed_slot_opens_nothing(self, folder, change):
        values = json.loads((folder / SLOT).read_text()) | change
        (folder / SLOT).write_text(json.dumps(values))
        with pytest.raises(FederationError, match=r"damaged|is wrong"):
            unlock(folder)


KILLED = """
import os, sys
from pathlib import Path
from federation import files, key_slot
folder, left, what = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
steps = 0
def counted(call):
    def wrapped(*args, **kwargs):
        global steps
        if steps == left:
            os._exit(9)
        steps += 1
        return call(*args, **kwargs)
    return wrapped
# Every step that changes the folder: the name of a temporary file, its replacement, a removal.
os.open, Path.replace, Path.unlink = counted(os.open), counted(Path.replace), counted(Path.unlink)
if what == "unprotect":
    key_slot.unprotect(folder, ("one", "two"))
else:
    key_slot.protect(folder, ("one", "two"), what)
"""


@pytest.mark.parametrize("what", ["first", "change", "unprotect"])
def test_killed_at_every_step_everything_opens_and_a_repetition_finishes(folder, give, what):
    old = FIRST
    if what != "first":
        protect(folder, NAMES, old)
    give(old)
    new = SECOND if what == "change" else old
    asked = "unprotect" if what == "unprotect" else new
    for left in range(60):
        command = [sys.executable, "-c", KILLED, str(folder), str(left), asked]
        code = subprocess.run(command, check=False).returncode
        assert code in (0, 9)
        opened = False
        for text in dict.fromkeys((old, new)):
            give(text)
            try:
                opened = opened or contents(folder) == CONTENT
            except FederationError:
                continue
        assert opened, f"step {left}"
        if code == 0:
            break
        if what == "change" and _opens(folder, give, new):
            break  # the one step that matters is done
        give(old)
    else:
        pytest.fail("it never ended")
    there = protection(folder, NAMES)
    assert (there.plain if what == "unprotect" else there.sealed) == NAMES


def _opens(folder, give, text) -> bool:
    give(text)
    try:
        return contents(folder) == CONTENT
    except FederationError:
        return False
