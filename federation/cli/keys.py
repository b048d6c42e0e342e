"""``cohortium site protect-keys``, ``site token-key`` and ``hub protect-keys``: keys at rest."""

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from federation.cli.hub import HubFile
from federation.cli.hub import app as hub_app
from federation.cli.site import SiteFile
from federation.cli.site import app as site_app
from federation.errors import FederationError

SITE_HELP = """Keep this site's keys under a passphrase: set it, change it, or take it away.

The passphrase is asked for at the terminal. Where there is none, a file (mode 600) holds it:
COHORTIUM_PASSPHRASE_FILE names it for every command, and COHORTIUM_NEW_PASSPHRASE_FILE the new one
for this command. A service gets it as the systemd credential cohortium-passphrase. It is never
written to the site file, and never an argument.

It can be killed at any point: the keys open with the passphrase that was in force, and repeating
the command finishes. docs/keys.md says what a passphrase protects from, and what it does not.

\b
Examples:
  cohortium site protect-keys site.yaml             # sets one, or changes the one there is
  cohortium site protect-keys site.yaml --remove    # plain files again, for their owner alone
"""

MAKE_HELP = """Make a signing key in the token that the site file names: PKCS#11, Ed25519.

It never leaves the token. A new site signs with it from its first run on; a site that has a ledger
does after 'cohortium site rotate-key'. The PIN is asked for at the terminal, or comes from the file
that COHORTIUM_PIN_FILE names or the systemd credential cohortium-pin.

\b
Examples:
  cohortium site token-key site.yaml
  cohortium site token-key site.yaml --label ledger-2027
"""

HUB_HELP = """Keep the hub's keys under a passphrase: set it, change it, or take it away.

These are the key that signs requests and the authority's. The keys of nginx and SuperLink stay as
they are, for those programs read them; both can be made anew. 'hub start' needs the passphrase from
COHORTIUM_PASSPHRASE_FILE or as a systemd credential, since the processes that it starts need it.

\b
Examples:
  cohortium hub protect-keys hub/hub.yaml
  cohortium hub protect-keys hub/hub.yaml --remove
"""

Remove = Annotated[bool, typer.Option("--remove", help="Take the passphrase away.")]


@site_app.command("protect-keys", help=SITE_HELP)
def protect_site_keys(site_file: SiteFile, remove: Remove = False) -> None:
    """Set, change or remove the passphrase of a site's keys."""
    from federation.agent_state import NODE_KEY, AgentFolder
    from federation.ledger.keys import PSEUDONYM_KEY, SITE_KEY
    from federation.site_config import load_site_config
    from federation.site_keys import NEXT_KEY

    config = load_site_config(site_file)
    agent = AgentFolder(config.state)
    names = (SITE_KEY, NEXT_KEY, PSEUDONYM_KEY, NODE_KEY)
    folders = [config.state]
    if config.linking and (config.linking / PSEUDONYM_KEY).is_file():
        folders.append(config.linking)
    # A running agent read its keys as they were; it also keeps a second one of these out.
    with agent.held(config.site) if config.state.is_dir() else nullcontext():
        _change(folders, names, remove=remove, first="cohortium site keygen")
    if config.linking:
        typer.echo(f"{config.linking} is shared: other sites that link there need the same.")


@hub_app.command("protect-keys", help=HUB_HELP)
def protect_hub_keys(hub_file: HubFile, remove: Remove = False) -> None:
    """Set, change or remove the passphrase of a hub's keys."""
    from federation.certificates import AUTHORITY_KEY
    from federation.hub_folder import HUB_KEY, open_hub

    _change(
        [open_hub(hub_file).path],
        (HUB_KEY, AUTHORITY_KEY),
        remove=remove,
        first="cohortium hub init",
    )


@site_app.command("token-key", help=MAKE_HELP)
def token_key(
    site_file: SiteFile,
    label: Annotated[
        str | None, typer.Option(help="Of the key.", show_default="keys.pkcs11.label")
    ] = None,
) -> None:
    """Make a key in a token."""
    from federation.ledger.keys import SiteKey
    from federation.ledger.token import open_token
    from federation.site_config import load_site_config

    config = load_site_config(site_file)
    if config.keys is None:
        raise FederationError(
            f"{site_file} names no token: add 'keys: {{pkcs11: …}}' (docs/keys.md)."
        )
    wanted = config.keys.pkcs11
    token = open_token(wanted.module, wanted.token)
    key = SiteKey(token.make_key(label or wanted.label))
    typer.echo(f"{label or wanted.label!r} is in the token {wanted.token!r}: {key.fingerprint}")
    typer.echo(f"A site with a ledger signs with it after: cohortium site rotate-key {site_file}")


def _change(folders: Iterable[Path], names: Iterable[str], *, remove: bool, first: str) -> None:
    from federation.key_slot import is_protected, protect, protection, unlock, unprotect
    from federation.passphrase import new_passphrase

    names = tuple(names)
    for folder in folders:
        if not is_protected(folder):
            _require_some_keys(folder, names, remove=remove, first=first)
    for folder in folders:
        if is_protected(folder) or protection(folder, names).sealed:
            unlock(folder)
    passphrase = "" if remove else new_passphrase("the keys in " + " and ".join(map(str, folders)))
    for folder in folders:
        done = unprotect(folder, names) if remove else protect(folder, names, passphrase)
        kept = "as they are, mode 600" if remove else "under the passphrase"
        typer.echo(f"{folder}: {', '.join(done.plain or done.sealed)} kept {kept}.")
    if not remove:
        typer.echo(
            "Back up key-slot.json with the keys. Earlier backups hold them as they were, and what "
            "was on this disk before may still be found on it."
        )


def _require_some_keys(folder: Path, names: tuple[str, ...], *, remove: bool, first: str) -> None:
    from federation.key_slot import protection

    there = protection(folder, names)
    if there.sealed:
        return  # its slot is gone: opening says so
    if remove:
        raise FederationError(f"The keys in {folder} are under no passphrase. Nothing was changed.")
    if not there.plain:
        raise FederationError(f"There are no keys in {folder} yet. Make them first: {first}.")
