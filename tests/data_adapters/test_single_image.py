"""One image by its path: the same place in the world whatever format it is in."""

import nibabel
import numpy as np
import pytest

from data_adapters.errors import DataError
from data_adapters.single_image import read_image
from tests.data_adapters.dicom_files import save
from tests.data_adapters.test_dicom_planar import radiograph


@pytest.fixture
def put_nifti(example, tmp_path):
    """Write the example with x first, as NIfTI has it."""

    def put(name="scan.nii.gz", image=example.image):
        affine = example.affine[:, [2, 1, 0, 3]]
        stored = nibabel.Nifti1Image(np.asarray(image, dtype=np.float32).T, affine)
        nibabel.save(stored, tmp_path / name)
        return tmp_path / name

    return put


@pytest.mark.parametrize("form", ["put_dicom", "put_ome_zarr", "put_nifti"])
def test_every_format_gives_the_same_voxels_at_the_same_places(form, example, request):
    image, affine, planar = read_image([request.getfixturevalue(form)()], 1)
    assert image.dtype == np.float32 and image.shape == (1, *example.image.shape) and not planar
    found = np.unravel_index(int(image[0].argmax()), image.shape[1:])
    wanted = np.unravel_index(int(example.image.argmax()), example.image.shape)
    np.testing.assert_allclose(affine @ [*found, 1], example.affine @ [*wanted, 1], atol=1e-4)
    assert sorted(image.ravel()) == sorted(example.image.astype(np.float32).ravel())


def test_channels_are_paths_on_one_grid(put_nifti, put_dicom, example):
    one, two = put_nifti("a.nii", example.image), put_nifti("b.nii", example.image + 1)
    image, _, _ = read_image([one, two], 2)
    np.testing.assert_array_equal(image[1], image[0] + 1)
    with pytest.raises(DataError, match="1 paths for 2 channels"):
        read_image([one], 2)
    with pytest.raises(DataError, match="different grids"):
        read_image([one, put_nifti("c.nii", example.image[:, :3])], 2)


def test_a_plane_is_one_of_whatever_format(tmp_path, example):
    nibabel.save(nibabel.Nifti1Image(example.image[0].T, np.eye(4)), tmp_path / "plane.nii")
    image, _, planar = read_image([tmp_path / "plane.nii"], 1)
    assert planar
    np.testing.assert_array_equal(image[0, 0], example.image[0])
    save(radiograph(np.arange(12, dtype=np.uint16).reshape(3, 4)), tmp_path / "chest.dcm")
    image, _, planar = read_image([tmp_path / "chest.dcm"], 1)
    assert planar and image.shape[:2] == (1, 1)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("gone.nii", None, "no image at"),
        ("cut.nii", b"x" * 100, "header cannot be read: the file is damaged or cut short"),
        ("cut.nii.gz", b"\x1f\x8b\x08", "header cannot be read: the file is damaged or cut short"),
        ("other.txt", b"words", "damaged or cut short|no DICOM"),
    ],
)
def test_what_is_none_is_said(tmp_path, name, content, why):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=why):
        read_image([tmp_path / name], 1)


def test_values_that_are_no_numbers_are_refused(put_nifti, example):
    image = example.image.astype(np.float32)
    image[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN or infinity") as refused:
        read_image([put_nifti("nan.nii", image)], 1)
    assert refused.value.code == "NOT_FINITE"


def test_a_time_series_is_no_image(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3, 2)), np.eye(4)), tmp_path / "four.nii")
    with pytest.raises(DataError, match="2 time points") as refused:
        read_image([tmp_path / "four.nii"], 1)
    assert refused.value.code == "SEVERAL_TIME_POINTS"


def test_units_and_scaling_of_a_header_count(tmp_path, example):
    stored = nibabel.Nifti1Image(example.image.T, np.diag([1500.0, 2000.0, 5000.0, 1.0]))
    stored.header.set_xyzt_units("micron")
    stored.header.set_slope_inter(2, -7)
    nibabel.save(stored, tmp_path / "micron.nii")
    image, affine, _ = read_image([tmp_path / "micron.nii"], 1)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), [5.0, 2.0, 1.5])
    found = np.asarray(nibabel.load(tmp_path / "micron.nii").dataobj).T
    np.testing.assert_allclose(image[0], found, rtol=1e-6)
