"""A hub that lies, as Flower's SuperExec runs it: the real key, the real way, and every trick.

It works on one site and leaves what the site said in its run's folder, in ``rogue.json``.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from federation.canonical import digest_bytes
from federation.flower import wire
from federation.hub_folder import open_hub
from federation.hub_runs import open_run
from federation.ledger.keys import SiteKey
from federation.messages import DescribeRequest, EvaluateRequest, TrainRequest
from federation.signed_requests import sign_request
from federation.training import initial_weights

VICTIM, NEIGHBOUR = "bio-lab", "north-hospital"
server_app, client_app = ServerApp(), ClientApp()


class Rogue:
    """Sends what it likes to one site.

    Attributes:
        said: What each trick was answered with: a code, or the digest of an update.
        correlations: Of the refusals.
    """

    def __init__(self, hub, grid):
        self.hub, self.grid = hub, grid
        self.node = next(i for i, name in hub.nodes.items() if name == VICTIM)
        self.said, self.correlations = {}, []

    def signature(self, kind, request, *, site=VICTIM, key=None, **more):
        key = key or self.hub.key
        terms = {"valid_s": 600} | more
        return sign_request(key, kind=kind, digest=request.digest(), site=site, **terms)

    def signed(self, request, **more):
        kind, encode = _FORMS[type(request)]
        return wire.signed(encode(request), self.signature(kind, request, **more))

    def send(self, name, content, message_type="train"):
        message = self.grid.create_message(content, message_type, self.node, "1", 120.0)
        (message_id,) = self.grid.push_messages([message])
        end = time.monotonic() + 60
        while not (replies := list(self.grid.pull_messages([message_id]))):
            assert time.monotonic() < end, f"{name}: no answer"
            time.sleep(0.05)
        self.said[name] = self.meaning(replies[0].content)

    def meaning(self, content):
        if "refusal" in content:
            self.correlations.append(content["refusal"]["correlation"])
            return content["refusal"]["code"]
        if "update" in content:
            return digest_bytes(wire.decode_train_reply(content).payload)
        return "reply"


_FORMS = {
    DescribeRequest: ("describe", wire.encode_describe_request),
    TrainRequest: ("train", wire.encode_train_request),
    EvaluateRequest: ("evaluate", wire.encode_evaluate_request),
}


@server_app.main()
def main(grid, context):
    hub = open_hub(Path(str(context.run_config["hub"])))
    run = open_run(hub, str(context.run_config["run"]))
    run.note(state="running")
    rogue, experiment = Rogue(hub, grid), run.experiment
    weights = initial_weights(experiment)
    honest = TrainRequest(experiment.digest(), run.run, 1, 1, weights)
    rogue.send(
        "described", rogue.signed(DescribeRequest(honest.experiment_digest, run.run)), "query"
    )
    first = rogue.signed(honest)
    rogue.send("honest", first)
    rogue.send("replayed", first)
    rogue.send("asked again", rogue.signed(honest))
    for name, request in lies(honest, experiment).items():
        rogue.send(name, rogue.signed(request))
    for name, content in forgeries(rogue, honest).items():
        rogue.send(name, content)
    rogue.send("another kind", first, "train.open_everything")
    unapproved = EvaluateRequest("sha256:" + "0" * 64, run.run, 1, weights)
    rogue.send("scores of an unapproved one", rogue.signed(unapproved), "evaluate")
    rogue.send("honest in the end", rogue.signed(honest))
    told = {"said": rogue.said, "correlations": rogue.correlations}
    (run.path / "rogue.json").write_text(json.dumps(told))
    run.note(state="stopped", why="a rogue")


UNKNOWN = "sha256:" + "0" * 64


def lies(honest, experiment):
    """Return requests that the hub signs as it should, and that nobody has approved."""
    values = experiment.model_dump(mode="json")
    values["privacy"]["epsilon"] *= 10
    other_plan = type(experiment).model_validate(values)
    moved = {name: array + 1 for name, array in honest.weights.items()}
    longer = {name: np.zeros((1, *a.shape), np.float32) for name, a in honest.weights.items()}
    nan = {name: np.full_like(array, np.nan) for name, array in honest.weights.items()}
    return {
        "other weights": replace(honest, weights=moved),
        "other heads": replace(honest, heads={NEIGHBOUR: "sha256:" + "0" * 64}),
        "other shapes, of the round that was charged": replace(honest, weights=longer),
        "unapproved, of the round that was charged": replace(honest, experiment_digest=UNKNOWN),
        "unapproved": replace(honest, round=2, experiment_digest=UNKNOWN),
        "another plan": replace(honest, round=2, experiment_digest=other_plan.digest()),
        "another run": replace(honest, run="ab" * 16),
        "one round more": replace(honest, round=2),
        "one attempt more": replace(honest, attempt=2),
        "other shapes": replace(honest, round=2, weights=longer),
        "no numbers": replace(honest, round=2, weights=nan),
    }


def forgeries(rogue, honest):
    """Return requests whose signature is not the hub's for this site and this time."""
    other, now = SiteKey(Ed25519PrivateKey.generate()), time.time()
    request = wire.encode_train_request(honest)
    forged = replace(
        rogue.signature("train", honest, key=other), hub_key=rogue.hub.key.public_bytes.hex()
    )
    return {
        "unsigned": request,
        "for another site": rogue.signed(honest, site=NEIGHBOUR),
        "another hub": rogue.signed(honest, key=other),
        "under this hub's name": wire.signed(request, forged),
        "too late": rogue.signed(honest, now=now - 3600, valid_s=60),
        "from ahead": rogue.signed(honest, now=now + 3600),
        "with more in it": RecordDict(dict(rogue.signed(honest)) | {"code": ConfigRecord()}),
    }
