"""Identifiers where NIfTI in BIDS, RTSTRUCT and a PACS can carry them, besides ``planting``."""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom

from data_adapters.writing import write_dicom_scan
from tests.data_adapters.dicom_files import structures
from tests.leaks.planting import ARCHIVE, IN_DICOM, PREAMBLE, SHAPE_ZYX, SPACING_MM, plant_dicom
from tests.leaks.variants import Token

# What the segmentation of ``planting`` alone holds.
_OF_SEG = {"Segmentor^Philomena", "Umrandung", "Bettplatz"}
_OF_ANY = tuple(token for token in IN_DICOM if token.text not in _OF_SEG)
IN_RTSTRUCT = (
    *_OF_ANY,
    Token("Zeichner^Walburga", "name"),
    Token("Bestrahlungsplan"),
    Token("Randnotiz"),
    Token("Strahlenkonsil"),
    Token("Planungsserver"),
)
IN_PACS = (*(token for token in IN_DICOM if token.text != ARCHIVE), Token("Grosshirnkontrolle"))
IN_NIFTI = (
    Token("Quittenbaum"),
    Token("Ohrwaschl^Theobald", "name"),
    Token("19490523", "date"),
    Token("Hilfsdatei"),
    Token("Absichtsname"),
    Token("Datenbankname"),
    Token("Erweiterung"),
    Token("Vorpackname"),
    Token("Teilnehmerliste"),
    Token("Beizettel"),
    Token("Verfasserin"),
    Token("Aufnahmeart"),
    Token("Etikettname"),
    Token(ARCHIVE),
)


def lay_out_nifti(site: Path, archive: Path, *, num_training: int = 2) -> None:
    """Write a site of BIDS data sets."""
    for part, numbers in _parts(num_training):
        root = archive / part
        for number in numbers:
            _bids_subject(root, number)
        _bids_tables(root)
    source = {
        "kind": "nifti",
        "labels": "_dseg",
        "classes": {1: "grey matter", 2: "white matter"},
        "modality": "MR",
    }
    write_site_file(site, {part: source | {"path": str(archive / part)} for part in PARTS})


def lay_out_rtstruct(site: Path, archive: Path, *, num_training: int = 2) -> None:
    """Write a site of series with contours."""
    for part, numbers in _parts(num_training):
        for number in numbers:
            folder = archive / part / f"MRN0047-113077{number}"
            _series(folder / "scan", number)
            _contours(folder / "scan")
            plant_dicom(folder)
    source = {"kind": "dicom", "labels": "rtstruct", "classes": CLASSES}
    write_site_file(site, {part: source | {"path": str(archive / part)} for part in PARTS})


def lay_out_pacs(site: Path, folder: Path, url: str, *, num_training: int = 2) -> None:
    """Write a site that asks a PACS, and what the PACS is to be given, into ``folder``."""
    for part, numbers in _parts(num_training):
        for number in numbers:
            subject = folder / part / f"MRN0047-113077{number}"
            _series(subject / "scan", number, f"STUDIENARM {part} Grosshirnkontrolle")
            plant_dicom(subject)
    source = {"kind": "dicomweb", "url": url, "modality": "MR", "classes": CLASSES}
    write_site_file(
        site,
        {
            part: source | {"path": f"mirror-{part}", "study_description": f"STUDIENARM {part}*"}
            for part in PARTS
        },
    )


PARTS = ("protected", "public")
CLASSES = {"Grey matter": "grey matter", "White matter": "white matter"}


def write_site_file(site: Path, sources: dict) -> None:
    site.mkdir(parents=True, exist_ok=True)
    document = {
        "site": site.name,
        "dataset": f"{site.name}-images",
        "licence": "CC-BY-4.0",
        "modality": "MR",
        "state": "state",
        "protected": sources["protected"],
        "public": {"source": sources["public"], "declared_by": "a test", "reason": "nobody"},
        "policy": {"epsilon": 100.0, "delta": 1e-5, "subjects_between": [1, 60]},
    }
    (site / "site.yaml").write_text(json.dumps(document))


def _parts(num_training: int):
    return [("protected", range(num_training)), ("public", [num_training])]


def _volume(number: int):
    """Return image and labels (z, y, x), and the affine of their indices, RAS+ mm."""
    random = np.random.default_rng([7, number])
    labels = np.zeros(SHAPE_ZYX, np.uint8)
    labels[:, 10:60, 10:30], labels[:, 20:50, 35:55] = 1, 2
    image = (labels * 300.0 + random.normal(500, 40, SHAPE_ZYX)).astype(np.int16)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]], affine[3, 3] = SPACING_MM, 1
    affine[:3, 3] = -80, -90, 20
    return image, labels, affine


# DICOM


def _series(scan: Path, number: int, study: str = "") -> None:
    image, labels, affine = _volume(number)
    write_dicom_scan(
        scan,
        image_zyx=image,
        labels_zyx=labels,
        affine_ras=affine,
        segment_labels=dict(enumerate(CLASSES, start=1)),
        patient_id=f"MRN0047-113077{number}",
    )
    for path in scan.iterdir():
        header = pydicom.dcmread(path)
        header.StudyDescription = study
        header.save_as(path)


def _contours(scan: Path) -> None:
    """Put contours in place of the segmentation: the two rectangles of ``_volume``."""
    (scan / "seg.dcm").unlink()
    images = [pydicom.dcmread(path) for path in sorted(scan.iterdir())]
    corners = {"Grey matter": (10, 60, 10, 30), "White matter": (20, 50, 35, 55)}
    _, _, affine = _volume(0)
    regions = {
        name: [_rectangle(z, box, affine) for z in range(3)] for name, box in corners.items()
    }
    drawn = structures(images, regions)
    drawn.StructureSetLabel = "Bestrahlungsplan"
    drawn.StructureSetDescription = "Strahlenkonsil"
    drawn.OperatorsName = "Zeichner^Walburga"
    drawn.StationName = "Planungsserver"
    for roi in drawn.StructureSetROISequence:
        roi.ROIDescription = "Randnotiz zu Wurzelbacher"
        roi.private_block(0x3007, "ACME RT", create=True).add_new(1, "LO", "Zeichner, Walburga")
    drawn.ROIContourSequence[0].ContourSequence[0].private_block(
        0x3007, "ACME RT", create=True
    ).add_new(1, "PN", "Zeichner^Walburga")
    drawn.preamble = PREAMBLE
    drawn.save_as(scan / "structures.dcm", enforce_file_format=True)


def _rectangle(z: int, box: tuple[int, int, int, int], affine):
    top, bottom, left, right = (edge - 0.5 for edge in box)
    corners = np.array([(z, top, left), (z, top, right), (z, bottom, right), (z, bottom, left)])
    return (corners @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1]


# NIfTI


def _bids_subject(root: Path, number: int) -> None:
    name = f"sub-Quittenbaum{number}"
    start = f"{name}_ses-19490523_acq-Aufnahmeart"
    folder = root / name / "ses-19490523" / "anat"
    beside = root / "derivatives" / "Ohrwaschl Theobald" / name / "ses-19490523" / "anat"
    image, labels, affine = _volume(number)
    _nifti(folder / f"{start}_T1w.nii.gz", image, affine)
    _nifti(beside / f"{start}_dseg.nii.gz", labels, affine)
    sidecar = {"InstitutionName": "Beizettel", "PatientName": "Ohrwaschl^Theobald"}
    (folder / f"{start}_T1w.json").write_text(json.dumps(sidecar))


def _nifti(path: Path, array_zyx, affine_zyx) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array_zyx.T, affine_zyx[:, [2, 1, 0, 3]])
    header = image.header
    header.set_xyzt_units("mm")
    header["descrip"] = b"Ohrwaschl^Theobald 23.05.1949"
    header["aux_file"] = b"Hilfsdatei"
    header["intent_name"] = b"Absichtsname"
    header["db_name"] = b"Datenbankname"
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Erweiterung Ohrwaschl"))
    # gzip keeps a name of its own.
    with path.open("wb") as file, gzip.GzipFile("Vorpackname.nii", "wb", fileobj=file) as packed:
        packed.write(image.to_bytes())


def _bids_tables(root: Path) -> None:
    description = {"Name": "Theobalds Knie", "BIDSVersion": "1.9.0", "Authors": ["Verfasserin"]}
    (root / "dataset_description.json").write_text(json.dumps(description))
    rows = [f"{path.name}\t1949-05-23\tTeilnehmerliste" for path in sorted(root.glob("sub-*"))]
    (root / "participants.tsv").write_text("\n".join(["participant_id\tborn\tgroup", *rows]))
    (root / "dseg.tsv").write_text("index\tname\n1\tEtikettname\n2\tOhrwaschl\n")
