"""Kills what a site does to its ledger beside rounds, at each durable call; a program of its own.

A run is closed, a key replaced, an older copy recovered, another ledger merged in: each is killed
before, halfway through and after every call that makes something durable, then done again.
``python -m tests.e2e.kills.upkeep FOLDER`` prints JSON.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from federation.canonical import digest
from federation.errors import LedgerError
from federation.ledger.filter import PoissonGaussian
from federation.ledger.keys import SITE_KEY, SiteKey
from federation.ledger.ledger import Ledger, RoundKey, Terms
from federation.ledger.upkeep import conclude, merge, recover
from federation.site import open_site, open_to_recover, replace_key
from tests.e2e.kills.boundaries import Boundaries, Point
from tests.e2e.kills.program import in_child
from tests.federation.ledger.second_verifier import second_verdict, second_verifier

EXPERIMENT, PLAN, MODEL = digest("experiment"), digest("plan"), digest("model")
EVENT = PoissonGaussian(sampling_rate=0.25, noise_multiplier=1.575, steps=5)
WAYS = ("before", "half", "after")
SITE_FILE = """
site: lab
state: state
dataset: brains
licence: CC0-1.0
modality: MR
protected: {kind: ome_zarr, path: images, labels: tissue, classes: {"1": grey matter}}
policy: {epsilon: 8, delta: 1.0e-5, subjects_between: [2, 9]}
high_water_mark: vault/mark
"""

# The record that each leaves, once, and how often a round is charged by then: a recovery charges
# all six again that the approval held, or the four that the copy still knew to be held.
RECORDED = {
    "close_run": "closing",
    "replace_key": "key_rotation",
    "recover": "recovery",
    "merge": "merge",
}
CHARGES = {"close_run": 2, "replace_key": 2, "recover": 6, "merge": 4}


class Home:
    """A site's folder, and beside it a second ledger under the same key."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "site.yaml"
        self.path, self.other_path = folder / "state/ledger.jsonl", folder / "other/ledger.jsonl"

    def make(self) -> None:
        """One run in each ledger: charged twice, released once."""
        for name in ("images", "vault", "other"):
            (self.folder / name).mkdir(parents=True)
        self.file.write_text(SITE_FILE)
        site = open_site(self.file)
        shutil.copy(self.path.with_name(SITE_KEY), self.other_path.with_name(SITE_KEY))
        other = Ledger.create(self.other_path, site.key, site.ledger.policy, "lungs", site="lab")
        for ledger, run in ((site.ledger, "run-1"), (other, "run-2")):
            terms = Terms(EXPERIMENT, PLAN, EVENT, 6, digest("data"), "test", digest("software"))
            ledger.approve(terms)
            ledger.release(_charged(ledger, run, 1), b"update")
            _charged(ledger, run, 2)
            ledger.close()

    def forget(self) -> None:
        """Restore an older copy of the ledger: what was charged last is gone from it."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        self.path.write_bytes(b"".join(lines[:-1]))

    def close_run(self) -> None:
        conclude(open_site(self.file).ledger, "run-1", EXPERIMENT, heads={}, model_digest=MODEL)

    def replace_key(self) -> None:
        site = open_site(self.file)  # which finishes what was begun
        if not site.ledger.book.rotated:
            replace_key(site)

    def recover(self) -> None:
        recover(open_to_recover(self.file).ledger, by="test", reason="a backup was restored")

    def merge(self) -> None:
        site = open_site(self.file)
        other = Ledger.open(self.other_path, site.key)
        if not other.chain.merged:
            merge(site.ledger, other, by="test", reason="shared")


def _charged(ledger: Ledger, run: str, number: int) -> Any:
    return ledger.charge(
        RoundKey(run, number, 1),
        request_digest=digest(number),
        experiment_digest=EXPERIMENT,
        plan_digest=PLAN,
        event=EVENT,
    )


def judge(home: Home, action: str, fingerprint: str) -> list[str]:
    """Say what is wrong once the action was done again and came to its end."""
    site = open_site(home.file)
    kinds = Counter(record.kind for record in site.ledger.records)
    # A recovery or a merge that died halfway is recorded again, and costs nothing more.
    allowed = (1, 2) if action in {"recover", "merge"} else (1,)
    wrong = [] if kinds[RECORDED[action]] in allowed else [f"records: {dict(kinds)}"]
    steps, least = sum(site.ledger.state.steps.values()), CHARGES[action] * EVENT.steps
    if steps != least:
        wrong.append(f"{steps} steps are charged in place of {least}")
    if len(site.ledger.book.releases) != 1:
        wrong.append("the release is gone")
    verdict = second_verdict(home.path, trust=fingerprint, receipts=[])
    return [*wrong, *verdict["problems"]]


class Trials:
    """Each begins with the same folder."""

    def __init__(self, folder: Path) -> None:
        self.home, self.fresh = Home(folder / "home"), folder / "fresh"
        self.home.make()
        shutil.copytree(self.home.folder, self.fresh)
        self.fingerprint = SiteKey.load(self.home.path.parent).fingerprint
        self.told, self.wrong = folder / "told.json", []

    def put_back(self, action: str) -> None:
        shutil.rmtree(self.home.folder)
        shutil.copytree(self.fresh, self.home.folder)
        if action == "recover":
            self.home.forget()

    def run(self, action: str, point: Point | None = None) -> bool:
        boundaries = Boundaries(point)
        work: Callable[[], None] = getattr(self.home, action)

        def carry_out() -> None:
            boundaries.install()
            work()
            self.told.write_text(json.dumps(boundaries.names))

        return in_child(carry_out)

    def trial(self, action: str, call: str, point: Point) -> None:
        self.put_back(action)
        tidies = call.startswith(("mkdir", "unlink"))  # which raises where there is nothing to do
        if not self.run(action, point) and not (tidies and point.way == "after"):
            self.wrong.append(f"{action}, {call}: nothing died")
        self.run(action)
        try:
            found = judge(self.home, action, self.fingerprint)
        except LedgerError as error:
            found = [str(error)]
        self.wrong += [f"{action}, {point.way} {call}: {what}" for what in found]


def main() -> None:
    second_verifier()
    trials, died = Trials(Path(sys.argv[1])), {}
    for action in ("close_run", "replace_key", "recover", "merge"):
        trials.put_back(action)
        trials.run(action)
        calls = json.loads(trials.told.read_text())
        died[action] = calls
        for number, call in enumerate(calls):
            for way in WAYS if call.startswith("write") else ("before", "after"):
                trials.trial(action, call, Point(number, way))
    sys.stdout.write(json.dumps({"died": died, "wrong": trials.wrong}) + "\n")


if __name__ == "__main__":
    main()
