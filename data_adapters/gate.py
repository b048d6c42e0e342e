"""The de-identification gate for DICOM headers.

Nothing of a header passes but geometry, modality, pixel format and the subject's identifier, which
ingest turns into a pseudonym; so the gate does not clean headers, it counts what was left behind.
"""

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from data_adapters.reasons import Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

PRIVATE_ELEMENT = "PrivateElement"

# Attributes of DICOM PS3.15 table E.1-1 that name or describe a person, a place or a day. Every
# person name (VR PN) counts too. UIDs are in each file and never pass; they are not listed.
_KEYWORDS = """
    AccessionNumber AcquisitionComments AcquisitionDate AcquisitionDateTime AcquisitionTime
    AdditionalPatientHistory AdmissionID AdmittingDate AdmittingDiagnosesDescription Allergies
    ClinicalTrialSiteID ClinicalTrialSiteName ClinicalTrialSubjectID
    ClinicalTrialSubjectReadingID ContentDate ContentTime CountryOfResidence
    DeviceSerialNumber EthnicGroup ImageComments InstanceCreationDate InstanceCreationTime
    InstitutionAddress InstitutionName InstitutionalDepartmentName InsurancePlanIdentification
    IssuerOfPatientID LastMenstrualDate MedicalAlerts MedicalRecordLocator MilitaryRank
    Occupation OtherPatientIDs PatientAddress PatientAge PatientBirthDate PatientBirthTime
    PatientComments PatientID PatientInsurancePlanCodeSequence PatientReligiousPreference
    PatientSex PatientSize PatientState PatientTelephoneNumbers PatientWeight
    PerformedProcedureStepDescription PerformedProcedureStepID PerformedProcedureStepStartDate
    PerformedProcedureStepStartTime PerformingPhysicianIdentificationSequence PregnancyStatus
    ProtocolName ReasonForStudy ReferringPhysicianAddress ReferringPhysicianTelephoneNumbers
    RegionOfResidence RequestAttributesSequence RequestedProcedureDescription
    RequestedProcedureID RequestingService SeriesDate SeriesDescription SeriesTime
    ServiceEpisodeID SmokingStatus SpecialNeeds StationName StudyComments StudyDate
    StudyDescription StudyID StudyTime TextComments TextString TimezoneOffsetFromUTC
    TrackingID
"""
IDENTIFYING_KEYWORDS = frozenset(_KEYWORDS.split())

# Modalities whose pixels rarely carry text; when the header is silent they pass, with a note.
RARELY_ANNOTATED = frozenset({"CT", "MR", "PT"})


def identifying_keywords(dataset: "Dataset") -> set[str]:
    """Return the keywords that hold a value somewhere in the header, nested items included."""
    return set(_found(dataset))


def _found(dataset: "Dataset") -> Iterator[str]:
    # values() hands out elements as they were read: only sequences are worth decoding here.
    for element in list(dataset.values()):
        if not element.value:
            continue
        keyword, vr = _meaning(element.tag, element.VR)
        if keyword in IDENTIFYING_KEYWORDS or keyword == PRIVATE_ELEMENT or vr == "PN":
            yield keyword
        if vr == "SQ":
            for item in dataset[element.tag].value:
                yield from _found(item)


@cache
def _meaning(tag: "BaseTag", vr: str | None) -> tuple[str, str]:
    """Return keyword and VR. Implicit VR files name no VR; the dictionary does (PS3.6)."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag

    if tag.is_private:
        return PRIVATE_ELEMENT, vr or "UN"
    if vr in (None, "UN"):
        vr = dictionary_VR(tag) if dictionary_has_tag(tag) else "UN"
    return keyword_for_tag(tag), str(vr)


def check_burned_in(modality: str, burned_in: str) -> None:
    """Refuse pixels that may carry text (PS3.3 C.7.6.1, Burned In Annotation).

    Raises:
        Unusable: BURNED_IN_ANNOTATION or BURNED_IN_UNKNOWN.
    """
    if burned_in == "YES":
        raise Unusable("BURNED_IN_ANNOTATION")
    if burned_in != "NO" and modality not in RARELY_ANNOTATED:
        raise Unusable("BURNED_IN_UNKNOWN", modality or "unknown")
