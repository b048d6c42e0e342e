"""What an agent says where its own log takes no more."""

import logging
from pathlib import Path
from types import SimpleNamespace

from federation.flower.serve import _logged

FULL = Path("/dev/full")


def test_a_log_on_a_full_disk_is_no_traceback_on_screen(capsys):
    log = logging.getLogger("cohortium.site")
    with _logged(SimpleNamespace(log_path=FULL)):
        log.warning("Not sent yet: %s", "no room")
    assert capsys.readouterr().err == ""


def test_what_is_wrong_with_the_line_itself_is_told(capsys, tmp_path):
    log = logging.getLogger("cohortium.site")
    with _logged(SimpleNamespace(log_path=tmp_path / "site.log")):
        log.warning("%d", "no number")
    assert "--- Logging error ---" in capsys.readouterr().err
