"""Keys at rest as an operator keeps them; the ways back from a lost one in docs/keys.md, typed."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from federation import key_slot
from federation.agent_state import NODE_KEY, AgentFolder
from federation.errors import FederationError
from federation.hub_folder import open_hub
from federation.key_slot import SLOT, protection
from federation.ledger.keys import PSEUDONYM_KEY, SITE_KEY
from federation.site import open_site
from federation.site_config import load_site_config
from federation.site_keys import NEXT_KEY
from federation.systemd import unit_for
from tests.conftest import edit
from tests.experiments import tiny_experiment
from tests.federation.cli.test_hub import cohortium, file, hub_file, joined  # noqa: F401 - fixtures

FIRST, SECOND = "correct horse battery", "staple of another kind"
NAMES = (SITE_KEY, PSEUDONYM_KEY, NODE_KEY)


@pytest.fixture(autouse=True)
def nobody_knows(monkeypatch):
    """Each command begins as a new process would."""
    monkeypatch.setattr(key_slot, "_opened", {})
    for name in ("COHORTIUM_PASSPHRASE_FILE", "COHORTIUM_NEW_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def give(tmp_path, monkeypatch):
    """Return what lays passphrases where the environment says."""

    def given(now: str = "", new: str = "") -> None:
        key_slot._opened.clear()
        for variable, text in (("PASSPHRASE", now), ("NEW_PASSPHRASE", new)):
            name, path = f"COHORTIUM_{variable}_FILE", tmp_path / variable
            if not text:
                monkeypatch.delenv(name, raising=False)
                continue
            path.write_text(text + "\n")
            path.chmod(0o600)
            monkeypatch.setenv(name, str(path))

    return given


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_experiment().model_dump(mode="json")))
    return path


@pytest.fixture
def protected(joined, give):  # noqa: F811
    """A site whose keys are under ``FIRST``, which nobody has given."""
    give(new=FIRST)
    shown = cohortium("site", "protect-keys", joined).output
    assert all(name in shown for name in NAMES) and "Back up key-slot.json" in shown
    give()
    return joined


@pytest.mark.parametrize("command", ["protect-keys", "token-key"])
def test_help_teaches_by_example(command):
    shown = cohortium("site", command, "--help").output
    assert re.search(rf"Examples?:\s+cohortium site {command}", shown), shown


class TestUnderAPassphrase:
    def test_no_key_lies_there_as_it_is(self, joined, protected, give):  # noqa: F811
        state = load_site_config(protected).state
        assert set(protection(state, NAMES).sealed) == set(NAMES)
        for name in NAMES:
            assert b"PRIVATE KEY" not in (state / name).read_bytes()

    @pytest.mark.parametrize("command", [("start", "--check"), ("approve", "--yes"), ("egress",)])
    def test_commands_need_it_and_say_where_to_put_it(self, protected, experiment, give, command):
        name, *options = command
        what = (experiment,) if name == "approve" else ()
        with pytest.raises(FederationError, match="COHORTIUM_PASSPHRASE_FILE"):
            cohortium("site", name, protected, *what, *options)
        give(SECOND)
        with pytest.raises(FederationError, match="is wrong"):
            cohortium("site", name, protected, *what, *options)
        give(FIRST)
        done = cohortium("site", name, protected, *what, *options)
        assert done.exit_code == 0, done.output

    def test_a_missing_passphrase_is_exit_code_2_and_a_sentence(self, protected):
        command = "from federation.cli.app import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", command, "site", "egress", str(protected)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("Error: The passphrase of the keys in")
        assert "Traceback" not in done.stderr

    def test_the_connection_uses_its_key_and_leaves_no_copy(self, protected, give):
        give(FIRST)
        state = load_site_config(protected).state
        before = {path.name for path in state.iterdir()}
        checked = cohortium("site", "start", protected, "--check")
        assert re.search(r"ok\s+certificate\s+valid for", checked.output), checked.output
        left = {path.name for path in state.iterdir()} - before
        assert not [name for name in left if NODE_KEY in name]

    def test_it_is_changed_and_taken_away(self, protected, give):
        site, state = load_site_config(protected), load_site_config(protected).state
        give(FIRST, new=SECOND)
        cohortium("site", "protect-keys", protected)
        give(FIRST)
        with pytest.raises(FederationError, match="is wrong"):
            open_site(protected)
        give(SECOND)
        fingerprint = open_site(protected).key.fingerprint
        assert "mode 600" in cohortium("site", "protect-keys", protected, "--remove").output
        give()
        assert not (state / SLOT).exists()
        assert open_site(protected).key.fingerprint == fingerprint
        with pytest.raises(FederationError, match="under no passphrase"):
            cohortium("site", "protect-keys", protected, "--remove")
        assert site.site == "bio-lab"

    def test_a_wrong_passphrase_changes_nothing(self, protected, give):
        state = load_site_config(protected).state
        before = {name: (state / name).read_bytes() for name in (*NAMES, SLOT)}
        give(SECOND, new="yet another passphrase")
        for options in ((), ("--remove",)):
            with pytest.raises(FederationError, match="is wrong"):
                cohortium("site", "protect-keys", protected, *options)
        assert before == {name: (state / name).read_bytes() for name in (*NAMES, SLOT)}

    def test_not_while_an_agent_runs(self, protected, give):
        give(FIRST, new=SECOND)
        config = load_site_config(protected)
        running = AgentFolder(config.state).held("bio-lab")
        with running, pytest.raises(FederationError, match="an agent runs already"):
            cohortium("site", "protect-keys", protected)

    def test_a_key_that_replaces_another_is_sealed_too(self, protected, give):
        give(FIRST)
        before = open_site(protected).key.fingerprint
        cohortium("site", "rotate-key", protected, "--yes")
        state = load_site_config(protected).state
        assert SITE_KEY in protection(state, NAMES).sealed and not (state / NEXT_KEY).exists()
        assert open_site(protected).key.fingerprint != before

    def test_the_unit_gets_it_as_a_credential(self, protected, joined):  # noqa: F811
        config = load_site_config(protected)
        unit = unit_for(protected, config)
        assert "LoadCredential=cohortium-passphrase:/etc/cohortium/bio-lab.passphrase" in unit
        assert FIRST not in unit

    def test_a_site_without_keys_makes_them_first(self, laid_out, tmp_path, give):
        site = shutil.copytree(laid_out, tmp_path / "new") / "bio-lab" / "site.yaml"
        give(new=FIRST)
        with pytest.raises(FederationError, match=r"no keys in .* yet.*site keygen"):
            cohortium("site", "protect-keys", site)
        cohortium("site", "keygen", site)
        cohortium("site", "protect-keys", site)
        give(FIRST)
        state = open_site(site).config.state
        assert SITE_KEY in protection(state, NAMES).sealed, "made later, and sealed at once"


class TestHub:
    @pytest.fixture(autouse=True)
    def under_a_passphrase(self, hub_file, give):  # noqa: F811
        key = open_hub(hub_file).key.public_bytes
        give(new=FIRST)
        shown = cohortium("hub", "protect-keys", hub_file).output
        assert "hub-key" in shown and "ca.key" in shown
        give(FIRST)
        assert open_hub(hub_file).key.public_bytes == key
        give()

    def test_admitting_a_site_needs_it(self, hub_file, file, give):  # noqa: F811
        cohortium("site", "keygen", file)
        command = ("hub", "add-site", hub_file, "bio-lab", file.with_name("bio-lab.pub"))
        with pytest.raises(FederationError, match="COHORTIUM_PASSPHRASE_FILE"):
            cohortium(*command)
        give(FIRST)
        assert "may connect" in cohortium(*command).output

    def test_starting_it_needs_it_where_its_processes_find_it(self, hub_file):  # noqa: F811
        with pytest.raises(FederationError, match=r"cannot be asked for here.*PASSPHRASE_FILE"):
            cohortium("hub", "start", hub_file)


class TestLostKeys:
    """The steps of docs/keys.md, 'When a key is lost'."""

    def test_the_connections_key(self, joined, hub_file):  # noqa: F811
        state = load_site_config(joined).state
        public = joined.with_name("bio-lab.pub")
        before = public.read_text()
        cohortium("hub", "remove-site", hub_file, "bio-lab")
        (state / NODE_KEY).unlink()
        cohortium("site", "keygen", joined)
        assert public.read_text() != before
        cohortium("hub", "add-site", hub_file, "bio-lab", public)
        shutil.copy(hub_file.parent / "sites" / "bio-lab.crt", joined.with_name("bio-lab.crt"))
        assert cohortium("site", "start", joined, "--check").exit_code == 0

    def test_the_ledgers_key_from_a_backup(self, joined, tmp_path):  # noqa: F811
        state = load_site_config(joined).state
        shutil.copy2(state / SITE_KEY, tmp_path / "backup")
        (state / SITE_KEY).unlink()
        with pytest.raises(FederationError, match=r"There is no key .*keys\.md"):
            open_site(joined)
        shutil.copy2(tmp_path / "backup", state / SITE_KEY)
        assert cohortium("site", "start", joined, "--check").exit_code == 0

    def test_the_ledgers_key_without_one(self, joined, tmp_path):  # noqa: F811
        """The old ledger stays readable; a new one in a new folder has what is left."""
        site = open_site(joined)
        state, trusted = site.config.state, site.key.fingerprint
        site.ledger.close()
        (state / SITE_KEY).unlink()
        checked = cohortium("audit", "verify", "--trust", trusted, state / "ledger.jsonl")
        assert checked.exit_code == 0, checked.output
        edit(joined, f"state: {state.name}", "state: state-2")
        new = load_site_config(joined).state
        new.mkdir(mode=0o700)
        for name in (PSEUDONYM_KEY, NODE_KEY):
            shutil.copy2(state / name, new / name)
        edit(joined, "epsilon: 10", "epsilon: 4")
        cohortium("site", "ingest", joined)
        again = open_site(joined)
        assert again.key.fingerprint != trusted and again.ledger.policy.epsilon == 4

    def test_the_pseudonym_key_where_nobody_is_excluded(self, joined, experiment):  # noqa: F811
        cohortium("site", "approve", joined, experiment, "--yes")
        site = open_site(joined)
        before = site.manifest("protected").root
        (site.config.state / PSEUDONYM_KEY).unlink()
        cohortium("site", "ingest", joined)
        assert open_site(joined).manifest("protected").root != before
        cohortium("site", "approve", joined, experiment, "--yes")

    def test_the_hubs_key(self, joined, hub_file, tmp_path, experiment):  # noqa: F811
        """A new hub: sites keep their connection's keys, take its key, and approve again."""
        cohortium("site", "approve", joined, experiment, "--yes")
        address = open_hub(hub_file).config.address
        cohortium("hub", "init", tmp_path / "hub-2", "--address", address)
        new = tmp_path / "hub-2" / "hub.yaml"
        shown = cohortium("hub", "add-site", new, "bio-lab", joined.with_name("bio-lab.pub")).output
        text = joined.read_text()
        joined.write_text(text[: text.index("\nhub:")] + "\n" + shown[shown.index("hub:") :])
        shutil.copy(new.with_name("ca.crt"), joined.with_name("ca.crt"))
        shutil.copy(new.parent / "sites" / "bio-lab.crt", joined.with_name("bio-lab.crt"))
        assert cohortium("site", "start", joined, "--check").exit_code == 0
        cohortium("site", "approve", joined, experiment, "--yes")
        approvals = [r.body for r in open_site(joined).ledger.records if r.kind == "approval"]
        assert approvals[-1]["hub_key"] == open_hub(new).key.public_bytes.hex()
        assert approvals[0]["hub_key"] != approvals[-1]["hub_key"]

    def test_the_passphrase_with_a_backup_from_before(self, protected, tmp_path, give):
        """Keys as they were, from a backup that was made before they were protected."""
        give(FIRST)
        state = load_site_config(protected).state
        backup = tmp_path / "backup"
        backup.mkdir(mode=0o700)
        shutil.copy2(state / SLOT, backup)
        for name in NAMES:
            (backup / name).write_bytes(key_slot.read_secret(state / name))
            (backup / name).chmod(0o600)
        give()  # lost
        (state / SLOT).unlink()
        for name in NAMES:
            shutil.copy2(backup / name, state / name)
        assert cohortium("site", "start", protected, "--check").exit_code == 0

    def test_a_sealed_file_opens_without_this_program(self, protected, tmp_path):
        """What docs/keys.md prints for the day when Cohortium does not run."""
        text = (key_slot.Path(__file__).parents[3] / "docs" / "keys.md").read_text()
        script = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
        state = load_site_config(protected).state
        done = subprocess.run(
            [sys.executable, "-c", script, str(state), SITE_KEY],
            input=FIRST + "\n",
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=True,
        )
        assert re.fullmatch(r"[0-9a-f]{64}\n", done.stdout.rpartition(": ")[2])
        assert json.loads((state / SLOT).read_text())["kdf"] == "scrypt"
