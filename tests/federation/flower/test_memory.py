"""What a round needs of the hub's memory, measured: it must not grow with the number of sites."""

import tracemalloc

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from federation.canonical import digest, digest_bytes
from federation.flower import wire
from federation.flower.collecting import Collector
from federation.flower.grid import LocalGrid
from federation.flower.server_app import run_rounds
from federation.messages import DescribeRequest, EvaluateReply, TrainReply
from models.weights import weights_digest, weights_to_bytes

MIB = 2**20
MODEL_MIB, TENSOR_MIB = 8, 0.5
ROUNDS = 3


def model():
    size = int(TENSOR_MIB * MIB / 4)
    return {f"w{n}": np.ones(size, np.float32) for n in range(int(MODEL_MIB / TENSOR_MIB))}


class DistantGrid:
    """Sites on other machines: what was sent is gone from here, and a reply is here once pulled.

    Every update is zero, so that each round's request is known beforehand.
    """

    def __init__(self, sites, path, experiment_digest, run_id):
        self.sites = dict(enumerate(sites, start=2))
        self.local = LocalGrid({})
        self.path, self.asked = path, {}
        weights = model()
        path.write_bytes(weights_to_bytes({n: np.zeros_like(w) for n, w in weights.items()}))
        self.update_digest = digest_bytes(path.read_bytes())
        self.weights_digest = weights_digest(weights)
        self.terms = (experiment_digest, run_id)

    def get_node_ids(self):
        return list(self.sites)

    def create_message(self, *args, **kwargs):
        return self.local.create_message(*args, **kwargs)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            ids.append(f"{len(self.asked)}")
            meta = message.metadata
            kept = self.local.create_message(
                RecordDict(), meta.message_type, meta.dst_node_id, meta.group_id
            )
            kept.metadata.__dict__["_message_id"] = ids[-1]
            attempt = message.content["request"].get("attempt")
            self.asked[ids[-1]] = kept, meta.group_id, attempt
        return ids

    def pull_messages(self, ids):
        return [self.reply(*self.asked.pop(i)) for i in ids if i in self.asked]

    def reply(self, message, number, attempt):
        site = self.sites[message.metadata.dst_node_id]
        kind = message.metadata.message_type
        if kind == "train":
            content = wire.encode_train_reply(self.update(site, int(number), attempt))
        elif kind == "evaluate":
            content = wire.encode_evaluate_reply(EvaluateReply({}))
        elif kind == "query":
            content = wire.encode_description(site.describe(DescribeRequest(*self.terms)))
        else:
            content = wire.encode_refusal("not_approved")
        return Message(content, reply_to=message)

    def update(self, site, number, attempt):
        experiment_digest, run = self.terms
        heads = {s.name: site.head for s in self.sites.values()} if number > 1 else {}
        request = {
            "experiment": experiment_digest,
            "run": run,
            "round": number,
            "attempt": attempt,
            "weights": self.weights_digest,
            "heads": heads,
        }
        receipt = site.receipt(
            experiment_digest=experiment_digest,
            run=run,
            round=number,
            attempt=attempt,
            request_digest=digest(request),
            update_digest=self.update_digest,
        )
        return TrainReply(self.path.read_bytes(), receipt)


@pytest.fixture
def peak_mib(site, tmp_path, experiment_digest, run_id):
    """Return the most memory that a run of this many sites needs, models included, in MiB."""

    def measure(num_sites, ema_decay=0.0):
        sites = [site(f"site-{n:02d}") for n in range(num_sites)]
        grid = DistantGrid(sites, tmp_path / "update", experiment_digest, run_id)
        tracemalloc.start()
        try:
            result = run_rounds(
                grid,
                experiment_digest=experiment_digest,
                run=run_id,
                weights=model(),
                rounds=ROUNDS,
                min_sites=num_sites,
                ema_decay=ema_decay,
            )
            return tracemalloc.get_traced_memory()[1] / MIB
        finally:
            tracemalloc.stop()
            assert result.events[-1].round == ROUNDS

    return measure


@pytest.mark.parametrize("ema_decay", [0.0, 0.5], ids=["newest", "average"])
def test_a_hub_needs_two_models_and_a_few_tensors_whatever_the_number_of_sites(peak_mib, ema_decay):
    few, many = peak_mib(2, ema_decay), peak_mib(20, ema_decay)
    assert many < 2 * MODEL_MIB + 6 * TENSOR_MIB
    # What a site adds is its statement and receipts.
    assert many - few < 1.0


def test_the_measurement_fires_when_replies_are_kept(peak_mib, monkeypatch):
    one_by_one = Collector.__iter__
    monkeypatch.setattr(Collector, "__iter__", lambda self: iter(list(one_by_one(self))))
    assert peak_mib(10) > 8 * MODEL_MIB
