"""Runs that wait to be recorded elsewhere, recorded there. See ``federation.elsewhere``."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from federation import elsewhere
from federation.errors import FederationError
from federation.run_record import open_finished
from federation.tracking.finished import tracked_run
from federation.tracking.log import log_run
from federation.tracking.runs import LoggedRun


def record_waiting(folders: Iterable[Path]) -> Iterator[tuple[Path, str, LoggedRun | str]]:
    """Record what waits in these folders, one run after the other.

    A server that does not answer is not asked again for the next run.

    Yields:
        The run's folder, the address, and where it was recorded, or why it still waits.
    """
    silent: set[str] = set()
    for folder in elsewhere.waiting(folders):
        try:
            uri = elsewhere.address_of(folder)
            if uri in silent:
                yield folder, uri, "it did not take the run before this one"
                continue
            run = tracked_run(open_finished(folder), uri)
        except FederationError as error:
            yield folder, "MLflow", str(error)
            continue
        try:
            logged = log_run(run)
        except FederationError as error:
            silent.add(uri)
            yield folder, uri, str(error)
        else:
            elsewhere.done(folder)
            yield folder, uri, logged
