"""What may stand beside ledgers: experiment files, and what sites' self-audits concluded."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation.errors import FederationError
from federation.experiment import Experiment, load_experiment

_SUFFIXES = (".yaml", ".yml")
_MOST_FILES = 2_000
_MOST_BYTES = 16_000_000
_FORMAT, _OF_A_SITE = "cohortium-self-audit/1", "cohortium-site-audit/1"
_VERDICTS = ("no_evidence_of_violation", "violation", "inconclusive")


@dataclass(frozen=True)
class Experiments:
    """Experiments by their digest, and what was found that is none."""

    by_digest: dict[str, Experiment]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class SelfAuditSeen:
    """What a site's self-audit concluded, as the file says it: nobody signed it.

    Attributes:
        source: The file's name.
        site: As the file names it; None in files of earlier versions.
        verdict: ``no_evidence_of_violation``, ``violation`` or ``inconclusive``.
    """

    source: str
    plan_digest: str
    verdict: str
    statement: str
    rounds: int
    site: str | None = None

    def may_be_of(self, site: str, plans: Collection[str]) -> bool:
        """Tell whether it is of a site which approved these plans, as far as the file says."""
        return self.plan_digest in plans and self.site in {None, site}


def read_experiments(paths: Sequence[Path]) -> Experiments:
    """Read experiment files, and those in folders.

    Raises:
        FederationError: A path is missing. A file in a folder that is no experiment is named in
            ``unread``, nothing more: its record shows a digest in place of a name.
    """
    found: dict[str, Experiment] = {}
    unread: list[str] = []
    for path in paths:
        for file in _files(path, _SUFFIXES, "experiment"):
            try:
                experiment = load_experiment(file)
            except FederationError as error:
                if file == path:
                    raise
                unread.append(f"{file.name}: {error}")
                continue
            found[experiment.digest()] = experiment
    return Experiments(found, tuple(unread))


def read_self_audits(paths: Sequence[Path]) -> tuple[SelfAuditSeen, ...]:
    """Read the reports of self-audits, as ``cohortium site audit --json`` prints them.

    Raises:
        FederationError: A path is missing, a file that was named is no such report, or one is a
            site's own evidence, which must not leave it.
    """
    found = []
    for path in paths:
        for file in _files(path, (".json",), "self-audit"):
            seen = _self_audits(file)
            found += seen
            if not seen and file == path:
                raise FederationError(
                    f"{file} is no report of a self-audit, or of none yet. Pass what 'cohortium "
                    "site audit SITE.yaml --json' printed at the site."
                )
    return tuple(found)


def _files(path: Path, suffixes: tuple[str, ...], what: str) -> Iterator[Path]:
    if path.is_dir():
        inside = sorted(one for one in path.rglob("*") if one.suffix in suffixes)
        yield from inside[:_MOST_FILES]
    elif path.is_file():
        yield path
    else:
        raise FederationError(f"There is no {what} file or folder {path}. Correct the path.")


def _self_audits(path: Path) -> list[SelfAuditSeen]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            return []
        values: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(values, dict):
        return []
    reports, site = [values], values.get("site")
    if values.get("format") == _OF_A_SITE and isinstance(values.get("experiments"), list):
        reports = values["experiments"]
    elif isinstance(values.get("report"), dict):
        raise FederationError(
            f"{path} is a site's own evidence: it holds how many subjects there are and the "
            "canaries' coins, and must not leave the site. Delete it here, and ask the site for "
            "what 'cohortium site audit SITE.yaml --json' prints."
        )
    named = site if isinstance(site, str) else None
    found = (_self_audit(path, report, named) for report in reports)
    return [seen for seen in found if seen is not None]


def _self_audit(path: Path, values: Any, site: str | None) -> SelfAuditSeen | None:
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        return None
    rounds, verdict = values.get("rounds"), values.get("verdict")
    if verdict not in _VERDICTS or not isinstance(rounds, int):
        return None
    statement = str(values.get("statement", ""))[:1_000]
    plan = str(values.get("plan_digest"))
    return SelfAuditSeen(path.name, plan, verdict, statement, rounds, site)
