"""One pass over a scan: a digest that follows the data alone, and its statistics."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_adapters import blocks as blocks_module
from data_adapters.blocks import blocks
from data_adapters.digests import Names, measure
from data_adapters.reasons import Unusable
from data_adapters.types import Scan

NAMES = Names(("background", "left"))


@pytest.fixture
def scan(example):
    return Scan(
        image_czyx=example.image[None],
        slopes=(2.0,),
        intercepts=(-1.0,),
        affine_ras=example.affine,
        subject="P-1",
        modality="MR",
        labels_zyx=example.labels,
    )


def changed(array, place, value):
    copy = array.copy()
    copy[place] = value
    return copy


def digest(scan, names=NAMES):
    return measure(scan, names).digest


def test_each_thing_that_matters_changes_the_digest(scan):
    others = [
        replace(scan, image_czyx=changed(scan.image_czyx, (0, 0, 0, 0), 7777)),
        replace(scan, image_czyx=scan.image_czyx.astype(np.float32)),
        replace(scan, image_czyx=scan.image_czyx.view(np.uint16)),
        replace(scan, labels_zyx=changed(scan.labels_zyx, (0, 0, 0), 1)),
        replace(scan, labels_zyx=3 - scan.labels_zyx),
        replace(scan, labels_zyx=None),
        replace(scan, affine_ras=changed(scan.affine_ras, (0, 3), 0.001)),
        replace(scan, slopes=(2.5,)),
        replace(scan, intercepts=(0.0,)),
        replace(scan, modality="CT"),
        replace(scan, target=1.0),
        replace(scan, planar=True),
    ]
    digests = [digest(other) for other in (scan, *others)]
    digests.append(digest(scan, Names(("background", "right"))))
    digests.append(digest(scan, replace(NAMES, channels=("T1",))))
    assert len(set(digests)) == len(digests)


def test_what_does_not_matter_does_not_change_it(scan):
    same = [
        replace(scan, subject="P-2"),
        replace(scan, image_czyx=scan.image_czyx.astype(">i2")),
        replace(scan, image_czyx=np.asfortranarray(scan.image_czyx)),
        replace(scan, affine_ras=scan.affine_ras + 1e-11),
        replace(scan, affine_ras=np.where(scan.affine_ras == 0, -0.0, scan.affine_ras)),
    ]
    assert {digest(other) for other in same} == {digest(scan)}


def test_the_image_digest_is_blind_to_labels_and_sees_pixels_and_geometry(scan):
    image = measure(scan, NAMES).image
    blind = replace(scan, labels_zyx=None, target=2.0, modality="CT", subject="P-2")
    assert measure(blind, Names(("background", "x"))).image == image
    moved = replace(scan, affine_ras=changed(scan.affine_ras, (0, 3), 5.0))
    brighter = replace(scan, image_czyx=scan.image_czyx + np.int16(1))
    assert image not in {measure(moved, NAMES).image, measure(brighter, NAMES).image}


def test_the_digest_is_a_published_rule_and_not_this_code():
    """Computed once by hand with hashlib, so that another program can check a site's root."""
    scan = Scan(
        image_czyx=np.array([[[[1, -2]]]], dtype=np.int16),
        slopes=(1.0,),
        intercepts=(0.0,),
        affine_ras=np.diag([3.0, 2.0, 1.0, 1.0]),
        subject="P-1",
        modality="MR",
        labels_zyx=np.array([[[0, 1]]], dtype=np.uint8),
    )
    header = (
        b'{"affine_pm":[3000000000,0,0,0,0,2000000000,0,0,0,0,1000000000,0,0,0,0,1000000000],'
        b'"channels":[""],"classes":["background","left"],"format":2,'
        b'"image":["<i2",[1,1,1,2]],"modality":"MR","planar":false,'
        b'"scaling":[["0x1.0000000000000p+0","0x0.0p+0"]],"target":null,"targets":[]}'
    )
    image = hashlib.sha256(b"\x01\x00\xfe\xff").hexdigest().encode()
    labels = hashlib.sha256(b"\x00\x01").hexdigest().encode()
    expected = hashlib.sha256(header + image + b"labels" + labels).hexdigest()
    assert digest(scan) == f"sha256:{expected}"


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 4), st.tuples(*[st.integers(1, 4)] * 3))
def test_blocks_cover_every_voxel_once(shape, block):
    covered = np.zeros(shape, dtype=int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_module, "BLOCK_ZYX", block)
        for region in blocks(shape):
            covered[region] += 1
    assert (covered == 1).all()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["uint8", "int16", "uint16", "float32"]),
    st.floats(-4, 4).filter(lambda slope: abs(slope) > 1e-3),
)
def test_statistics_are_numpys_over_real_values(seed, dtype, slope):
    random = np.random.default_rng(seed)
    offsets = np.reshape([0.0, 50.0], (2, 1, 1, 1))
    image = (random.normal(200, 30, (2, 5, 7, 6)) + offsets).astype(dtype)
    scan = Scan(image, (slope, 1.0), (7.0, 0.0), np.eye(4), "P-1", "MR")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_module, "BLOCK_ZYX", (2, 4, 4))
        measured = measure(scan, NAMES)
    real = image.astype(np.float64) * np.reshape([slope, 1.0], (2, 1, 1, 1)) + np.reshape(
        [7.0, 0.0], (2, 1, 1, 1)
    )
    np.testing.assert_allclose(measured.means, real.mean((1, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(measured.deviations, real.std((1, 2, 3)), rtol=1e-6)


def test_a_far_mean_costs_the_deviation_no_digits():
    image = (1e6 + np.random.default_rng(0).normal(0, 1, (1, 20, 20, 20))).astype(np.float32)
    scan = Scan(image, (1.0,), (0.0,), np.eye(4), "P-1", "MR")
    (deviation,) = measure(scan, NAMES).deviations
    assert deviation == pytest.approx(image.astype(np.float64).std(), rel=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_voxel_that_is_not_finite_is_refused(value):
    image = np.zeros((1, 3, 3, 3), np.float32)
    image[0, 2, 1, 0] = value
    with pytest.raises(Unusable) as refused:
        measure(Scan(image, (1.0,), (0.0,), np.eye(4), "P-1", "MR"), NAMES)
    assert refused.value.code == "NOT_FINITE"
