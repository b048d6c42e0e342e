"""Every export of a real run by the command line: nobody's name and nobody's voxels are in it.

The sites' images hold planted identifiers; ``tests/leaks`` opens every container. Voxels are looked
for as any stretch of any tensor in any file that equals a row of a protected image, stored or
normalised. Pictures are drawn from the run's folder alone, which is shown to hold none.
"""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from data_adapters.cache import open_scan
from federation.export.formats import FORMATS
from federation.run import open_sites
from tests.experiments import tiny_experiment
from tests.leaks import Searcher, search_folder
from tests.leaks.planting import IN_DICOM, lay_out
from tests.leaks.runs import Ran, check_clean, recorded, typed

ROOT = Path(__file__).parents[2]
# Of a row of voxels: that many equal numbers in a row are no chance.
ROW = 12


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    """One site of DICOM, one run, every export."""
    folder = tmp_path_factory.mktemp("run")
    lay_out(folder / "sites", "clinic", "dicom")
    done = Ran(folder, ("clinic",))
    experiment = folder / "tiny.yaml"
    values = tiny_experiment(min_sites=1).model_dump(mode="json")
    experiment.write_text(yaml.safe_dump(values))
    (file,) = done.site_files
    with pytest.MonkeyPatch.context() as patch, recorded(patch, done):
        typed(patch, ["run", str(experiment), "--site", str(file), "--out", str(done.out), "--yes"])
        about = folder / "about.yaml"
        about.write_text(typed(patch, ["export", str(done.out), "--template"]))
        for name in FORMATS:
            arguments = ["export", str(done.out), "--about", str(about), "--format", name]
            typed(patch, [*arguments, "--out", str(folder / "exports" / name)])
        lineage = ["lineage", str(done.out), str(done.state("clinic")), "--json"]
        picture = folder / "exports" / "lineage.svg"
        told = typed(patch, [*lineage, "--out", str(picture)])
        picture.with_suffix(".json").write_text(told)
    return done


def exports(ran: Ran) -> Path:
    return ran.folder / "exports"


def test_every_format_was_written(ran):
    written = {path.name for path in exports(ran).iterdir()}
    assert written == {*FORMATS, "lineage.svg", "lineage.json"}
    for name in FORMATS:
        assert any(path.stat().st_size for path in (exports(ran) / name).rglob("*"))


def test_no_identifier_is_in_any_export(ran):
    searcher = Searcher(IN_DICOM)
    seen = {hit.token for hit in searcher.in_folder(ran.folder / "sites")}
    assert set(IN_DICOM) <= seen, "the searcher sees them where they are"
    check_clean(search_folder(exports(ran), IN_DICOM))


def rows_of(image: np.ndarray) -> set[bytes]:
    """Return every row of a volume, as float32, but for those of one value."""
    rows = np.ascontiguousarray(image, np.float32).reshape(-1, image.shape[-1])
    return {row[:ROW].tobytes() for row in rows if np.ptp(row[:ROW])}


def windows_of(array: np.ndarray) -> set[bytes]:
    """Return every stretch of an array's numbers, along each of its axes."""
    found: set[bytes] = set()
    for axis in range(max(1, array.ndim)):
        turned = np.moveaxis(array, axis, -1) if array.ndim else array
        flat = np.ascontiguousarray(turned, np.float32).ravel().tobytes()
        found |= {flat[start : start + 4 * ROW] for start in range(0, len(flat) - 4 * ROW + 1, 4)}
    return found


def protected_rows(ran: Ran) -> set[bytes]:
    (site,) = open_sites(ran.site_files)
    found: set[bytes] = set()
    for entry in site.manifest("protected").scans:
        scan = open_scan(site.config.state / "cache" / "protected", entry)
        image = scan.image()
        found |= rows_of(image)
        deviations = np.asarray(scan.deviations).reshape(-1, 1, 1, 1)
        found |= rows_of((image - np.asarray(scan.means).reshape(-1, 1, 1, 1)) / deviations)
    return found


def tensors_in(path: Path):
    """Yield the arrays of numbers in a file, whatever it is, opened by its own library."""
    kind = path.suffix
    if kind == ".npy":
        yield np.load(path)
    elif kind == ".safetensors":
        yield from load_file(path).values()
    elif kind in {".pt", ".pth"} and not is_torchscript(path):
        state = torch.load(path, weights_only=True)
        yield from (value.numpy() for value in state.values())
    elif kind == ".onnx":
        import onnx

        graph = onnx.load(path).graph
        yield from (onnx.numpy_helper.to_array(one) for one in graph.initializer)


def is_torchscript(path: Path) -> bool:
    """Its tensors lie in the zip as they are, so that a search of its members sees them."""
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def all_bytes(folder: Path):
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            yield path, data
            if zipfile.is_zipfile(io.BytesIO(data)):
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    for name in archive.namelist():
                        yield path / name, archive.read(name)


def holds_a_row(data: bytes, rows: set[bytes]) -> bool:
    """Look at every byte where a row could begin: where its first number stands."""
    firsts = np.unique([np.frombuffer(row, np.int32, 1)[0] for row in rows])
    for offset in range(4):
        words = np.frombuffer(data[offset : offset + (len(data) - offset) // 4 * 4], np.int32)
        for place in np.flatnonzero(np.isin(words, firsts)):
            start = offset + 4 * int(place)
            if data[start : start + 4 * ROW] in rows:
                return True
    return False


def test_no_tensor_in_an_export_is_part_of_a_protected_image(ran, tmp_path):
    rows = protected_rows(ran)
    assert len(rows) > 100
    planted = tmp_path / "planted.npy"
    np.save(planted, np.frombuffer(next(iter(rows)), np.float32))
    assert holds_a_row(planted.read_bytes(), rows), "the search finds what is there"
    column = np.frombuffer(next(iter(rows)), np.float32)[:, None] * np.ones(3, np.float32)
    assert windows_of(column.astype(np.float64)) & rows, "across, and in other types, too"
    opened = 0
    for path, data in (*all_bytes(exports(ran)), *all_bytes(ran.out)):
        assert not holds_a_row(data, rows), path
        if path.is_file():
            for array in tensors_in(path):
                opened += 1
                assert not windows_of(array) & rows, path
    assert opened > 10


@pytest.mark.slow
def test_monais_own_command_runs_the_bundle(ran, tmp_path):
    bundle = exports(ran) / "monai-bundle"
    shape = tiny_experiment().input.shape
    voxels = np.random.default_rng(0).normal(100, 20, (*shape[::-1], 3)).astype(np.float32)
    image = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([3.0, 3.0, 5.0, 1.0])), image)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file"]
    command += ["configs/inference.json", "--bundle_root", ".", "--image", str(image)]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "eval")],
        cwd=bundle,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-1500:]
    (written,) = (tmp_path / "eval").rglob("*.nii.gz")
    labels = np.asarray(nibabel.load(written).dataobj)
    assert set(np.unique(labels)) <= {0.0, 1.0, 2.0}


def test_the_lineage_leads_from_the_data_set_to_the_model(ran):
    told = json.loads((exports(ran) / "lineage.json").read_text())
    assert told["format"] == "cohortium-lineage/1"
    digest = json.loads((ran.out / "run.json").read_text())["model_digest"]
    assert digest.removeprefix("sha256:") in json.dumps(told)
    assert (exports(ran) / "lineage.svg").read_text().startswith("<svg")


def documented() -> list[str]:
    """Return the commands of docs/exports.md, without their remarks."""
    text = (ROOT / "docs/exports.md").read_text()
    block = text[text.index("```sh\n") + len("```sh\n") :].partition("```")[0]
    return [line.partition("  #")[0].strip() for line in block.splitlines() if line.strip()]


@pytest.mark.slow
def test_the_documented_commands_do_what_is_said(ran, tmp_path, monkeypatch):
    """As they stand, with this run in place of the one that they name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ran.out, tmp_path / "runs/brains")
    shutil.copytree(ran.state("clinic"), tmp_path / "site-a/state")
    (tmp_path / "spleen-bundle").symlink_to(exports(ran) / "monai-bundle")
    (tmp_path / "experiment.yaml").symlink_to(ran.folder / "tiny.yaml")
    commands = documented()
    assert len(commands) == 11
    for command in commands:
        line, _, target = command.replace(
            "http://127.0.0.1:5000", f"sqlite:///{tmp_path / 'team.db'}"
        ).partition(" > ")
        program, *arguments = shlex.split(line)
        assert program == "cohortium"
        shown = typed(monkeypatch, arguments)
        if target:
            (tmp_path / target).write_text(shown)
    made = {path.name for path in (*tmp_path.iterdir(), *(tmp_path / "runs").iterdir())}
    assert {"about.yaml", "lineage.svg", "team.db", "start.safetensors"} <= made
    assert {f"brains-{name}" for name in FORMATS} <= made
