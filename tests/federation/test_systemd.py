"""The unit of a site's agent: what an operator's security officer reads first."""

import shutil
import subprocess

import pytest

from federation.site_config import load_site_config
from federation.systemd import unit_for

HUB = """
hub:
  address: 127.0.0.1:8443
  key: "{key}"
  ca: ca.crt
  certificate: site.crt
"""


@pytest.fixture
def unit(federation):
    path = federation / "bio-lab" / "site.yaml"
    path.write_text(path.read_text() + HUB.format(key="ab" * 32))
    config = load_site_config(path)
    return unit_for(path, config), config


def test_it_gives_no_more_than_is_needed(unit):
    text, config = unit
    for line in (
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "LimitCORE=0",
        "IPAddressDeny=any",
        "IPAddressAllow=127.0.0.1",
        f"ReadWritePaths={config.state}",
        f"ReadOnlyPaths={config.protected[0].path}",
    ):
        assert line in text.splitlines()


def test_only_the_state_folder_is_written(unit):
    text, config = unit
    written = [line for line in text.splitlines() if line.startswith("ReadWritePaths")]
    assert written == [f"ReadWritePaths={config.state}"]


def test_systemd_takes_it(unit, tmp_path):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd is not installed")
    path = tmp_path / "cohortium-site.service"
    path.write_text(unit[0].replace("User=cohortium\n", ""))
    done = subprocess.run([program, "verify", str(path)], capture_output=True, text=True)
    assert "Unknown" not in done.stderr and "Failed to parse" not in done.stderr
