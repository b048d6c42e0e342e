"""Other forms of a scan that was written as single slices and a segmentation."""

import numpy as np
import pydicom
from pydicom.uid import generate_uid

from tests.data_adapters.dicom_files import ENHANCED_MR, SLICES, enhanced, item, save, structures

LPS = np.diag([-1.0, -1.0, 1.0])


def enhance(folder):
    """Put one enhanced MR image in place of the slices, in the same series and frame."""
    slices = [pydicom.dcmread(folder / name) for name in SLICES]
    first = slices[0]
    named = (
        "PatientID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
    )
    dataset = enhanced(
        ENHANCED_MR,
        "MR",
        np.stack([one.pixel_array for one in slices]),
        [one.ImagePositionPatient for one in slices],
        **{name: first.get(name) for name in named},
    )
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = first.ImageOrientationPatient
    measures = shared.PixelMeasuresSequence[0]
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[first.SOPInstanceUID])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    for name in SLICES:
        (folder / name).unlink()
    save(dataset, folder / "multiframe.dcm")
    for name in ("seg.dcm", "structures.dcm"):
        if (folder / name).is_file():
            _name_one_file(folder / name, dataset)


def _name_one_file(path, image):
    """Let labels say that they were drawn on this one file."""
    labels = pydicom.dcmread(path)
    file = item(
        ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID
    )
    if labels.Modality == "SEG":
        labels.ReferencedSeriesSequence[0].ReferencedInstanceSequence = file
    else:
        frame = labels.ReferencedFrameOfReferenceSequence[0]
        (study,) = frame.RTReferencedStudySequence
        study.RTReferencedSeriesSequence[0].ContourImageSequence = file
    labels.save_as(path)


def outline(folder, labels_zyx, affine_ras, names):
    """Put a structure set in place of the segmentation: around the same voxels, edge to edge.

    Args:
        labels_zyx: One rectangle in one slice for each label value.
        names: Label value to the name of its region.
    """
    images = [pydicom.dcmread(folder / name) for name in SLICES]
    regions = {}
    for value, name in names.items():
        plane, (y0, x0), (y1, x1) = _box(labels_zyx == value)
        corners = np.array([(plane, y0, x0), (plane, y0, x1), (plane, y1, x1), (plane, y1, x0)])
        regions[name] = [(corners @ affine_ras[:3, :3].T + affine_ras[:3, 3]) @ LPS]
    (folder / "seg.dcm").unlink()
    dataset = structures(images, regions)
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[images[0].SOPInstanceUID, "structures"])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[dataset.SOPInstanceUID])
    save(dataset, folder / "structures.dcm")


def _box(mask):
    """Return the slice of a rectangle in one slice, and its edges, half a voxel further out."""
    z, y, x = np.nonzero(mask)
    assert len(set(z)) == 1 and mask.sum() == (np.ptp(y) + 1) * (np.ptp(x) + 1)
    return z[0], (y.min() - 0.5, x.min() - 0.5), (y.max() + 0.5, x.max() + 0.5)
