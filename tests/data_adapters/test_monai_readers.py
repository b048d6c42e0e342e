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
    with pytest.raises(DataError, match="0 image series"):
        DicomReader().read(put_ome_zarr())
    with pytest.raises(DataError, match="no level 3"):
        OmeZarrReader(level=3).read(put_ome_zarr("P-2/a.zarr"))
