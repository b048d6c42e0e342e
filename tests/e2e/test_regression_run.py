"""``cohortium run`` learns a value at two sites, whose tables give one to each subject."""

import json

import mlflow
import nibabel as nib
import numpy as np
import pytest
import yaml

from tests.federation.regression import bar, regression_values
from tests.leaks.planting_elsewhere import PARTS, write_site_file
from tests.leaks.runs import typed


def lay_out(folder, site, first):
    """Write a site of NIfTI images with bars, and the table of their widths."""
    rows = []
    for number in range(first, first + 26):
        part = PARTS[number % 2]
        width = 2 + (number * 5) % 13
        subject = folder / site / part / f"P{number:03d}"
        subject.mkdir(parents=True)
        # Two slices, for the images to have three axes.
        image = np.concatenate([bar(width, number), bar(width, number + 500)])
        nib.save(nib.Nifti1Image(image.T.astype(np.int16), np.eye(4)), subject / "image.nii.gz")
        rows.append(f"P{number:03d},{width}")
    table = folder / site / "widths.csv"
    table.write_text("\n".join(["patient,width", *rows]))
    targets = {"path": "widths.csv", "id_column": "patient", "column": "width"}
    source = {"kind": "nifti", "image": "", "targets": targets}
    write_site_file(folder / site, {part: source | {"path": part} for part in PARTS})


@pytest.mark.parametrize("private", [True, False])
def test_a_run_learns_a_value_and_says_which_way_is_better(tmp_path, monkeypatch, private):
    for number, site in enumerate(("east", "west")):
        lay_out(tmp_path, site, 1000 * number)
        if not private:
            file = tmp_path / site / "site.yaml"
            document = json.loads(file.read_text())
            document["policy"]["allow_unprotected"] = True
            file.write_text(json.dumps(document))
    values = regression_values()
    values["algorithm"] = {"kind": "fedavg", "rounds": 3, "steps_per_round": 25, "min_sites": 2}
    values["privacy"] |= {"sampling_rate": 0.8, "expected_batch": 10, "epsilon": 90.0}
    if not private:
        values["privacy"] = {"kind": "none", "sampling_rate": 0.8, "expected_batch": 10}
    experiment, out = tmp_path / "widths.yaml", tmp_path / "out"
    experiment.write_text(yaml.safe_dump(values))
    files = [str(tmp_path / site / "site.yaml") for site in ("east", "west")]
    options = ["--site", files[0], "--site", files[1], "--out", str(out), "--yes", "--json"]
    screen = typed(monkeypatch, ["run", str(experiment), *options])
    summary = json.loads(screen[screen.index('{\n "format": "cohortium-run/1"') :])
    assert (summary["score"], summary["lower_is_better"]) == ("mae", True)
    assert "Mean absolute error on public subjects" in screen and "(lower is better)" in screen
    # Whoever always says the middle is off by 3.2 mm.
    assert summary["before"] > 2.5
    assert summary["after"] < (2.2 if private else 1.2)
    check_registered(summary)


def check_registered(summary):
    """The model from the store gives widths, not classes."""
    mlflow.set_tracking_uri(summary["mlflow"])
    model = mlflow.pyfunc.load_model("models:/widths/1")
    image = bar(12, 9000).astype(np.float32)
    image = (image - image.mean()) / image.std()
    (width,) = model.predict(image[None])
    assert 6 < width < 18
