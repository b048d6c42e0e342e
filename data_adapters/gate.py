"""The de-identification gate for DICOM headers.

Nothing of a header passes but geometry, modality, pixel format and the subject's identifier, which
ingest turns into a pseudonym; so the gate does not clean headers, it counts what was left behind.

What identifies is data: ``deidentification.json`` holds DICOM PS3.15, table E.1-1, edition 2026c
(``docs/deidentification_table.py`` says how it was made). Every person name (VR PN) and every
private element counts too. The table's UIDs are in each file and never pass; they are not counted.
"""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from data_adapters.dicom_headers import Instance
from data_adapters.reasons import Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

PRIVATE_ELEMENT = "PrivateElement"
UNREADABLE_SEQUENCE = "UnreadableSequence"
_TABLE = "deidentification.json"

# Modalities whose pixels rarely carry text; when the header is silent they pass, with a note.
RARELY_ANNOTATED = frozenset({"CT", "MR", "PT"})
# PS3.3 C.7.3.1.1.1: those of them whose images often do. Other text in a header's Modality may be
# anything, and is not repeated.
_OFTEN_ANNOTATED = frozenset({"CR", "DX", "ES", "IO", "MG", "OT", "RF", "SC", "US", "XA", "XC"})


@cache
def policy() -> dict[str, str]:
    """Return the tags that identify, ``ggggeeee`` with x for any digit, to their keywords."""
    table = json.loads((files("data_adapters") / _TABLE).read_text(encoding="utf-8"))
    return {
        tag: keyword for tag, (action, keyword) in table["attributes"].items() if "U" not in action
    }


def identifying_keywords(dataset: "Dataset") -> set[str]:
    """Return the keywords that hold a value somewhere in the header, nested items included."""
    return set(_found(dataset))


def _found(dataset: "Dataset") -> Iterator[str]:
    # values() hands out elements as they were read: only sequences are worth decoding here.
    for element in list(dataset.values()):
        if not element.value:
            continue
        counted, is_sequence = _meaning(element.tag, element.VR)
        if counted:
            yield counted
        if is_sequence:
            yield from _within(dataset, element.tag)


def _within(dataset: "Dataset", tag: "BaseTag") -> Iterator[str]:
    try:
        for item in dataset[tag].value:
            yield from _found(item)
    except Exception:  # what cannot be looked into may identify; nothing of it passes either
        yield UNREADABLE_SEQUENCE


@cache
def _meaning(tag: "BaseTag", vr: str | None) -> tuple[str, bool]:
    """Return what to count the element as, if it identifies, and whether it holds items.

    Implicit VR files name no VR; the dictionary does (PS3.6).
    """
    from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag

    if tag.is_private:
        return PRIVATE_ELEMENT, vr == "SQ"
    if vr in (None, "UN"):
        vr = dictionary_VR(tag) if dictionary_has_tag(tag) else "UN"
    listed = _listed(f"{tag:08x}")
    is_person = vr == "PN" and (keyword_for_tag(tag) or f"{tag:08x}")
    return listed or is_person or "", vr == "SQ"


def _listed(digits: str) -> str:
    """Return the keyword of a tag that the table holds, itself or by a pattern, or nothing."""
    known = policy()
    if digits in known:
        return known[digits]
    patterns = (tag for tag in known if "x" in tag)
    return next((known[p] for p in patterns if fnmatchcase(digits, p.replace("x", "?"))), "")


def check_burned_in(instance: Instance, clean_modalities: frozenset[str] = frozenset()) -> None:
    """Refuse pixels that may carry text (PS3.3 C.7.6.1, Burned In Annotation).

    Args:
        clean_modalities: Those whose pixels the operator has checked.

    Raises:
        Unusable: BURNED_IN_ANNOTATION or BURNED_IN_UNKNOWN.
    """
    if instance.burned_in == "YES":
        raise Unusable("BURNED_IN_ANNOTATION")
    if instance.burned_in == "NO":
        return
    own = instance.public_modality
    stated = instance.modality or own
    # A picture of a screen (ImageType SCREEN SAVE) shows what the screen did, whatever its class.
    is_screen = any("SCREEN" in value for value in instance.image_type)
    accepted = clean_modalities if is_screen else clean_modalities | RARELY_ANNOTATED
    if not {own, stated} <= accepted:
        raise Unusable("BURNED_IN_UNKNOWN", stated if stated in _OFTEN_ANNOTATED else own)
