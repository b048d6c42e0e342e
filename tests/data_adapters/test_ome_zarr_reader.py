"""OmeZarrReader under MONAI's LoadImage: planes and volumes, levels, channels, time, URLs."""

import functools
import http.server
import threading

import numpy as np
import pytest

monai_transforms = pytest.importorskip("monai.transforms")

from data_adapters import OmeZarrReader  # noqa: E402
from data_adapters.errors import DataError  # noqa: E402
from tests.data_adapters.stores import write_image  # noqa: E402

# MONAI builds all of its own readers too, and one complains of a GPU library that is not there.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")


def load(path, **options):
    reader = OmeZarrReader(**options)
    return monai_transforms.LoadImage(reader=reader, ensure_channel_first=True)(str(path))


@pytest.fixture
def film(tmp_path):
    """(t, c, z, y, x) with a coarser level."""
    array = np.arange(2 * 3 * 4 * 6 * 8, dtype=np.uint16).reshape(2, 3, 4, 6, 8)
    scales = [[1, 1, 4.0, 2.0, 0.5], [1, 1, 4.0, 4.0, 1.0]]
    options = {"scales": scales, "omero": ["DAPI", "GFP", "Cy5"]}
    write_image(tmp_path / "a.zarr", [array, array[..., ::2, ::2]], "tczyx", **options)
    return tmp_path / "a.zarr", array


def test_a_volume_has_its_affine_in_ras(film):
    path, array = film
    image = load(path, channel="GFP", time=1)
    np.testing.assert_array_equal(image[0].numpy(), array[1, 1])
    assert image.meta["space"] == "RAS"
    # One step along z is superior, along y anterior, along x to the right; in millimetres.
    np.testing.assert_allclose(image.affine.numpy() @ [1, 2, 3, 1], [1.5e-3, 4e-3, 4e-3, 1])


@pytest.mark.parametrize("options", [{"level": 1}, {"spacing": "4 um"}, {"spacing": 0.004}])
def test_a_coarser_level_by_number_or_by_spacing(film, options):
    path, array = film
    image = load(path, time=0, **options)
    np.testing.assert_array_equal(image[0].numpy(), array[0, 0, :, ::2, ::2])


def test_a_plane_is_two_dimensional(tmp_path):
    array = np.arange(30, dtype=np.uint8).reshape(5, 6)
    scales, translations = [[2.0, 3.0]], [[20.0, 30.0]]
    write_image(tmp_path / "p.zarr", [array], "yx", scales=scales, translations=translations)
    image = load(tmp_path / "p.zarr")
    np.testing.assert_array_equal(image[0].numpy(), array)
    # MONAI takes the first two rows and columns of a plane's affine, and its last column.
    affine = image.affine.numpy()
    np.testing.assert_allclose(affine @ [1, 2, 0, 1], [36e-3, 22e-3, 0, 1])
    np.testing.assert_allclose(affine[:, 2], [0, 0, 1, 0])
    resampled = monai_transforms.Spacing(pixdim=(4e-3, 3e-3), mode="nearest")(image)
    assert resampled.shape == (1, 3, 6)


def test_several_images_become_channels(film):
    path, array = film
    reader = OmeZarrReader(time=0)
    image, meta = reader.get_data(reader.read([path, path]))
    np.testing.assert_array_equal(image, np.stack([array[0, 0]] * 2))
    assert meta["original_channel_dim"] == 0


def test_a_url_is_read_like_a_path(film):
    path, array = film
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": print_nothing})
    folder = functools.partial(handler, directory=path.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        image = load(f"http://127.0.0.1:{server.server_port}/a.zarr", time=1)
        server.shutdown()
    np.testing.assert_array_equal(image[0].numpy(), array[1, 0])


def print_nothing(*_):
    pass


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"level": 2, "time": 0}, "LEVEL_MISSING"),
        ({"time": 5}, "TIME_MISSING"),
        ({}, "SEVERAL_TIME_POINTS"),
        ({"channel": "none", "time": 0}, "CHANNEL_MISSING"),
    ],
)
def test_what_is_not_there_has_a_code(film, options, code):
    with pytest.raises(DataError) as caught:
        OmeZarrReader(**options).read(film[0])
    assert caught.value.code == code


def test_a_unit_can_be_declared(tmp_path):
    write_image(tmp_path / "p.zarr", [np.zeros((5, 6), np.uint8)], "yx", unit=None)
    with pytest.raises(DataError) as caught:
        OmeZarrReader().read(tmp_path / "p.zarr")
    assert caught.value.code == "MISSING_UNIT"
    image = load(tmp_path / "p.zarr", unit="micrometer")
    np.testing.assert_allclose(image.affine.numpy()[:2, :2], [[0, 1e-3], [1e-3, 0]])


def test_an_image_too_large_for_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    write_image(tmp_path / "p.zarr", [np.zeros((5, 6), np.uint8)], "yx")
    monkeypatch.setattr("data_adapters.ome_zarr_images.MAX_VOLUME_BYTES", 29)
    with pytest.raises(DataError) as caught:
        OmeZarrReader().read(tmp_path / "p.zarr")
    assert caught.value.code == "TOO_LARGE"


@pytest.mark.parametrize(
    "options",
    [
        {"level": 1, "spacing": 1.0},
        {"level": -1},
        {"time": -1},
        {"channel": -1},
        {"unit": "pixel"},
        {"spacing": "wide"},
    ],
)
def test_options_that_cannot_be_are_refused_at_once(options):
    with pytest.raises(ValueError, match=r"\w"):
        OmeZarrReader(**options)
