"""A site for the benchmark: our agent, and an update of the model's size at once.

``python -m tests.benchmarks.federation_site HUB_FOLDER NAME [train]``: with ``train`` it has no
public subjects, so that it is not asked for scores but once.
"""

import sys
import threading
from collections import deque
from pathlib import Path

from federation.egress import EgressJournal
from federation.files import private_folder
from federation.flower.agent import Agent
from federation.flower.client_app import client_app
from federation.flower.fleet import FleetConnection, load_node_key, tls_context
from federation.hub_folder import open_hub
from federation.messages import EvaluateReply, EvaluateRequest
from federation.signed_requests import Gate
from tests.federation.flower.conftest import FakeSite


class WithoutScores(FakeSite):
    """A site without public subjects."""

    def evaluate(self, request: EvaluateRequest) -> EvaluateReply:
        """Return what such a site does."""
        self._begin("evaluate", request)
        return EvaluateReply({})


def main() -> None:
    """Serve until killed."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    kind = WithoutScores if sys.argv[3:] == ["train"] else FakeSite
    hub = open_hub(folder / "hub.yaml")
    key_path = folder / f"{name}.pem"
    context = tls_context(folder / "ca.crt", folder / "sites" / f"{name}.crt", key_path)
    app = client_app(kind(name, seen=deque(maxlen=1)), Gate(name, hub.key.public_bytes.hex()))
    journal = EgressJournal(private_folder(folder / f"state-{name}"))
    agent = Agent(app, journal, tick_s=0.0, stop=threading.Event())
    key = load_node_key(key_path)
    agent.serve(lambda: FleetConnection(hub.config.address, context, key))


if __name__ == "__main__":
    main()
