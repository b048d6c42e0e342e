"""The readers under MONAI's own LoadImage, without a federation."""

import numpy as np
import pytest

monai_transforms = pytest.importorskip("monai.transforms")

from data_adapters import DicomReader, OmeZarrReader  # noqa: E402
from data_adapters.errors import DataError  # noqa: E402

# MONAI builds all of its own readers too, and one complains of a GPU library that is not there.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")


def load(reader, path):
    loaded = monai_transforms.LoadImaged(keys="image", reader=reader, ensure_channel_first=True)
    return loaded({"image": str(path)})["image"]


def check_world(image, example):
    """The brightest voxel is where the example's is."""
    affine = image.affine.numpy()
    found = np.unravel_index(int(image[0].argmax()), image.shape[1:])
    expected = np.unravel_index(int(example.image.argmax()), example.image.shape)
    np.testing.assert_allclose(affine @ [*found, 1], example.affine @ [*expected, 1], atol=1e-5)
    assert image.shape == (1, 4, 6, 7)
    assert float(image.max()) == example.image.max()


def test_dicom_gives_a_meta_tensor_in_ras(put_dicom, example):
    check_world(load(DicomReader(), put_dicom()), example)


def test_ome_zarr_gives_a_meta_tensor_in_ras(put_ome_zarr, example):
    check_world(load(OmeZarrReader(), put_ome_zarr()), example)


def test_monai_turns_both_to_the_same_axes(put_dicom, put_ome_zarr):
    turn = monai_transforms.Orientation(axcodes="SAR", labels=None)
    one, other = (
        turn(load(*pair))
        for pair in ((DicomReader(), put_dicom()), (OmeZarrReader(), put_ome_zarr()))
    )
    np.testing.assert_allclose(one.numpy(), other.numpy())
    np.testing.assert_allclose(one.affine.numpy(), other.affine.numpy(), atol=1e-5)


def test_what_cannot_be_read_is_a_data_error(put_dicom, put_ome_zarr):
    folder = put_dicom()
    (folder / "slice_002.dcm").unlink()
    with pytest.raises(DataError, match="gaps of whole slices"):
        DicomReader().read(folder)
    with pytest.raises(DataError, match="damaged or cut short"):
        DicomReader().read(put_ome_zarr())
    with pytest.raises(DataError, match="no level 3"):
        OmeZarrReader(level=3).read(put_ome_zarr("P-2/a.zarr"))


def test_errors_carry_the_reason_code(put_dicom, tmp_path):
    folder = put_dicom()
    (folder / "slice_002.dcm").unlink()
    (tmp_path / "notes.txt").write_text("not an image")
    for path, code in (
        (folder, "MISSING_SLICES"),
        (folder.parent, "MISSING_SLICES"),
        (tmp_path / "notes.txt", "UNREADABLE_FILE"),
        (tmp_path / "absent.dcm", ""),
    ):
        with pytest.raises(DataError) as caught:
            DicomReader().read(path)
        assert caught.value.code == code
    put_dicom("other", seed=2, study_index=2)
    with pytest.raises(DataError) as caught:
        DicomReader().read(folder.parent)
    assert caught.value.code == "AMBIGUOUS_SERIES"


def test_a_segmentation_alone_gives_its_numbers_on_its_own_grid(put_dicom, example):
    labels = load(DicomReader(), put_dicom() / "seg.dcm")
    place, row, column = np.argwhere(np.asarray(labels[0]) == 2)[0]
    world = labels.affine.numpy() @ [place, row, column, 1]
    voxel = np.linalg.solve(example.affine, world)[:3].round().astype(int)
    assert example.labels[tuple(voxel)] == 2
    assert (np.asarray(labels[0]) == 2).sum() == (example.labels == 2).sum()


def test_several_segmentations_alone_are_not_chosen_between(put_dicom):
    folder = put_dicom()
    for name in folder.glob("slice_*.dcm"):
        name.unlink()
    (folder / "seg2.dcm").write_bytes((folder / "seg.dcm").read_bytes())
    with pytest.raises(DataError) as caught:
        DicomReader().read(folder)
    assert caught.value.code == "SEVERAL_SEGMENTATIONS"


def test_values_are_real_ones(put_dicom, example):
    import pydicom

    folder = put_dicom()
    for path in folder.glob("slice_*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.RescaleSlope, dataset.RescaleIntercept = 2.5, -1024
        dataset.save_as(path)
    image = load(DicomReader(), folder)
    assert image.dtype.is_floating_point
    np.testing.assert_allclose(image[0].numpy(), example.image[::-1] * 2.5 - 1024, rtol=1e-6)


@pytest.mark.filterwarnings("error")
def test_header_values_reach_no_warning(put_dicom):
    import warnings

    import pydicom

    folder = put_dicom()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in folder.glob("slice_*.dcm"):
            dataset = pydicom.dcmread(path)
            dataset.PatientBirthDate = "Quillfeather"
            dataset.save_as(path)
    DicomReader().read(folder)


@pytest.mark.real_data
def test_a_slide_keeps_its_channels_in_front(real_data):
    path = real_data / "highdicom" / "sm_image.dcm"
    if not path.is_file():
        pytest.skip("the real data has no highdicom/sm_image.dcm")
    assert load(DicomReader(), path).shape == (3, 1, 50, 50)


@pytest.mark.real_data
def test_overlapping_segments_alone_are_channels(real_data):
    path = real_data / "dcmqi" / "partial_overlaps.dcm"
    if not path.is_file():
        pytest.skip("the real data has no dcmqi/partial_overlaps.dcm")
    image = load(DicomReader(), path)
    assert image.shape == (5, 3, 512, 512)
    assert set(np.unique(image.numpy())) == {0, 1}
