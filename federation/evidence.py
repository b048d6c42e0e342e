"""Where a site keeps the self-audits of its runs. They hold coins and sums: nothing here leaves.

One file an experiment, whatever a hub calls its runs, written after each round: the evidence to go
on with, and the report on it. A round that dies takes its own evidence with it, nothing more.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from federation.canonical import canonical_json
from federation.errors import FederationError, OnFailure
from federation.files import private_folder, write_atomically
from federation.privacy.plan import PrivacyPlan
from federation.privacy.random import Randomness
from federation.privacy.self_audit import SelfAudit

FOLDER = "audits"


@dataclass(frozen=True)
class RunAudit:
    """What the newest round of one experiment left.

    Attributes:
        run: The newest round's.
        runs: All that the rounds were of, as their hubs call them, the oldest first.
        report: A ``SelfAuditReport`` as JSON values.
        text: The same for people.
    """

    experiment_digest: str
    run: str
    runs: tuple[str, ...]
    report: dict[str, Any]
    text: str


class SelfAudits:
    """The self-audits of one site, a file for each experiment.

    Args:
        state: The site's state folder.
        site: The site's public name, which the files say.
        on_failure: Told, inside an ``except``, of anything that fails. An audit never stops a
            round: what was charged is trained.
    """

    def __init__(self, state: Path, on_failure: OnFailure, *, site: str) -> None:
        self._folder = state / FOLDER
        self._site = site
        self._on_failure = on_failure
        self._runs: tuple[str, ...] = ()

    def open(  # noqa: PLR0913 - the last two are named
        self,
        experiment_digest: str,
        run: str,
        plan: PrivacyPlan,
        randomness: Randomness,
        *,
        num_subjects: int,
        device: torch.device,
    ) -> SelfAudit | None:
        """Return the audit of an experiment's next round, which is of this run.

        None where the plan adds no noise, or no audit can begin. Evidence under another plan, as
        after an update of what calibrates it, begins anew.
        """
        if not plan.is_private:
            return None
        self._runs = (run,)
        audited: dict[str, Any] = {
            "num_subjects": num_subjects,
            "device": device,
            "on_failure": self._on_failure,
        }
        try:
            document = self._kept(experiment_digest)
            if document is not None:
                audit = SelfAudit.resume(document["state"], plan, **audited)
                self._runs = tuple(dict.fromkeys([*document["runs"], run]))
                return audit
        except Exception:
            self._on_failure("reading the self-audit, which begins anew,")
        try:
            return SelfAudit.begin(plan, randomness, **audited)
        except Exception:
            self._on_failure("beginning the self-audit of a round, which has none,")
            return None

    def _kept(self, experiment_digest: str) -> Any:
        path = self._path(experiment_digest)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def keep(self, experiment_digest: str, run: str, audit: SelfAudit) -> None:
        """Write an experiment's evidence and the report on it, after ``open`` and the round."""
        try:
            report = audit.report()
            document = {
                "site": self._site,
                "experiment": experiment_digest,
                "run": run,
                "runs": self._runs,
                "report": report.to_json(),
                "text": report.text(),
                "state": audit.state(),
            }
            path = self._path(experiment_digest)
            private_folder(path.parent)
            write_atomically(path, canonical_json(document))
        except Exception:
            self._on_failure("keeping the self-audit")

    def _path(self, experiment_digest: str) -> Path:
        return self._folder / f"{experiment_digest.replace(':', '-')}.json"


def run_audits(state: Path) -> Iterator[RunAudit]:
    """Yield the self-audits that a site's state folder holds, the newest last.

    Raises:
        FederationError: A file is damaged.
    """
    paths = sorted((state / FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in paths:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            yield RunAudit(
                document["experiment"],
                document["run"],
                tuple(document["runs"]),
                document["report"],
                document["text"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise FederationError(
                f"The self-audit {path} is damaged. Delete it; its experiment goes on without it."
            ) from error
