"""``croissant``: of each site's data set one description (Croissant 1.0), and no data.

Croissant wants a distribution; these data have none, since they stay at the site. The list is
there and empty, which mlcroissant takes, and ``conditionsOfAccess`` says why.
http://mlcommons.org/croissant/1.0
"""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import mlcroissant

from federation.errors import FederationError
from federation.export import identifiers
from federation.export.about import About
from federation.ledger.keys import fingerprint_of
from federation.messages import Description
from federation.run_record import FinishedRun, RunRecord

VERSION = "http://mlcommons.org/croissant/1.0"
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
STAYS = (
    "The images stay at the site, which trains on them and lets noised updates leave. "
    "There is nothing to download; ask the site."
)


def write(run: FinishedRun, about: About, folder: Path) -> None:  # noqa: ARG001 - as all formats
    """Fill a folder with SITE.json for each site that the model was trained at.

    Raises:
        FederationError: A site's name is no file's name, two are the same, or mlcroissant finds
            something wrong.
    """
    sites = run.record.contributors
    names = [site.site for site in sites]
    for name in names:
        if not _FILE_NAME.fullmatch(name) or names.count(name) > 1:
            raise FederationError(
                f"The site name {name[:80]!r} in run.json cannot name one file (small letters, "
                "digits and '-', once each). Restore run.json."
            )
    for site in sites:
        value = description_of(site, run.record)
        _require_valid(site.site, value)
        text = json.dumps(value, indent=1, ensure_ascii=False)
        (folder / f"{site.site}.json").write_bytes(text.encode() + b"\n")


def description_of(site: Description, record: RunRecord) -> dict[str, Any]:
    """Return the Croissant JSON-LD of one site's data set."""
    named = identifiers.data_set(site.commitment)
    return {
        "@context": mlcroissant.Rdf().context,
        "@type": "sc:Dataset",
        "@id": named,
        "conformsTo": VERSION,
        "name": site.dataset,
        "description": _described(site),
        "identifier": named,
        "url": named,
        "license": site.licence,
        "creator": {
            "@type": "sc:Organization",
            "@id": identifiers.site(site.public_key),
            "name": site.site,
            "description": f"Signs with {fingerprint_of(bytes.fromhex(site.public_key))}.",
        },
        "citeAs": f"{site.dataset} at {site.site}, {named}",
        # Of this description: the data were never published.
        "datePublished": record.finished,
        # Another commitment is another data set.
        "version": f"1.0.0+{site.commitment.removeprefix('sha256:')[:16]}",
        "keywords": [site.modality, site.source_kind, "federated"],
        "isAccessibleForFree": False,
        "conditionsOfAccess": STAYS,
        "usageInfo": site.data_use,
        "isLiveDataset": False,
        "distribution": [],
        "rai:personalSensitiveInformation": "Images of subjects; nothing of them is in this file.",
        "rai:dataReleaseMaintenancePlan": STAYS,
    }


def _described(site: Description) -> str:
    versions = ", ".join(f"{name} {found}" for name, found in sorted(site.versions.items()))
    return (
        f"{site.modality} images ({site.source_kind}) at {site.site}. Number of subjects, as the "
        f"site releases it: {site.num_subjects}. {STAYS} Data use: {site.data_use}. "
        f"Read with {versions or 'unknown versions'}."
    )


def _require_valid(site: str, value: dict[str, Any]) -> None:
    try:
        issues = mlcroissant.Dataset(jsonld=deepcopy(value)).metadata.ctx.issues
    except mlcroissant.ValidationError as error:
        raise FederationError(
            f"mlcroissant finds the description of {site} invalid: {error}"
        ) from error
    if issues.errors or issues.warnings:
        raise FederationError(
            f"mlcroissant finds fault with the description of {site}: {issues.report()}"
        )
