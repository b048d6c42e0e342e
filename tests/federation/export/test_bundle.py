"""MONAI's own tools load and run the bundle, in a process of their own, and give our numbers."""

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from monai import transforms
from monai.bundle import ConfigParser
from safetensors.torch import load_file
from typer.testing import CliRunner

from data_adapters.cache import open_scan
from data_adapters.prepare import Wanted, prepare_scan
from federation.cli.app import app
from federation.errors import FederationError
from federation.experiment import Experiment
from federation.export import bundle
from federation.export.bundle_config import EXPRESSIONS
from federation.export.bundle_metadata import metadata, require_valid
from federation.export.bundle_readme import readme
from federation.export.examples import outputs_of, trained_network
from federation.export.formats import export
from tests.data_adapters.scans import put
from tests.experiments import demo_values, tiny_experiment, unprotected
from tests.federation.classification import classification
from tests.federation.regression import regression

# MONAI tries every reader that it knows, whichever is asked for.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")

RUN_IT = """\
import json, os, socket, sys
def refuse(*a, **k): raise AssertionError("the bundle asked for the network")
socket.socket.connect = refuse
sys.modules.update(dict.fromkeys(("federation", "models", "data_adapters")))
import monai.bundle
for folder, values in json.loads(sys.argv[1]):
    os.chdir(folder)
    monai.bundle.run(**values)
"""
ORIENTED = transforms.Orientation(axcodes="SAR", labels=(("L", "R"), ("P", "A"), ("I", "S")))


def experiment_of(**changes) -> Experiment:
    return Experiment.model_validate(demo_values() | {"name": "other"} | changes)


def run_all(runs):
    """Run bundles as their README says, in one process without the network and without us."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", RUN_IT, json.dumps(runs)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def write_scan(path: Path, shape_xyz, spacing_mm_xyz, *, seed=0) -> Path:
    """Write noise, turned to the left, from a seed."""
    voxels = np.random.default_rng(seed).normal(100, 20, shape_xyz).astype(np.float32)
    affine = np.diag([-spacing_mm_xyz[0], *spacing_mm_xyz[1:], 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def prepared(path: Path, experiment: Experiment):
    """Return (c, z, y, x) by the transforms that the README names, called one by one."""
    image = transforms.LoadImage(reader="NibabelReader")(path)
    image = ORIENTED(transforms.EnsureChannelFirst()(image))
    spacing = {
        "slices": lambda i: (-1, *i.spacing_mm_yx),
        "volume": lambda i: i.spacing_mm_zyx,
        "patches": lambda i: i.spacing_mm_zyx,
    }[experiment.input.kind](experiment.input)
    scaled = transforms.NormalizeIntensity(channel_wise=True)
    spaced = transforms.Spacing(pixdim=spacing, mode="bilinear", padding_mode="border")
    if experiment.input.kind == "patches":
        return spaced(scaled(image)).as_tensor()
    depth = (-1,) if experiment.input.kind == "slices" else ()
    fitted = transforms.ResizeWithPadOrCrop((*depth, *experiment.input.shape))
    return fitted(scaled(spaced(image))).as_tensor()


def saved(path: Path):
    """Return a NIfTI file's voxels as (c, z, y, x), as they lie in its SAR array."""
    voxels = np.asarray(nibabel.load(path).dataobj)
    return np.moveaxis(voxels, -1, 0) if voxels.ndim == 4 else voxels[None]


VOLUME = experiment_of(
    input={"kind": "volume", "shape_zyx": [8, 16, 16], "spacing_mm_zyx": [3, 2, 2]},
    model={"kind": "unet", "spatial_dims": 3, "channels": [4, 8], "strides": [2]},
)
PATCHES = experiment_of(
    input={"kind": "patches", "shape_zyx": [8, 8, 8], "spacing_mm_zyx": [2, 2, 2]},
    model={"kind": "attention_unet", "spatial_dims": 3, "channels": [4, 8], "strides": [2]},
)
TWO_CHANNELS = experiment_of(
    input={
        "kind": "slices",
        "shape_yx": [32, 32],
        "spacing_mm_yx": [1, 1],
        "channels": ["t1", "t2"],
    },
    model={"kind": "unet", "spatial_dims": 2, "in_channels": 2, "channels": [4, 8], "strides": [2]},
)
EXPERIMENTS = {
    "slices": tiny_experiment(),
    "volume": VOLUME,
    "patches": PATCHES,
    "channels": TWO_CHANNELS,
    "classes": classification(),
    "values": regression(),
}
# Of each bundle: names of scans, array (x, y, z), mm along x, y, z.
SCANS = {
    "slices": [("scan", (90, 100, 3), (2.0, 2.0, 4.0)), ("same", (60, 70, 2), (2.75, 2.75, 4.0))],
    "volume": [("scan", (20, 18, 9), (1.5, 2.5, 2.0))],
    # Two windows along z, which overlap in the middle.
    "patches": [("scan", (8, 8, 14), (2.0, 2.0, 2.0))],
    "channels": [("t1", (30, 30, 2), (1.0, 1.0, 1.0)), ("t2", (30, 30, 2), (1.0, 1.0, 1.0))],
    "classes": [("scan", (16, 16, 3), (1.0, 1.0, 1.0)), ("more", (16, 16, 1), (1.0, 1.0, 1.0))],
    "values": [("scan", (16, 16, 1), (1.0, 1.0, 1.0))],
}


class Made:
    """Every kind of bundle, run by MONAI on scans of noise."""

    def __init__(self, finish, about, folder):
        self.folder = folder
        self.runs = {name: finish(experiment) for name, experiment in EXPERIMENTS.items()}
        calls = []
        for name, run in self.runs.items():
            export(run, about, "monai-bundle", folder / name)
            scans = [
                str(write_scan(self.scan(name, scan), *grid, seed=seed))
                for seed, (scan, *grid) in enumerate(SCANS[name])
            ]
            calls.append((str(folder / name), self._call(name, scans)))
        run_all(calls)

    def _call(self, name, scans):
        values = {
            "config_file": "configs/inference.json",
            "bundle_root": ".",
            "output_dir": str(self.folder / f"{name}-out"),
            "skip_logits": False,
        }
        if name == "channels":
            return values | {"image": scans}
        if len(scans) == 1:
            return values | {
                "image": scans[0],
                "device": {"_target_": "torch.device", "device": "cpu"},
            }
        listed = self.folder / f"{name}.json"
        listed.write_text(json.dumps([{"image": scan} for scan in scans]))
        return values | {"datalist": f"%{listed}"}

    def scan(self, name, scan="scan") -> Path:
        return self.folder / f"{name}-{scan}.nii.gz"

    def network(self, name):
        return trained_network(self.runs[name])

    def images(self, name, scan="scan"):
        return prepared(self.scan(name, scan), EXPERIMENTS[name])

    def logits(self, name, scan="scan"):
        return saved(self.folder / f"{name}-out/{name}-{scan}_logits.nii.gz")

    def segmentation(self, name, scan="scan"):
        return nibabel.load(self.folder / f"{name}-out/{name}-{scan}_seg.nii.gz")

    def rows(self, name):
        with (self.folder / f"{name}-out/predictions.csv").open() as file:
            return list(csv.reader(file))


@pytest.fixture(scope="module")
def made(finish, about, tmp_path_factory) -> Made:
    return Made(finish, about, tmp_path_factory.mktemp("bundles"))


def of_each_slice(network, image):
    """Return (classes, z, y, x): one slice at a time, as the bundle does."""
    slices = image.movedim(1, 0).contiguous().numpy()
    return np.stack([outputs_of(network, one[None])[0] for one in slices], axis=1)


class TestRunByMonai:
    @pytest.mark.parametrize("scan", ["scan", "same"])
    def test_logits_of_slices_are_ours_bit_for_bit(self, made, scan):
        ours = of_each_slice(made.network("slices"), made.images("slices", scan))
        theirs = made.logits("slices", scan)
        assert theirs.dtype == np.float32
        assert np.array_equal(theirs, ours)
        assert len(np.unique(ours.argmax(0))) > 1

    def test_several_channels_are_several_files(self, made):
        parts = [made.images("channels", scan) for scan in ("t1", "t2")]
        ours = of_each_slice(made.network("channels"), torch.cat(parts))
        assert np.array_equal(made.logits("channels", "t1"), ours)

    def test_a_volume_is_ours_bit_for_bit(self, made):
        ours = outputs_of(made.network("volume"), made.images("volume")[None].numpy())
        assert np.array_equal(made.logits("volume"), ours[0])
        assert made.segmentation("volume").shape == (20, 18, 9)

    def test_patches_are_windows_that_are_averaged(self, made):
        image, network = made.images("patches").numpy(), made.network("patches")
        low, high = (outputs_of(network, image[None, :, s])[0] for s in (slice(8), slice(6, 14)))
        theirs = made.logits("patches")
        assert np.array_equal(theirs[:, :6], low[:, :6])
        assert np.array_equal(theirs[:, 8:], high[:, 2:])
        assert np.array_equal(theirs[:, 6:8], (low[:, 6:] + high[:, :2]) / 2)

    def test_the_segmentation_lies_on_the_scans_own_grid(self, made):
        # At the experiment's spacing and smaller than its grid, so that turning back is exact.
        classes = of_each_slice(made.network("slices"), made.images("slices", "same")).argmax(0)
        before = ((classes.shape[1] - 70) // 2, (classes.shape[2] - 60) // 2)
        inside = classes[:, before[0] : before[0] + 70, before[1] : before[1] + 60]
        found = made.segmentation("slices", "same")
        # The scan's array runs to the left.
        assert np.array_equal(np.asarray(found.dataobj), inside.transpose(2, 1, 0)[::-1])
        assert np.allclose(found.affine, nibabel.load(made.scan("slices", "same")).affine)

    @pytest.mark.parametrize(("row", "scan"), [(0, "scan"), (1, "more")])
    def test_probabilities_are_ours_bit_for_bit(self, made, row, scan):
        images = made.images("classes", scan).movedim(1, 0).contiguous().numpy()
        logits = torch.from_numpy(outputs_of(made.network("classes"), images))
        name, *numbers = made.rows("classes")[row]
        assert name == str(made.scan("classes", scan))
        assert [float(n) for n in numbers] == logits.softmax(1).double().mean(0).tolist()

    def test_values_are_in_their_unit(self, made):
        images = made.images("values").movedim(1, 0).contiguous().numpy()
        [(output,)] = outputs_of(made.network("values"), images).astype(float)
        [(_, value)] = made.rows("values")
        assert float(value) == output * 4.0 + 8.0

    def test_training_prepares_the_same_scan_alike(self, made, tmp_path):
        stored = np.asarray(nibabel.load(made.scan("slices")).dataobj)
        # As a site has it in its cache: (z, y, x), its axes named by the affine.
        affine = nibabel.load(made.scan("slices")).affine[:, [2, 1, 0, 3]]
        entry = put(tmp_path, "a", stored.transpose(2, 1, 0).copy(), affine)
        inputs = EXPERIMENTS["slices"].input
        wanted = Wanted(inputs, torch.zeros(3, dtype=torch.uint8), learns="targets")
        record = prepare_scan(replace(open_scan(tmp_path, entry), target=0.0), wanted)
        images = made.images("slices").movedim(1, 0)
        # N below the deviation, not N - 1.
        assert torch.allclose(record.images, images, rtol=1e-4, atol=1e-5)


class TestFolder:
    @pytest.fixture
    def folder(self, finished, about, tmp_path) -> Path:
        export(finished, about, "monai-bundle", tmp_path / "bundle")
        return tmp_path / "bundle"

    # Of any bundle: that its configuration is run as code. Ours is.
    @pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
    def test_monais_load_gives_the_network(self, folder, finished):
        network = monai.bundle.load(
            "bundle", bundle_dir=folder.parent, workflow_type="inference", device="cpu"
        )
        images = bundle.example_input(finished.record.experiment)
        ours = outputs_of(trained_network(finished), images)
        assert np.array_equal(outputs_of(network.eval(), images), ours)

    def test_monai_verifies_what_the_network_takes_and_gives(self, folder):
        monai.bundle.verify_net_in_out(
            net_id="network_def",
            meta_file=str(folder / "configs/metadata.json"),
            config_file=str(folder / "configs/inference.json"),
            device="cpu",
        )

    def test_both_files_of_weights_hold_the_same(self, folder):
        state = torch.load(folder / "models/model.pt", weights_only=True)
        safe = load_file(folder / "models/model.safetensors")
        assert state.keys() == safe.keys()
        assert all(torch.equal(state[name], safe[name]) for name in state)

    def test_it_has_what_the_specification_names(self, folder):
        for name in ("LICENSE", "docs/README.md", "configs/metadata.json", "models/model.pt"):
            assert (folder / name).is_file()
        assert "SPDX-License-Identifier: CC-BY-4.0" in (folder / "LICENSE").read_text()
        text = (folder / "docs/README.md").read_text()
        assert "bio-lab: 7.5" in text and "N - 1" in text

    def test_nothing_of_this_machine_is_in_it(self, folder, machines_words):
        for path in (path for path in folder.rglob("*") if path.is_file()):
            content = path.read_bytes()
            assert not [word for word in machines_words if word.encode() in content], path

    def test_the_same_run_gives_the_same_bytes(self, folder, finished, about, tmp_path):
        files = export(finished, about, "monai-bundle", tmp_path / "again")
        for name in files:
            assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name

    def test_a_bundle_with_other_weights_is_refused(self, folder, finished):
        state = torch.load(folder / "models/model.pt", weights_only=True)
        name = next(iter(state))
        state[name] = state[name] + 1e-3
        torch.save(state, folder / "models/model.pt")
        with pytest.raises(FederationError, match="other numbers than the run's network"):
            bundle.require_same(finished, folder)

    def test_a_bundle_of_another_network_is_refused(self, folder, finished):
        path = folder / "configs/inference.json"
        config = json.loads(path.read_text())
        config["network_def"]["channels"] = [4, 8]
        path.write_text(json.dumps(config))
        with pytest.raises(FederationError, match="MONAI cannot make the network"):
            bundle.require_same(finished, folder)


PLANE = {"kind": "slices", "shape_yx": [32, 32], "spacing_mm_yx": [1, 1]}
NETWORKS = {
    "unet with batch norm": {"kind": "unet", "channels": [4, 8], "strides": [2], "norm": "batch"},
    "unet with residual units": {
        "kind": "unet", "channels": [4, 8], "strides": [2], "num_res_units": 1,
    },
    "unet, standardised": {
        "kind": "unet", "channels": [4, 8], "strides": [2], "weight_standardisation": True,
    },
    "segresnet": {"kind": "segresnet", "blocks_down": [1, 1], "blocks_up": [1]},
    "dynunet": {"kind": "dynunet", "channels": [4, 8, 8], "strides": [2, 2]},
    "dynunet, residual": {
        "kind": "dynunet", "channels": [4, 8, 8], "strides": [2, 2], "res_block": True,
    },
    "attention unet": {"kind": "attention_unet", "channels": [4, 8], "strides": [2]},
    "attention unet, standardised": {
        "kind": "attention_unet", "channels": [4, 8], "strides": [2],
        "weight_standardisation": True,
    },
    "densenet": {"kind": "densenet", "block_layers": [1], "growth": 8},
    "resnet": {"kind": "resnet", "channels": [4, 8, 8, 8]},
    "resnet with bottlenecks": {
        "kind": "resnet", "channels": [4, 4, 4, 4], "block": "bottleneck", "max_pool": True,
    },
}  # fmt: skip


def network_experiment(values) -> Experiment:
    changes = {"input": PLANE, "model": {"spatial_dims": 2, **values}}
    if values["kind"] in {"densenet", "resnet"}:
        changes["task"] = {"kind": "classification", "classes": ["ill", "well"]}
        changes["loss"] = {"kind": "cross_entropy"}
    if values.get("norm") == "batch":
        changes["privacy"] = {"kind": "none", "sampling_rate": 0.5, "expected_batch": 2}
    return experiment_of(**changes)


@pytest.mark.parametrize("name", NETWORKS)
def test_monai_makes_every_network_from_its_own_parts(name, finish, about, tmp_path):
    finished = finish(network_experiment(NETWORKS[name]))
    export(finished, about, "monai-bundle", tmp_path / "bundle")
    parser = ConfigParser()
    parser.read_config(tmp_path / "bundle/configs/inference.json")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(tmp_path / "bundle/models/model.pt", weights_only=True))
    assert {type(layer).__module__.split(".")[0] for layer in network.modules()} <= {
        "monai", "torch",
    }  # fmt: skip
    images = bundle.example_input(finished.record.experiment)
    ours = outputs_of(trained_network(finished), images)
    assert np.array_equal(outputs_of(network.eval(), images), ours)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_expressions_are_those_that_are_listed_and_targets_are_monais(name, made):
    text = (made.folder / name / "configs/inference.json").read_text()
    values = re.findall(r'"((?:[^"\\]|\\.)*)"', text)
    assert {value for value in values if value.startswith("$")} <= set(EXPRESSIONS)
    assert not [value for value in values if value.startswith("%")]
    targets = set(re.findall(r'"_target_": "([^"]*)"', text))
    assert targets and all(target.startswith(("monai.", "torch.")) for target in targets)
    assert len(EXPRESSIONS) == 6


def test_what_patches_classify_is_refused_by_name(finish, about, tmp_path):
    values = classification().model_dump(mode="json")
    values["input"] = {"kind": "patches", "shape_zyx": [1, 16, 16], "spacing_mm_zyx": [1, 1, 1]}
    finished = finish(Experiment.model_validate(values))
    with pytest.raises(FederationError, match=r"classification of patches.*--format onnx"):
        export(finished, about, "monai-bundle", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_layer_that_monai_does_not_have_is_refused_by_name(finished):
    network = trained_network(finished)
    network.model[0] = torch.nn.Identity()
    with pytest.raises(FederationError, match=r"'model\.0' is Identity"):
        bundle.network_config(finished.record.experiment, network)


def test_fine_grids_are_not_resampled_and_the_readme_says_so(finish, about, tmp_path):
    fine = {"kind": "slices", "shape_yx": [32, 32], "spacing_mm_yx": ["0.5 um", "0.5 um"]}
    export(finish(experiment_of(input=fine)), about, "monai-bundle", tmp_path / "bundle")
    assert "Spacingd" not in (tmp_path / "bundle/configs/inference.json").read_text()
    assert "nothing is resampled" in (tmp_path / "bundle/docs/README.md").read_text()


class TestMetadata:
    def test_it_tells_the_privacy_of_the_run(self, finished, about):
        told = metadata(finished, about)
        assert told["privacy"]["delta"] == finished.record.experiment.privacy.delta
        assert told["privacy"]["unit"] == "subject"
        assert told["privacy"]["noise_multiplier"] == 1.5
        assert told["privacy"]["epsilon_of_this_run"][0] == {"site": "bio-lab", "epsilon": 7.5}
        assert told["provenance"]["experiment_digest"] == finished.record.experiment.digest()
        assert told["provenance"]["ledger_heads"][0]["head"] == finished.record.heads["bio-lab"]

    def test_a_run_without_protection_says_so(self, finish, about):
        run = finish(unprotected(tiny_experiment()))
        told = metadata(run, about)["privacy"]
        assert told["unit"] is None and told["delta"] is None
        assert "epsilon is infinite" in readme(run, about)

    def test_text_of_others_never_becomes_code_in_monais_parser(self, finished, about, tmp_path):
        trap = f"$__import__('pathlib').Path({str(tmp_path / 'x')!r}).touch()"
        told = metadata(finished, about.model_copy(update={"title": trap, "description": trap}))
        (tmp_path / "metadata.json").write_text(json.dumps(told))
        parser = ConfigParser()
        parser.read_meta(tmp_path / "metadata.json")
        assert parser.get_parsed_content("_meta_")["name"] == f" {trap}"
        assert not (tmp_path / "x").exists()

    @pytest.mark.parametrize(
        ("change", "place"),
        [
            ({"version": "new"}, "version"),
            ({"name": "$exit()"}, "name"),
            ({"extra": 1}, "the whole"),
            ({"network_data_format": {}}, "network_data_format"),
        ],
    )
    def test_what_the_schema_does_not_allow_is_refused(self, finished, about, change, place):
        with pytest.raises(FederationError, match=f"not be valid at {place}"):
            require_valid(metadata(finished, about) | change)


def test_the_command_writes_it(finished, about_file, tmp_path):
    out = tmp_path / "out"
    given = ["export", str(finished.path), "--format", "monai-bundle", "--about", str(about_file)]
    result = CliRunner().invoke(app, [*given, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "configs/inference.json" in result.output
    assert json.loads((out / "configs/metadata.json").read_text())["name"] == "Tiny brains"
