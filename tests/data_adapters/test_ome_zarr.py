"""OME-Zarr 0.4 and 0.5 as labs write them; each thing that can be wrong has its reason code."""

import json
import pickle
import shutil

import numpy as np
import pytest
import zarr

from data_adapters import zarr_store
from data_adapters.ome_zarr import discover_ome_zarr
from data_adapters.ome_zarr_images import Wanted, open_image
from data_adapters.ome_zarr_labels import ClassTable
from data_adapters.reasons import Unusable
from data_adapters.sources import Instances, OmeZarrSource, Targets
from data_adapters.zarr_places import Place
from tests.data_adapters.stores import edit_ome, read_one, reason, whole, write_image


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
    steps = np.linalg.norm(read_one(ome_zarr_source).affine_ras[:3, :3], axis=0)
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
        ("PATH_OUTSIDE", lambda m: m["datasets"][0].update(path="../../elsewhere")),
        ("PATH_OUTSIDE", lambda m: m["datasets"][0].update(path="/etc")),
        ("INVALID_METADATA", lambda m: m["datasets"][0].update(path=".")),
        ("INVALID_METADATA", lambda m: m["datasets"][0].update(path="0\0")),
        ("INVALID_METADATA", transforms({"type": "scale", "scale": [1, 1, 10**400]})),
        ("UNSUPPORTED_TRANSFORM", transforms({"type": "scale", "scale": [1, 1, 1]}, {"type": "x"})),
        ("UNSUPPORTED_AXES", lambda m: m["axes"][0].update(name="depth")),
        ("UNSUPPORTED_AXES", lambda m: m["axes"][1].update(name="z2")),
        ("INVALID_METADATA", lambda m: m["axes"].__setitem__(0, m["axes"][1])),
        ("INVALID_METADATA", lambda m: m["axes"].reverse()),
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


@pytest.mark.parametrize("version", ["0.1", "0.2", "0.3"])
def test_older_versions_are_refused_by_name(tmp_path, version):
    path = write_image(tmp_path / "P/a.zarr", [np.ones((2, 3, 4), np.uint8)], version="0.4")
    edit_ome(path, lambda ome: ome["multiscales"][0].update(version=version, axes=["z", "y", "x"]))
    source = OmeZarrSource(path=tmp_path, labels="parts", classes={1: "left"})
    assert reason(source) == "UNSUPPORTED_VERSION"


@pytest.mark.parametrize("key", ["well", "plate", "bioformats2raw.layout"])
def test_a_group_that_is_several_things_is_refused(put_ome_zarr, key):
    image = put_ome_zarr()
    edit_ome(image, lambda ome: ome.update({key: {}}))
    with pytest.raises(Unusable) as caught:
        open_image(Place(str(image)), Wanted())
    assert caught.value.code == "UNSUPPORTED_LAYOUT"


def test_a_zipped_store_is_refused_by_name(put_ome_zarr, ome_zarr_source):
    folder = put_ome_zarr().parent
    (folder / "b.ome.zarr.zip").touch()
    (folder / "c.ozx").touch()
    found = discover_ome_zarr(ome_zarr_source)
    assert len(found.candidates) == 1
    assert {(entry.code, entry.where) for entry in found.quarantined} == {
        ("UNSUPPORTED_LAYOUT", "P-17/b.ome.zarr.zip"),
        ("UNSUPPORTED_LAYOUT", "P-17/c.ozx"),
    }


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


def test_labels_that_state_no_unit_have_that_of_the_image(put_ome_zarr, ome_zarr_source):
    edit(put_ome_zarr() / "labels" / "parts", set_unit(None))
    assert reason(ome_zarr_source) is None


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.complex64, np.bool_, np.uint64])
def test_pixels_that_cannot_be_kept(put_ome_zarr, ome_zarr_source, dtype):
    rewrite_level(put_ome_zarr(), np.ones((4, 6, 7), dtype))
    assert reason(ome_zarr_source) == "UNSUPPORTED_PIXELS"


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        *[("uint8", "uint8"), ("int8", "int16"), ("uint16", "uint16"), ("int16", "int16")],
        *[("float16", "float32"), ("float32", "float32"), ("float64", "float32")],
    ],
)
def test_each_type_of_pixels_keeps_its_values(put_ome_zarr, ome_zarr_source, stored, kept):
    image = np.arange(4 * 6 * 7).reshape(4, 6, 7).astype(stored)
    rewrite_level(put_ome_zarr(), image)
    found = read_one(ome_zarr_source).image_czyx
    assert found.dtype == whole(found).dtype == kept
    np.testing.assert_array_equal(whole(found)[0], image)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_pixels_that_are_not_finite_arrive_so_that_ingest_refuses_them(
    put_ome_zarr, ome_zarr_source, value
):
    image = np.zeros((4, 6, 7))
    image[1, 2, 3] = value
    rewrite_level(put_ome_zarr(), image)
    found = whole(read_one(ome_zarr_source).image_czyx)
    assert np.isfinite(found).sum() == image.size - 1


def test_reading_a_candidate_decodes_no_pixel(put_ome_zarr, ome_zarr_source):
    image = put_ome_zarr()
    chunk = next(path for path in (image / "0").rglob("*") if path.name == "0" and path.is_file())
    chunk.write_bytes(b"not zstd")
    scan = read_one(ome_zarr_source)
    with pytest.raises(Unusable) as caught:
        whole(scan.image_czyx)
    assert caught.value.code == "UNDECODABLE_PIXELS"
    with pytest.raises(IndexError):
        scan.image_czyx[slice(0, 1), slice(0, 5), slice(0, 1), slice(0, 1)]


def test_a_damaged_chunk_of_the_labels(put_ome_zarr, ome_zarr_source):
    labels = put_ome_zarr() / "labels" / "parts" / "0"
    next(path for path in labels.rglob("0") if path.is_file()).write_bytes(b"not zstd")
    assert reason(ome_zarr_source) == "UNDECODABLE_PIXELS"


def test_a_declared_size_that_no_memory_holds(put_ome_zarr, ome_zarr_source):
    path = put_ome_zarr() / "0" / "zarr.json"
    document = json.loads(path.read_text())
    document["shape"] = [10**7, 10**6, 10**5]
    path.write_text(json.dumps(document))
    assert reason(ome_zarr_source) == "TOO_LARGE"


def declare(array, shape, chunks):
    """Let an array say that it is larger than it is."""
    document = json.loads((array / "zarr.json").read_text())
    document["shape"] = shape
    document["chunk_grid"]["configuration"]["chunk_shape"] = chunks
    (array / "zarr.json").write_text(json.dumps(document))


def test_channels_count_in_a_declared_size(tmp_path):
    image = write_image(tmp_path / "a.zarr", [np.zeros((3, 2, 8, 8), np.uint16)], "czyx")
    declare(image / "0", [3, 2048, 16384, 12288], [1, 64, 64, 64])  # 768 GiB each
    with pytest.raises(Unusable, match="EMPTY_ARRAY"):
        open_image(Place(str(image)), Wanted())
    with pytest.raises(Unusable, match="TOO_LARGE"):
        open_image(Place(str(image)), Wanted(channels=(0, 1)))


@pytest.mark.parametrize("layout", [{}, {"shards": (4, 8, 8), "chunks": (2, 4, 4)}])
def test_an_image_of_chunks_that_are_not_there_is_refused(tmp_path, layout):
    """A few hundred bytes that declare 68 GiB, whole or one shard of it."""
    image = write_image(tmp_path / "a.zarr", [np.ones((4, 8, 8), np.uint16)], **layout)
    declare(image / "0", [4096, 4096, 2176], layout.get("shards", [64, 64, 64]))
    with pytest.raises(Unusable, match="EMPTY_ARRAY") as caught:
        open_image(Place(str(image)), Wanted())
    assert "declared as 68 GiB" in caught.value.at("").sentence


def test_one_with_a_ten_thousandth_of_it_is_read_and_its_labels_may_be_empty(
    put_ome_zarr, ome_zarr_source, monkeypatch
):
    image = put_ome_zarr()
    for path in (image / "labels").rglob("c"):
        shutil.rmtree(path)
    monkeypatch.setattr("data_adapters.ome_zarr_images.MAX_EMPTY_BYTES", 0)
    assert reason(ome_zarr_source) is None
    for path in (image / "0").rglob("c"):
        shutil.rmtree(path)
    monkeypatch.setattr("data_adapters.ome_zarr_images.MAX_EXPANSION", 1)
    assert reason(ome_zarr_source) == "EMPTY_ARRAY"


@pytest.mark.parametrize("group", [".", "labels/parts"])
def test_a_chunk_that_no_memory_holds(put_ome_zarr, ome_zarr_source, group):
    path = put_ome_zarr() / group / "0" / "zarr.json"
    document = json.loads(path.read_text())
    document["chunk_grid"]["configuration"]["chunk_shape"] = [10**4, 10**4, 10**4]
    path.write_text(json.dumps(document))
    assert reason(ome_zarr_source) == "HUGE_CHUNKS"


def test_a_level_that_is_a_link_out_of_the_image(put_ome_zarr, ome_zarr_source, tmp_path):
    image = put_ome_zarr()
    (image / "0").rename(tmp_path / "elsewhere")
    (image / "0").symlink_to(tmp_path / "elsewhere")
    assert reason(ome_zarr_source) == "PATH_OUTSIDE"


def test_a_chunk_that_is_a_link(put_ome_zarr, ome_zarr_source, tmp_path):
    image = put_ome_zarr()
    chunk = next(path for path in (image / "0").rglob("0") if path.is_file())
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    for rechunk in (False, True):
        assert reason(ome_zarr_source.model_copy(update={"rechunk": rechunk})) == "PATH_OUTSIDE"
    (candidate,) = discover_ome_zarr(ome_zarr_source).candidates
    assert candidate.fingerprint() == ""


def test_labels_that_are_a_link_out_of_the_image(put_ome_zarr, ome_zarr_source, tmp_path):
    image = put_ome_zarr()
    (image / "labels").rename(tmp_path / "elsewhere")
    (image / "labels").symlink_to(tmp_path / "elsewhere")
    assert reason(ome_zarr_source) == "PATH_OUTSIDE"


def test_an_unmapped_value_is_named(put_ome_zarr, ome_zarr_source, example):
    put_ome_zarr(labels_zyx=example.labels.astype(np.int32) * 300)
    with pytest.raises(Unusable) as caught:
        read_one(ome_zarr_source)
    assert caught.value.at("").sentence == (
        "These labels are in no class: 300 (nearest: 2), 600 (nearest: 2)."
    )


def test_many_unmapped_values_look_like_objects(put_ome_zarr, ome_zarr_source):
    put_ome_zarr(labels_zyx=np.arange(4 * 6 * 7, dtype=np.uint32).reshape(4, 6, 7))
    with pytest.raises(Unusable, match="UNMAPPED_LABEL") as caught:
        read_one(ome_zarr_source)
    assert "are they objects? then use `instances`" in caught.value.detail


def test_objects_become_one_class(put_ome_zarr, tmp_path):
    objects = np.arange(4 * 6 * 7, dtype=np.int32).reshape(4, 6, 7) * (2**31 // 200)
    put_ome_zarr(labels_zyx=objects)
    source = OmeZarrSource(
        path=tmp_path / "ome_zarr", labels="parts", instances=Instances(interior="cell")
    )
    np.testing.assert_array_equal(whole(read_one(source).labels_zyx), objects > 0)


def test_objects_with_negative_numbers_are_refused(put_ome_zarr, tmp_path):
    put_ome_zarr(labels_zyx=np.full((4, 6, 7), -1, np.int32))
    source = OmeZarrSource(
        path=tmp_path / "ome_zarr", labels="parts", instances=Instances(interior="cell")
    )
    with pytest.raises(Unusable) as caught:
        read_one(source)
    assert (caught.value.code, caught.value.detail) == ("UNMAPPED_LABEL", "-1")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("keys", [{1: 2, 7: 1}, {1: 255, 100: 3}, {-3: 1, 70000: 2}])
def test_labels_of_every_type_become_classes(dtype, keys):
    limits = np.iinfo(dtype)
    keys = {key: index for key, index in keys.items() if limits.min <= key <= limits.max}
    labels = np.asarray([[0, *keys]] * 2, dtype=dtype)
    table = ClassTable.of(keys)
    np.testing.assert_array_equal(table.apply(labels), [[0, *keys.values()]] * 2)
    with pytest.raises(Unusable, match="UNMAPPED_LABEL") as caught:
        table.apply(np.asarray([0, 99], dtype=dtype))
    near = min(table.known, key=lambda value: abs(value - 99))
    assert caught.value.detail == f"99 (nearest: {near})"


def test_a_scan_is_pickled_without_its_open_store(put_ome_zarr, ome_zarr_source, example):
    put_ome_zarr()
    (candidate,) = discover_ome_zarr(ome_zarr_source).candidates
    again = pickle.loads(pickle.dumps(candidate))
    assert again == candidate
    scan = pickle.loads(pickle.dumps(again.read()))
    np.testing.assert_array_equal(whole(scan.image_czyx)[0], example.image)
    np.testing.assert_array_equal(whole(scan.labels_zyx), example.labels)
    assert "P-17" not in repr(scan)


def test_stamp_and_fingerprint_change_with_any_file_and_with_nothing_else(
    put_ome_zarr, ome_zarr_source
):
    image = put_ome_zarr()

    def look():
        (candidate,) = discover_ome_zarr(ome_zarr_source).candidates
        return candidate.fingerprint(), candidate.read().stamp

    before = look()
    assert look() == before
    for part in ("zarr.json", "0/zarr.json", "0/c/0/0/0", "labels/parts/0/c/0/0/0"):
        path = image / part
        path.write_bytes(path.read_bytes())
        after = look()
        assert all(one != other for one, other in zip(before, after, strict=True))
        before = after


@pytest.fixture
def cache_of():
    yield zarr_store.limit_decoded_cache
    zarr_store.limit_decoded_cache(zarr_store.DECODED_CACHE_BYTES)


@pytest.mark.parametrize(("num_bytes", "kept"), [(2**20, True), (0, False)])
def test_decoded_chunks_are_kept_within_a_limit(
    put_ome_zarr, ome_zarr_source, example, cache_of, num_bytes, kept
):
    image = put_ome_zarr()
    cache_of(num_bytes)
    scan = read_one(ome_zarr_source)
    np.testing.assert_array_equal(whole(scan.image_czyx)[0], example.image)
    (image / "0/c/0/0/0").unlink()
    assert whole(scan.image_czyx).any() == kept
    # Opened again, nothing old is believed.
    assert not whole(read_one(ome_zarr_source).image_czyx).any()


def test_rechunked_images_are_not_in_place(put_ome_zarr, ome_zarr_source):
    put_ome_zarr()
    assert read_one(ome_zarr_source).in_place
    scan = read_one(ome_zarr_source.model_copy(update={"rechunk": True}))
    assert (scan.in_place, scan.stamp) == (False, "")


def test_an_image_beside_the_subject_folders_is_noted(put_ome_zarr, ome_zarr_source):
    put_ome_zarr()
    put_ome_zarr("loose.zarr", seed=1)
    found = discover_ome_zarr(ome_zarr_source)
    assert len(found.candidates) == 1
    assert found.notes == ("1 images lie beside the subject folders, not in one; passed over.",)


def test_targets_come_from_their_table(put_ome_zarr, tmp_path):
    for name in ("P-1/a.zarr", "P-1/b.zarr", "P-2/a.zarr"):
        put_ome_zarr(name)
    (tmp_path / "t.csv").write_text("image,grade\nP-1/a.zarr,2\nP-1/b.zarr,3.5\n")
    targets = Targets(path=tmp_path / "t.csv", key="image", id_column="image", column="grade")
    source = OmeZarrSource(path=tmp_path / "ome_zarr", targets=targets)
    one, two, none = discover_ome_zarr(source).candidates
    assert (one.read().target, two.read().target) == (2.0, 3.5)
    assert one.read().labels_zyx is None
    with pytest.raises(Unusable, match="NO_TARGET"):
        pickle.loads(pickle.dumps(none)).read()


def test_the_multiscales_own_transformation_comes_after_the_levels(put_ome_zarr, ome_zarr_source):
    image = put_ome_zarr()

    def change(multiscale):
        multiscale["datasets"][0]["coordinateTransformations"] = [
            {"type": "scale", "scale": [1000.0, 1000.0, 1000.0]},
            {"type": "translation", "translation": [1000.0, 0.0, 0.0]},
        ]
        multiscale["coordinateTransformations"] = [{"type": "scale", "scale": [3.0, 2.0, 1.0]}]

    edit_both(image, change)
    affine = read_one(ome_zarr_source).affine_ras
    np.testing.assert_allclose(affine @ [0, 0, 0, 1], [0, 0, 3, 1])
    np.testing.assert_allclose(affine @ [1, 1, 1, 1], [1, 2, 6, 1])


def test_what_is_written_passes_ome_zarr_models(put_ome_zarr):
    import ome_zarr_models

    image = ome_zarr_models.open_ome_zarr(zarr.open_group(put_ome_zarr(), mode="r"))
    assert image.labels is not None
