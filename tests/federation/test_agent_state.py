"""How an operator sees and steers an agent from outside its process."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from federation.agent_state import AgentFolder
from federation.errors import FederationError


@pytest.fixture
def folder(tmp_path):
    return AgentFolder(tmp_path)


def test_where_none_runs_there_is_no_status(folder):
    assert folder.status() is None
    folder.note("left over from a crash")
    assert folder.status() is None
    assert not folder.stop()


def test_one_that_runs_says_what_it_does(folder):
    with folder.held("ward-a"):
        folder.note("answering a train request")
        found = folder.status()
    assert (found.doing, found.pid) == ("answering a train request", os.getpid())
    assert folder.status() is None


def test_two_at_once_are_refused(folder):
    with (
        folder.held("ward-a"),
        pytest.raises(FederationError, match="an agent runs already"),
        folder.held("ward-a"),
    ):
        pass


def test_a_pause_lasts_until_it_is_lifted(folder):
    assert not folder.paused
    folder.pause()
    assert AgentFolder(folder.state).paused
    folder.resume()
    folder.resume()
    assert not folder.paused


def test_stop_reaches_the_process_that_holds_the_folder(folder):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from federation.agent_state import AgentFolder
        folder = AgentFolder(Path(sys.argv[1]))
        with folder.held("ward-a"):
            folder.note("waiting for requests")
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", script, str(folder.state)]) as process:
        for _ in range(200):
            found = folder.status()
            if found is not None and found.pid == process.pid:
                break
            time.sleep(0.05)
        assert folder.stop()
        assert process.wait(30) == -signal.SIGTERM


def test_a_full_disk_does_not_stop_the_agent(folder, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    folder.note("answering a train request")
