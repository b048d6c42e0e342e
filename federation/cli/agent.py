"""``cohortium site start`` and what else an operator does with a running site."""

import json
import signal
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from federation.cli.site import AsJson, SiteFile, app
from federation.errors import FederationError

KEYGEN_HELP = """Make the key that this site's connection is known by, and show what to send.

The private key stays in the state folder. The public key goes to the hub's operator, who admits
the site and returns a certificate.

\b
Example:
  cohortium site keygen site.yaml      # writes site's public key beside the site file
"""

START_HELP = """Connect to the hub and answer its requests, until stopped.

The site opens no port: it calls the hub. It runs nothing that it is sent, answers only what its
pinned hub has signed, and only experiments that were approved here (cohortium site approve).

\b
Examples:
  cohortium site start site.yaml
  cohortium site start site.yaml --check     # look whether all is well, and answer nothing
  cohortium site start site.yaml --unit > /etc/systemd/system/cohortium-site.service

Exit status: 0 ended by you, or all is well; 1 --check found what blocks; 2 it cannot go on.
"""

STATUS_HELP = """Show whether this site's agent runs, and what it does.

\b
Examples:
  cohortium site status site.yaml
  cohortium site status site.yaml --json

Exit status: 0 it runs; 1 it does not.
"""

PAUSE_HELP = """Let new requests wait, also after a restart. A round under way is finished.

\b
Example:
  cohortium site pause site.yaml
"""

RESUME_HELP = """Answer requests again after a pause.

\b
Example:
  cohortium site resume site.yaml
"""

STOP_HELP = """Stop this site's agent at once: a round under way stops at its next step.

What it was charged stays charged, and nothing of it is sent.

\b
Example:
  cohortium site stop site.yaml
"""

EGRESS_HELP = """Show everything that this site has sent, and whether the ledger accounts for it.

\b
Examples:
  cohortium site egress site.yaml
  cohortium site egress site.yaml --json > egress.json

Exit status: 0 ledger and journal agree; 1 something left that the ledger does not know.
"""


@app.command(help=KEYGEN_HELP)
def keygen(site_file: SiteFile) -> None:
    """Make a site's connection key."""
    from cryptography.hazmat.primitives.asymmetric import ec

    from federation.agent_state import AgentFolder
    from federation.certificates import new_key, public_text
    from federation.files import private_folder, write_atomically
    from federation.flower.fleet import load_node_key
    from federation.site_config import load_site_config

    config = load_site_config(site_file)
    path = AgentFolder(private_folder(config.state)).key_path
    key = load_node_key(path) if path.exists() else new_key(path, ec.SECP384R1())
    out = site_file.with_name(f"{config.site}.pub")
    write_atomically(out, public_text(key.public_key()).encode(), mode=0o644)
    typer.echo(f"Send {out} to the hub's operator. Over the telephone, compare its SHA-256:")
    typer.echo(f"  {_sha256(out)}")


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


@app.command(help=START_HELP)
def start(
    site_file: SiteFile,
    check: Annotated[bool, typer.Option("--check", help="Only look whether all is well.")] = False,
    unit: Annotated[bool, typer.Option("--unit", help="Print a hardened systemd unit.")] = False,
    outage_hours: Annotated[
        float, typer.Option(min=0, help="Longest time without the hub before this ends.")
    ] = 24.0,
) -> None:
    """Answer a hub."""
    if unit:
        from federation.site_config import load_site_config
        from federation.systemd import unit_for

        typer.echo(unit_for(site_file, load_site_config(site_file)), nl=False)
        return
    from federation.lean_imports import import_monai

    import_monai()
    from federation.flower.serve import preflight, require_ready, serve
    from federation.site import open_site

    site = open_site(site_file)
    findings = list(preflight(site, knock=check))
    for one in findings:
        mark = "BLOCKS" if one.blocks else "look" if one.remedy else "ok"
        typer.echo(f"{mark:7} {one.what:15} {one.found}", err=True)
        if one.remedy:
            typer.echo(f"{'':23} {one.remedy}", err=True)
    if check:
        raise typer.Exit(any(one.blocks for one in findings))
    require_ready(site, findings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve(
        site,
        stop,
        outage_s=3600 * outage_hours,
        told=lambda text: typer.echo(f"{site.name}: {text}", err=True),
    )
    typer.echo(f"{site.name}: ended. What was charged stands; the ledger is complete.", err=True)


@app.command(help=STATUS_HELP)
def status(site_file: SiteFile, as_json: AsJson = False) -> None:
    """Show a site's agent."""
    folder, name = _folder(site_file)
    found = folder.status()
    value: dict[str, Any] = {
        "format": "cohortium-site-status/1",
        "site": name,
        "runs": found is not None,
        "paused": folder.paused,
    } | (asdict(found) if found else {})
    if as_json:
        typer.echo(json.dumps(value, indent=1))
    elif found is None:
        typer.echo(f"{name}: no agent runs{', and it is paused' if folder.paused else ''}.")
    else:
        paused = " (paused)" if folder.paused else ""
        typer.echo(f"{name}: {found.doing}{paused}, since {found.since}, process {found.pid}.")
    raise typer.Exit(0 if found else 1)


@app.command(help=PAUSE_HELP)
def pause(site_file: SiteFile) -> None:
    """Let requests wait."""
    folder, name = _folder(site_file)
    folder.pause()
    typer.echo(f"{name}: paused. New requests wait until 'cohortium site resume {site_file}'.")


@app.command(help=RESUME_HELP)
def resume(site_file: SiteFile) -> None:
    """Answer requests again."""
    folder, name = _folder(site_file)
    folder.resume()
    typer.echo(f"{name}: requests are answered again.")


@app.command(help=STOP_HELP)
def stop(site_file: SiteFile) -> None:
    """Stop an agent."""
    folder, name = _folder(site_file)
    if not folder.stop():
        raise FederationError(f"{name}: no agent runs.")
    typer.echo(f"{name}: told to stop.")


@app.command(help=EGRESS_HELP)
def egress(site_file: SiteFile, as_json: AsJson = False) -> None:
    """Show what was sent."""
    from federation.egress import EgressJournal, reconcile
    from federation.site import open_site

    site = open_site(site_file)
    entries = list(EgressJournal(site.config.state).entries())
    released = [r.body["update_digest"] for r in site.ledger.records if r.kind == "release"]
    found = reconcile(entries, released)
    if as_json:
        value = {
            "format": "cohortium-egress/1",
            "site": site.name,
            "sent": [asdict(one) for one in entries],
            "updates_sent": dict(found.sent),
            "updates_not_sent": list(found.unsent),
            "updates_not_in_the_ledger": list(found.unpaid),
        }
        typer.echo(json.dumps(value, indent=1))
    else:
        for one in entries:
            size = f"{one.num_bytes:,} bytes"
            typer.echo(f"{one.at}  {one.to}  {one.kind:9} {one.answer:14} {size:>18}  {one.digest}")
        typer.echo(
            f"{site.name}: {len(entries)} replies sent; of {len(released)} updates released, "
            f"{len(found.sent)} were sent to the hub and {len(found.unsent)} were not."
        )
        for digest in found.unpaid:
            typer.echo(f"NOT IN THE LEDGER: {digest}")
    raise typer.Exit(1 if found.unpaid else 0)


def _folder(site_file: Path) -> Any:
    from federation.agent_state import AgentFolder
    from federation.site_config import load_site_config

    config = load_site_config(site_file)
    return AgentFolder(config.state), config.site
