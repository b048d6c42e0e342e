"""``cohortium hub``: the hub of a federation."""

import json
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from federation.cli.site import AsJson
from federation.errors import FederationError

app = typer.Typer(no_args_is_help=True, help="Set up and run the hub of a federation.")

HubFile = Annotated[
    Path, typer.Argument(metavar="HUB.yaml", help="The hub file.", show_default=False)
]
SiteName = Annotated[str, typer.Argument(metavar="NAME", help="The site's name.")]

INIT_HELP = """Make a hub in a new folder: keys, certificates, the proxy's configuration.

It also makes an authority that signs the certificates of the proxy and of the sites. To use your
own, put its files in the folder and name them in hub.yaml.

\b
Examples:
  cohortium hub init hub --address hub.example.org:8443
  cohortium hub init hub --address 127.0.0.1:8443      # to try it on one machine
"""

START_HELP = """Serve: Flower's SuperLink and SuperExec on loopback, and nginx before them.

What dies is started again; logs are in the hub's folder. Ctrl-C ends it. Runs that were under way
are resumed by hand: cohortium resume RUN.

\b
Examples:
  cohortium hub start hub/hub.yaml
  cohortium hub start hub/hub.yaml --no-proxy    # a proxy of your own uses hub/nginx.conf
"""

STATUS_HELP = """Show the hub's key, whether it serves, and which sites are connected.

\b
Examples:
  cohortium hub status hub/hub.yaml
  cohortium hub status hub/hub.yaml --json

Exit status: 0 it serves; 1 it does not.
"""

ADD_HELP = """Admit a site by the public key that it made with 'cohortium site keygen'.

Compare the fingerprint with the site's operator over the telephone. Then give them the certificate
that this writes, ca.crt and the hub's key, as it says.

\b
Example:
  cohortium hub add-site hub/hub.yaml ward-b ward-b.pub
"""

REMOVE_HELP = """Admit a site no longer, nor its certificate. Its connection ends at its next call.

A proxy of your own (hub start --no-proxy) must read hub/nginx.conf again: nginx -s reload.

\b
Example:
  cohortium hub remove-site hub/hub.yaml ward-b
"""


@app.callback()
def hub() -> None:
    """Set up and run the hub of a federation."""


@app.command(help=INIT_HELP)
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Under which sites reach this hub.")
    ],
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS:PORT",
            help="What the proxy binds.",
            show_default="the port of --address",
        ),
    ] = None,
    link_port: Annotated[
        int, typer.Option(min=1, max=65_535, help="For Flower's SuperLink, on loopback.")
    ] = 9091,
) -> None:
    """Make a hub."""
    from federation.hub_folder import HUB_FILE, init_hub

    host, separator, port = address.rpartition(":")
    if not (host and separator and port.isdigit()):
        raise FederationError(f"--address {address}: write HOST:PORT, as in hub.example.org:8443.")
    local = host in ("127.0.0.1", "localhost")
    bound = listen or f"{'127.0.0.1' if local else '0.0.0.0'}:{port}"  # noqa: S104 - sites call it
    made = init_hub(folder, address=address, listen=bound, link_port=link_port)
    typer.echo(f"Made a hub in {folder}. It signs its requests with the key")
    typer.echo(f"  {made.key.public_bytes.hex()}")
    typer.echo(f"Next: cohortium hub add-site {folder / HUB_FILE} NAME SITE.pub")
    typer.echo(f"      cohortium hub start {folder / HUB_FILE}")


@app.command(help=START_HELP)
def start(
    hub_file: HubFile,
    proxy: Annotated[bool, typer.Option(help="Run nginx, too.")] = True,
) -> None:
    """Serve sites."""
    from federation.flower.hub import HubProcesses
    from federation.hub_folder import open_hub

    opened = open_hub(hub_file)
    opened.require_keys_without_terminal()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    processes = HubProcesses(opened, proxy=proxy, told=lambda text: typer.echo(text, err=True))
    processes.run(stop)
    typer.echo("The hub has ended. Runs that were under way can be resumed.", err=True)


@app.command(help=STATUS_HELP)
def status(hub_file: HubFile, as_json: AsJson = False) -> None:
    """Show a hub."""
    from federation.flower.superlink import Control
    from federation.hub_folder import open_hub

    opened = open_hub(hub_file)
    with Control(opened) as control:
        serves = control.is_up()
        states = control.node_states() if serves else {}
    by_name = {name: states.get(i, "unknown") for i, name in opened.nodes.items()}
    sites = {name: by_name.get(name, "not connected") for name in opened.sites}
    value = {
        "format": "cohortium-hub-status/1",
        "address": opened.config.address,
        "key": opened.key.public_bytes.hex(),
        "fingerprint": opened.key.fingerprint,
        "serves": serves,
        "sites": sites,
    }
    if as_json:
        typer.echo(json.dumps(value, indent=1))
    else:
        typer.echo(f"address      {opened.config.address}{'' if serves else '  (NOT RUNNING)'}")
        typer.echo(f"key          {value['key']}")
        typer.echo(f"fingerprint  {value['fingerprint']}")
        for name, state in sites.items():
            typer.echo(f"site         {name}  {state}")
    raise typer.Exit(0 if serves else 1)


@app.command("add-site", help=ADD_HELP)
def add_site(
    hub_file: HubFile,
    name: SiteName,
    public_key: Annotated[Path, typer.Argument(metavar="PUBKEY", help="A PEM file.")],
) -> None:
    """Admit a site."""
    from federation.flower.superlink import Control
    from federation.hub_folder import open_hub

    opened = open_hub(hub_file)
    certificate = opened.add_site(name, public_key)
    with Control(opened) as control:
        if control.is_up() and name not in opened.nodes.values():
            opened.write_nodes({**opened.nodes, **control.register([opened.sites[name]])})
    typer.echo(f"{name} may connect. Give its operator {certificate} and {opened.path / 'ca.crt'};")
    typer.echo("their site file then needs:")
    typer.echo(f"""
hub:
  address: {opened.config.address}
  key: {opened.key.public_bytes.hex()}
  ca: ca.crt
  certificate: {certificate.name}
""")


@app.command("remove-site", help=REMOVE_HELP)
def remove_site(hub_file: HubFile, name: SiteName) -> None:
    """Admit a site no longer."""
    from federation.flower.superlink import Control
    from federation.hub_folder import open_hub

    opened = open_hub(hub_file)
    opened.remove_site(name)
    nodes = opened.nodes
    with Control(opened) as control:
        if control.is_up():
            for node_id in [i for i, one in nodes.items() if one == name]:
                control.unregister(node_id)
    opened.write_nodes({i: one for i, one in nodes.items() if one != name})
    typer.echo(f"{name} may connect no longer.")
