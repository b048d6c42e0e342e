"""Writes the commented site file that ``cohortium site init`` leaves for a person to correct."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10
from pathlib import Path

from federation.documents import parse_document
from federation.errors import FederationError
from federation.files import create_atomically
from federation.ledger.bounds import delta_for
from federation.look import Seen
from federation.site_config import SiteConfig

# What images without labels are given until a person says what is to be learned from them.
NO_LABEL = "name of the label in your files"
# Folders that say nothing of what is in them.
_NAMELESS = frozenset({"data", "dicom", "images", "nifti", "protected", "public", "zarr"})


@dataclass(frozen=True)
class Answers:
    """What a person says about a site; the rest of the file is seen or has a default.

    Attributes:
        subjects_between: Public bounds on the number of protected subjects.
        epsilon: Lifetime budget of each protected subject.
    """

    site: str
    dataset: str
    licence: str
    modality: str
    subjects_between: tuple[int, int]
    epsilon: float = 10.0

    @property
    def delta(self) -> float:
        """Return a delta that gives no subject away whole: at most 1e-5 and 1/N^2."""
        return min(1e-5, delta_for(self.subjects_between[1]))


def suggested(folder: Path, seen: Sequence[Seen]) -> Answers:
    """Return answers to start from; a person decides.

    The bounds are powers of ten around what was seen: they are public, so choose wider ones if
    that already tells too much.
    """
    number = max(1, sum(one.num_subjects for one in seen))
    low = 10 ** floor(log10(number))
    modalities = [modality for one in seen for modality in one.modalities]
    folder = folder.resolve()
    named = folder.parent if folder.name in _NAMELESS else folder
    return Answers(
        site="my-site",
        dataset=slug(named.name),
        licence="no licence: for this study only",
        modality=modalities[0] if modalities else "OT",
        subjects_between=(low, 10 * low),
    )


def slug(text: str) -> str:
    """Return a name of small letters, digits and hyphens.

    >>> slug("Brain MR (2024)"), slug("…")
    ('brain-mr-2024', 'data')
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:63].strip("-")
    return name or "data"


def write_site_file(path: Path, answers: Answers, seen: Sequence[Seen]) -> None:
    """Write a new site file; an old one is never touched.

    Raises:
        FederationError: There is one already, or an answer cannot stand in a site file.
    """
    text = site_file_text(path.absolute(), answers, seen)
    _require_valid(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        create_atomically(path, text.encode(), mode=0o644)
    except FileExistsError as error:
        raise FederationError(
            f"{path} exists already and was not touched. Edit it, or give another --out."
        ) from error


def _require_valid(text: str) -> None:
    import yaml

    parse_document(yaml.safe_load(text), SiteConfig, "these answers")


def site_file_text(path: Path, answers: Answers, seen: Sequence[Seen]) -> str:
    """Return the text of a site file that will lie at ``path``."""
    low, high = answers.subjects_between
    return f"""\
# The site file of {answers.site}. It stays at the site. Relative paths start at its folder.
# Check it with: cohortium site check {path.name}

# These travel: they name the site and its data set in tables, ledgers and tracking.
site: {_quoted(answers.site)}
dataset: {_quoted(answers.dataset)}
licence: {_quoted(answers.licence)}
modality: {_quoted(answers.modality)}

# Keys, privacy ledger, cache and outbox. Keep backups of it, but never put an older one back:
# its ledger would have forgotten what was spent since.
state: {_quoted(_state(path, seen))}

# A small file on another disk, which a restored backup of 'state' does not bring back: it shows
# that the ledger is an older copy, before anything is charged on it.
# high_water_mark: /mnt/other-disk/site.mark

# A folder that all site files of your institution name: whoever is in several of its data sets is
# found there, and has one budget. Without it, data sets are not compared.
# linking: /srv/cohortium/linking

# Images that are trained on, under privacy. Their pixels and identifiers never leave the site.
# One source, or a list of sources that hold the same subjects or more of them.
# 'classes' maps each label as your files have it to the name that experiments use. A scan with a
# label that is not listed is set aside, with the reason, and the others go on.
protected:
{"".join(_source(path, one) for one in seen)}
# Subjects whose exact scores may leave: only images that anyone may see. Without this block the
# site trains but reports no scores. Whoever declares them public answers for it, by name.
# public:
#   source: {{kind: dicom, path: public, classes: {{"Liver": "liver"}}}}
#   declared_by: Dr A. Example
#   reason: published phantom data

# What the data may be used for, in codes of GA4GH's Data Use Ontology. An experiment that
# declares another use is refused. DUO:0000042 general research, DUO:0000006 health research,
# DUO:0000007 MONDO:... one disease, DUO:0000018 not for profit. Without it, nothing is checked.
# data_use: ["DUO:0000006", "DUO:0000021"]
# acknowledged: {{"DUO:0000021": Dr A. Example}}   # who saw the ethics approval

# Consent of each subject: a table (CSV or Parquet) with a row for each subject and purpose.
# Whoever has no row that permits the experiment today is not sampled.
# consent: {{path: consent.csv, id_column: subject, purpose_column: purpose,
#           expires_column: expires}}

# For images of no people (phantoms, cell lines, plants). It goes into the ledger when that is
# made, permits experiments without privacy, and cannot be added later.
# Headers that hold a date of birth, an age or a sex contradict it, unless somebody has checked
# them: headers_checked_by: Dr B. Example
# human_subjects: {{value: false, who: Dr A. Example, why: water phantoms}}

policy:
  # What all experiments together may ever cost one protected subject (differential privacy, the
  # subject as the unit). The ledger refuses, before any training, what would go past it. It is
  # fixed when the ledger is made, at the first run.
  epsilon: {answers.epsilon!r}
  # Chance that the promise of epsilon fails; at most 1 / (number of subjects)^2.
  delta: {answers.delta:.1e}
  # true permits experiments without any privacy on the protected subjects.
  allow_unprotected: false
  # Public bounds on the number of protected subjects; outside them the site does not start. The
  # exact number stays here. Write bounds that you would tell anybody.
  subjects_between: [{low}, {high}]
  # How the number of subjects is told: withheld, rounded (to ten) or exact.
  release_counts: withheld
"""


def _state(path: Path, seen: Sequence[Seen]) -> str:
    """Return a place for the state that no source would read as images."""
    home = path.parent
    for one in seen:
        root = _root(one)
        if home.resolve().is_relative_to(root):
            return _relative(root.with_name(f"{root.name}-cohortium-state"), home)
    return "state"


def _root(one: Seen) -> Path:
    path = one.path.resolve()
    return path.parent if path.is_file() else path


def _relative(path: Path, home: Path) -> str:
    """Return a path as the site file has it: relative where that stays near, else absolute."""
    text = os.path.relpath(path.resolve(), home.resolve())
    return str(path.resolve()) if text.startswith("../..") else Path(text).as_posix()


def _source(path: Path, one: Seen) -> str:
    lines = {"dicom": _dicom, "ome_zarr": _ome_zarr, "nifti": _nifti}[one.kind](one)
    head = [f"- kind: {one.kind}", f"  path: {_quoted(_relative(one.path, path.parent))}"]
    about = [
        '  # Who assigned the identifiers, and which of them are one person (columns "id" and',
        '  # "subject"). Several sources need it: the same number could be two people.',
        "  # subjects: {issuer: NORTH-HOSPITAL, crosswalk: crosswalk.csv}",
    ]
    return "".join(f"  {line}\n" for line in [*head, *lines, *about])


def _dicom(one: Seen) -> list[str]:
    lines = _classes(one, quoted=True)
    modality = one.modalities[0] if one.modalities else "MR"
    selected = f"  select: {{modality: {modality}}}"
    what = "Which image series of each study: exactly one has to match."
    if len(one.modalities) > 1:
        lines += [f"  # {what} Seen: {', '.join(one.modalities[:8])}.", selected]
    else:
        lines += [f"  # {what}", f'  # {selected.strip()[:-1]}, description: "*T1*"}}']
    if set(one.modalities) - {"CT", "MR", "PT"}:
        lines += [
            "  # Kinds of images of which you have checked that no text is burned into the pixels:",
            "  # clean_modalities: [DX, CR]",
        ]
    return lines


def _ome_zarr(one: Seen) -> list[str]:
    return [
        "  # The name of the labels group inside each image.",
        f"  labels: {_quoted(one.group or 'labels')}",
        *_classes(one, quoted=False),
        "  # The coarsest level that is still finer is read; the finest one without it.",
        "  # spacing: 0.65 um",
        "  # Of axes that state none: unit: micrometer",
    ]


def _nifti(one: Seen) -> list[str]:
    return [
        "  # The ends of the names of images and of their labels.",
        f"  image: {_quoted(one.image or '_T1w')}",
        f"  labels: {_quoted(one.group or '_dseg')}",
        *_classes(one, quoted=False),
    ]


def _classes(one: Seen, *, quoted: bool) -> list[str]:
    """Return the mapping, each label on its own name; a placeholder where none was seen."""
    labels = one.labels or ({NO_LABEL: "class"} if quoted else {"1": "class 1"})
    lines = [] if one.labels else ["  # No labels were seen. Correct this:"]
    lines.append("  classes:")
    for label, name in sorted(labels.items()):
        key = _quoted(label) if quoted else str(int(label))
        lines.append(f"    {key}: {_quoted(_class_name(name))}")
    return lines


def _class_name(label: str) -> str:
    """Return a class name for a label: the experiment's own names are for a person to write."""
    return " ".join(label.casefold().split())[:64] or "class"


def _quoted(text: str) -> str:
    """A JSON string is a YAML string; no name can then be read as a number, a truth or a map."""
    return json.dumps(text, ensure_ascii=False)
