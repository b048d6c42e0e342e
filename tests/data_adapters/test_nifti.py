"""NIfTI: what headers mean (nifti1.h), which labels belong to which image, and what is refused."""

import gzip
import io
import pickle

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_adapters.nifti import discover_nifti
from data_adapters.reasons import Unusable
from data_adapters.sources import NiftiSource
from tests.data_adapters.test_contract import SourceContract

# Left-handed, rotated by permutation, anisotropic: (x, y, z) indices to RAS+ mm.
AFFINE_XYZ = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, 5.0, 30], [0, 0, 0, 1]])
SHAPE_XYZ = (5, 6, 4)


def image_xyz(dtype="int16"):
    return np.arange(np.prod(SHAPE_XYZ)).reshape(SHAPE_XYZ).astype(dtype)


def labels_xyz(dtype="uint8"):
    labels = np.zeros(SHAPE_XYZ, dtype)
    labels[1:3, 2, 1] = 1
    labels[3, 4, 2] = 2
    return labels


def write(path, array, affine=AFFINE_XYZ, *, kind=nib.Nifti1Image, unit="mm", header=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = kind(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    patch(path, header or {})
    return path


def patch(path, fields):
    """Change a written header: nibabel would mend it while saving."""
    pack, unpack = (gzip.compress, gzip.decompress) if path.suffix == ".gz" else (bytes, bytes)
    content = unpack(path.read_bytes())
    header = type(nib.load(path).header).from_fileobj(io.BytesIO(content))
    for field, value in fields.items():
        header[field] = value
    block = header.binaryblock
    path.write_bytes(pack(block + content[len(block) :]))


def plain(path, **changes):
    return NiftiSource(
        **{"path": path, "image": "", "labels": "_seg", "classes": {1: "left", 2: "right"}}
        | changes
    )


def only(source):
    (candidate,) = discover_nifti(source).candidates
    return candidate


def code_of(source):
    with pytest.raises(Unusable) as caught:
        only(source).read()
    return caught.value.code


@pytest.fixture
def pair(tmp_path):
    """Write image and labels of one subject; return the source."""

    def put(image=None, labels=None, subject="S-1", *, labels_affine=AFFINE_XYZ, **header):
        folder = tmp_path / subject
        write(folder / "a.nii.gz", image_xyz() if image is None else image, **header)
        write(folder / "a_seg.nii.gz", labels_xyz() if labels is None else labels, labels_affine)
        return plain(tmp_path)

    return put


class TestContract(SourceContract):
    rewritten = 1

    @pytest.fixture
    def source(self, tmp_path):
        return plain(tmp_path / "nifti")

    @pytest.fixture
    def put(self, source, example):
        def put(subject="P-17", name="a", *, seed=0, image_zyx=None):
            image, labels = example.volume(seed)
            image = image if image_zyx is None else image_zyx
            affine = example.affine[:, [2, 1, 0, 3]]
            write(source.path / subject / f"{name}.nii.gz", image.T, affine)
            write(source.path / subject / f"{name}_seg.nii.gz", labels.T, affine)

        return put

    @pytest.fixture
    def put_many(self, put):
        def put_each(subjects):
            for subject, seed in subjects:
                put(subject, str(seed), seed=seed)

        return put_each


class TestReading:
    def test_pixels_labels_and_geometry_come_in_z_y_x(self, pair):
        scan = only(pair()).read()
        np.testing.assert_array_equal(scan.image_czyx[0], image_xyz().T)
        np.testing.assert_array_equal(scan.labels_zyx, labels_xyz().T)
        np.testing.assert_array_equal(scan.affine_ras, AFFINE_XYZ[:, [2, 1, 0, 3]])
        assert (scan.image_czyx.dtype, scan.labels_zyx.dtype) == (np.int16, np.uint8)
        assert (scan.modality, scan.subject, scan.planar) == ("MR", "S-1", False)
        assert (scan.slopes, scan.intercepts) == ((1.0,), (0.0,))

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    @pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
    def test_both_versions_and_both_byte_orders_read_the_same(self, tmp_path, name, kind):
        write(tmp_path / "1" / name, image_xyz(">i2"), kind=kind)
        write(tmp_path / "2" / name, image_xyz("<i2"), kind=kind)
        source = plain(tmp_path, labels=None, classes={}, targets=targets(tmp_path, "1,0\n2,0"))
        one, two = (candidate.read() for candidate in discover_nifti(source).candidates)
        np.testing.assert_array_equal(one.image_czyx, two.image_czyx)
        assert one.image_czyx.dtype == two.image_czyx.dtype == np.int16

    def test_scaling_is_kept_beside_stored_values(self, pair):
        scan = only(pair(header={"scl_slope": 0.5, "scl_inter": -100})).read()
        assert (scan.slopes, scan.intercepts) == ((0.5,), (-100.0,))
        np.testing.assert_array_equal(scan.image_czyx[0], image_xyz().T)

    def test_a_slope_of_zero_scales_nothing(self, pair):
        scan = only(pair(header={"scl_slope": 0, "scl_inter": 7})).read()
        assert (scan.slopes, scan.intercepts) == ((1.0,), (0.0,))

    @pytest.mark.parametrize(
        ("stored", "kept"),
        [
            ("uint8", "uint8"),
            ("int8", "int16"),
            ("uint16", "uint16"),
            ("int32", "float32"),
            ("int64", "float32"),
            ("float32", "float32"),
            ("float64", "float32"),
        ],
    )
    def test_voxel_types_that_are_kept(self, pair, stored, kept):
        scan = only(pair(image_xyz(stored))).read()
        assert scan.image_czyx.dtype == np.dtype(kept)
        np.testing.assert_array_equal(scan.image_czyx[0], image_xyz(stored).T)

    @pytest.mark.parametrize(
        ("unit", "millimetres"), [("mm", 1), ("micron", 1e-3), ("meter", 1e3), ("unknown", 1)]
    )
    def test_units_of_length_become_millimetres(self, pair, unit, millimetres):
        source = pair(unit=unit)
        write(source.path / "S-1" / "a_seg.nii.gz", labels_xyz(), unit=unit)
        scan = only(source).read()
        expected = np.diag([millimetres, millimetres, millimetres, 1]) @ AFFINE_XYZ
        np.testing.assert_allclose(scan.affine_ras, expected[:, [2, 1, 0, 3]])
        notes = " ".join(discover_nifti(source).notes)
        assert ("1 images state no unit" in notes) == (unit == "unknown")

    def test_a_unit_that_nifti_does_not_have_is_refused(self, pair):
        assert code_of(pair(header={"xyzt_units": 7})) == "UNKNOWN_UNIT"

    def test_two_dimensions_are_a_plane(self, tmp_path):
        write(tmp_path / "S" / "a.nii", np.arange(30, dtype="uint8").reshape(5, 6))
        source = plain(tmp_path, labels=None, classes={}, targets=targets(tmp_path, "S,3"))
        scan = only(source).read()
        assert scan.planar and scan.image_czyx.shape == (1, 1, 6, 5)
        assert scan.target == 3.0 and scan.labels_zyx is None

    def test_a_fourth_axis_of_one_is_no_time(self, pair):
        assert only(pair(image_xyz()[..., None])).read().image_czyx.shape == (1, 4, 6, 5)

    def test_qform_is_used_where_there_is_no_sform(self, pair):
        source = pair()
        image = nib.Nifti1Image(image_xyz(), None)
        image.set_qform(AFFINE_XYZ, 1)
        image.set_sform(None, 0)
        nib.save(image, source.path / "S-1" / "a.nii.gz")
        np.testing.assert_allclose(
            only(source).read().affine_ras, AFFINE_XYZ[:, [2, 1, 0, 3]], atol=1e-5
        )

    def test_candidates_can_be_pickled_and_change_with_their_files(self, pair):
        source = pair()
        candidate = only(source)
        assert pickle.loads(pickle.dumps(candidate)) == candidate
        before = candidate.fingerprint()
        assert before == only(source).fingerprint()
        write(source.path / "S-1" / "a_seg.nii.gz", labels_xyz("int16"))
        assert before != only(source).fingerprint()
        assert "S-1" not in repr(candidate.read())

    @pytest.mark.real_data
    def test_real_crops_of_the_hippocampus_are_read(self, tmp_path, real_data):
        for kind, end in (("images", ""), ("labels", "_seg")):
            for path in sorted((real_data / "hippocampus" / kind).glob("*.nii.gz"))[:8]:
                subject = path.name.removesuffix(".nii.gz")
                (tmp_path / subject).mkdir(exist_ok=True)
                (tmp_path / subject / f"{subject}{end}.nii.gz").symlink_to(path)
        scans = [candidate.read() for candidate in discover_nifti(plain(tmp_path)).candidates]
        assert len({scan.subject for scan in scans}) == 8
        for scan in scans:
            assert set(np.unique(scan.labels_zyx)) == {0, 1, 2}
            np.testing.assert_allclose(np.linalg.norm(scan.affine_ras[:3, :3], axis=0), 1)
            path = real_data / "hippocampus" / "images" / f"{scan.subject}.nii.gz"
            np.testing.assert_array_equal(scan.image_czyx[0], nib.load(path).get_fdata().T)


class TestGeometry:
    @settings(max_examples=60, deadline=None)
    @given(
        order=st.permutations(range(3)),
        signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
        steps=st.tuples(*[st.floats(0.05, 9)] * 3),
        angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
        corner=st.tuples(*[st.floats(-300, 300)] * 3),
        voxel=st.tuples(*[st.integers(0, size - 1) for size in SHAPE_XYZ]),
    )
    def test_a_marked_point_stays_where_it_is(
        self, tmp_path_factory, order, signs, steps, angles, corner, voxel
    ):
        affine = np.eye(4)
        affine[:3, :3] = rotation(*angles) @ np.eye(3)[:, order] * signs * steps
        affine[:3, 3] = corner
        marked = np.zeros(SHAPE_XYZ, np.uint8)
        marked[voxel] = 1
        folder = tmp_path_factory.mktemp("marked")
        write(folder / "S" / "a.nii", marked * np.uint8(200), affine)
        write(folder / "S" / "a_seg.nii", marked, affine)
        scan = only(plain(folder)).read()
        world = affine @ [*voxel, 1]
        for array in (scan.image_czyx[0], scan.labels_zyx):
            (found,) = np.argwhere(array)
            np.testing.assert_allclose(scan.affine_ras @ [*found, 1], world, atol=1e-3)

    @pytest.mark.parametrize("axes", [("L", "P", "S"), ("S", "R", "A"), ("P", "I", "R")])
    def test_labels_stored_in_another_direction_are_turned(self, pair, axes):
        turned = nib.Nifti1Image(labels_xyz(), AFFINE_XYZ)
        turned = turned.as_reoriented(
            nib.orientations.ornt_transform(
                nib.io_orientation(AFFINE_XYZ), nib.orientations.axcodes2ornt(axes)
            )
        )
        source = pair(labels=np.asarray(turned.dataobj), labels_affine=turned.affine)
        np.testing.assert_array_equal(only(source).read().labels_zyx, labels_xyz().T)

    def test_labels_a_tenth_of_a_voxel_away_are_refused(self, pair):
        moved = AFFINE_XYZ.copy()
        moved[2, 3] += 0.1 * 5
        assert code_of(pair(labels_affine=moved)) == "LABEL_GRID"

    def test_labels_at_another_spacing_are_refused_though_their_corner_is_the_same(self, pair):
        assert code_of(pair(labels_affine=AFFINE_XYZ * [1.02, 1, 1, 1])) == "LABEL_GRID"

    def test_labels_of_another_shape_are_refused(self, pair):
        assert code_of(pair(labels=labels_xyz()[:-1])) == "LABEL_GRID"

    def test_sheared_axes_are_refused(self, pair):
        sheared = AFFINE_XYZ.copy()
        sheared[0, 2] = 1.0
        assert code_of(pair(affine=sheared)) == "SHEARED_GEOMETRY"

    def test_a_file_that_does_not_say_where_it_lies_is_refused(self, pair):
        assert code_of(pair(header={"sform_code": 0, "qform_code": 0})) == "NO_GEOMETRY"

    @pytest.mark.parametrize("value", [np.nan, 0.0])
    def test_an_affine_that_is_none_is_refused(self, pair, value):
        assert code_of(pair(header={"srow_x": [value] * 4})) in {"NO_GEOMETRY", "SHEARED_GEOMETRY"}


class TestRefusals:
    @pytest.mark.parametrize(
        ("image", "code"),
        [
            (np.repeat(image_xyz()[..., None], 3, axis=3), "SEVERAL_TIME_POINTS"),
            (np.zeros((*SHAPE_XYZ, 1, 3), np.float32), "UNSUPPORTED_AXES"),
            (np.zeros(SHAPE_XYZ, [("R", "u1"), ("G", "u1"), ("B", "u1")]), "COLOUR_IMAGE"),
            (np.zeros(SHAPE_XYZ, np.complex64), "UNSUPPORTED_PIXELS"),
            (np.full(SHAPE_XYZ, 2**24 + 1, np.int32), "UNSUPPORTED_PIXELS"),
            (np.full(SHAPE_XYZ, np.nan, np.float32), "NOT_FINITE"),
            (np.full(SHAPE_XYZ, 1e39, np.float64), "NOT_FINITE"),
        ],
        ids=["time", "vector", "colour", "complex", "large", "nan", "overflow"],
    )
    def test_voxels_that_cannot_be_kept(self, pair, image, code):
        assert code_of(pair(image)) == code

    def test_an_intercept_that_is_no_number(self, pair):
        assert code_of(pair(header={"scl_slope": 2, "scl_inter": np.inf})) == "NOT_FINITE"

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    def test_a_file_that_was_cut_short(self, tmp_path, name):
        path = write(tmp_path / "S" / name, np.random.default_rng(0).random((9, 9, 9)))
        write(tmp_path / "S" / "a_seg.nii", np.zeros((9, 9, 9), np.uint8))
        path.write_bytes(path.read_bytes()[:-900])
        assert code_of(plain(tmp_path)) == "UNDECODABLE_PIXELS"

    def test_a_compressed_file_whose_checksum_does_not_fit(self, pair):
        source = pair()
        path = source.path / "S-1" / "a.nii.gz"
        plainly = bytearray(path.read_bytes())
        plainly[-8] ^= 1
        path.write_bytes(plainly)
        assert code_of(source) == "UNDECODABLE_PIXELS"

    @pytest.mark.parametrize(
        "content",
        [b"", b"not an image" * 50, gzip.compress(b"short")],
        ids=["empty", "text", "compressed text"],
    )
    def test_a_file_that_is_no_nifti(self, pair, content):
        source = pair()
        (source.path / "S-1" / "a.nii.gz").write_bytes(content)
        assert code_of(source) == "UNREADABLE_FILE"

    def test_a_link_to_a_file_that_was_not_fetched(self, pair):
        source = pair()
        path = source.path / "S-1" / "a.nii.gz"
        path.unlink()
        path.symlink_to("../../annex/missing.nii.gz")
        assert code_of(source) == "UNREADABLE_FILE"
        assert only(source).fingerprint() == ""

    def test_a_header_that_announces_more_than_fits_is_refused_before_reading(self, pair):
        image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).header
        image["dim"] = [3, 30000, 30000, 30000, 1, 1, 1, 1]
        source = pair()
        (source.path / "S-1" / "a.nii.gz").write_bytes(gzip.compress(image.binaryblock + b"\0" * 4))
        assert code_of(source) == "TOO_LARGE"


class TestLabels:
    @pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "float32", "float64"])
    def test_whole_numbers_of_any_type_are_labels(self, pair, dtype):
        scan = only(pair(labels=labels_xyz(dtype))).read()
        np.testing.assert_array_equal(scan.labels_zyx, labels_xyz().T)

    def test_scaled_labels_are_what_they_mean(self, pair):
        source = pair()
        doubled = (labels_xyz() * 10).astype("uint8")
        header = {"scl_slope": 0.1, "scl_inter": 0}
        write(source.path / "S-1" / "a_seg.nii.gz", doubled, header=header)
        np.testing.assert_array_equal(only(source).read().labels_zyx, labels_xyz().T)

    def test_fractions_are_not_classes(self, pair):
        assert code_of(pair(labels=labels_xyz("float32") * 0.5)) == "FRACTIONAL_LABELS"

    def test_several_values_may_be_one_class(self, pair):
        source = pair().model_copy(update={"classes": {1: "part", 2: "part"}})
        assert set(np.unique(only(source).read().labels_zyx)) == {0, 1}

    def test_a_value_without_a_class_is_refused_with_the_nearest(self, pair):
        labels = labels_xyz()
        labels[0, 0, 0] = 9
        with pytest.raises(Unusable) as caught:
            only(pair(labels=labels)).read()
        assert caught.value.code == "UNMAPPED_LABEL"
        assert "9 (nearest: 2)" in caught.value.at("").sentence

    def test_an_image_without_labels(self, tmp_path):
        write(tmp_path / "S" / "a.nii", image_xyz())
        assert code_of(plain(tmp_path)) == "NO_LABELS"

    def test_two_label_files_on_the_images_grid(self, pair):
        source = pair()
        write(source.path / "S-1" / "second_seg.nii.gz", labels_xyz())
        assert code_of(source) == "SEVERAL_SEGMENTATIONS"

    def test_each_image_of_a_subject_gets_its_own(self, tmp_path):
        for name in ("a", "b"):
            write(tmp_path / "S" / f"{name}.nii", image_xyz())
            write(tmp_path / "S" / f"{name}_seg.nii", labels_xyz())
        write(tmp_path / "S" / "c_seg.nii", labels_xyz())
        found = discover_nifti(plain(tmp_path))
        assert [len(candidate.labels) for candidate in found.candidates] == [1, 1]
        (orphan,) = found.quarantined
        assert (orphan.code, orphan.where) == ("LABELS_WITHOUT_IMAGE", "S/c_seg.nii")


class TestBids:
    @pytest.fixture
    def bids(self, tmp_path):
        (tmp_path / "dataset_description.json").write_text("{}")

        def put(*names, array=None, **options):
            for name in names:
                write(
                    tmp_path / f"{name}.nii.gz", labels_xyz() if array is None else array, **options
                )
            return NiftiSource(path=tmp_path, labels="_dseg", classes={1: "left", 2: "right"})

        return put

    def test_labels_below_derivatives_are_paired_by_session(self, bids):
        for session in ("1", "2"):
            name = f"sub-01_ses-{session}"
            bids(f"sub-01/ses-{session}/anat/{name}_T1w", array=image_xyz())
            source = bids(f"derivatives/manual/sub-01/ses-{session}/anat/{name}_desc-x_dseg")
        found = discover_nifti(source)
        assert [candidate.subject for candidate in found.candidates] == ["sub-01"] * 2
        for candidate in found.candidates:
            (labels,) = candidate.labels
            assert candidate.path.name.split("_")[1] in labels.name
            np.testing.assert_array_equal(candidate.read().labels_zyx, labels_xyz().T)

    def test_of_labels_in_several_spaces_the_images_is_taken(self, bids):
        bids("sub-01/anat/sub-01_T1w", array=image_xyz())
        bids("derivatives/p/sub-01/anat/sub-01_space-MNI_dseg", affine=np.eye(4))
        source = bids("derivatives/p/sub-01/anat/sub-01_space-T1w_dseg")
        assert only(source).read().labels_zyx.any()

    def test_two_raters_of_one_image_are_not_chosen_between(self, bids):
        bids("sub-01/anat/sub-01_T1w", array=image_xyz())
        bids("derivatives/a/sub-01_dseg")
        assert code_of(bids("derivatives/b/sub-01/anat/sub-01_dseg")) == "SEVERAL_SEGMENTATIONS"

    def test_labels_that_do_not_say_which_run_belong_to_none(self, bids):
        bids("sub-01/anat/sub-01_run-1_T1w", "sub-01/anat/sub-01_run-2_T1w", array=image_xyz())
        source = bids("derivatives/p/sub-01_dseg")
        found = discover_nifti(source)
        assert [entry.code for entry in found.quarantined] == ["LABELS_WITHOUT_IMAGE"]
        assert [candidate.labels for candidate in found.candidates] == [(), ()]

    def test_an_image_that_was_derived_is_no_image_of_its_own(self, bids):
        bids("sub-01/anat/sub-01_T1w", array=image_xyz())
        bids("sub-01/anat/sub-01_FLAIR", "derivatives/p/sub-01/anat/sub-01_desc-x_T1w")
        found = discover_nifti(bids("sub-01/anat/sub-01_dseg"))
        assert [candidate.where for candidate in found.candidates] == [
            "sub-01/anat/sub-01_T1w.nii.gz"
        ]
        assert any(note.startswith("2 NIfTI files are neither") for note in found.notes)

    def test_a_placeholder_after_sub_names_nobody(self, bids):
        bids("sub-anon/anat/sub-anon_T1w", array=image_xyz())
        assert only(bids("sub-anon/anat/sub-anon_dseg")).subject == ""


class TestTargets:
    def test_images_can_be_the_key(self, tmp_path):
        write(tmp_path / "S" / "a.nii", image_xyz())
        write(tmp_path / "S" / "b.nii", image_xyz())
        table = targets(tmp_path, "S/a.nii,ill\nS/b.nii,odd", key="image", classes={"ill": "ill"})
        found = discover_nifti(plain(tmp_path, labels=None, classes={}, targets=table))
        assert [(c.where, c.target) for c in found.candidates] == [("S/a.nii", 0.0)]
        assert [(q.code, q.where) for q in found.quarantined] == [("UNMAPPED_TARGET", "S/b.nii")]

    def test_a_study_cannot(self, tmp_path):
        with pytest.raises(ValidationError, match="NIfTI has no studies"):
            plain(tmp_path, targets=targets(tmp_path, "", key="study"))

    def test_a_changed_table_changes_the_fingerprint(self, tmp_path):
        write(tmp_path / "S" / "a.nii", image_xyz())
        source = plain(tmp_path, labels=None, classes={}, targets=targets(tmp_path, "S,1"))
        before = only(source).fingerprint()
        targets(tmp_path, "S,2")
        assert "" != before != only(source).fingerprint()


def test_free_text_in_headers_is_counted_not_shown(pair):
    source = pair(header={"descrip": b"Doe^Jane", "db_name": b"4711"})
    found = discover_nifti(source)
    assert found.identifiers_found == {"NIfTI db_name": 1, "NIfTI descrip": 1}
    assert "Doe" not in repr(found)


def targets(folder, rows, *, key="subject", classes=None):
    table = folder / "targets.csv"
    table.write_text(f"id,value\n{rows}\n")
    return {"path": table, "key": key, "id_column": "id", "column": "value", "classes": classes}


def rotation(a, b, c):
    """Return the product of turns about the three axes."""
    result = np.eye(3)
    for angle, (i, j) in zip((a, b, c), ((0, 1), (0, 2), (1, 2)), strict=True):
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        result = result @ turn
    return result
