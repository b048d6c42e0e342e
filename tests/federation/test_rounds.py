import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_adapters.cache import CachedScan
from federation.audit.verify import verify_ledgers
from federation.errors import Refused
from federation.ledger.closings import Closing
from federation.ledger.receipts import Receipt
from federation.messages import CloseRequest, DescribeRequest, EvaluateRequest, TrainRequest
from federation.privacy.plan import make_plan
from federation.privacy.random import SecureRandomness
from federation.rounds import LocalRounds
from federation.run import approve
from federation.site import Permission, open_site
from federation.training import initial_weights
from federation.usage import used_by
from federation.withdrawal import exclude
from models.weights import weights_from_bytes
from tests.experiments import tiny_experiment
from tests.federation.ledger.second_verifier import second_verdict

RUN = "ab" * 16


def request(round_number=1, attempt=1, scale=1.0):
    experiment = tiny_experiment()
    weights = {name: w * np.float32(scale) for name, w in initial_weights(experiment).items()}
    return TrainRequest(experiment.digest(), RUN, round_number, attempt, weights)


@pytest.fixture
def site(approved_sites):
    return approved_sites[0]


@pytest.fixture
def rounds(site):
    return LocalRounds(site)


def kinds(site):
    return [record.kind for record in site.ledger.records]


def test_a_round_is_charged_released_and_receipted(site, rounds):
    reply = rounds.train(request())
    assert kinds(site) == ["genesis", "approval", "reservation", "charge", "release"]
    update = weights_from_bytes(reply.payload)
    assert set(update) == set(request().weights)
    receipt = Receipt.from_json(dict(reply.receipt))
    assert receipt.verify() and receipt.request_digest == request().digest()


def test_the_same_request_again_gets_the_same_bytes_without_a_second_charge(site, rounds):
    first, again = rounds.train(request()), rounds.train(request())
    assert (first.payload, first.receipt) == (again.payload, again.receipt)
    assert kinds(site).count("charge") == 1


def test_the_same_request_after_a_restart_gets_the_same_bytes(site, rounds):
    from federation.ledger.ledger import Ledger
    from federation.site import Site

    first = rounds.train(request())
    reopened = Site(site.config, site.key, Ledger.open(site.ledger.path, site.key))
    assert LocalRounds(reopened).train(request()).payload == first.payload


@pytest.fixture
def with_retries(sites):
    """A site that approved two rounds and two repeats: four charges in one pool."""
    experiment = tiny_experiment(retries=2)
    approve(experiment, sites, approver="test")
    return sites[0], replace(request(), experiment_digest=experiment.digest())


def test_a_new_attempt_is_charged_again_and_has_fresh_noise(with_retries):
    site, asked = with_retries
    rounds = LocalRounds(site)
    first, second = rounds.train(asked), rounds.train(replace(asked, attempt=2))
    assert first.payload != second.payload
    assert kinds(site).count("charge") == 2


@pytest.mark.parametrize(
    "other", [{"round": 3}, {"round": 0}, {"attempt": 4}, {"attempt": 0}, {"attempt": 1_000_000}]
)
def test_a_round_or_attempt_that_the_experiment_does_not_have_is_refused_with_charges_left(
    with_retries, other
):
    """Repeats were approved for lost rounds: a hub cannot turn them into further ones."""
    site, asked = with_retries
    rounds = LocalRounds(site)
    rounds.train(asked)
    with pytest.raises(Refused, match="approval_used_up"):
        rounds.train(replace(asked, **other))
    assert kinds(site)[-1] == "refusal" and kinds(site).count("charge") == 1
    for number, attempt in ((2, 1), (1, 3), (2, 3)):
        rounds.train(replace(asked, round=number, attempt=attempt))
    assert kinds(site).count("charge") == 4
    with pytest.raises(Refused, match="every charge that was approved"):
        rounds.train(replace(asked, round=2, attempt=2))


def test_each_charged_round_draws_from_a_source_of_its_own_and_a_resent_one_from_none(site):
    made = []

    def fresh():
        made.append(SecureRandomness())
        return made[-1]

    rounds, used = LocalRounds(site, randomness=fresh), []
    real = rounds._train_charged
    rounds._train_charged = lambda work, scans: used.append(work.randomness) or real(work, scans)
    rounds.train(request(1))
    rounds.train(request(1))
    rounds.train(request(2))
    assert used == made and len({id(source) for source in made}) == 2


def test_another_request_under_the_same_key_is_refused_as_equivocation(site, rounds):
    rounds.train(request())
    with pytest.raises(Refused, match="equivocation"):
        rounds.train(request(scale=2.0))
    assert kinds(site)[-1] == "refusal"


@pytest.mark.parametrize("otherwise", ["shapes", "not a number", "unapproved", "withdrawn"])
def test_another_request_under_the_same_key_is_equivocation_whatever_else_is_wrong_with_it(
    site, rounds, otherwise
):
    """What would be refused as malformed or unapproved, had the key not been charged."""
    rounds.train(request())
    weights, experiment = request().weights, tiny_experiment().digest()
    if otherwise == "shapes":
        weights = {name: np.zeros((1, *w.shape), np.float32) for name, w in weights.items()}
    if otherwise == "not a number":
        weights = {name: np.full_like(w, np.nan) for name, w in weights.items()}
    if otherwise == "unapproved":
        experiment = "sha256:" + "0" * 64
    if otherwise == "withdrawn":
        site.ledger.withdraw(experiment, by="op", reason="asked to")
        weights = request(scale=2.0).weights
    second = replace(request(), weights=weights, experiment_digest=experiment)
    for _ in range(2):
        with pytest.raises(Refused, match="equivocation"):
            rounds.train(second)
    (refusal,) = (r for r in site.ledger.records if r.kind == "refusal")
    assert refusal.body["code"] == "equivocation"
    assert refusal.body["request"]["request_digest"] == second.digest()
    assert refusal.body["experiment_digest"] == experiment
    assert kinds(site).count("charge") == 1
    with pytest.raises(Refused) as fresh:
        rounds.train(replace(second, round=2))
    assert fresh.value.code != "equivocation", "of a key that nothing was charged under"
    trust = {site.key.fingerprint}
    assert verify_ledgers([site.ledger.path], trust=trust).verdicts[0].summary == "verified"
    told = second_verdict(site.ledger.path, trust=site.key.fingerprint)
    assert told["verdict"] == "verified", told["problems"]


def test_more_rounds_than_approved_are_refused_before_training(site, rounds, monkeypatch):
    import federation.rounds as module

    for number in (1, 2):
        rounds.train(request(number))
    monkeypatch.setattr(module, "train_locally", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(Refused, match="approval_used_up"):
        rounds.train(request(3))


def test_the_charge_is_durable_before_the_first_protected_byte_is_read(site, rounds, monkeypatch):
    seen = []

    def watched(read):
        return lambda *arguments: seen.append(kinds(site)[-1]) or read(*arguments)

    for name in ("image", "labels"):
        monkeypatch.setattr(CachedScan, name, watched(getattr(CachedScan, name)))
    # By chance (one round in twenty) a sampler draws nobody, and nothing is read.
    everybody = "federation.training.PoissonSubjects"
    monkeypatch.setattr(everybody, lambda num_subjects, *rest: [range(num_subjects)])
    rounds.train(request())
    assert seen and set(seen) == {"charge"}


def test_a_failure_after_the_data_was_opened_is_one_code_and_keeps_the_charge(
    site, rounds, monkeypatch
):
    import federation.rounds as module

    secret = "/data/JANE DOE 1970-01-01/scan.dcm"

    def fails(*_, **__):
        raise OSError(secret)

    monkeypatch.setattr(module, "train_locally", fails)
    with pytest.raises(Refused) as refusal:
        rounds.train(request())
    assert refusal.value.code == "round_failed"
    assert secret not in str(refusal.value)
    assert secret in site.log_path.read_text()
    assert site.log_path.stat().st_mode & 0o777 == 0o600
    assert kinds(site)[-2:] == ["charge", "loss"]
    with pytest.raises(Refused, match="lost"):
        rounds.train(request())


def test_scoring_opens_public_subjects_only(site, rounds, monkeypatch):
    import data_adapters.subjects as subjects

    folders = []
    read = subjects.open_scan

    def watched(cache, *others):
        folders.append(cache.name)
        return read(cache, *others)

    monkeypatch.setattr(subjects, "open_scan", watched)
    reply = rounds.evaluate(
        EvaluateRequest(tiny_experiment().digest(), RUN, 0, initial_weights(tiny_experiment()))
    )
    assert set(folders) == {"public"}
    assert set(reply.scores) == {"dice", "dice/grey matter", "dice/white matter", "num_subjects"}


def test_scores_can_still_be_asked_for_when_every_charge_is_spent(rounds):
    for number in (1, 2):
        rounds.train(request(number))
    weights = initial_weights(tiny_experiment())
    assert rounds.evaluate(EvaluateRequest(tiny_experiment().digest(), RUN, 2, weights)).scores


def test_a_description_holds_no_path_and_no_root(site, rounds, federation):
    description = rounds.describe(DescribeRequest(tiny_experiment().digest(), RUN))
    text = repr(description)
    assert str(federation) not in text
    assert site.manifest("protected").root not in text
    assert description.num_subjects == "withheld"
    assert description.modality == "MR"


@pytest.fixture
def lab(approved_sites):
    """A site whose images are read where they lie."""
    return next(site for site in approved_sites if site.name == "bio-lab")


def touch(folder):
    """Change one chunk of an image: its time is enough."""
    chunk = max(path for path in folder.rglob("0/c/**/*") if path.is_file())
    os.utime(chunk, ns=(0, 0))


def test_an_image_that_changed_between_rounds_stops_the_next_one_before_its_charge(federation, lab):
    rounds = LocalRounds(lab)
    rounds.train(request())
    touch(federation / "bio-lab" / "protected" / "specimen-0001")
    with pytest.raises(Refused, match=r"has changed since it was taken in") as refusal:
        rounds.train(request(2))
    assert refusal.value.code == "not_approved"
    assert kinds(lab).count("charge") == 1
    assert "before a round failed" in lab.log_path.read_text()
    lab.ingest("protected")  # the same voxels: the same data set, and its approval
    assert rounds.train(request(2)).payload


def test_whether_another_site_was_changed_is_no_matter_of_who_would_be_sampled(federation, lab):
    """Each subject alone stops the round: the refusal tells of files, not of the draw."""
    for folder in sorted((federation / "bio-lab" / "protected").iterdir()):
        rounds = LocalRounds(lab)
        touch(folder)
        with pytest.raises(Refused, match="not_approved"):
            rounds.train(request())
        lab.ingest("protected")
    assert "charge" not in kinds(lab)


def test_of_each_experiment_and_part_the_newest_data_set_alone_is_kept(lab):
    rounds, experiment = LocalRounds(lab), tiny_experiment()
    first = rounds._dataset(experiment, "protected", lab.ingested())
    assert rounds._dataset(experiment, "protected", lab.ingested()) is first
    rounds._dataset(experiment, "public", lab.ingested())
    exclude(lab, "specimen-0002", by="op", reason="withdrawn")
    newest = rounds._dataset(experiment, "protected", lab.ingested())
    assert len(newest) == 4
    assert [kept.dataset for kept in rounds._datasets.values()].count(newest) == 1
    assert len(rounds._datasets) == 2


def test_what_is_committed_to_is_what_is_trained_on(lab, monkeypatch):
    """The cache may change while a request is answered: one manifest is read, and used."""
    loaded = []
    manifest = type(lab).manifest

    def counted(self, part):
        loaded.append(part)
        return manifest(self, part)

    monkeypatch.setattr(type(lab), "manifest", counted)
    LocalRounds(lab).train(request())
    assert sorted(loaded) == ["protected", "public"]


def test_weights_that_do_not_fit_are_refused_before_the_charge(site, rounds):
    fitting = request()
    name = next(iter(fitting.weights))
    crafted = replace(fitting, weights=fitting.weights | {name: np.zeros(3, np.float32)})
    with pytest.raises(Refused, match="invalid_request"):
        rounds.train(crafted)
    assert "charge" not in kinds(site)


def test_a_round_after_a_withdrawal_no_longer_sees_the_subject(federation, approved_sites):
    lab = next(site for site in approved_sites if site.name == "bio-lab")
    rounds = LocalRounds(lab)
    rounds.train(request())
    before = len(list((lab.cache("protected") / "scans").iterdir()))
    shutil.rmtree(min((federation / "bio-lab" / "protected").iterdir()))
    lab.ingest("protected")
    lab.approve(tiny_experiment(), make_plan(tiny_experiment()), Permission("test"))
    assert len(rounds._dataset(tiny_experiment(), "protected", lab.ingested())) == 4
    assert len(list((lab.cache("protected") / "scans").iterdir())) < before


def test_a_loss_that_mixes_subjects_is_refused_before_anybody_pays(site, rounds, monkeypatch):
    """Dice over a batch: what one subject changes is no longer bounded by the clip norm."""
    from monai.losses import DiceLoss

    from federation import training
    from federation.losses import as_one_hot

    def over_the_batch(network, records, loss):
        del loss
        images, labels = (torch.cat([getattr(r, n) for r in records]) for n in ("images", "labels"))
        logits = network(images)
        dice = DiceLoss(softmax=True, batch=True)
        return dice(logits, as_one_hot(labels, logits.shape[1])).expand(len(images))

    monkeypatch.setattr(training, "loss_per_image", over_the_batch)
    monkeypatch.setattr(training, "_TRAINABLE", set())
    with pytest.raises(Refused) as refused:
        rounds.train(request())
    assert refused.value.code == "invalid_request"
    assert "charge" not in kinds(site)


def test_a_log_that_cannot_be_written_fails_no_round(site, rounds, monkeypatch):
    """What goes into the log may depend on one subject; the hub must not learn that it did."""

    def unreadable(*_):
        raise OSError("no voxels today")

    site.log_path.mkdir()
    monkeypatch.setattr(CachedScan, "image", unreadable)
    assert rounds.train(request()).payload
    assert kinds(site)[-2:] == ["charge", "release"]


def close(heads=None, run=RUN):
    return CloseRequest(tiny_experiment().digest(), run, heads or {}, "sha256:" + "7" * 64)


def test_a_run_is_reserved_whole_when_the_hub_asks_who_takes_part(site, rounds):
    rounds.describe(DescribeRequest(tiny_experiment().digest(), RUN))
    (reserved,) = (r for r in site.ledger.records if r.kind == "reservation")
    assert reserved.body["run"] == RUN
    assert reserved.body["charges"] == make_plan(tiny_experiment()).charges
    with pytest.raises(Refused, match="approval_used_up"):
        rounds.describe(DescribeRequest(tiny_experiment().digest(), "cd" * 16))


def test_what_the_hub_shows_of_other_ledgers_stands_in_the_charge(site, rounds):
    heads = {"somebody-else": "sha256:" + "5" * 64}
    rounds.train(replace(request(), heads=heads))
    (charge,) = (r for r in site.ledger.records if r.kind == "charge")
    assert charge.body["heads"] == heads


def test_closing_ends_the_run_and_countersigns_the_heads(site, rounds):
    rounds.train(request())
    heads = {"somebody-else": "sha256:" + "5" * 64}
    closing = Closing.from_json(dict(rounds.close(close(heads)).closing))
    assert closing.verify()
    assert (closing.heads, closing.head) == (heads, site.ledger.head[1])
    assert rounds.close(close(heads)).closing == closing.to_json()
    with pytest.raises(Refused, match="equivocation"):
        rounds.close(close())
    with pytest.raises(Refused, match="not_approved"):
        rounds.train(request(2))
    with pytest.raises(Refused, match="not_approved"):
        rounds.close(close(run="cd" * 16))


def test_the_model_of_a_run_that_went_on_after_a_withdrawal_is_remembered(site, rounds):
    rounds.train(request())
    digest = tiny_experiment().digest()
    site.ledger.withdraw(digest, by="Dr. Rivera", reason="a new ethics vote")
    assert used_by(site, digest).models == {}
    for asked in (
        close(run="cd" * 16),
        close(),
        replace(close(), model_digest="sha256:" + "8" * 64),
    ):
        with pytest.raises(Refused, match="not_approved"):
            rounds.close(asked)
    used = used_by(site, digest)
    assert used.models == {RUN: close().model_digest}, "of that run, and the first word stands"
    assert used.runs == {RUN: 1}
    assert kinds(site)[-1] == "withdrawal"


def test_a_site_that_was_restored_in_the_middle_of_a_run_refuses_its_next_round(site, rounds):
    kept = {path: path.read_bytes() for path in site.config.state.rglob("*") if path.is_file()}
    receipt = Receipt.from_json(dict(rounds.train(request()).receipt))
    for path in site.config.state.rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()
    for path, content in kept.items():
        path.write_bytes(content)
    restored = LocalRounds(open_site(site.config.state.parent / "site.yaml"))
    shown = replace(request(2), heads={site.name: receipt.head_after})
    with pytest.raises(Refused, match="behind"):
        restored.train(shown)
    assert kinds(open_site(site.config.state.parent / "site.yaml"))[-1] == "refusal"


def test_a_withdrawal_stops_a_round_at_its_next_step(site, rounds, monkeypatch):
    import federation.training as module

    steps = []

    def withdrawing(make):
        def stepper(work):
            step = make(work)

            def after_the_first(dataset, sampled):
                step(dataset, sampled)
                steps.append(sampled)
                if len(steps) == 1:
                    digest = tiny_experiment().digest()
                    site.ledger.withdraw(digest, by="Dr. Rivera", reason="a new ethics vote")

            return after_the_first

        return stepper

    monkeypatch.setattr(module, "stepper", withdrawing(module.stepper))
    with pytest.raises(Refused) as refusal:
        rounds.train(request())
    assert refusal.value.code == "round_failed", "from outside it is a failure as any other"
    assert len(steps) == 1
    assert make_plan(tiny_experiment()).steps > 1
    assert kinds(site)[-3:] == ["charge", "withdrawal", "loss"]
    assert "withdrawn" in site.log_path.read_text()
    with pytest.raises(Refused, match="not_approved"):
        rounds.train(request())


def test_the_same_request_while_it_is_computed_waits_for_the_same_bytes(site, rounds, monkeypatch):
    import federation.rounds as module

    begun, may_go_on = threading.Event(), threading.Event()
    train = module.train_locally

    def slowly(*arguments, **named):
        begun.set()
        assert may_go_on.wait(60)
        return train(*arguments, **named)

    monkeypatch.setattr(module, "train_locally", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(rounds.train, request())
        assert begun.wait(60)
        again = pool.submit(rounds.train, request())
        may_go_on.set()
        assert first.result().payload == again.result().payload
    assert kinds(site).count("charge") == 1
    assert "loss" not in kinds(site)


def test_other_software_than_was_approved_is_not_run(site, rounds, monkeypatch):
    monkeypatch.setattr("federation.site.software_digest", lambda: "sha256:" + "0" * 64)
    with pytest.raises(Refused, match="software is not that of the approval"):
        rounds.train(request())
    assert "charge" not in kinds(site)
