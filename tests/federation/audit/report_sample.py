"""Three invented hospitals, half a year of training, the real ledger: for tests and a picture.

``python -m tests.federation.audit.report_sample FOLDER`` writes ledgers, receipts, experiments and
``report.html`` there, and ``report.png`` if chromium is installed.
"""

import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from federation.audit.report import BoardReport, board_report
from federation.audit.report_page import page
from federation.audit.report_sources import read_experiments, read_self_audits
from federation.audit.verify import verify_ledgers
from federation.canonical import digest
from federation.errors import PrivacyBudgetError, Refused
from federation.experiment import Experiment, load_experiment
from federation.ledger.closings import Closing
from federation.ledger.entries import RoundKey, Terms
from federation.ledger.filter import BudgetPolicy, PoissonGaussian
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger
from federation.ledger.receipts import Receipt
from federation.ledger.upkeep import conclude, rotate
from tests.federation.audit.report_browser import BROWSER, browser

HUB = "5f" * 32
VERSIONS = {"cohortium": "0.1.0", "torch": "2.13.0", "monai": "1.6.1", "opacus": "1.6.0"}
LEAVES = (
    "noised update of the weights, each round",
    "signed receipts and a closing statement",
    "public description of the data set",
)
BRAINS = "configs/hippocampus-private.yaml"
LUNGS = "configs/pneumonia-private.yaml"


class Clock:
    """A clock that tests set; ledgers of the sample read it."""

    def __init__(self, start: str) -> None:
        self.at = datetime.fromisoformat(start).replace(tzinfo=UTC)

    def now(self) -> str:
        return self.at.strftime("%Y-%m-%dT%H:%M:%SZ")

    def on(self, day: str) -> None:
        self.at = datetime.fromisoformat(f"{day}T09:10:00").replace(tzinfo=UTC)

    def wait(self, **span: float) -> None:
        self.at += timedelta(**span)

    @contextmanager
    def running(self):
        with (
            mock.patch("federation.ledger.records.now", self.now),
            mock.patch("federation.ledger.ledger.now", self.now),
        ):
            yield self


@dataclass
class Hospital:
    """One site: its ledger, and what others keep of it."""

    ledger: Ledger
    key: SiteKey
    fingerprint: str
    receipts: list[Receipt] = field(default_factory=list)
    closings: list[Closing] = field(default_factory=list)

    @classmethod
    def create(
        cls, folder: Path, place: str, people: str, epsilon: float, *, name: str = ""
    ) -> "Hospital":
        key = SiteKey.create(folder / place)
        policy = BudgetPolicy.of(epsilon, 1e-5)
        path = folder / place / "ledger.jsonl"
        ledger = Ledger.create(path, key, policy, people, site=name or place)
        return cls(ledger, key, key.fingerprint)

    @property
    def head(self) -> str | None:
        return self.receipts[-1].head_after if self.receipts else None


def terms_of(experiment: Experiment, event: PoissonGaussian, site: str, **more) -> Terms:
    given = {
        "experiment_digest": experiment.digest(),
        "plan_digest": plan_of(experiment),
        "event": event,
        "charges": experiment.algorithm.charges,
        "commitment": digest([site, experiment.name]),
        "approver": "Dr. M. Rivera",
        "software": digest("installed"),
        "epsilon": 2.5 if "hippocampus" in experiment.name else 1.5,
        "leaves": (*LEAVES, "counts: withheld"),
        "hub_key": HUB,
    }
    return Terms(**{**given, **more})


def plan_of(experiment: Experiment) -> str:
    return digest(["plan", experiment.digest()])


@dataclass
class Run:
    """A run of one experiment over some hospitals."""

    name: str
    experiment: Experiment
    event: PoissonGaussian
    sites: list[Hospital]
    clock: Clock

    def go(self, rounds: range, *, lost: frozenset[tuple[str, int]] = frozenset()) -> None:
        for number in rounds:
            for site in self.sites:
                charge = site.ledger.charge(
                    RoundKey(self.name, number, 0),
                    request_digest=digest([self.name, number]),
                    experiment_digest=self.experiment.digest(),
                    plan_digest=plan_of(self.experiment),
                    event=self.event,
                    heads={s.ledger.site: s.head for s in self.sites if s is not site and s.head},
                )
                if (site.ledger.site, number) in lost:
                    site.ledger.lose(charge)
                    continue
                payload = f"{self.name} {number} {site.ledger.site}".encode()
                site.receipts.append(site.ledger.release(charge, payload, versions=VERSIONS))
            self.clock.wait(days=2, hours=2)

    def close(self) -> None:
        heads = {site.ledger.site: site.head for site in self.sites}
        for site in self.sites:
            others = {name: head for name, head in heads.items() if name != site.ledger.site}
            digest_ = digest([self.name, "model"])
            site.closings.append(
                conclude(
                    site.ledger,
                    self.name,
                    self.experiment.digest(),
                    heads=others,
                    model_digest=digest_,
                )
            )


def experiments(folder: Path) -> list[Experiment]:
    """Write the experiments' files, and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, changes in _CHANGES:
        values = yaml.safe_load(Path(name).read_text())
        path = folder / f"{changes['name']}.yaml"
        path.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
        found.append(load_experiment(path))
    return found


_CHANGES = (
    (
        BRAINS,
        {
            "name": "hippocampus-atrophy",
            "purpose": (
                "Outline the hippocampus on routine brain MRI, so that its shrinking over the "
                "years can be measured in memory clinics."
            ),
            "data_use": {
                "purpose": "DUO:0000007",
                "disease": "MONDO:0004975",
                "non_profit": True,
                "methods_development": False,
            },
        },
    ),
    (
        LUNGS,
        {
            "name": "pneumonia-triage",
            "purpose": (
                "Tell chest radiographs that may show pneumonia from those that do not, to put "
                "them first in the reading list of emergency departments."
            ),
            "data_use": {"purpose": "DUO:0000006"},
        },
    ),
)


@dataclass
class Sample:
    """Everything that a board is handed."""

    folder: Path
    hospitals: list[Hospital]
    made_at: str

    @property
    def ledgers(self) -> list[Path]:
        return [hospital.ledger.path for hospital in self.hospitals]

    @property
    def receipts(self) -> list[Receipt]:
        return [receipt for hospital in self.hospitals for receipt in hospital.receipts]

    @property
    def closings(self) -> list[Closing]:
        return [closing for hospital in self.hospitals for closing in hospital.closings]

    @property
    def trust(self) -> dict[str, str]:
        return {hospital.ledger.site: hospital.fingerprint for hospital in self.hospitals}

    def report(self, **changes) -> BoardReport:
        given = {
            "made_at": self.made_at,
            "experiments": read_experiments([self.folder / "experiments"]),
            "self_audits": read_self_audits([self.folder / "audits"]),
            "receipts": len(self.receipts),
        }
        checked = verify_ledgers(
            self.ledgers,
            trust=self.trust,
            receipts=self.receipts,
            closings=self.closings,
            self_audits=given["self_audits"],
        )
        return board_report(checked, **{**given, **changes})

    def write(self) -> None:
        """Write what stands beside the ledgers, as a hub's folder has it."""
        for name, values in (("receipts", self.receipts), ("closings", self.closings)):
            text = json.dumps([value.to_json() for value in values])
            (self.folder / f"{name}.json").write_text(text)
        lines = [f"{name} {fingerprint}\n" for name, fingerprint in self.trust.items()]
        (self.folder / "trust.txt").write_text("".join(lines))


def make(folder: Path) -> Sample:
    """Let half a year pass."""
    clock = Clock("2026-01-12T08:00:00")
    with clock.running():
        return _half_a_year(folder, clock)


def _half_a_year(folder: Path, clock: Clock) -> Sample:
    brains, lungs = experiments(folder / "experiments")
    north = Hospital.create(folder, "north-clinic", "Memory clinic MRI, 2015–2024", 8.0)
    coast = Hospital.create(folder, "coast-hospital", "Brain and chest imaging archive", 4.0)
    valley = Hospital.create(folder, "valley-institute", "Chest radiographs, emergency", 2.0)
    b, c = _EVENTS
    basis = {
        "ethics_reference": "EC 2025/118, of 3 December 2025",
        "legal_basis": "GDPR Art. 6(1)(e), 9(2)(j); § 27 BDSG",
        "expires": "2026-12-31T23:59:59Z",
        "author": SiteKey.create(folder / "author").fingerprint,
    }
    clock.on("2026-02-02")
    exact = (*LEAVES, "counts: exact")
    north.ledger.approve(terms_of(brains, b, "north", second_approver="Prof. A. Okafor", **basis))
    coast.ledger.approve(terms_of(brains, b, "coast", approver="L. Brandt", leaves=exact, **basis))
    clock.on("2026-02-16")
    first = Run("run-brains-1", brains, b, [north, coast], clock)
    first.go(range(12), lost=frozenset({("north-clinic", 4)}))
    first.close()
    clock.on("2026-03-23")
    coast.ledger.approve(terms_of(lungs, c, "coast", approver="L. Brandt", leaves=exact, **basis))
    valley.ledger.approve(
        terms_of(lungs, c, "valley", approver="Dr. S. Ito", ethics_reference="IRB 26-041")
    )
    clock.on("2026-04-13")
    second = Run("run-lungs-1", lungs, c, [coast, valley], clock)
    second.go(range(8))
    _after(folder, clock, (north, coast, valley), (brains, lungs))
    clock.on("2026-06-30")
    sample = Sample(folder, [north, coast, valley], clock.now())
    _audits(folder / "audits", brains, lungs)
    sample.write()
    return sample


_EVENTS = (
    PoissonGaussian(sampling_rate=0.25, noise_multiplier=4.2, steps=5),
    PoissonGaussian(sampling_rate=0.05, noise_multiplier=2.0, steps=10),
)


def _after(folder: Path, clock: Clock, sites, trained) -> None:
    """Refusals, a withdrawal, an exclusion, a purge and a new key."""
    north, coast, valley = sites
    brains, lungs = trained
    clock.on("2026-05-04")
    for attempt in range(2):
        try:
            _ask_too_much(north, brains, attempt)
        except Refused:
            clock.wait(hours=1)
    dear = terms_of(brains, replace(_EVENTS[0], steps=60), "valley", approver="Dr. S. Ito")
    try:
        valley.ledger.approve(dear)
    except PrivacyBudgetError:
        clock.on("2026-05-11")
    reason = "The patients’ council asked for a pause until the new consent form is out."
    valley.ledger.withdraw(lungs.digest(), by="Dr. S. Ito", reason=reason)
    clock.on("2026-05-18")
    note = {"by": "L. Brandt", "experiments": [brains.digest()], "after": 0}
    coast.ledger.note("exclusion", reason="One person withdrew consent.", **note)
    coast.ledger.note("purge", reason="The study on the hippocampus is over.", **note)
    new = SiteKey.create(folder / "north-new")
    rotate(north.ledger, new)
    path = north.ledger.path
    north.ledger.close()
    north.ledger, north.key = Ledger.open(path, new), new


def _ask_too_much(north: Hospital, brains: Experiment, attempt: int) -> None:
    north.ledger.charge(
        RoundKey("run-brains-2", 0, attempt),
        request_digest=digest(["again", attempt]),
        experiment_digest=brains.digest(),
        plan_digest=plan_of(brains),
        event=_EVENTS[0],
    )


def _audits(folder: Path, brains: Experiment, lungs: Experiment) -> None:
    folder.mkdir(exist_ok=True)
    told = {
        "north-clinic": (brains, "no_evidence_of_violation", 12, "no evidence of violation; "),
        "valley-institute": (
            lungs,
            "inconclusive",
            8,
            "inconclusive: too few steps to show reuse; ",
        ),
    }
    for name, (experiment, verdict, rounds, words) in told.items():
        values = {
            "format": "cohortium-self-audit/1",
            "verdict": verdict,
            "statement": f"{words}epsilon >= 0.21 at 95 % confidence",
            "plan_digest": plan_of(experiment),
            "rounds": rounds,
        }
        (folder / f"{name}.json").write_text(json.dumps(_as_printed(name, values)))


HOSTILE = "<script>document.title='owned'</script><img src=http://127.0.0.1:9/x onerror=1>\"'&"


def hostile(folder: Path) -> Sample:
    """One site whose every text is written to break the page."""
    clock = Clock("2026-01-12T08:00:00")
    with clock.running():
        (lungs,) = experiments(folder / "experiments")[1:]
        site = Hospital.create(folder, "attacker", "W" * 200, 8.0, name=HOSTILE)
        terms = {
            "approver": HOSTILE,
            "second_approver": "\u0627\u0644\u0645\u0633\u062a\u0634\u0641\u0649 " * 20,
            "ethics_reference": "x" * 200,
            "legal_basis": "e" + "\u0301" * 100,
            "leaves": tuple(f"{HOSTILE}{place}" for place in range(32)),
        }
        site.ledger.approve(terms_of(lungs, _EVENTS[1], "attacker", **terms))
        run = Run("R" * 64, lungs, _EVENTS[1], [site], clock)
        run.go(range(2))
        site.ledger.refuse(digest("other"), by=HOSTILE, reason="A " * 99 + ".")
        site.ledger.withdraw(lungs.digest(), by="Z" * 200, reason=HOSTILE)
        clock.wait(days=9000)
        site.ledger.note("purge", by=HOSTILE, reason="<!--" + "-" * 190, after=0)
        sample = Sample(folder, [site], clock.now())
    _write_hostile(folder, lungs)
    sample.write()
    return sample


def _as_printed(site: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return what ``cohortium site audit --json`` prints."""
    return {"format": "cohortium-site-audit/1", "site": site, "experiments": [values]}


def _write_hostile(folder: Path, lungs: Experiment) -> None:
    """Give the page texts that no ledger takes, too: the name of an audit, what turns lines."""
    (folder / "audits").mkdir()
    statement = f"{HOSTILE} \u202edesrever\u202c \u200b {'y' * 300}"
    values = {
        "format": "cohortium-self-audit/1",
        "verdict": "violation",
        "statement": statement,
        "plan_digest": plan_of(lungs),
        "rounds": 2,
    }
    (folder / "audits" / "audit.json").write_text(json.dumps(values))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(page(make(folder).report()), encoding="utf-8")
    if BROWSER is not None:
        with browser(folder / "profile") as tab:
            tab.look(1120, height=935)
            tab.open((folder / "report.html").resolve())
            tab.picture(folder / "report.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
