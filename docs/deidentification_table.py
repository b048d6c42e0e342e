"""Write data_adapters/deidentification.json from the table that dicom-anonymizer ships.

The table is DICOM PS3.15, table E.1-1 (Basic Application Level Confidentiality Profile), edition
2026c, as read by dicom-anonymizer 2.1.0 (BSD-3-Clause). It is data: nothing of the package runs at
a site. Run this again for a later edition, and see what changed in the file:

    pip install --no-deps dicom-anonymizer==2.1.0
    python docs/deidentification_table.py
"""

import json
import re
from importlib.metadata import version
from pathlib import Path

from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from pydicom.datadict import keyword_for_tag

EDITION = "2026c"
OUTPUT = Path(__file__).parents[1] / "data_adapters" / "deidentification.json"
# PS3.15 table E.1-1a, by the names the package gives the lists.
ACTIONS = {
    "D_TAGS": "D",
    "Z_TAGS": "Z",
    "X_TAGS": "X",
    "U_TAGS": "U",
    "Z_D_TAGS": "Z/D",
    "X_Z_TAGS": "X/Z",
    "X_D_TAGS": "X/D",
    "X_Z_D_TAGS": "X/Z/D",
    "X_Z_U_STAR_TAGS": "X/Z/U*",
}
_ENTRY = re.compile(r"\((0x\w+), (0x\w+)[^)]*\),\s*# (.+)")


def names() -> dict[tuple[int, int], str]:
    """Return the attributes' names: some are too new for pydicom's dictionary."""
    found = _ENTRY.findall(Path(table.__file__).read_text(encoding="utf-8"))
    return {(int(g, 16), int(e, 16)): re.sub(r"[^A-Za-z0-9]", "", name) for g, e, name in found}


def rows() -> dict[str, list[str]]:
    """Return ``ggggeeee`` to (action, keyword); x stands for any digit."""
    named = names()
    found = {}
    for attribute, action in ACTIONS.items():
        for group, element, *mask in getattr(table, attribute):
            keyword = keyword_for_tag(group << 16 | element) or named[group, element]
            found[pattern(group, element, mask)] = [action, keyword]
    return dict(sorted(found.items()))


def pattern(group: int, element: int, mask: list[int]) -> str:
    """Return the tag in hexadecimal digits, with x where the mask has none.

    >>> pattern(0x6000, 0x3000, [0xFF00, 0xFFFF])
    '60xx3000'
    """
    digits = f"{group:04x}{element:04x}"
    known = f"{mask[0]:04x}{mask[1]:04x}" if mask else "ffffffff"
    return "".join(d if k == "f" else "x" for d, k in zip(digits, known, strict=True))


def document() -> str:
    """Return the file's text: one attribute a line, so that a change of edition can be read."""
    head = {
        "source": "DICOM PS3.15, table E.1-1",
        "edition": EDITION,
        "through": f"dicom-anonymizer {version('dicom-anonymizer')}",
    }
    lines = ",\n".join(f"  {json.dumps(tag)}: {json.dumps(row)}" for tag, row in rows().items())
    opening = json.dumps(head, indent=1).removesuffix("\n}")
    return f'{opening},\n "attributes": {{\n{lines}\n }}\n}}\n'


if __name__ == "__main__":
    OUTPUT.write_text(document(), encoding="utf-8")
