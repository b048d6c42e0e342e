"""What leaves a site says nothing of its data but what is declared: no digest, and no link.

Two experiments run on the same data sets. Everything that left is opened and taken apart:
messages, receipts, closings, MLflow's store, the model.
"""

import base64
import functools
import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord

import federation.run
from federation.canonical import digest
from federation.experiment import Experiment
from federation.flower.grid import LocalGrid
from federation.messages import TrainRequest
from federation.rounds import LocalRounds
from federation.run import approve, open_sites, run_experiment
from federation.training import initial_weights
from tests.conftest import site_files
from tests.experiments import tiny_experiment
from tests.leaks.containers import Bounds, opened_bytes, opened_folder

# 64 bits and more: a digest, a key, a random number, a full double; not a number of subjects.
HEX = re.compile(rb"[0-9a-f]{16,}", re.IGNORECASE)
BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{22,}")
DIGITS = re.compile(rb"[0-9]+\.[0-9]{14,}|(?<![0-9.])[0-9]{16,}")
DIGESTS = ("md5", "sha1", "sha256", "sha512", "blake2b")


def experiment(name: str, **changes) -> Experiment:
    """Return one that differs in everything that an experiment may differ in here."""
    values = tiny_experiment(**changes.pop("algorithm", {})).model_dump(mode="json")
    values["name"], values["seed"] = name, changes.pop("seed")
    values["purpose"] = f"Show that {name} tells nothing of the data."
    values["algorithm"]["min_sites"] = 2
    values["privacy"] |= {"epsilon": 2.5} | changes
    return Experiment.model_validate(values)


ONE = experiment("first", seed=1, sampling_rate=0.25)
TWO = experiment("second", seed=2, sampling_rate=0.2, algorithm={"steps_per_round": 3})


@dataclass
class Run:
    """What left in one experiment."""

    out: Path
    scores: list[dict[str, float]] = field(default_factory=list)
    from_sites: list[bytes] = field(default_factory=list)
    to_sites: list[bytes] = field(default_factory=list)

    @functools.cached_property
    def pieces(self) -> list[bytes]:
        """Everything that left, opened."""
        unsearched: list[str] = []
        found = [piece for _, piece in opened_folder(self.out, Bounds(), unsearched)]
        for message in self.from_sites:
            found += [piece for _, piece in opened_bytes(message, "", Bounds(), unsearched)]
        assert unsearched == []
        return list(dict.fromkeys(found))

    @functools.cached_property
    def values(self) -> set[bytes]:
        found: set[bytes] = set()
        for piece in self.pieces:
            found |= {v.lower() for v in HEX.findall(piece) if not v.isdigit()}
            found |= {value for value in BASE64.findall(piece) if is_random(value)}
            found |= {value for value in DIGITS.findall(piece) if not is_single(value)}
        return found


def is_random(text: bytes) -> bool:
    """Tell a coded value from long words: capitals, digits, and no word among small letters."""
    return not re.search(rb"[a-z]{8}", text) and all(
        re.search(kind, text) for kind in (rb"[A-Z]", rb"[a-z]", rb"[0-9].*[0-9]")
    )


def is_single(text: bytes) -> bool:
    """Tell a single-precision number, which many digits make no rarer than 24 bits."""
    return float(np.float32(float(text))) == float(text)


@dataclass
class Both:
    folder: Path
    first: Run
    second: Run

    @property
    def sites(self):
        return open_sites(site_files(self.folder))[:2]


@pytest.fixture(scope="module")
def both(ingested, tmp_path_factory) -> Both:
    """Two sites, DICOM and OME-Zarr, that take part in two experiments, one after the other."""
    folder = tmp_path_factory.mktemp("disclosure")
    shutil.copytree(ingested, folder / "sites")
    sites = open_sites(site_files(folder / "sites"))[:2]
    assert {source.kind for site in sites for source in site.config.protected} == {
        "dicom",
        "ome_zarr",
    }
    for one in (ONE, TWO):
        approve(one, sites, approver="test")
    return Both(
        folder / "sites",
        recorded(ONE, sites, folder / "first"),
        recorded(TWO, sites, folder / "second"),
    )


def recorded(one, sites, out) -> Run:
    run = Run(out)

    def record(direction, _site, data):
        (run.from_sites if direction == "from_site" else run.to_sites).append(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federation.run, "LocalGrid", functools.partial(LocalGrid, recorder=record))
        summary = run_experiment(one, sites, out=out)
    for event in summary.events:
        run.scores += [dict(scores) for scores in event.scores.values()]
    return run


def declared(sites) -> set[bytes]:
    """Return what names a site and its ledger, and is public by design."""
    public = set()
    for site in sites:
        key = site.key
        ledger = site.ledger.book.genesis.hash.removeprefix("sha256:")
        fingerprint = key.fingerprint.removeprefix("SHA256:")
        public |= {key.public_bytes.hex(), ledger, fingerprint}
    return {value.encode() for value in public}


def looked_for(public: set[bytes]) -> set[bytes]:
    """Return what the search can find: no fingerprint with a word or too few digits in it."""
    return {value for value in public if HEX.fullmatch(value) or is_random(value)}


def flowers_names(sites, *runs) -> set[bytes]:
    """Return Flower's names of what is public and may be the same in both: digests of it.

    A message names each of its parts so: the versions of a site's software among them, and scores
    on public subjects.
    """
    parts = [ConfigRecord(dict(site.manifest("protected").versions)) for site in sites]
    parts += [MetricRecord(scores) for run in runs for scores in run.scores]
    return {part.object_id.encode() for part in parts}


def test_the_search_finds_what_left(both):
    """Each receipt's and closing's own values, in messages and in MLflow's store."""
    for run in (both.first, both.second):
        papers = json.loads((run.out / "receipts.json").read_text())
        assert len(papers) == 4
        papers += json.loads((run.out / "closings.json").read_text())
        assert len(papers) == 6
        for paper in papers:
            told = {value for value in map(str, paper.values()) if value.startswith("sha256:")}
            told = {value.removeprefix("sha256:").encode() for value in told}
            assert told | {paper["signature"].encode()} <= run.values
        assert looked_for(declared(both.sites)) <= run.values
        assert any((run.out / "mlflow").rglob("heads.json"))


def test_two_experiments_on_one_data_set_share_no_value_but_the_declared_ones(both):
    shared = both.first.values & both.second.values
    public = declared(both.sites)
    assert looked_for(public) <= shared
    assert shared - public <= flowers_names(both.sites, both.first, both.second)


def test_commitments_of_one_data_set_differ_and_open_to_the_same_root(both):
    for site in both.sites:
        root = site.manifest("protected").root
        told = []
        for one, run in ((ONE, both.first), (TWO, both.second)):
            nonce = site.config.state / "nonces" / one.digest().removeprefix("sha256:")
            opened = hashlib.sha256(nonce.read_bytes() + root.encode()).hexdigest()
            assert opened.encode() in run.values
            assert nonce.stat().st_size == 32
            assert nonce.read_bytes().hex().encode() not in run.values
            told.append(opened)
        assert told[0] != told[1]


def digests_of_the_data(site) -> set[bytes]:
    """Return, raw, every digest without a key that somebody with the data could make."""
    manifest = site.manifest("protected")
    texts = {manifest.root, *(scan.digest for scan in manifest.scans)}
    texts |= {scan.image for scan in manifest.scans} | set(manifest.subjects)
    for part in (site.cache("protected"), site.cache("public")):
        texts |= set(re.findall(r"[0-9a-f]{32,}", (part / "manifest.json").read_text()))
    contents = {text.encode() for text in texts}
    contents |= {bytes.fromhex(text.removeprefix("sha256:")) for text in texts}
    folders = [site.cache("protected"), site.cache("public")]
    folders += [source.path for source in site.config.every_source]
    for folder in folders:
        contents |= {path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    contents.discard(b"")
    found = {hashlib.new(kind, content).digest() for kind in DIGESTS for content in contents}
    raw = {bytes.fromhex(text.removeprefix("sha256:")) for text in texts}
    return found | raw


def coded(run: Run) -> bytes:
    """Return all hex and base64 that left, one value a line, without padding and marks."""
    found = set()
    for piece in run.pieces:
        found |= {value.lower() for value in HEX.findall(piece)} | set(BASE64.findall(piece))
    return b"\n".join(sorted(found)).replace(b"-", b"+").replace(b"_", b"/")


def test_no_digest_of_data_without_a_key_left(both):
    digests = set().union(*(digests_of_the_data(site) for site in both.sites))
    assert len(digests) > 500
    for run in (both.first, both.second):
        text, everything = coded(run), b"\0".join(run.pieces)
        for value in digests:
            assert value not in everything
            assert value.hex().encode() not in text
            # The last character holds padding bits.
            assert base64.b64encode(value).rstrip(b"=")[:-1] not in text


def test_the_search_for_digests_sees_each_spelling(both, tmp_path):
    value = hashlib.sha256(b"a leaf").digest()
    for number, spelled in enumerate(
        (value.hex().upper().encode(), base64.urlsafe_b64encode(value), base64.b64encode(value))
    ):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "file").write_bytes(b'{"digest": "' + spelled + b'"}')
        text = coded(Run(tmp_path / str(number)))
        assert value.hex().encode() in text or base64.b64encode(value)[:-2] in text


def test_runs_that_take_turns_share_nothing_but_heads_of_their_one_ledger(both, tmp_path):
    """A head before is the other run's head after: the ledger is one, and says so by its name."""
    shutil.copytree(both.folder, tmp_path / "sites")
    site = open_sites(site_files(tmp_path / "sites"))[0]
    ledger = site.ledger
    three = experiment("third", seed=3, epsilon=1.0)
    four = experiment("fourth", seed=4, epsilon=1.5)
    approve(three, [site], approver="test")
    approve(four, [site], approver="test")
    rounds, values = LocalRounds(site), {three.name: set(), four.name: set()}
    for number in (1, 2):
        for one in (three, four):
            run = digest(one.name).removeprefix("sha256:")[:32]
            request = TrainRequest(one.digest(), run, number, 1, initial_weights(one))
            receipt = json.dumps(dict(rounds.train(request).receipt)).encode()
            values[one.name] |= set(HEX.findall(receipt))
    heads = {record.hash.removeprefix("sha256:").encode() for record in ledger.records}
    shared = values[three.name] & values[four.name] - declared([site])
    assert shared <= heads
    assert len(shared) == 2, "the second round of each begins where the other one's ended"
