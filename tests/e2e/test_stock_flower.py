"""Flower's own SuperNode runs the same apps, with data of no people, and is refused all other."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from federation.agent_state import AgentFolder
from federation.flower.fleet import load_node_key
from federation.flower.superlink import environment
from federation.privacy.plan import make_plan
from federation.run import ingest_sites, open_sites
from federation.site import Permission, open_site
from federation.site_config import load_site_config
from tests.conftest import site_files
from tests.e2e.processes import make_federation
from tests.experiments import tiny_experiment, unprotected

pytestmark = pytest.mark.slow
OPEN, PROTECTED = "bio-lab", "north-hospital"
SUPERNODE = str(Path(sys.executable).with_name("flower-supernode"))


@pytest.fixture
def parts(laid_out, tmp_path):
    """A hub without proxy and two sites: one holds specimens, one holds patients."""
    folder = Path(shutil.copytree(laid_out, tmp_path / "sites"))
    shutil.rmtree(folder / "south-hospital")
    file = folder / OPEN / "site.yaml"
    values = yaml.safe_load(file.read_text())
    values["human_subjects"] = {"value": False, "who": "Dr A", "why": "simulated specimens"}
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    made = make_federation(tmp_path, site_files(folder))
    sites = open_sites(list(made.site_files.values()))
    ingest_sites(sites)
    try:
        yield made
    finally:
        made.end()


def stock(parts, name):
    """Start Flower's own SuperNode with this site's key, straight at the SuperLink."""
    file = parts.site_files[name]
    key = parts.folder / f"{name}.key"  # the same key, in the form that a SuperNode reads
    form = (Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    path = AgentFolder(load_site_config(file).state).key_path
    key.write_bytes(load_node_key(path).private_bytes(*form))
    command = [
        SUPERNODE,
        *("--superlink", f"127.0.0.1:{parts.hub.config.link_port}"),
        *("--root-certificates", str(parts.hub.path / "ca.crt")),
        *("--auth-supernode-private-key", str(key)),
        *("--node-config", f'site="{file}"'),
        *("--port", str(9_300 + len(parts.processes))),
    ]
    env = environment(parts.hub) | {"FLWR_HOME": str(parts.folder / f"flower-{name}")}
    with (parts.folder / f"{name}.log").open("ab") as log:
        parts.processes[name] = subprocess.Popen(
            command, env=env, stdout=log, stderr=log, start_new_session=True
        )


def test_open_data_is_trained_on_and_protected_data_is_refused(parts):
    log = parts.folder / "hub.log"
    parts.start("hub", "hub", "start", parts.hub_file, "--no-proxy")
    parts.until(lambda: "serving sites" in log.read_text(), "hub")
    for name in (OPEN, PROTECTED):
        stock(parts, name)
    parts.until_connected(OPEN, PROTECTED)

    wanted = unprotected(tiny_experiment(rounds=1, min_sites=1))
    path = parts.folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    site = open_site(parts.site_files[OPEN])
    site.approve(wanted, make_plan(wanted), Permission("test", hub_key=site.config.hub.key))
    site.ledger.close()
    done = parts.cohortium(
        "submit", path, "--hub", parts.hub_file, "--json", "--watch", timeout=300
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines and lines[-1]["state"] == "completed", f"{done.stderr}\n{parts.logs()}"
    assert [one["returned"] for one in lines[:-1]] == [[OPEN], [OPEN]]
    assert lines[0]["refused"] == {PROTECTED: "not_approved"}
    protected = load_site_config(parts.site_files[PROTECTED]).state / "ledger.jsonl"
    kinds = [json.loads(line)["kind"] for line in protected.read_bytes().splitlines()]
    assert kinds == ["genesis"]
