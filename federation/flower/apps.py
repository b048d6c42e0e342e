"""The two apps by which Flower's own programs know us: ``flwr run`` and ``flower-supernode``.

The server app carries out a run of a hub's folder. The client app, in a stock SuperNode, answers
with data that was declared to be of no human subjects: a SuperNode runs what a hub sends it, so
protected data is opened by our own agent alone (``cohortium site start``).
"""

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from federation.errors import Refused
from federation.flower.client_app import client_app as answering
from federation.flower.client_app import refused
from federation.hub_folder import open_hub
from federation.hub_runs import open_run
from federation.lean_imports import import_monai

server_app = ServerApp()


@server_app.main()
def _main(grid: Grid, context: Context) -> None:
    import_monai()
    from federation.flower.hub_main import carry_out

    hub = open_hub(Path(str(context.run_config["hub"])))
    run = open_run(hub, str(context.run_config["run"]))
    carry_out(hub, run, grid, flower_run=context.run_id)


class _OpenDataOnly(ClientApp):
    """The site's app as a stock SuperNode runs it: ``--node-config 'site="site.yaml"'``."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message, or refuse it where people's images would be opened."""
        try:
            app = _app_for_open_data(context)
        except Refused as refusal:
            return refused(message, message.metadata.message_type, refusal)
        return app(message, context)


def _app_for_open_data(context: Context) -> ClientApp:
    import_monai()
    from federation.rounds import LocalRounds
    from federation.signed_requests import Gate
    from federation.site import open_site

    site = open_site(Path(str(context.node_config.get("site", "site.yaml"))))
    if site.config.declaration is None:
        raise Refused(
            "not_approved",
            f"{site.name} holds images of people: they are opened by 'cohortium site start' alone",
        )
    hub = site.config.hub
    gate = Gate(site.name, hub.key) if hub else None
    return answering(LocalRounds(site, hub_key=hub.key if hub else None), gate)


client_app = _OpenDataOnly()
