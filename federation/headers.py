"""What headers told of people at the last ingest: keywords and counts, never values.

A data set that is declared to be of no people is held against it.
"""

import json
from pathlib import Path

from data_adapters.ingest import IngestReport
from data_adapters.manifest import Manifest
from federation.canonical import canonical_json
from federation.errors import FederationError
from federation.files import write_atomically

FILE = "headers.json"

# Of DICOM PS3.15, table E.1-1: what a living being has. A phantom has a PatientName, a PatientID
# and, since scanners ask for them, a weight and a size.
PERSONAL = frozenset(
    {
        "AdditionalPatientHistory",
        "Allergies",
        "CountryOfResidence",
        "EthnicGroup",
        "EthnicGroups",
        "LastMenstrualDate",
        "MedicalAlerts",
        "MilitaryRank",
        "Occupation",
        "OtherPatientIDs",
        "OtherPatientIDsSequence",
        "OtherPatientNames",
        "PatientAddress",
        "PatientAge",
        "PatientBirthDate",
        "PatientBirthName",
        "PatientBirthTime",
        "PatientMotherBirthName",
        "PatientReligiousPreference",
        "PatientSex",
        "PatientTelecomInformation",
        "PatientTelephoneNumbers",
        "PregnancyStatus",
        "RegionOfResidence",
        "ResponsiblePerson",
        "SmokingStatus",
    }
)


def keep_headers(cache: Path, report: IngestReport) -> None:
    """Keep which keywords were found, beside the manifest that they belong to."""
    found = {"root": report.manifest.root, "found": report.identifiers_found}
    write_atomically(cache / FILE, canonical_json(found))


def personal(found: dict[str, int]) -> tuple[str, ...]:
    """Return what of it only people and animals have, sorted.

    >>> personal({"PatientID": 7, "PatientSex": 7, "PatientAge": 2})
    ('PatientAge', 'PatientSex')
    """
    return tuple(sorted(PERSONAL & found.keys()))


def personal_headers(cache: Path, manifest: Manifest) -> tuple[str, ...]:
    """Return the same of what was found when this manifest was made.

    Raises:
        FederationError: It is not known.
    """
    try:
        kept = json.loads((cache / FILE).read_text(encoding="utf-8"))
        if kept["root"] == manifest.root:
            return personal(dict(kept["found"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise FederationError(
        f"What the headers of the data in {cache} hold is not known. Ingest the data again."
    )
