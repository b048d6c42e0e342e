"""Real files: what is read, and the reason for what is not."""

import shutil

import numpy as np
import pytest

from data_adapters.dicom import discover_dicom
from data_adapters.reasons import Unusable
from data_adapters.sources import DicomSource

pytestmark = pytest.mark.real_data
OVERLAPS = ("GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE")


def gathered(real_data, tmp_path, *names):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in names:
        path = real_data / name
        if not path.exists():
            pytest.skip(f"the real data has no {name}")
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            shutil.copy(file, folder / f"{path.stem}-{file.name}")
    return folder


def only_scan(folder, classes):
    (candidate,) = discover_dicom(DicomSource(path=folder, classes=classes)).candidates
    return candidate.read()


def nrrd(path):
    """Return a gzip NRRD's (k, j, i) array, its LPS directions as columns, and its origin."""
    import gzip

    head, _, body = path.read_bytes().partition(b"\n\n")
    fields = dict(
        line.split(": ", 1)
        for line in head.decode().splitlines()
        if ": " in line and line[0] != "#"
    )
    data = gzip.decompress(body) if fields["encoding"] in {"gzip", "gz"} else body
    dtype = {"short": np.int16, "unsigned char": np.uint8, "uint8": np.uint8}[fields["type"]]
    shape = [int(size) for size in fields["sizes"].split()][::-1]
    vectors = [
        [float(v) for v in group.strip("()").split(",")]
        for group in fields["space directions"].split()
    ]
    origin = [float(v) for v in fields["space origin"].strip("()").split(",")]
    assert fields["space"] == "left-posterior-superior"
    return np.frombuffer(data, dtype).reshape(shape), np.array(vectors).T, np.array(origin)


def world_points(mask_zyx, affine_ras):
    indices = np.argwhere(mask_zyx)
    points = (affine_ras @ np.c_[indices, np.ones(len(indices))].T).T[:, :3]
    return np.array(sorted(map(tuple, np.round(points, 2))))


def test_a_liver_lies_where_dcmqi_says_it_does(real_data, tmp_path):
    folder = gathered(real_data, tmp_path, "dcmqi/ct-3slice", "dcmqi/liver.dcm")
    scan = only_scan(folder, {"Liver": "liver"})
    assert scan.image_czyx.shape == (1, 3, 512, 512)
    assert scan.modality == "CT"
    truth, directions, origin = nrrd(real_data / "dcmqi" / "liver_seg.nrrd")
    affine = np.eye(4)
    affine[:3, :3] = directions[:, ::-1]
    affine[:3, 3] = origin
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    assert scan.labels_zyx.sum() == (truth > 0).sum() > 0
    np.testing.assert_allclose(
        world_points(scan.labels_zyx > 0, scan.affine_ras), world_points(truth > 0, ras), atol=0.02
    )


def test_five_overlapping_segments_are_quarantined_unless_they_are_one_class(real_data, tmp_path):
    folder = gathered(real_data, tmp_path, "dcmqi/ct-3slice", "dcmqi/partial_overlaps.dcm")
    with pytest.raises(Unusable, match="OVERLAPPING_LABELS"):
        only_scan(folder, {label: label.lower() for label in OVERLAPS})
    assert only_scan(folder, dict.fromkeys(OVERLAPS, "any")).labels_zyx.max() == 1


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("highdicom/dx_image.dcm",), "NO_LABELS"),
        (("highdicom/sm_image.dcm",), "NO_LABELS"),
        (("dcmqi/23x38x3/multiframe",), "NO_LABELS"),
        (("rtstruct/ct_1.dcm", "rtstruct/ct_2.dcm"), "NO_LABELS"),
        (("dcmqi/23x38x3/image",), "NO_LABELS"),
    ],
)
def test_what_is_not_used_is_named(real_data, tmp_path, names, code):
    with pytest.raises(Unusable, match=code):
        only_scan(gathered(real_data, tmp_path, *names), {"Liver": "liver"})


def test_one_slice_with_its_segmentation(real_data, tmp_path):
    folder = gathered(
        real_data,
        tmp_path,
        "highdicom/ct_image.dcm",
        "highdicom/seg_image_ct_binary_single_frame.dcm",
    )
    scan = only_scan(folder, {"first segment": "a"})
    assert scan.image_czyx.shape == (1, 1, 128, 128)
    assert scan.labels_zyx.any()


def test_a_fractional_and_an_orphaned_segmentation(real_data, tmp_path):
    folder = gathered(real_data, tmp_path, "highdicom/seg_image_ct_true_fractional.dcm")
    found = discover_dicom(DicomSource(path=folder, classes={"first segment": "a"}))
    assert [entry.code for entry in found.quarantined] == ["LABELS_WITHOUT_IMAGE"]


def test_every_file_of_the_real_data_has_an_outcome(real_data):
    """None raises anything but a reason."""
    for name in ("dcmqi", "highdicom", "rtstruct", "microscopy"):
        source = DicomSource(path=real_data / name, classes={"Liver": "liver"})
        for candidate in discover_dicom(source).candidates:
            try:
                candidate.read()
            except Unusable as reason:
                assert reason.code != "UNEXPECTED"
