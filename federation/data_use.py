"""What data may be used for, and what an experiment uses it for: GA4GH's Data Use Ontology (DUO).

Codes and meanings are those of http://purl.obolibrary.org/obo/duo.owl; Lawson et al., "The Data Use
Ontology to streamline responsible access to human biomedical datasets" (Cell Genomics 2021, doi
10.1016/j.xgen.2021.100028). The whole algebra, as strict as a program can be without asking:

======================================= ============== ========= ========= ========
an experiment declares this purpose      GRU            HMB       DS d      POA
======================================= ============== ========= ========= ========
data permit NRES (DUO:0000004)           yes            yes       yes       yes
data permit GRU (DUO:0000042)            yes            yes       yes       yes
data permit HMB (DUO:0000006)            no             yes       yes       no
data permit DS d (DUO:0000007 d)         no             no        same d    no
data permit POA (DUO:0000011)            no             no        no        yes
======================================= ============== ========= ========= ========

Of several permissions one is enough. Modifiers then all have to hold:

- NMDS (0000015): the experiment does not develop methods.
- NPUNCU (0000018), NPU (0000045), NCU (0000046): the experiment is declared ``non_profit``: by
  organisations not for profit, for no commercial use.
- NPOA (0000044): neither ancestry (POA) nor any purpose at all (GRU, which contains ancestry).
- CC (0000043, clinical care) permits something else beside research, so it decides nothing here.
- Whether any other modifier holds (an ethics vote, a place, a project, a publication) no program
  can see. A person must have acknowledged it, by name, or the terms are refused.

Diseases are compared as codes: a kind of a disease is another disease here.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from federation.documents import Strict

NRES, GRU, HMB = "DUO:0000004", "DUO:0000042", "DUO:0000006"
DS, POA = "DUO:0000007", "DUO:0000011"
NMDS, NPUNCU, CC = "DUO:0000015", "DUO:0000018", "DUO:0000043"
NPOA, NPU, NCU = "DUO:0000044", "DUO:0000045", "DUO:0000046"

PERMISSIONS: Mapping[str, str] = {
    NRES: "anything",
    GRU: "general research",
    HMB: "health, medical or biomedical research",
    DS: "research on a specific disease",
    POA: "research on population origins or ancestry",
}
CHECKED: Mapping[str, str] = {
    NMDS: "no development of methods",
    NPUNCU: "not for profit, no commercial use",
    CC: "clinical care, too",
    NPOA: "no research on population origins or ancestry",
    NPU: "organisations not for profit only",
    NCU: "no commercial use",
}
FOR_PEOPLE: Mapping[str, str] = {
    "DUO:0000012": "research of a certain type only",
    "DUO:0000016": "genetic studies only",
    "DUO:0000019": "results must be published",
    "DUO:0000020": "collaboration with the investigators required",
    "DUO:0000021": "ethics approval required",
    "DUO:0000022": "within a region only",
    "DUO:0000024": "no publication before a date",
    "DUO:0000025": "for a number of months",
    "DUO:0000026": "approved users only",
    "DUO:0000027": "within an approved project",
    "DUO:0000028": "within an approved institution",
    "DUO:0000029": "derived data must be returned",
}
MEANING: Mapping[str, str] = {**PERMISSIONS, **CHECKED, **FOR_PEOPLE}
_WITHIN: Mapping[str, frozenset[str]] = {
    NRES: frozenset({GRU, HMB, DS, POA}),
    GRU: frozenset({GRU, HMB, DS, POA}),
    HMB: frozenset({HMB, DS}),
    DS: frozenset({DS}),
    POA: frozenset({POA}),
}

_DISEASE = r"[A-Za-z][A-Za-z0-9]{1,15}:[A-Za-z0-9_.]{1,32}"
Disease = Annotated[str, Field(pattern=rf"^{_DISEASE}$")]
NOT_STATED = "not stated"
# What ``public_terms`` makes.
PUBLIC_TERMS = re.compile(rf"{NOT_STATED}|DUO:\d{{7}}( {_DISEASE})?(; DUO:\d{{7}}( {_DISEASE})?)*")


class DataUse(Strict):
    """What an experiment uses data for. What it leaves out claims as little as possible.

    Attributes:
        purpose: A permission code of DUO. The default is the widest, general research: it needs
            data that permit everything.
        disease: MONDO or HP code, such as ``MONDO:0004975``; with purpose DUO:0000007 only.
        non_profit: By organisations not for profit, for no commercial use.
        methods_development: Whether methods (software, algorithms) are developed with the data.

    >>> DataUse().purpose, DataUse().non_profit, DataUse().methods_development
    ('DUO:0000042', False, True)
    """

    purpose: Literal["DUO:0000042", "DUO:0000006", "DUO:0000007", "DUO:0000011"] = "DUO:0000042"
    disease: Disease | None = None
    non_profit: bool = False
    methods_development: bool = True

    @model_validator(mode="after")
    def _disease_where_it_belongs(self) -> "DataUse":
        if (self.purpose == DS) != (self.disease is not None):
            raise ValueError(
                f"purpose {DS} (a specific disease) goes with a 'disease' such as MONDO:0004975, "
                "and no other purpose does"
            )
        return self

    def __str__(self) -> str:
        """Say it in a line for people."""
        about = f" ({self.disease})" if self.disease else ""
        profit = "not for profit" if self.non_profit else "perhaps for profit"
        methods = ", developing methods" if self.methods_development else ""
        return f"{PERMISSIONS[self.purpose]}{about}, {profit}{methods}"


@dataclass(frozen=True)
class Terms:
    """What some data may be used for. Make one with ``parse_terms``.

    Attributes:
        permissions: Codes with the disease of DS, else with an empty text.
        modifiers: Codes of ``CHECKED``. The others were acknowledged by a person.
    """

    permissions: frozenset[tuple[str, str]]
    modifiers: frozenset[str]

    def permit(self, use: DataUse) -> bool:
        """Tell whether the table at the top of this module allows ``use``."""
        return not self.objections(use)

    def objections(self, use: DataUse) -> list[str]:
        """Return why ``use`` is not permitted, in words; empty where it is."""
        against = [] if self._purpose_permitted(use) else [f"they permit {self._permitted()} only"]
        return against + [
            f"{code}: {CHECKED[code]}" for code in sorted(self.modifiers) if _breaks(use, code)
        ]

    def _purpose_permitted(self, use: DataUse) -> bool:
        return any(
            use.purpose in _WITHIN[code] and (code != DS or disease == use.disease)
            for code, disease in self.permissions
        )

    def _permitted(self) -> str:
        named = sorted(
            f"{PERMISSIONS[code]} ({' '.join(filter(None, (code, disease)))})"
            for code, disease in self.permissions
        )
        return " or ".join(named)


def _breaks(use: DataUse, modifier: str) -> bool:
    if modifier == NMDS:
        return use.methods_development
    if modifier == NPOA:
        return use.purpose in (GRU, POA)
    return modifier in (NPUNCU, NPU, NCU) and not use.non_profit


def parse_terms(codes: Iterable[str], acknowledged: Collection[str] = ()) -> Terms:
    """Read codes such as ``DUO:0000042``, or with what they are about, ``DUO:0000007 MONDO:...``.

    Args:
        acknowledged: Codes of modifiers that a person has taken on.

    Raises:
        ValueError: No permission is among them; a code is unknown; DS names no disease; or a
            modifier that no program can check was not acknowledged.

    >>> parse_terms(["DUO:0000006", "DUO:0000018"]).permit(DataUse(purpose="DUO:0000006"))
    False
    """
    permissions, modifiers = set(), set()
    for text in codes:
        code, _, about = text.strip().partition(" ")
        _require_usable(code, about.strip(), acknowledged)
        if code in PERMISSIONS:
            permissions.add((code, about.strip()))
        elif code in CHECKED:
            modifiers.add(code)
    if not permissions:
        raise ValueError(f"no permission among the codes; one is needed, such as {GRU} or {HMB}")
    return Terms(frozenset(permissions), frozenset(modifiers))


def public_terms(codes: Iterable[str]) -> str:
    """Return the codes as a site tells them: with their diseases, without any other words.

    >>> public_terms(["DUO:0000007 MONDO:0004975", "DUO:0000022 a town's name"])
    'DUO:0000007 MONDO:0004975; DUO:0000022'
    >>> public_terms([])
    'not stated'
    """
    told = []
    for text in codes:
        code, _, about = text.strip().partition(" ")
        has_disease = code == DS and re.fullmatch(_DISEASE, about.strip())
        told.append(f"{code} {about.strip()}" if has_disease else code)
    return "; ".join(told) or NOT_STATED


def _require_usable(code: str, about: str, acknowledged: Collection[str]) -> None:
    if code not in MEANING:
        raise ValueError(f"{code!r} is no code of the Data Use Ontology that is known here")
    if code == DS and not about:
        raise ValueError(f"{DS} needs its disease behind it, as in '{DS} MONDO:0004975'")
    if code in PERMISSIONS and code != DS and about:
        raise ValueError(f"{code} stands alone; {about!r} means nothing there")
    if code in FOR_PEOPLE and code not in acknowledged:
        raise ValueError(
            f"{code} ({FOR_PEOPLE[code]}) is for a person to check. Who has done so is written "
            f"under 'acknowledged', as in {code}: Dr A. Example"
        )
