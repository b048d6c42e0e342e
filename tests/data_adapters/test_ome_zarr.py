"""OME-Zarr 0.4 and 0.5 as labs write them; each thing that can be wrong has its reason code."""

import json

import numpy as np
import pytest
import zarr

from data_adapters.ingest import discover
from data_adapters.reasons import REASONS, Unusable
from data_adapters.sources import OmeZarrSource


def reason(source):
    (candidate,) = discover(source).candidates
    try:
        candidate.read()
    except Unusable as refused:
        assert refused.code in REASONS
        assert "{" not in refused.at("").sentence
        return refused.code
    return None


def edit(group, change):
    """Apply ``change`` to the first multiscale of a 0.5 group."""
    path = group / "zarr.json"
    document = json.loads(path.read_text())
    change(document["attributes"]["ome"]["multiscales"][0])
    path.write_text(json.dumps(document))


def edit_both(image, change):
    edit(image, change)
    edit(image / "labels" / "parts", change)


def set_unit(unit):
    def change(multiscale):
        for axis in multiscale["axes"]:
            axis.pop("unit", None)
            if unit:
                axis["unit"] = unit

    return change


def transforms(*found):
    def change(multiscale):
        multiscale["datasets"][0]["coordinateTransformations"] = list(found)

    return change


@pytest.mark.parametrize(
    ("unit", "factor"), [("nanometer", 1e-6), ("micrometer", 1e-3), ("meter", 1e3), ("inch", 25.4)]
)
def test_units_become_millimetres(put_ome_zarr, ome_zarr_source, unit, factor):
    image = put_ome_zarr()
    edit_both(image, set_unit(unit))
    edit_both(image, transforms({"type": "scale", "scale": [3.0, 2.0, 1.0]}))
    (candidate,) = discover(ome_zarr_source).candidates
    steps = np.linalg.norm(candidate.read().affine_ras[:3, :3], axis=0)
    np.testing.assert_allclose(steps, np.array([3.0, 2.0, 1.0]) * factor)


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("MISSING_UNIT", set_unit(None)),
        ("UNKNOWN_UNIT", set_unit("parsec")),
        (
            "UNSUPPORTED_TRANSFORM",
            transforms({"type": "scale", "scale": [1, 1, 1]}, {"type": "affine", "affine": []}),
        ),
        ("UNSUPPORTED_TRANSFORM", transforms({"type": "rotation"})),
        ("UNSUPPORTED_TRANSFORM", transforms({"type": "scale", "path": "scales"})),
        ("INVALID_METADATA", transforms({"type": "scale", "scale": [1, 1]})),
        ("INVALID_METADATA", transforms({"type": "scale", "scale": [1, 1, 0]})),
        ("INVALID_METADATA", transforms()),
        ("INVALID_METADATA", lambda m: m.pop("axes")),
        ("INVALID_METADATA", lambda m: m["datasets"][0].update(path="../../elsewhere")),
        ("UNSUPPORTED_AXES", lambda m: m["axes"][0].update(name="depth")),
        ("UNSUPPORTED_AXES", lambda m: m["axes"].__setitem__(0, {"name": "t", "type": "time"})),
        ("UNDECODABLE_PIXELS", lambda m: m["datasets"][0].update(path="nowhere")),
    ],
)
def test_wrong_metadata_has_a_code(put_ome_zarr, ome_zarr_source, code, change):
    edit(put_ome_zarr(), change)
    assert reason(ome_zarr_source) == code


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"attributes": {"ome": 3}}', "\x00"])
def test_metadata_that_is_no_metadata(put_ome_zarr, ome_zarr_source, text):
    (put_ome_zarr() / "zarr.json").write_text(text)
    assert reason(ome_zarr_source) == "INVALID_METADATA"


def test_a_plate_is_refused_by_name(put_ome_zarr, ome_zarr_source):
    path = put_ome_zarr() / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["ome"]["plate"] = {}
    path.write_text(json.dumps(document))
    assert reason(ome_zarr_source) == "UNSUPPORTED_LAYOUT"


def test_no_labels_group_of_that_name(put_ome_zarr, ome_zarr_source):
    put_ome_zarr(labels_name="nuclei")
    assert reason(ome_zarr_source) == "NO_LABELS"


def test_labels_elsewhere_than_the_image(put_ome_zarr, ome_zarr_source):
    moved = transforms(
        {"type": "scale", "scale": [5000.0, 2000.0, 1500.0]},
        {"type": "translation", "translation": [-20000.0, 10000.0, 30800.0]},
    )
    edit(put_ome_zarr() / "labels" / "parts", moved)
    assert reason(ome_zarr_source) == "LABEL_GRID"


def rewrite_level(group, array):
    level = zarr.create_array(group / "0", data=array, overwrite=True)
    assert level.shape == array.shape


def test_labels_of_another_shape(put_ome_zarr, ome_zarr_source):
    rewrite_level(put_ome_zarr() / "labels" / "parts", np.zeros((2, 6, 7), np.uint8))
    assert reason(ome_zarr_source) == "LABEL_SHAPE"


def test_labels_that_are_fractions(put_ome_zarr, ome_zarr_source):
    rewrite_level(put_ome_zarr() / "labels" / "parts", np.zeros((4, 6, 7), np.float32))
    assert reason(ome_zarr_source) == "LABEL_TYPE"


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.complex64, np.bool_])
def test_pixels_that_cannot_be_kept(put_ome_zarr, ome_zarr_source, dtype):
    rewrite_level(put_ome_zarr(), np.ones((4, 6, 7), dtype))
    assert reason(ome_zarr_source) == "UNSUPPORTED_PIXELS"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_pixels_that_are_not_finite(put_ome_zarr, ome_zarr_source, value):
    image = np.zeros((4, 6, 7))
    image[1, 2, 3] = value
    rewrite_level(put_ome_zarr(), image)
    assert reason(ome_zarr_source) == "NOT_FINITE"


def test_a_damaged_chunk(put_ome_zarr, ome_zarr_source):
    image = put_ome_zarr()
    chunk = next(path for path in (image / "0").rglob("*") if path.name == "0" and path.is_file())
    chunk.write_bytes(b"not zstd")
    assert reason(ome_zarr_source) == "UNDECODABLE_PIXELS"


def test_a_declared_size_that_no_memory_holds(put_ome_zarr, ome_zarr_source):
    path = put_ome_zarr() / "0" / "zarr.json"
    document = json.loads(path.read_text())
    document["shape"] = [10**7, 10**6, 10**5]
    path.write_text(json.dumps(document))
    assert reason(ome_zarr_source) == "TOO_LARGE"


def test_an_unmapped_value_is_named(put_ome_zarr, ome_zarr_source, example):
    labels = example.labels.astype(np.int32) * 300
    put_ome_zarr(labels_zyx=labels)
    (candidate,) = discover(ome_zarr_source).candidates
    with pytest.raises(Unusable) as caught:
        candidate.read()
    assert caught.value.at("").sentence == "These labels are in no class: 300, 600."


def test_an_image_beside_the_subject_folders_is_noted(put_ome_zarr, ome_zarr_source):
    put_ome_zarr()
    put_ome_zarr("loose.zarr", seed=1)
    found = discover(ome_zarr_source)
    assert len(found.candidates) == 1
    assert found.notes == ("1 images lie beside the subject folders, not in one; passed over.",)


def version_04(path, image_czyx, labels_zyx):
    """Write OME-Zarr 0.4 with zarr-python: channels, and a label pyramid, coarsest usable last."""
    spatial = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]

    def multiscale(axes, scales):
        return {
            "version": "0.4",
            "axes": axes,
            "datasets": [
                {"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
                for i, scale in enumerate(scales)
            ],
        }

    group = zarr.create_group(path, zarr_format=2)
    axes = [{"name": "c", "type": "channel"}, *spatial]
    group.attrs["multiscales"] = [multiscale(axes, [[1, 4.0, 2.0, 2.0]])]
    group.create_array("0", data=image_czyx)
    labels = group.create_group("labels")
    labels.attrs["labels"] = ["parts"]
    parts = labels.create_group("parts")
    parts.attrs["image-label"] = {"version": "0.4"}
    fine = np.repeat(np.repeat(labels_zyx, 2, axis=1), 2, axis=2)
    offset = {"type": "translation", "translation": [0, 0, 0]}
    found = multiscale(spatial, [[4.0, 1.0, 1.0], [4.0, 2.0, 2.0]])
    found["datasets"][1]["coordinateTransformations"].append(offset)
    parts.attrs["multiscales"] = [found]
    parts.create_array("0", data=fine)
    parts.create_array("1", data=labels_zyx)


@pytest.mark.parametrize("channel", [0, 1])
def test_version_04_with_channels_and_the_label_level_that_fits(
    tmp_path, example, ome_zarr_source, channel
):
    image = np.stack([example.image, example.image + 1])
    version_04(tmp_path / "ome_zarr" / "P-1" / "a.zarr", image, example.labels)
    source = ome_zarr_source.model_copy(update={"channel": channel})
    (candidate,) = discover(source).candidates
    scan = candidate.read()
    np.testing.assert_array_equal(scan.image_zyx, image[channel])
    np.testing.assert_array_equal(scan.labels_zyx, example.labels)
    np.testing.assert_allclose(
        np.linalg.norm(scan.affine_ras[:3, :3], axis=0), [0.004, 0.002, 0.002]
    )


def test_a_channel_that_is_not_there(tmp_path, example, ome_zarr_source):
    version_04(tmp_path / "ome_zarr/P-1/a.zarr", example.image[None], example.labels)
    assert reason(ome_zarr_source.model_copy(update={"channel": 1})) == "CHANNEL_MISSING"


def test_a_sharded_array_is_read(put_ome_zarr, ome_zarr_source, example):
    image = put_ome_zarr()
    zarr.create_array(
        image / "0", data=example.image, chunks=(2, 3, 7), shards=(4, 6, 7), overwrite=True
    )
    (candidate,) = discover(ome_zarr_source).candidates
    np.testing.assert_array_equal(candidate.read().image_zyx, example.image)


def test_the_multiscales_own_transformation_comes_after_the_levels(put_ome_zarr, ome_zarr_source):
    image = put_ome_zarr()

    def change(multiscale):
        multiscale["datasets"][0]["coordinateTransformations"] = [
            {"type": "scale", "scale": [1000.0, 1000.0, 1000.0]},
            {"type": "translation", "translation": [1000.0, 0.0, 0.0]},
        ]
        multiscale["coordinateTransformations"] = [{"type": "scale", "scale": [3.0, 2.0, 1.0]}]

    edit_both(image, change)
    (candidate,) = discover(ome_zarr_source).candidates
    affine = candidate.read().affine_ras
    np.testing.assert_allclose(affine @ [0, 0, 0, 1], [0, 0, 3, 1])
    np.testing.assert_allclose(affine @ [1, 1, 1, 1], [1, 2, 6, 1])


def test_what_is_written_passes_ome_zarr_models(put_ome_zarr):
    import ome_zarr_models

    image = ome_zarr_models.open_ome_zarr(zarr.open_group(put_ome_zarr(), mode="r"))
    assert image.labels is not None


@pytest.mark.real_data
def test_flat_real_microscopy_is_refused_by_its_axes(real_data, tmp_path):
    nuclei = real_data / "microscopy" / "dsb2018_nuclei.ome.zarr"
    if not nuclei.is_dir():
        pytest.skip(f"no {nuclei.name} in the real data")
    (tmp_path / "P-1").mkdir()
    (tmp_path / "P-1" / nuclei.name).symlink_to(nuclei)
    source = OmeZarrSource(path=tmp_path, labels="nuclei", classes={1: "nucleus"})
    assert reason(source) == "UNSUPPORTED_AXES"
