import json
from pathlib import Path

import pytest
from pydicom import dcmread

from data_adapters.errors import DataError
from federation.errors import FederationError
from federation.look import look
from federation.site import load_site_config
from federation.site_data import open_site_data
from federation.site_file import NO_LABEL, suggested, write_site_file


def written(out: Path, folder: Path, **answers):
    from dataclasses import replace

    seen = look(folder)
    write_site_file(out, replace(suggested(folder, seen), **answers), seen)
    return load_site_config(out)


def test_a_dicom_folder_becomes_a_site_file_that_loads(laid_out, tmp_path):
    config = written(tmp_path / "site.yaml", laid_out / "north-hospital" / "protected")
    (source,) = config.protected
    assert source.kind == "dicom"
    assert source.path.resolve() == (laid_out / "north-hospital" / "protected").resolve()
    assert source.classes == {"Grey matter": "grey matter", "White matter": "white matter"}
    assert (config.modality, config.dataset) == ("MR", "north-hospital")
    assert config.policy.subjects_between == (1, 10)
    assert config.policy.release_counts == "withheld"
    open_site_data(tmp_path / "site.yaml")


def test_an_ome_zarr_folder_with_the_values_of_its_labels(laid_out, tmp_path):
    (source,) = written(tmp_path / "site.yaml", laid_out / "bio-lab" / "protected").protected
    assert (source.kind, source.labels) == ("ome_zarr", "tissue")
    assert source.classes == {1: "class 1", 2: "class 2"}


def test_several_kinds_in_one_folder_become_several_sources(laid_out, tmp_path):
    config = written(tmp_path / "site.yaml", laid_out)
    assert {source.kind for source in config.protected} == {"dicom", "ome_zarr"}


@pytest.fixture
def bids(tmp_path):
    import nibabel
    import numpy as np

    for number in range(2):
        folder = tmp_path / "bids" / f"sub-{number}" / "anat"
        folder.mkdir(parents=True)
        for end in ("T1w", "dseg"):
            image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8) + (end == "dseg") * 3, None)
            image.header.set_xyzt_units("mm")
            nibabel.save(image, folder / f"sub-{number}_{end}.nii.gz")
    return tmp_path / "bids"


def test_a_bids_folder_with_values_from_its_labels(bids, tmp_path):
    (source,) = written(tmp_path / "site.yaml", bids).protected
    assert (source.kind, source.image, source.labels) == ("nifti", "_T1w", "_dseg")
    assert source.classes == {3: "class 3"}


def test_a_bids_folder_with_names_from_its_table(bids, tmp_path):
    (bids / "dseg.tsv").write_text("index\tname\n0\tBackground\n3\tLeft Hippocampus\n")
    (source,) = written(tmp_path / "site.yaml", bids).protected
    assert source.classes == {3: "left hippocampus"}


def test_images_without_labels_get_a_placeholder_that_loads(laid_out, tmp_path):
    folder = tmp_path / "images"
    files = (laid_out / "north-hospital" / "protected").rglob("*.dcm")
    image = next(file for file in files if dcmread(file).Modality == "MR")
    folder.mkdir()
    (folder / "1.dcm").write_bytes(image.read_bytes())
    (source,) = written(tmp_path / "site.yaml", folder).protected
    assert set(source.classes) == {NO_LABEL}


EXAMPLES = ["high_water_mark", "linking", "public", "data_use", "consent", "human_subjects"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_in_its_comments_can_be_used_as_they_stand(laid_out, tmp_path, name):
    file = tmp_path / "site.yaml"
    written(file, laid_out / "bio-lab" / "protected")
    before, example = file.read_text().split(f"\n# {name}:")
    block, rest = example.split("\n\n", 1)
    block = f"{name}:{block}".replace("\n# ", "\n")
    file.write_text(f"{before}\n{block}\n\n{rest}")
    assert getattr(load_site_config(file), name)


def test_hostile_names_stay_text(laid_out, tmp_path):
    import dataclasses

    folder = laid_out / "north-hospital" / "protected"
    (seen,) = look(folder)
    hostile = dataclasses.replace(seen, labels={'a": [x]\n#': "!!python/object:os.system"})
    write_site_file(tmp_path / "site.yaml", suggested(folder, [hostile]), [hostile])
    (source,) = load_site_config(tmp_path / "site.yaml").protected
    assert source.classes == {'a": [x]\n#': "!!python/object:os.system"}


def test_an_old_site_file_is_never_touched(laid_out, tmp_path):
    (tmp_path / "site.yaml").write_text("mine")
    with pytest.raises(FederationError, match="was not touched"):
        written(tmp_path / "site.yaml", laid_out / "bio-lab" / "protected")
    assert (tmp_path / "site.yaml").read_text() == "mine"


def test_an_answer_that_cannot_stand_in_a_site_file_is_refused(laid_out, tmp_path):
    with pytest.raises(FederationError, match="'site'"):
        written(tmp_path / "site.yaml", laid_out / "bio-lab" / "protected", site="x\nstate: /")
    assert not (tmp_path / "site.yaml").exists()


def test_beside_the_images_the_state_is_put_where_it_is_not_read_as_images(tmp_path):
    image = tmp_path / "scans" / "mouse-1" / "a.ome.zarr"
    image.mkdir(parents=True)
    (image / "zarr.json").write_text(json.dumps({"node_type": "group"}))
    config = written(tmp_path / "scans" / "site.yaml", tmp_path / "scans")
    assert config.state.resolve() == tmp_path.resolve() / "scans-cohortium-state"
    open_site_data(tmp_path / "scans" / "site.yaml")


@pytest.mark.parametrize(("high", "delta"), [(10, 1e-5), (300, 1e-5), (1000, 1e-6), (4000, 1e-8)])
def test_delta_gives_no_subject_away(laid_out, tmp_path, high, delta):
    folder = laid_out / "bio-lab" / "protected"
    config = written(tmp_path / "site.yaml", folder, subjects_between=(1, high))
    assert config.policy.delta == pytest.approx(delta)


def test_a_folder_without_images_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="nothing that is known here"):
        look(tmp_path)
    with pytest.raises(DataError, match="There is no folder"):
        look(tmp_path / "none")
