"""What gzip packs into a NIfTI file is unpacked no further than its header has a use for."""

import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from data_adapters.nifti import discover_nifti
from data_adapters.reasons import Unusable
from tests.data_adapters.test_nifti import (
    AFFINE_XYZ,
    image_xyz,
    labels_xyz,
    only,
    plain,
    write,
)


@pytest.fixture
def pair(tmp_path):
    """Write image and labels of one subject; return the source and the image's path."""
    write(tmp_path / "S-1" / "a_seg.nii.gz", labels_xyz())
    return plain(tmp_path), write(tmp_path / "S-1" / "a.nii.gz", image_xyz())


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
def test_extensions_are_not_unpacked(pair, kind):
    """64 MiB of them, in 64 kB: the header alone is read, and says where the voxels are."""
    header = kind()
    header.set_data_shape((2, 2, 2))
    header["sform_code"], size = 1, 64 << 20
    header["vox_offset"] = header.single_vox_offset + size
    extension = b"\1\0\0\0" + size.to_bytes(4, "little") + b"\6\0\0\0" + bytes(size - 8)
    source, path = pair
    path.write_bytes(gzip.compress(header.binaryblock + extension + bytes(32)))
    candidate = only(source)
    assert most_memory(lambda: refused(candidate.read)) == "UNPACKS_TOO_LARGE"
    assert most_memory(lambda: discover_nifti(source).identifiers_found) == {"NIfTI extension": 1}


@pytest.mark.parametrize(("extra", "code"), [(1000, None), (64 << 20, "UNPACKS_TOO_LARGE")])
def test_what_follows_the_voxels_is_not_unpacked_without_end(pair, extra, code):
    source, path = pair
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(extra)))
    assert most_memory(lambda: refused(only(source).read)) == code


def test_a_small_extension_is_passed_over(pair):
    source, path = pair
    image = nib.load(path)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    nib.save(nib.Nifti1Image(image_xyz(), AFFINE_XYZ, image.header), path)
    np.testing.assert_array_equal(only(source).read().image_czyx[0], image_xyz().T)
    assert discover_nifti(source).identifiers_found["NIfTI extension"] == 1


def refused(read):
    """Return the code for which something is not read; None where it is."""
    try:
        read()
    except Unusable as reason:
        return reason.code
    return None


def most_memory(work, most_bytes=20 << 20):
    """Return what ``work`` returns, having used no more memory than that."""
    tracemalloc.start()
    try:
        result = work()
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()
    return result
