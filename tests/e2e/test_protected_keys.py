"""A whole federation whose every key is under a passphrase, as services have it: no terminal."""

import shutil
import subprocess

import pytest
import yaml

from federation import key_slot
from federation.agent_state import NODE_KEY
from federation.hub_folder import HUB_KEY
from federation.key_slot import protection
from federation.ledger.keys import PSEUDONYM_KEY, SITE_KEY
from federation.privacy.plan import make_plan
from federation.site import Permission, open_site
from federation.site_config import load_site_config
from tests.conftest import site_files
from tests.e2e.processes import OVER_THE_NETWORK, make_federation
from tests.e2e.runs import NAMES, submitted, watched
from tests.experiments import tiny_experiment

pytestmark = OVER_THE_NETWORK
PASSPHRASE = "correct horse battery"


@pytest.fixture
def parts(ingested, tmp_path, monkeypatch):
    """A federation that is not started yet, with every key sealed."""
    shutil.copytree(ingested, tmp_path / "sites")
    made = make_federation(tmp_path, site_files(tmp_path / "sites"))
    monkeypatch.setattr(key_slot, "_opened", {})
    path = tmp_path / "passphrase"
    path.write_text(PASSPHRASE + "\n")
    path.chmod(0o600)
    monkeypatch.setenv("COHORTIUM_NEW_PASSPHRASE_FILE", str(path))
    for command in (
        ("hub", "protect-keys", made.hub_file),
        *(("site", "protect-keys", file) for file in made.site_files.values()),
    ):
        done = made.cohortium(*command)
        assert done.returncode == 0, done.stderr
    monkeypatch.delenv("COHORTIUM_NEW_PASSPHRASE_FILE")
    yield made, path
    made.end()


def test_a_run_with_every_key_under_a_passphrase(parts, monkeypatch):
    made, passphrase = parts
    assert HUB_KEY in protection(made.hub.path, (HUB_KEY,)).sealed
    for file in made.site_files.values():
        names = (SITE_KEY, PSEUDONYM_KEY, NODE_KEY)
        assert protection(load_site_config(file).state, names).sealed == names

    for command in (("hub", "start", made.hub_file), ("site", "start", made.site_files["bio-lab"])):
        done = made.cohortium(*command)
        assert (done.returncode, "COHORTIUM_PASSPHRASE_FILE" in done.stderr) == (2, True)

    monkeypatch.setenv("COHORTIUM_PASSPHRASE_FILE", str(passphrase))
    wanted = tiny_experiment(rounds=2)
    path = made.folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    for file in made.site_files.values():
        site = open_site(file)
        site.approve(wanted, make_plan(wanted), Permission("test", hub_key=site.config.hub.key))
        site.ledger.close()
    made.start_hub()
    for name in NAMES:
        made.start_site(name)
    made.until_connected(*NAMES)
    rounds, status, code = watched(made, submitted(made, path))
    assert (status["state"], code) == ("completed", 0), status
    assert all(one["returned"] == list(NAMES) for one in rounds)
    logs = "".join(log.read_text() for log in made.folder.rglob("*.log"))
    assert PASSPHRASE not in logs
    shown = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True)
    assert PASSPHRASE not in shown.stdout
