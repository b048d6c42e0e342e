"""Every transfer syntax and pixel type gives the values that were stored."""

from base64 import b64decode
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames

from data_adapters import DicomReader, dicom_pixels, monai_readers
from data_adapters.errors import DataError
from data_adapters.sources import DicomSource
from tests.data_adapters.dicom_files import (
    STORAGE,
    blank,
    only,
    put_pixels,
    save,
    targets_of,
)

pytest.importorskip("monai")

# (lossless copy, the plain file it was made of), both in pydicom.
COPIES = [
    ("MR_small_RLE.dcm", "MR_small.dcm"),
    ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
    ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
    ("MR_small_bigendian.dcm", "MR_small.dcm"),
    ("MR_small_expb.dcm", "MR_small.dcm"),
    ("MR_small_implicit.dcm", "MR_small.dcm"),
    ("MR_small_padded.dcm", "MR_small.dcm"),
]
ENCODED = ("RLELossless", "JPEGLSLossless", "JPEG2000Lossless")
# By pydicom's own reader; those it cannot write: HTJ2K, JPEG process 14, deflated.
TYPES = [
    (np.uint8, 8),
    (np.uint16, 16),
    (np.uint16, 12),
    (np.int16, 16),
    (np.int16, 12),
]


def test_file(name):
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"pydicom's test file {name} is not here")
    return Path(path)


test_file.__test__ = False


def noise(dtype, bits, shape=(64, 64)):
    largest = 2 ** (bits - 1) if np.dtype(dtype).kind == "i" else 2**bits
    values = np.arange(np.prod(shape)) * 2654435761 % largest
    signed = values - largest // 2 if np.dtype(dtype).kind == "i" else values
    return signed.reshape(shape).astype(dtype)


@pytest.fixture
def put(tmp_path):
    """Write one CT slice and return its source."""

    def put(pixels, *, bits=None, change=lambda dataset: None, **values):
        plane = {
            "ImagePositionPatient": [0, 0, 0],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [1, 1],
            "SliceThickness": 2,
        }
        dataset = blank(STORAGE + "2", "CT", **plane | values)
        put_pixels(dataset, pixels, bits_stored=bits)
        change(dataset)
        save(dataset, tmp_path / "in" / "image.dcm")
        return DicomSource(path=tmp_path / "in", targets=targets_of(tmp_path / "in/x", "P-17"))

    return put


@pytest.mark.parametrize(("copy", "plain"), COPIES)
def test_a_lossless_copy_equals_the_plain_file(copy, plain):
    one, other = (DicomReader().read(test_file(name))[0] for name in (copy, plain))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_allclose(one[1], other[1])


@pytest.mark.parametrize(("dtype", "bits"), TYPES)
@pytest.mark.parametrize("syntax", ENCODED)
def test_compressed_values_are_the_stored_ones(put, dtype, bits, syntax):
    pixels = noise(dtype, bits)

    def compress(dataset):
        dataset.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)

    image = only(put(pixels, bits=bits, change=compress)).read().image_czyx
    assert image.dtype == dtype
    np.testing.assert_array_equal(image[0, 0], pixels)


@pytest.mark.parametrize(("dtype", "bits"), TYPES)
@pytest.mark.parametrize(
    "syntax",
    [
        "ExplicitVRLittleEndian",
        "ImplicitVRLittleEndian",
        "ExplicitVRBigEndian",
        "DeflatedExplicitVRLittleEndian",
    ],
)
def test_plain_values_are_the_stored_ones(put, dtype, bits, syntax):
    pixels = noise(dtype, bits)

    def encode(dataset):
        dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        if syntax == "ExplicitVRBigEndian":
            swapped = np.frombuffer(dataset.PixelData, np.uint16).byteswap().tobytes()
            dataset.PixelData = swapped
            dataset["PixelData"].VR = "OW"

    image = only(put(pixels, bits=bits, change=encode)).read().image_czyx
    np.testing.assert_array_equal(image[0, 0], pixels)


# Codestreams (ISO/IEC 15444-15) of ``slope``, written by OpenJPH 0.26, which has no package here.
UNSIGNED_HTJ2K = b64decode(
    "/0//UQApQAAAAAAJAAAACAAAAAAAAAAAAAAACQAAAAgAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUE"
    "BEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAEgAAf+TwAAl"
    "LQUHdAAAwAASgM4Ah3QAoAAJwFCh/gBiNACgAAqQpCTSAAAAd1YAoAAVgEgEQZDgBEYQgey4AP/Z"
)
SIGNED_HTJ2K = b64decode(
    "/0//UQApQAAAAAAJAAAACAAAAAAAAAAAAAAACQAAAAgAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAUE"
    "BEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAEgAAf+TwAAl"
    "FQIHdAAAwAASgM4Ah3QAoAAJwFCh/gBiNACgAAqQpCTSAAAAd1YAoAAVgEgEQZDgBEYQgey4AP/Z"
)


def slope(dtype):
    values = np.add.outer(np.arange(8) * 37, np.arange(9) * 5)
    return (values if np.dtype(dtype).kind == "u" else values - 500).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "codestream"), [(np.uint16, UNSIGNED_HTJ2K), (np.int16, SIGNED_HTJ2K)]
)
@pytest.mark.parametrize("syntax", ["HTJ2KLossless", "HTJ2KLosslessRPCL", "HTJ2K"])
def test_high_throughput_jpeg_2000_is_read(put, syntax, dtype, codestream):
    pixels = slope(dtype)

    def replace_pixels(dataset):
        dataset.PixelData = encapsulate([codestream])
        dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)

    image = only(put(pixels, change=replace_pixels)).read().image_czyx
    np.testing.assert_array_equal(image[0, 0], pixels)


def test_baseline_jpeg_is_read_as_another_decoder_reads_it(put):
    """Pillow's libjpeg is the oracle; decoders may round each coefficient's sum differently."""
    pixels = np.add.outer(np.arange(64) * 2, np.arange(64)).astype(np.uint8)
    written = BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=90)

    def compress(dataset):
        dataset.PixelData = encapsulate([written.getvalue()])
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
        dataset.LossyImageCompression = "01"

    image = only(put(pixels, change=compress)).read().image_czyx
    expected = np.asarray(Image.open(written)).astype(int)
    assert image.dtype == np.uint8 and not np.array_equal(expected, pixels)
    np.testing.assert_allclose(image[0, 0].astype(int), expected, atol=1)


@pytest.mark.parametrize("syntax", ["JPEGLossless", "JPEGLosslessSV1"])
@pytest.mark.parametrize("bits", [12, 16])
def test_lossless_jpeg_is_read(put, syntax, bits):
    pixels = noise(np.uint16, bits)

    def compress(dataset):
        dataset.PixelData = encapsulate([lossless_jpeg(pixels, bits)])
        dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)

    image = only(put(pixels, bits=bits, change=compress)).read().image_czyx
    np.testing.assert_array_equal(image[0, 0], pixels)


def lossless_jpeg(pixels, bits):
    """Return JPEG process 14, selection value 1 (ITU-T T.81, annex H): no free encoder has it."""
    left = np.zeros(pixels.shape, int)
    left[:, 1:] = pixels[:, :-1]
    left[1:, 0] = pixels[:-1, 0]
    left[0, 0] = 2 ** (bits - 1)
    code = "".join(map(difference_code, (pixels.astype(int) - left).ravel()))
    code += "1" * (-len(code) % 8)
    scan = int(code, 2).to_bytes(len(code) // 8, "big").replace(b"\xff", b"\xff\0")
    rows, columns = (size.to_bytes(2, "big") for size in pixels.shape)
    # All 17 categories have codes of five bits.
    table = bytes([0, *(17 if length == 5 else 0 for length in range(1, 17)), *range(17)])
    return b"".join(
        [
            b"\xff\xd8",
            b"\xff\xc3" + segment(bytes([bits]) + rows + columns + b"\1\1\x11\0"),
            b"\xff\xc4" + segment(table),
            b"\xff\xda" + segment(b"\1\1\0\1\0\0"),
            scan + b"\xff\xd9",
        ]
    )


def difference_code(difference):
    """Category, then the difference itself, one less where it is negative (T.81, F.1.2.1)."""
    difference = (difference + 2**15) % 2**16 - 2**15
    size = abs(int(difference)).bit_length()
    if size == 16:  # -32768 is said by its category alone
        return f"{16:05b}"
    value = difference if difference >= 0 else difference - 1 + 2**size
    return f"{size:05b}" + (f"{int(value):0{size}b}" if size else "")


def segment(content):
    return (len(content) + 2).to_bytes(2, "big") + content


@pytest.mark.parametrize(
    "name", ["JPEG2000.dcm", "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm"]
)
def test_lossy_pixels_are_what_pydicom_makes_of_them(name, tmp_path):
    """Secondary captures: given a class and a spacing, they are read."""
    dataset = pydicom.dcmread(test_file(name))
    expected = dataset.pixel_array
    path = save(as_radiograph(dataset), tmp_path / "image.dcm")
    np.testing.assert_array_equal(DicomReader().read(path)[0][0][0], expected)


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG-lossy.dcm"])
def test_lossy_12_bit_jpeg_is_close_to_the_same_image_without_loss(name, tmp_path):
    """Two values are those of pydicom's tests of libjpeg; the lossless one is its own file."""
    path = save(as_radiograph(pydicom.dcmread(test_file(name))), tmp_path / "image.dcm")
    found = DicomReader().read(path)[0][0][0].astype(int)
    assert (found[420, 140], found[230, 120]) == (244, 95)
    original = pydicom.dcmread(test_file("JPEG-LL.dcm")).pixel_array.astype(int)
    assert found.shape == original.shape == (1024, 256)
    assert np.abs(found - original).mean() < 3 and np.abs(found - original).max() < 40


def cut_short(frame):
    return frame[: len(frame) // 2]


def of_another_width(frame):
    start = frame.index(b"\xff\xc1") + 7
    return frame[:start] + b"\x00\xff" + frame[start + 2 :]


def of_eight_bits(frame):
    start = frame.index(b"\xff\xc1") + 4
    return frame[:start] + b"\x08" + frame[start + 1 :]


def without_a_frame(frame):
    return frame[:2] + frame[-2:]


@pytest.mark.parametrize("damage", [cut_short, of_another_width, of_eight_bits, without_a_frame])
def test_a_damaged_12_bit_jpeg_is_refused(damage, tmp_path):
    dataset = as_radiograph(pydicom.dcmread(test_file("JPGExtended.dcm")))
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([damage(frame)])
    path = save(dataset, tmp_path / "image.dcm")
    with pytest.raises(DataError) as caught:
        DicomReader().read(path)
    assert caught.value.code == "UNDECODABLE_PIXELS"


def as_radiograph(dataset):
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = STORAGE + "1.1"
    dataset.ImagerPixelSpacing = [1, 1]
    for keyword in ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"):
        dataset.pop(keyword, None)
    return dataset


def test_large_integers_become_floats_where_nothing_is_lost(put):
    pixels = np.array([[0, 1], [2**24, 2**30]], dtype=np.uint32)
    image = only(put(pixels)).read().image_czyx
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image[0, 0], pixels)


@pytest.mark.parametrize("rescales", [{}, {"RescaleSlope": 2, "RescaleIntercept": 0}])
def test_large_integers_that_a_float_cannot_hold_are_refused(put, rescales, tmp_path):
    from data_adapters.reasons import Unusable

    source = put(np.array([[0, 1], [2**24 + 1, 3]], dtype=np.int32), **rescales)
    with pytest.raises(Unusable, match="UNSUPPORTED_PIXELS"):
        only(source).read()
    with pytest.raises(DataError) as caught:
        DicomReader().read(tmp_path / "in")
    assert caught.value.code == "UNSUPPORTED_PIXELS"


def test_signed_bytes_are_read(put):
    pixels = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    image = only(put(pixels)).read().image_czyx
    assert image.dtype == np.int16
    np.testing.assert_array_equal(image[0, 0], pixels)


def test_an_odd_number_of_bytes_is_read(put):
    pixels = np.arange(15, dtype=np.uint8).reshape(3, 5)
    np.testing.assert_array_equal(only(put(pixels)).read().image_czyx[0, 0], pixels)


def test_bits_at_the_upper_end_are_moved_down(put):
    """HighBit may stand above BitsStored - 1 in old files (PS3.5 8.1.1)."""
    pixels = noise(np.uint16, 12)

    def lift(dataset):
        dataset.HighBit = 15
        dataset.PixelData = (pixels << 4 | 0x5).tobytes()

    np.testing.assert_array_equal(
        only(put(pixels, bits=12, change=lift)).read().image_czyx[0, 0], pixels
    )


@pytest.mark.parametrize("syntax", [*ENCODED, "DeflatedExplicitVRLittleEndian"])
def test_compressed_pixels_that_are_cut_short_cannot_be_decoded(put, syntax, tmp_path):
    from tests.data_adapters.dicom_files import reason

    def compress(dataset):
        if syntax in ENCODED:
            dataset.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
        else:
            dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)

    source = put(noise(np.uint16, 16), change=compress)
    path = tmp_path / "in/image.dcm"
    path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 3])
    from data_adapters.dicom import discover_dicom

    found = discover_dicom(source)
    if found.candidates:
        assert reason(source) in {"UNDECODABLE_PIXELS", "NO_PIXELS"}
    else:
        assert [entry.code for entry in found.quarantined] == ["UNREADABLE_FILE"]


@pytest.mark.parametrize("name", [copy for copy, _ in COPIES[:3]])
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x81, 0xFF])
def test_damaged_pixels_end_nothing_but_their_own_scan(name, byte, tmp_path):
    """A Rust decoder panics (no Exception), and GDCM ended the process on damaged JPEG-LS."""
    content = bytearray(test_file(name).read_bytes())
    path = tmp_path / "image.dcm"
    for place in range(len(content) - 4000, len(content) - 40, 400):
        damaged = content[:]
        damaged[place : place + 30] = bytes([byte]) * 30
        path.write_bytes(damaged)
        try:
            DicomReader().read(path)
        except DataError as error:
            assert error.code == "UNDECODABLE_PIXELS"


def test_jpeg_ls_never_goes_to_gdcm():
    for syntax in (pydicom.uid.JPEGLSLossless, pydicom.uid.JPEGLSNearLossless):
        assert dicom_pixels._plugins(syntax) == ("pyjpegls",)


def test_gpu_decoders_are_used_only_where_package_and_gpu_are_there(monkeypatch):
    """nvImageCodec itself cannot run here: what is asked of it is shown with a stand-in."""
    registered = []
    plugin = SimpleNamespace(register=lambda: registered.append(1) or True)
    monkeypatch.setattr(dicom_pixels, "find_spec", lambda name: object())
    monkeypatch.setattr("importlib.import_module", lambda name: plugin)
    for there, expected in ((False, 0), (True, 1)):
        monkeypatch.setattr(dicom_pixels, "_gpu_is_there", lambda there=there: there)
        dicom_pixels.use_gpu_decoders.cache_clear()
        assert dicom_pixels.use_gpu_decoders() is there
        assert len(registered) == expected
    dicom_pixels.use_gpu_decoders.cache_clear()


def test_the_reader_asks_for_gpu_decoders_and_what_a_confined_process_runs_does_not(
    monkeypatch,
):
    asked = []
    monkeypatch.setattr(monai_readers, "use_gpu_decoders", lambda: asked.append("reader"))
    monkeypatch.setattr(dicom_pixels, "use_gpu_decoders", lambda: asked.append("decoder"))
    DicomReader().read(test_file("MR_small.dcm"))
    assert asked == ["reader"]


def test_without_the_package_torch_is_not_asked(monkeypatch):
    def fail():
        raise AssertionError("torch was asked for")

    monkeypatch.setattr(dicom_pixels, "_gpu_is_there", fail)
    monkeypatch.setattr(dicom_pixels, "find_spec", lambda name: None)
    dicom_pixels.use_gpu_decoders.cache_clear()
    assert dicom_pixels.use_gpu_decoders() is False
    dicom_pixels.use_gpu_decoders.cache_clear()
