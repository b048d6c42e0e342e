"""OME-Zarr of 2 to 5 axes, in every version and layout on disk, against zarr-python's own reading.

Scales and units are checked as world points: the voxel that zarr-python has at an index lies where
the metadata says, for whatever axes, level and channels are read.
"""

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_adapters.lengths import MILLIMETRES_IN
from data_adapters.ome_zarr_images import Wanted, open_image
from data_adapters.reasons import Unusable
from data_adapters.sources import OmeZarrSource
from data_adapters.zarr_places import Place
from tests.data_adapters.stores import (
    edit_ome,
    read_one,
    reason,
    whole,
    write_image,
    write_labels,
)

AXES = ["yx", "cyx", "tyx", "tcyx", "zyx", "czyx", "tzyx", "tczyx", "xyz", "tcxzy", "yxz", "cxy"]
SIZES = {"t": 2, "c": 3, "z": 4, "y": 5, "x": 6}


def numbers(axes, dtype=np.uint16, sizes=SIZES):
    shape = tuple(sizes[name] for name in axes)
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def source(path, **changes):
    return OmeZarrSource(path=path, **({"labels": "parts", "classes": {1: "left"}} | changes))


def opened(path, **wanted):
    return open_image(Place(str(path)), Wanted(**wanted))


def refused(path, **wanted):
    with pytest.raises(Unusable) as caught:
        opened(path, **wanted)
    return caught.value.code


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", AXES)
def test_axes_in_any_order_end_up_as_channel_z_y_x(tmp_path, axes, version):
    array = numbers(axes)
    write_image(tmp_path / "a.zarr", [array], axes, version=version)
    time = 1 if "t" in axes else None
    channels = (2, 0) if "c" in axes else (0,)
    image = opened(tmp_path / "a.zarr", channels=channels, time=time)
    assert image.planar == ("z" not in axes)
    found = whole(image.voxels)
    assert found.shape == image.voxels.shape
    oracle = zarr.open_array(tmp_path / "a.zarr" / "0", mode="r")
    for index in np.ndindex(found.shape):
        at = dict(zip("czyx", index, strict=True)) | {"t": time}
        at["c"] = channels[at["c"]]
        assert oracle[tuple(at[name] for name in axes)] == found[index]


LAYOUTS = {
    "0.4 flat gzip": {
        "version": "0.4",
        "chunk_key_encoding": {"name": "v2", "separator": "."},
        "compressors": numcodecs.GZip(),
    },
    "0.4 nested blosc": {
        "version": "0.4",
        "chunk_key_encoding": {"name": "v2", "separator": "/"},
        "compressors": numcodecs.Blosc(cname="zstd"),
    },
    "0.5 blosc": {"compressors": zarr.codecs.BloscCodec(cname="zstd")},
    "0.5 gzip, flat": {
        "compressors": zarr.codecs.GzipCodec(),
        "chunk_key_encoding": {"name": "default", "separator": "."},
    },
    "0.5 v2 keys": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "0.5 sharded": {"shards": (1, 4, 4, 6), "compressors": zarr.codecs.ZstdCodec()},
    "0.5 raw": {"compressors": None},
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=LAYOUTS)
def test_every_layout_on_disk_is_read(tmp_path, layout):
    array = numbers("czyx")
    write_image(tmp_path / "a.zarr", [array], "czyx", chunks=(1, 2, 2, 3), **LAYOUTS[layout])
    image = opened(tmp_path / "a.zarr", channels=(1, 2))
    np.testing.assert_array_equal(whole(image.voxels), array[1:])
    assert image.voxels.chunk_shape == (1, 2, 2, 3)
    part = (slice(1, 2), slice(1, 4), slice(3, 5), slice(0, 6))
    np.testing.assert_array_equal(image.voxels[part], array[1:][part])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_one_voxel_lies_at_one_world_point_in_every_image(tmp_path_factory, data):
    axes = data.draw(st.sampled_from(AXES))
    unit = data.draw(st.sampled_from(sorted(MILLIMETRES_IN)))
    length = st.floats(1e-3, 1e3)
    scales = [[data.draw(length) for _ in axes]]
    scales.append([step * data.draw(st.sampled_from([1.0, 2.0, 4.0])) for step in scales[0]])
    starts = [[data.draw(st.floats(-1e4, 1e4)) for _ in axes] for _ in scales]
    sizes = {name: data.draw(st.integers(1, 3)) for name in "tczyx"}
    arrays = [numbers(axes, sizes=sizes), numbers(axes, sizes=sizes)]
    path = tmp_path_factory.mktemp("store") / "a.zarr"
    version = data.draw(st.sampled_from(["0.4", "0.5"]))
    write_image(path, arrays, axes, scales=scales, translations=starts, unit=unit, version=version)
    level = data.draw(st.integers(0, 1))
    image = opened(path, level=level, time=0)
    index = [data.draw(st.integers(0, sizes[name] - 1)) if name in axes else 0 for name in "zyx"]
    world = image.affine_ras @ [*index, 1]
    first = 1 if image.planar else 0
    # RAS+ of the axes (x, y, z), in millimetres by the unit's definition.
    for place, name in list(enumerate("zyx"))[first:]:
        along = axes.index(name)
        expected = scales[level][along] * index[place] + starts[level][along]
        np.testing.assert_allclose(world[2 - place], expected * MILLIMETRES_IN[unit], rtol=1e-9)
    stored = zarr.open_array(path / str(level), mode="r")
    at = dict(zip("zyx", index, strict=True)) | {"t": 0, "c": 0}
    voxel = image.voxels[slice(0, 1), *(slice(place, place + 1) for place in index)]
    assert voxel.item() == stored[tuple(at[name] for name in axes)]


@pytest.mark.parametrize(
    ("spacing", "level"),
    [("0.4 um", 0), ("0.5 um", 0), ("1.97 um", 1), ("2 um", 2), ("1 mm", 2), ("1.99 um", 2)],
)
def test_the_coarsest_level_that_is_still_finer_is_read(tmp_path, spacing, level):
    levels = [np.full((8 >> n, 8 >> n), n + 1, np.uint8) for n in range(3)]
    scales = [[0.5, 0.5], [1.0, 1.0], [2.0, 2.0]]
    write_image(tmp_path / "P/a.zarr", levels, "yx", scales=scales)
    write_labels(tmp_path / "P/a.zarr", "parts", [lv * 0 for lv in levels], "yx", scales=scales)
    scan = read_one(source(tmp_path, spacing=spacing))
    assert scan.image_czyx.shape == (1, 1, 8 >> level, 8 >> level)
    assert whole(scan.image_czyx).max() == level + 1
    assert scan.labels_zyx.shape == scan.image_czyx.shape[1:]


def test_a_coarse_z_axis_counts_for_a_volume_and_not_for_a_plane(tmp_path):
    scales = [[4.0, 1.0, 1.0], [4.0, 2.0, 2.0]]
    for name, depth in (("volume.zarr", 2), ("plane.zarr", 1)):
        levels = [np.zeros((depth, 4, 4), np.uint8), np.zeros((depth, 2, 2), np.uint8)]
        write_image(tmp_path / name, levels, scales=scales)
    assert opened(tmp_path / "volume.zarr", spacing_mm=0.002).voxels.shape == (1, 2, 4, 4)
    plane = opened(tmp_path / "plane.zarr", spacing_mm=0.002)
    assert plane.planar
    assert plane.voxels.shape == (1, 1, 2, 2)
    np.testing.assert_allclose(np.linalg.norm(plane.affine_ras[:3, :3], axis=0), [1, 0.002, 0.002])


def test_a_plane_needs_no_unit_along_z(tmp_path):
    path = write_image(tmp_path / "a.zarr", [np.zeros((1, 3, 4), np.uint8)])
    edit_ome(path, lambda ome: ome["multiscales"][0]["axes"][0].pop("unit"))
    assert opened(path).grid.scale_mm == (1.0, 0.001, 0.001)


def test_a_declared_unit_is_for_axes_that_state_none(tmp_path):
    bare = write_image(tmp_path / "bare.zarr", [numbers("zyx")], unit=None)
    pixels = write_image(tmp_path / "pixels.zarr", [numbers("zyx")], unit="pixel")
    stated = write_image(tmp_path / "stated.zarr", [numbers("zyx")], unit="nanometer")
    assert refused(bare) == refused(pixels) == "MISSING_UNIT"
    for path, step in ((bare, 1e-3), (pixels, 1e-3), (stated, 1e-6)):
        assert opened(path, unit="micrometer").grid.scale_mm == (step, step, step)


def test_channels_by_name_and_by_index(tmp_path):
    array = numbers("czyx")
    path = write_image(tmp_path / "a.zarr", [array], "czyx", omero=["DAPI", "GFP", "GFP"])
    found = whole(opened(path, channels=(2, "DAPI")).voxels)
    np.testing.assert_array_equal(found, array[[2, 0]])
    for channels in (("Cy5",), ("GFP",), (3,), (0, 3)):
        assert refused(path, channels=channels) == "CHANNEL_MISSING"


def test_one_time_point_of_several(tmp_path):
    array = numbers("tzyx")
    path = write_image(tmp_path / "a.zarr", [array], "tzyx")
    np.testing.assert_array_equal(whole(opened(path, time=1).voxels)[0], array[1])
    assert refused(path) == "SEVERAL_TIME_POINTS"
    assert refused(path, time=2) == "TIME_MISSING"
    assert opened(write_image(tmp_path / "b.zarr", [array[:1]], "tzyx")).time == 0


def test_labels_of_the_same_time_point(tmp_path):
    array = numbers("tcyx")
    labels = np.zeros((2, 1, 5, 6), np.uint8)
    labels[1, 0, 2, 3] = 1
    write_image(tmp_path / "P/a.zarr", [array], "tcyx")
    write_labels(tmp_path / "P/a.zarr", "parts", [labels], "tcyx")
    scan = read_one(source(tmp_path, time=1, channels=(1, 2)))
    np.testing.assert_array_equal(whole(scan.labels_zyx), labels[1])
    assert whole(read_one(source(tmp_path, time=0)).labels_zyx).max() == 0


@pytest.mark.parametrize(("axes", "shape"), [("yx", (5, 6)), ("tcyx", (1, 1, 5, 6))])
def test_labels_of_one_time_point_do_not_fit_a_film(tmp_path, axes, shape):
    write_image(tmp_path / "P/a.zarr", [numbers("tcyx")], "tcyx")
    write_labels(tmp_path / "P/a.zarr", "parts", [np.zeros(shape, np.uint8)], axes)
    assert reason(source(tmp_path, time=1)) == "LABEL_SHAPE"


def test_labels_on_a_finer_grid_have_no_level_that_fits(tmp_path):
    write_image(tmp_path / "P/a.zarr", [np.zeros((4, 4), np.uint8)], "yx", scales=[[2, 2]])
    fine = [np.zeros((8, 8), np.uint8)]
    write_labels(tmp_path / "P/a.zarr", "parts", fine, "yx", scales=[[1, 1]])
    assert reason(source(tmp_path)) == "LABEL_SHAPE"


def test_the_label_level_that_lies_on_the_image_is_taken(tmp_path):
    image = numbers("czyx")[:, :, :4, :]
    coarse = (image[0] % 2).astype(np.uint8)
    fine = np.repeat(np.repeat(coarse, 2, axis=1), 2, axis=2)
    path = tmp_path / "P/a.zarr"
    write_image(path, [image], "czyx", scales=[[1, 4.0, 2.0, 2.0]], version="0.4")
    scales = [[4.0, 1.0, 1.0], [4.0, 2.0, 2.0]]
    write_labels(path, "parts", [fine, coarse], scales=scales, version="0.4")
    np.testing.assert_array_equal(whole(read_one(source(tmp_path)).labels_zyx), coarse)


@pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning")
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_formats_own_library_sees_the_same_points(tmp_path, version):
    """What ome-zarr writes, pyramid and all, is read here as ome-zarr itself reads it."""
    from ome_zarr.classes.image import OMEZarrImage, OMEZarrMultiscale

    array = np.random.default_rng(0).integers(0, 999, (2, 8, 16, 16)).astype(np.uint16)
    scale = {"c": 1.0, "z": 2.0, "y": 0.5, "x": 0.25}
    units = dict.fromkeys("zyx", "micrometer") | {"c": None}
    written = OMEZarrMultiscale(
        OMEZarrImage(array, "czyx", scale, units),
        scale_factors=[2],
        channel_names=["DAPI", "GFP"],
    )
    written.to_ome_zarr(str(tmp_path / "a.zarr"), version=version)
    oracle = OMEZarrMultiscale.from_ome_zarr(str(tmp_path / "a.zarr"))
    for level, (image, dataset) in enumerate(
        zip(oracle.images, oracle.metadata.datasets, strict=True)
    ):
        found = opened(tmp_path / "a.zarr", level=level, channels=("GFP",))
        np.testing.assert_array_equal(whole(found.voxels)[0], np.asarray(image.data)[1])
        scaling, moved = dataset.coordinateTransformations
        np.testing.assert_allclose(found.grid.scale_mm, np.array(scaling.scale[1:]) / 1000)
        np.testing.assert_allclose(
            found.grid.translation_mm, np.array(moved.translation[1:]) / 1000
        )


@pytest.mark.real_data
def test_real_nuclei_are_a_plane_with_objects(real_data, tmp_path):
    nuclei = real_data / "microscopy" / "dsb2018_nuclei.ome.zarr"
    if not nuclei.is_dir():
        pytest.skip(f"no {nuclei.name} in the real data")
    (tmp_path / "P-1").mkdir()
    (tmp_path / "P-1" / nuclei.name).symlink_to(nuclei)
    wanted = {"labels": "nuclei", "classes": {}, "instances": {"interior": "nucleus"}}
    scan = read_one(source(tmp_path, **wanted))
    assert (scan.planar, scan.image_czyx.shape) == (True, (1, 1, 512, 512))
    np.testing.assert_allclose(np.linalg.norm(scan.affine_ras[:3, :3], axis=0), [1, 5e-4, 5e-4])
    import tifffile

    mask = tifffile.imread(real_data / "microscopy" / "mask2d.tif")
    np.testing.assert_array_equal(whole(scan.labels_zyx)[0], mask > 0)
    np.testing.assert_array_equal(
        whole(scan.image_czyx)[0, 0], tifffile.imread(real_data / "microscopy" / "img2d.tif")
    )
    coarse = read_one(source(tmp_path, **wanted, spacing="1 um"))
    assert coarse.image_czyx.shape == (1, *coarse.labels_zyx.shape) == (1, 1, 256, 256)
