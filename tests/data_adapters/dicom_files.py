"""DICOM files that tests write, change and look at."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from data_adapters.dicom import discover_dicom
from data_adapters.reasons import REASONS, Unusable

NOT_A_NUMBER = "nan"
SLICES = ("slice_001.dcm", "slice_002.dcm", "slice_003.dcm", "slice_004.dcm")
STORAGE = "1.2.840.10008.5.1.4.1.1."
ENHANCED_CT, ENHANCED_MR, ENHANCED_PET = STORAGE + "2.1", STORAGE + "4.1", STORAGE + "130"
CR, DX, MG = STORAGE + "1", STORAGE + "1.1", STORAGE + "1.2"
STRUCTURES = STORAGE + "481.3"


def edit(path, **values):
    """Set attributes of a file; None deletes one."""
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is None:
            del dataset[keyword]
        elif value == NOT_A_NUMBER:
            tag = pydicom.datadict.tag_for_keyword(keyword)
            dataset[tag] = pydicom.DataElement(tag, "DS", value, already_converted=True)
        else:
            setattr(dataset, keyword, value)
    if "SOPInstanceUID" in values:
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path)


def edit_images(folder, **values):
    for name in SLICES:
        edit(folder / name, **values)


def only(source):
    """Return the only candidate of a source."""
    (candidate,) = discover_dicom(source).candidates
    return candidate


def reason(source):
    """Return the code of the only scan in ``source``, or None where it can be read."""
    candidate = only(source)
    try:
        candidate.read()
    except Unusable as refused:
        entry = refused.at(candidate.where)
        assert entry.code in REASONS
        assert entry.sentence.endswith(".")
        assert "{" not in entry.sentence
        assert entry.remedy.endswith(".")
        return entry.code
    return None


def blank(sop_class, modality, **values):
    """Return a data set with what any image has."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UID(sop_class)
    dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PatientID = "P-17"
    dataset.Modality = modality
    dataset.StudyInstanceUID = "1.2.3.1"
    dataset.SeriesInstanceUID = "1.2.3.2"
    dataset.FrameOfReferenceUID = "1.2.3.3"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.BurnedInAnnotation = "NO"
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            del dataset[keyword]
    return dataset


def put_pixels(dataset, pixels, *, bits_stored=None):
    """Store one frame (y, x) or several (frame, y, x)."""
    dataset.SamplesPerPixel = 1
    if "PhotometricInterpretation" not in dataset:
        dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated = bits
    dataset.BitsStored = bits_stored or bits
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    raw = np.ascontiguousarray(pixels).tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OW"


def item(**values):
    """Return a sequence of one item."""
    inner = Dataset()
    for keyword, value in values.items():
        setattr(inner, keyword, value)
    return Sequence([inner])


def enhanced(sop_class, modality, pixels, positions, *, rescales=None, **values):
    """Return a multi-frame file (PS3.3 C.7.6.16): shared orientation and spacing, own positions."""
    dataset = blank(sop_class, modality, **values)
    put_pixels(dataset, pixels)
    dataset.SharedFunctionalGroupsSequence = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        PixelMeasuresSequence=item(PixelSpacing=[2.0, 1.5], SliceThickness=5.0),
    )
    frames = []
    for index, position in enumerate(positions):
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=list(position))
        if rescales is not None:
            slope, intercept = rescales[index]
            frame.PixelValueTransformationSequence = item(
                RescaleSlope=slope, RescaleIntercept=intercept
            )
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return dataset


def structures(images, regions, *, frame=None, **values):
    """Return an RTSTRUCT of ``{name: [contour, ...]}``, each contour (point, x y z) in mm."""
    first = images[0]
    dataset = blank(STRUCTURES, "RTSTRUCT", **values)
    for keyword in ("PatientID", "StudyInstanceUID"):
        setattr(dataset, keyword, first.get(keyword))
    del dataset.FrameOfReferenceUID
    frame = frame or first.FrameOfReferenceUID
    files = [
        item(ReferencedSOPClassUID=i.SOPClassUID, ReferencedSOPInstanceUID=i.SOPInstanceUID)[0]
        for i in images
    ]
    series = item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=Sequence(files))
    dataset.ReferencedFrameOfReferenceSequence = item(
        FrameOfReferenceUID=frame,
        RTReferencedStudySequence=item(RTReferencedSeriesSequence=series),
    )
    rois, contours = [], []
    for number, (name, polygons) in enumerate(regions.items(), start=1):
        rois += item(ROINumber=number, ReferencedFrameOfReferenceUID=frame, ROIName=name)
        drawn = [_contour(polygon) for polygon in polygons]
        contours += item(ReferencedROINumber=number, ContourSequence=Sequence(drawn))
    dataset.StructureSetROISequence = Sequence(rois)
    dataset.ROIContourSequence = Sequence(contours)
    return dataset


def _contour(polygon, kind="CLOSED_PLANAR"):
    data = [f"{value:.6f}"[:16] for value in np.asarray(polygon).ravel()]
    return item(ContourGeometricType=kind, NumberOfContourPoints=len(polygon), ContourData=data)[0]


def save(dataset, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_medium(folder, medium):
    """Write the files below a folder as a file set with a DICOMDIR (PS3.10 8)."""
    files = FileSet()
    for path in sorted(folder.rglob("*.dcm")):
        dataset = pydicom.dcmread(path)
        dataset.SeriesNumber = dataset.get("SeriesNumber") or 1
        dataset.ContentLabel = dataset.get("ContentLabel") or "LABELS"
        dataset.ContentDate, dataset.ContentTime = "20000101", "120000"
        dataset.InstanceNumber = dataset.get("InstanceNumber") or 1
        files.add(dataset)
    files.write(medium)
    files._stage["t"].cleanup()
    return medium


def targets_of(folder, key, column="subject"):
    """Write a table that gives one scan the target 2.5; return what names it in a site file."""
    table = folder.parent.parent / "targets.csv"
    table.write_text(f"id,value\n{key},2.5\n")
    return {"path": table, "key": column, "id_column": "id", "column": "value"}
