"""A whole run between network namespaces: an address of its own for each party, and no way out."""

import os
import shutil
import subprocess
import sys
import warnings

import pytest

from models.weights import weights_digest
from tests.conftest import site_files
from tests.e2e.networks import NETWORK, namespace_of, network
from tests.e2e.processes import OVER_THE_NETWORK, make_federation
from tests.e2e.runs import (
    NAMES,
    approved,
    averaged_from_outboxes,
    experiment,
    model_of,
    submitted,
    watched,
)

pytestmark = OVER_THE_NETWORK
PLANTED = "import socket; s = socket.socket(); s.settimeout(3); s.connect(('192.0.2.1', 9))"


@pytest.fixture(scope="module")
def net():
    """The network; None, told in the report as a warning, where only loopback is to be had."""
    try:
        with network(["hub", *NAMES], f"{os.getpid() % 100_000}") as made:
            yield made
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", None) or error
        warnings.warn(pytest.PytestWarning(f"no namespaces here, loopback: {why}"), stacklevel=1)
        yield None


@pytest.fixture(scope="module")
def parts(net, ingested, tmp_path_factory):
    folder = tmp_path_factory.mktemp("namespaces")
    shutil.copytree(ingested, folder / "sites")
    host = net.addresses["hub"] if net else "127.0.0.1"
    made = make_federation(folder, site_files(folder / "sites"), host=host)
    if net:
        made.namespaces = net.namespaces
        made.more_environment = {"COHORTIUM_TEST_NETWORK": NETWORK}
    with made.serving():
        yield made


@pytest.mark.filterwarnings("default:no namespaces here")
def test_a_whole_run_goes_from_address_to_address_and_nowhere_else(parts, net, record_property):
    record_property("network", "namespaces" if net else "loopback")
    wanted = experiment("namespaces", algorithm={"rounds": 2})
    run = submitted(parts, approved(parts, wanted))
    rounds, status, code = watched(parts, run)
    assert (status["state"], code) == ("completed", 0), f"{status}\n{parts.logs()}"
    assert [one["returned"] for one in rounds] == [list(NAMES)] * 3
    expected = averaged_from_outboxes(parts, wanted, run)
    assert weights_digest(model_of(parts, run)) == weights_digest(expected)
    assert not parts.attempts.exists(), parts.attempts.read_text()


def required(net):
    if net is None:
        pytest.skip("this machine makes no network namespaces")


def test_each_party_is_in_a_namespace_of_its_own(parts, net):
    required(net)
    found = {namespace_of(process.pid) for process in parts.processes.values()}
    assert len(found | {namespace_of(os.getpid())}) == len(parts.processes) + 1 == 5


@pytest.mark.parametrize("party", ["hub", *NAMES])
def test_nothing_reaches_beyond_the_federation_and_the_guard_sees_who_tries(
    parts, net, party, tmp_path
):
    required(net)
    seen = parts.environment() | {"COHORTIUM_TEST_ATTEMPTS": str(tmp_path / "attempts")}
    command = parts.command(party, sys.executable, "-c", PLANTED)
    done = subprocess.run(command, env=seen, capture_output=True, text=True, timeout=30)
    assert "Network is unreachable" in done.stderr
    assert "192.0.2.1" in (tmp_path / "attempts").read_text()


def test_a_site_reaches_the_hubs_proxy_and_neither_its_superlink_nor_another_site(parts, net):
    required(net)
    hub, port = parts.hub.config.address.split(":")
    link, neighbour = parts.hub.config.link_port, net.addresses[NAMES[1]]
    program = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"

    def reaches(host, port):
        command = parts.command(NAMES[0], sys.executable, "-c", program, host, port)
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0

    assert reaches(hub, port)
    assert not reaches(hub, link)
    assert not any(reaches(neighbour, one) for one in (port, link))
