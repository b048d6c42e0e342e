"""Sites whose images carry identifiers everywhere that DICOM and OME-Zarr can carry them.

Every token is a word of its own, so that a hit says where it came from.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from federation.demo.folders import SiteFacts, SiteFolder, create_sites
from tests.leaks.variants import Token

SHAPE_ZYX = (3, 80, 64)
SPACING_MM = (6.0, 2.75, 2.75)
UID_ROOT = "1.2.826.0.1.3680043.9.77411"
PREAMBLE = b"Vorspann Habakuk".ljust(128, b"\0")
ARCHIVE = "Archiv Professor Kleinschmidt"

IN_DICOM = (
    Token("Wurzelbacher^Ottokar", "name"),
    Token("Jägerström^Zoë", "name"),
    Token("MRN0047-113077"),
    Token("Nimmerleinskasse"),
    Token("OLD-ID-5519273"),
    Token("19610203", "date"),
    Token("20170419", "date"),
    Token("ACC7719034"),
    Token("Hintertupfing"),
    Token("Kreuzhuber^Notburga", "name"),
    Token(UID_ROOT),
    Token("Rosenquist"),
    Token("Drahtseil^Kunigunde", "name"),
    Token("Spitzweg-Innen"),
    Token("Hobelspan"),
    Token("Adelgunde"),
    Token("Verlaufsbild"),
    Token("SER-440-8812"),
    Token("Habakuk"),
    Token("Segmentor^Philomena", "name"),
    Token("Bettplatz"),
    Token("Umrandung"),
    Token("Kaltenbrunn"),
    Token("Aufnahmestapel"),
    Token(ARCHIVE),
)
IN_OME_ZARR = (
    Token("Quellwasser"),
    Token("Tiefenbacher^Leopoldine", "name"),
    Token("19580711", "date"),
    Token("Linksauge"),
    Token("Farbkanal"),
    Token("Prozessnotiz"),
    Token("Arraynotiz"),
    Token("Maskennotiz"),
    Token("Schnittserie"),
    Token(ARCHIVE),
)


def facts(site: str, kind: str) -> SiteFacts:
    labels = {1: ("Grey matter", "grey matter"), 2: ("White matter", "white matter")}
    if kind == "ome_zarr":
        labels = {value: (str(value), name) for value, (_, name) in labels.items()}
    return SiteFacts(
        site=site,
        kind=kind,
        dataset=f"{site}-images",
        licence="CC-BY-4.0",
        labels=labels,
        declared_by="a test",
        reason="nobody is in them",
        subjects_between=(1, 60),
        epsilon=100.0,
    )


def lay_out(folder: Path, site: str, kind: str, *, num_training: int = 3) -> Path:
    """Write a site with planted identifiers; return its folder.

    Images lie under ``ARCHIVE``, outside of the site's own folder.
    """
    (place,) = create_sites(folder, [facts(site, kind)])
    for number in range(num_training + 1):
        part = "protected" if number < num_training else "public"
        _write(place, part, number)
    archive = folder / ARCHIVE / site
    archive.mkdir(parents=True)
    text = place.site_file.read_text()
    for part in ("protected", "public"):
        (place.path / part).rename(archive / part)
        assert f"path: {part}," in text
        text = text.replace(f"path: {part},", f"path: {json.dumps(str(archive / part))},")
    place.site_file.write_text(text)
    plant = plant_dicom if kind == "dicom" else _plant_ome_zarr
    for subject in sorted(path for path in archive.glob("*/*") if path.is_dir()):
        plant(subject)
    return place.path


def source_of(site: Path) -> Path:
    return site.parent / ARCHIVE / site.name


def _write(place: SiteFolder, part: str, number: int) -> None:
    random = np.random.default_rng([number, len(place.facts.site)])
    labels = np.zeros(SHAPE_ZYX, np.uint8)
    labels[:, 10:60, 10:30], labels[:, 20:50, 35:55] = 1, 2
    image = (labels * 300.0 + random.normal(500, 40, SHAPE_ZYX)).astype(np.int16)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]], affine[3, 3] = SPACING_MM, 1
    affine[:3, 3] = -80, -90, 20
    identifier = f"MRN0047-113077{number}"
    if place.facts.kind == "ome_zarr":
        identifier = f"Spender Quellwasser {number}"
    place.write_scan((part, identifier), 0, image_zyx=image, labels_zyx=labels, affine_ras=affine)


def plant_dicom(subject: Path) -> None:
    """Rewrite one subject's files, then rename them and their folders."""
    for number, path in enumerate(sorted(subject.rglob("*.dcm"))):
        header = pydicom.dcmread(path)
        _plant_header(header)
        if header.Modality == "SEG":
            _plant_segmentation(header)
        header.preamble = PREAMBLE
        header.save_as(path, enforce_file_format=True)
        path.rename(path.with_name(f"Wurzelbacher_Ottokar_{number:04d}.dcm"))
    for scan in list(subject.iterdir()):
        scan.rename(scan.with_name("Aufnahmestapel ACC7719034"))
    subject.rename(subject.with_name(f"Patient Wurzelbacher, Ottokar ({subject.name})"))


def _plant_header(header: Dataset) -> None:
    header.PatientName = "Wurzelbacher^Ottokar"
    header.SpecificCharacterSet = "ISO_IR 192"
    header.OtherPatientNames = "Jägerström^Zoë"
    header.IssuerOfPatientID = "Nimmerleinskasse"
    header.PatientBirthDate = "19610203"
    header.StudyDate = header.SeriesDate = header.ContentDate = "20170419"
    header.AccessionNumber = "ACC7719034"
    header.InstitutionName = "Spital Hintertupfing"
    header.ReferringPhysicianName = "Kreuzhuber^Notburga"
    header.PatientComments = "Tante heisst Adelgunde"
    header.SeriesDescription = "Verlaufsbild"
    header.DeviceSerialNumber = "SER-440-8812"
    header.OtherPatientIDsSequence = Sequence([_item(PatientID="OLD-ID-5519273")])
    header.RequestAttributesSequence = Sequence(
        [_item(RequestedProcedureDescription="Kontrolle nach Hobelspan")]
    )
    _plant_private(header)
    _change_uids(header)
    _change_uids(header.file_meta)


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _plant_private(header: Dataset) -> None:
    """Private elements at the top, in an item of theirs, and nested in a standard sequence."""
    block = header.private_block(0x0011, "ACME PRIVAT", create=True)
    block.add_new(0x01, "LO", "Zimmer Rosenquist 17")
    block.add_new(0x02, "UN", b"\0\1Kaltenbrunn\0")
    inner = _item(PatientName="Drahtseil^Kunigunde", PatientBirthDate="19610203")
    block.add_new(0x03, "SQ", Sequence([inner]))
    nested = header.RequestAttributesSequence[0].private_block(0x0013, "ACME INNEN", create=True)
    nested.add_new(0x01, "LT", "Akte Spitzweg-Innen")


def _change_uids(header: Dataset) -> None:
    """Give every instance, series, study and frame of reference a UID under one known root."""
    for element in header.iterall():
        if element.VR == "UI" and str(element.value).startswith(pydicom.uid.PYDICOM_ROOT_UID):
            element.value = f"{UID_ROOT}.{str(element.value)[-24:].lstrip('0.')}"


def _plant_segmentation(header: Dataset) -> None:
    header.ContentCreatorName = "Segmentor^Philomena"
    header.ContentDescription = "Bettplatz 14, Wurzelbacher"
    for segment in header.SegmentSequence:
        segment.SegmentDescription = "Umrandung durch Segmentor"
        segment.TrackingID = "Wurzelbacher 3"
        segment.TrackingUID = f"{UID_ROOT}.4.4"


def _plant_ome_zarr(subject: Path) -> None:
    for image in sorted(subject.glob("*.zarr")):
        _edit(image / "zarr.json", _plant_image)
        labels = next(path for path in (image / "labels").iterdir() if path.is_dir())
        _edit(labels / "zarr.json", lambda a: a.update(note="Maskennotiz Tiefenbacher"))
        for array in sorted(p.parent for p in image.rglob("zarr.json") if _is_array(p)):
            _edit(array / "zarr.json", lambda a: a.update(note="Arraynotiz", born="1958-07-11"))
        image.rename(image.with_name("Schnittserie Tiefenbacher.ome.zarr"))


def _plant_image(attributes: dict) -> None:
    attributes["patient"] = {"name": "Tiefenbacher^Leopoldine", "born": "11.07.1958"}
    image = attributes["ome"]
    image["multiscales"][0]["name"] = "Linksauge"
    image["multiscales"][0]["metadata"] = {"description": "Prozessnotiz Tiefenbacher"}
    channel = {"label": "Farbkanal", "color": "00FFFF", "active": True}
    channel["window"] = {"min": 0, "max": 1000, "start": 0, "end": 1000}
    image["omero"] = {"channels": [channel], "name": "Tiefenbacher, Leopoldine"}


def _is_array(metadata: Path) -> bool:
    return json.loads(metadata.read_text())["node_type"] == "array"


def _edit(metadata: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(metadata.read_text())
    change(values.setdefault("attributes", {}))
    values.pop("consolidated_metadata", None)
    metadata.write_text(json.dumps(values))
