"""The ledger's key in a token: real SoftHSM2, a site from its first run, and a site that moves."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from federation.errors import FederationError
from federation.ledger import token
from federation.ledger.keys import SITE_KEY, SiteKey, verify_signature
from federation.ledger.token import open_token
from federation.passphrase import PIN
from federation.site import open_site
from federation.site_config import load_site_config
from federation.systemd import unit_for
from tests.federation.cli.test_hub import cohortium

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
THE_PIN = "1234567"
LABEL = "north"
SECTION = "\nkeys: {{pkcs11: {{module: {module}, token: {token}, label: {label}}}}}\n"


@pytest.fixture(scope="module")
def hsm(tmp_path_factory):
    """A token of SoftHSM2; one folder a process, since the library reads its settings once."""
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed (extra pkcs11)")
    program = shutil.which("softhsm2-util")
    if program is None or not MODULE.exists():
        pytest.skip("SoftHSM2 is not installed (Debian: softhsm2)")
    folder = tmp_path_factory.mktemp("hsm")
    (folder / "tokens").mkdir()
    settings = folder / "softhsm2.conf"
    settings.write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    pin = folder / "pin"
    pin.write_text(THE_PIN + "\n")
    pin.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(settings))
        patch.setenv(PIN.variable, str(pin))
        new = ("--init-token", "--free", "--label", LABEL, "--pin", THE_PIN, "--so-pin", "7654321")
        subprocess.run([program, *new], check=True, capture_output=True)
        yield open_token(MODULE, LABEL)


@pytest.fixture
def with_token(federation, hsm):
    """Return what names a key of the token in a site file."""

    def named(file: Path, label: str) -> Path:
        text = file.read_text().partition("\nkeys:")[0]
        file.write_text(text + SECTION.format(module=MODULE, token=LABEL, label=label))
        return file

    return named


def test_it_signs_as_ed25519_does_and_does_not_come_out(hsm):
    from pkcs11 import Attribute

    key = SiteKey(hsm.make_key("signs"))
    signature = key.sign(b"said")
    assert verify_signature(key.public_bytes, b"said", signature)
    assert key.sign(b"said") == signature, "a request that comes again gets the same bytes"
    assert SiteKey(hsm.key_of(key.public_bytes)).public_bytes == key.public_bytes
    with pytest.raises(FederationError, match="already"):
        hsm.make_key("signs")
    with pytest.raises(FederationError, match="no Ed25519 keys called 'other'"):
        hsm.key_named("other")
    secret = hsm.key_named("signs")._key
    assert secret[Attribute.SENSITIVE] and not secret[Attribute.EXTRACTABLE]


def test_a_new_site_signs_with_it_from_its_first_run(laid_out, tmp_path, with_token):
    file = shutil.copytree(laid_out, tmp_path / "new") / "bio-lab" / "site.yaml"
    with_token(file, "first-run")
    with pytest.raises(FederationError, match="site token-key"):
        open_site(file)
    shown = cohortium("site", "token-key", file).output
    site = open_site(file)
    assert site.key.fingerprint in shown
    assert not SiteKey.exists(site.config.state)
    site.ledger.close()
    again = open_site(file)
    command = ("audit", "verify", "--trust", again.key.fingerprint, again.ledger.path)
    assert cohortium(*command).exit_code == 0


def test_a_site_moves_its_key_into_the_token_and_on_to_another(federation, with_token):
    file = federation / "bio-lab" / "site.yaml"
    first = open_site(file).key.fingerprint
    with_token(file, "ledger")
    cohortium("site", "token-key", file)
    assert open_site(file).key.fingerprint == first, "until the ledger says otherwise"
    cohortium("site", "rotate-key", file, "--yes")
    second = open_site(file).key.fingerprint
    assert second != first
    with pytest.raises(FederationError, match=r"signs for bio-lab already.*--label"):
        cohortium("site", "rotate-key", file, "--yes")
    (load_site_config(file).state / SITE_KEY).unlink()
    cohortium("site", "token-key", file, "--label", "ledger-2")
    with_token(file, "ledger-2")
    cohortium("site", "rotate-key", file, "--yes")
    site = open_site(file)
    assert site.key.fingerprint not in {first, second}
    assert cohortium("audit", "verify", "--trust", first, site.ledger.path).exit_code == 0


def test_a_ledger_whose_key_is_in_another_token_says_so(federation, with_token):
    file = federation / "bio-lab" / "site.yaml"
    state = load_site_config(file).state
    with_token(file, "elsewhere")
    cohortium("site", "token-key", file)
    (state / SITE_KEY).unlink()
    with pytest.raises(FederationError, match="neither in the token"):
        open_site(file)


def test_the_unit_gets_the_pin_as_a_credential(federation, with_token):
    file = with_token(federation / "bio-lab" / "site.yaml", "ledger")
    unit = unit_for(file, load_site_config(file))
    assert "LoadCredential=cohortium-pin:/etc/cohortium/bio-lab.pin" in unit
    assert THE_PIN not in file.read_text() + unit


class TestWhatBlocks:
    @pytest.fixture(autouse=True)
    def anew(self, hsm, monkeypatch):
        """Each opens the token as a new process would."""
        monkeypatch.setattr(token, "open_token", token.open_token.__wrapped__)

    def test_a_wrong_pin(self, tmp_path, monkeypatch):
        wrong = tmp_path / "pin"
        wrong.write_text("7654321")
        wrong.chmod(0o600)
        monkeypatch.setenv(PIN.variable, str(wrong))
        opening = (  # in a process of its own: in this one, the token knows its user already
            "import sys; from pathlib import Path; from federation.ledger.token import open_token\n"
            "try: open_token(Path(sys.argv[1]), sys.argv[2])\n"
            "except Exception as error: print(error)"
        )
        command = [sys.executable, "-c", opening, str(MODULE), LABEL]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("The PIN of the token 'north' is wrong.")

    def test_no_pin(self, monkeypatch):
        monkeypatch.delenv(PIN.variable)
        with pytest.raises(FederationError, match=PIN.variable):
            token.open_token(MODULE, LABEL)

    def test_no_such_token(self):
        with pytest.raises(FederationError, match=r"Cannot open 'south'.*keys.pkcs11"):
            token.open_token(MODULE, "south")

    def test_no_such_library(self, tmp_path):
        with pytest.raises(FederationError, match=r"Cannot open .*keys.pkcs11"):
            token.open_token(tmp_path / "none.so", LABEL)
