import hashlib

import numpy as np
import pytest
import torch

import data_adapters.subjects as subjects
from data_adapters.digests import Names
from data_adapters.errors import DataError
from data_adapters.inputs import PatchInput, SliceInput, VolumeInput
from data_adapters.matching import channel_indices, class_map, nearest
from data_adapters.splits import split_subjects
from data_adapters.subjects import SubjectDataset
from tests.data_adapters.scans import NAMES, Uniforms, manifest_of, put

AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]
SHAPE = (6, 10, 12)
SLICES = SliceInput(shape_yx=(8, 8), spacing_mm_yx=(1.0, 1.0), cap=3)
PATCHES = PatchInput(shape_zyx=(4, 4, 4), spacing_mm_zyx=(1, 1, 1), cap=5)
FINDINGS = Names((), targets=("normal", "pneumonia"))


def image(seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 900, shape).astype(np.int16)


def labels(seed):
    return np.random.default_rng(seed).integers(0, 3, SHAPE).astype(np.uint8)


@pytest.fixture
def cache(tmp_path):
    return tmp_path


@pytest.fixture
def manifest(cache):
    """Subject a has two scans, b and c one each."""
    scans = enumerate("aabc")
    return manifest_of([put(cache, who, image(n), AFFINE, labels(n)) for n, who in scans])


def dataset(cache, manifest, inputs=SLICES, **options):
    return SubjectDataset(cache, manifest, inputs, NAMES.classes, **options)


def test_a_record_is_the_images_that_the_uniforms_choose_from_all_scans_of_one_subject(
    cache, manifest
):
    found = dataset(cache, manifest)
    whole = torch.cat([record.images for record in found.scans(0)])
    chosen = np.argsort(Uniforms(1)(len(whole)))[:3]
    record = found.record(0, Uniforms(1))
    assert torch.equal(record.images, whole[torch.from_numpy(chosen)])
    assert record.labels.shape == (3, 8, 8)


def test_subjects_without_consent_are_in_no_record(cache, manifest):
    found = dataset(cache, manifest, without={"b"})
    assert found.subjects == ("a", "c")
    all_of_them = dataset(cache, manifest)
    assert torch.equal(found.scans(1)[0].images, all_of_them.scans(2)[0].images)


def test_a_subset_has_the_named_subjects_in_their_order(cache, manifest):
    found = dataset(cache, manifest)
    parts = split_subjects(found.subjects, {"training": 0.5, "validation": 0.5}, seed=3)
    lengths = [len(found.subset(part)) for part in parts.values()]
    assert sum(lengths) == 3
    assert found.subset({"c", "a", "unknown"}).subjects == ("a", "c")
    assert len(found) == 3


def test_patches_of_a_record_are_fresh_bounded_and_of_one_subject(cache, manifest):
    found = dataset(cache, manifest, PATCHES)
    uniforms = Uniforms()
    first, second = found.record(0, uniforms), found.record(0, uniforms)
    assert first.images.shape == (5, 1, 4, 4, 4) and first.labels.shape == (5, 4, 4, 4)
    assert not torch.equal(first.images, second.images)
    assert torch.equal(first.images, found.record(0, Uniforms()).images)


def test_every_record_takes_equally_many_uniforms_whatever_the_subject(cache, manifest):
    uniforms = Uniforms()
    found = dataset(cache, manifest, PATCHES.model_copy(update={"foreground": 0.5}))
    for index in range(3):
        found.record(index, uniforms)
    assert len(set(uniforms.asked)) == 1


def test_all_voxels_are_scored_once_in_patches(cache, manifest):
    found = dataset(cache, manifest, PATCHES)
    (scan,) = found.scans(2)
    assert scan.counted.sum() == np.prod(SHAPE)
    for value in (0, 1, 2):
        assert ((scan.labels == value) & scan.counted).sum() == (labels(3) == value).sum()


def test_classes_of_patches_follow_the_experiments_order(cache, manifest):
    swapped = SubjectDataset(cache, manifest, PATCHES, ("background", "right", "left"))
    usual, other = dataset(cache, manifest, PATCHES).scans(0)[0], swapped.scans(0)[0]
    assert torch.equal(usual.labels == 1, other.labels == 2)


def test_memory_for_prepared_scans_is_bounded_and_patches_need_none(cache, manifest, monkeypatch):
    monkeypatch.setattr(subjects, "MEMORY_BYTES", 2 * 6 * 8 * 8 * 5)
    found = dataset(cache, manifest)
    for index in range(3):
        found.scans(index)
    assert len(found._memory._kept) == 2
    patches = dataset(cache, manifest, PATCHES)
    patches.record(0, Uniforms())
    assert not patches._memory._kept


def test_a_table_of_classes_labels_every_image_of_a_scan(cache):
    entries = [
        put(cache, who, image(n), AFFINE, names=FINDINGS, target=float(n))
        for n, who in enumerate("ab")
    ]
    manifest = manifest_of(entries, FINDINGS)
    for inputs in (SLICES, PATCHES):
        found = SubjectDataset(cache, manifest, inputs, ("pneumonia", "normal"), learns="targets")
        assert found.record(0, Uniforms()).labels.tolist() == [1] * inputs.cap
        assert set(torch.cat([r.labels for r in found.scans(1)]).tolist()) == {0}
    with pytest.raises(DataError, match="segmentation cannot be learned"):
        SubjectDataset(cache, manifest, SLICES, ("pneumonia", "normal"))


def test_classification_needs_a_table(cache, manifest):
    with pytest.raises(DataError, match="classification cannot be learned"):
        dataset(cache, manifest, learns="targets")


def test_planar_data_is_slices_or_flat_patches_but_no_volume(cache):
    plane = image(0, (1, 10, 12))
    manifest = manifest_of(
        [put(cache, "a", plane, AFFINE, names=FINDINGS, planar=True, target=1.0)], FINDINGS
    )

    def opened(inputs):
        return SubjectDataset(cache, manifest, inputs, FINDINGS.targets, learns="targets")

    assert opened(SLICES).record(0, Uniforms()).images.shape == (1, 1, 8, 8)
    flat = PatchInput(shape_zyx=(1, 4, 4), spacing_mm_zyx=(9, 1, 1))
    assert opened(flat).record(0, Uniforms()).images.shape == (4, 1, 4, 4)
    for inputs in (PATCHES, VolumeInput(shape_zyx=(2, 8, 8), spacing_mm_zyx=(1, 1, 1))):
        with pytest.raises(DataError, match="planar images"):
            opened(inputs).check(0)


def test_named_channels_are_read_in_the_experiments_order_and_no_others(cache, monkeypatch):
    names = Names(NAMES.classes, channels=("T1", "T2", "FLAIR"))
    pixels = np.stack([image(n) for n in range(3)])
    manifest = manifest_of([put(cache, "a", pixels, AFFINE, labels(0), names=names)], names)
    wanted = SLICES.model_copy(update={"channels": ("FLAIR", "T1")})
    both = dataset(cache, manifest, wanted).scans(0)[0].images
    for place, name in enumerate(("FLAIR", "T1")):
        one = SLICES.model_copy(update={"channels": (name,)})
        alone = dataset(cache, manifest, one).scans(0)[0].images
        assert torch.equal(both[:, place : place + 1], alone)
    patch = PATCHES.model_copy(update={"channels": ("FLAIR", "T1")})
    assert dataset(cache, manifest, patch).record(0, Uniforms()).images.shape[1] == 2
    with pytest.raises(DataError, match="have 3 channels"):
        dataset(cache, manifest)


def test_a_scan_that_is_not_there_is_an_error_of_that_subject_alone(cache, manifest):
    import shutil

    broken = next(entry for entry in manifest.scans if entry.subject == "b")
    shutil.rmtree(cache / broken.path)
    found = dataset(cache, manifest, PATCHES)
    with pytest.raises(DataError, match="missing or damaged"):
        found.record(1, Uniforms())
    found.record(0, Uniforms())
    found.record(2, Uniforms())


def test_images_that_are_read_in_place_are_sampled_and_their_change_is_refused(
    put_ome_zarr, ome_zarr_source, take_in, tmp_path
):
    from data_adapters.discover import locate

    def pseudonymise(text):
        return hashlib.sha256(b"a key" + text.encode()).hexdigest()[:32]

    put_ome_zarr()
    manifest = take_in(ome_zarr_source).manifest
    assert manifest.scans[0].path.endswith(".json")
    found = SubjectDataset(
        tmp_path / "cache",
        manifest,
        PatchInput(shape_zyx=(2, 3, 3), spacing_mm_zyx=(5.0, 2.0, 1.5)),
        manifest.classes,
        in_place=locate([ome_zarr_source], pseudonymise),
    )
    assert found.record(0, Uniforms()).images.shape == (4, 1, 2, 3, 3)
    elsewhere = SubjectDataset(tmp_path / "cache", manifest, SLICES, manifest.classes)
    with pytest.raises(DataError, match="no longer where it was"):
        elsewhere.check(0)


# Names


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (["background", "lefty", "right"], r"'lefty' \(nearest here: 'left'\).*'left'.*site file"),
        (["background", "left"], r"\(no other\) are not this data set's 'right'"),
        (["background", "left", "right", "top"], r"classes 'top' are not"),
    ],
)
def test_classes_that_differ_are_named_with_the_nearest(wanted, says):
    with pytest.raises(DataError, match=says):
        class_map(NAMES.classes, wanted)


def test_a_coded_class_is_explained_and_matched_by_its_meaning():
    wanted = ["background", "SCT:10200004"]
    with pytest.raises(DataError, match=r"'SCT:10200004' \(liver\) \(nearest here: 'Liver'\)"):
        class_map(["background", "Liver"], wanted, meanings={"SCT:10200004": "liver"})
    assert class_map(["background", "SCT:10200004"], wanted).tolist() == [0, 1]


def test_what_the_background_is_called_does_not_matter():
    assert class_map(["background", "a", "b"], ["rest", "b", "a"]).tolist() == [0, 2, 1]
    assert class_map(["a", "b"], ["b", "a"], learns="targets").tolist() == [1, 0]


def test_channels_are_found_by_name_or_refused_with_the_nearest():
    assert channel_indices(("",), None) == (0,)
    assert channel_indices(("T1",), None) == (0,)
    assert channel_indices(("",), ("T1",)) == (0,)
    assert channel_indices(("T1", "T2"), ("T2",)) == (1,)
    with pytest.raises(DataError, match=r"'FLAIR2' \(nearest here: 'FLAIR'\)"):
        channel_indices(("T1", "FLAIR"), ("FLAIR2",))
    with pytest.raises(DataError, match="it has one channel without a name"):
        channel_indices(("",), ("T1", "T2"))
    assert nearest("xyz", ["left"]) is None
