"""The installed command, as a person types it, in processes of its own."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import edit, site_files
from tests.experiments import tiny_experiment

COMMAND = Path(sys.executable).with_name("cohortium")


def cohortium(*arguments, cwd=None, env=None, answer=""):
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
        timeout=300,
        input=answer,
    )


@pytest.fixture
def experiment_file(tmp_path):
    return written(tmp_path / "tiny.yaml", tiny_experiment().model_dump(mode="json"))


def written(path, values):
    path.write_text(yaml.safe_dump(values))
    return path


def site_options(federation):
    return [part for file in site_files(federation) for part in ("--site", file)]


def fails_in_one_sentence(done, *fragments):
    assert done.returncode == 2, done.stdout + done.stderr
    error = done.stderr[done.stderr.index("Error:") :]
    for fragment in fragments:
        assert fragment in error
    assert "Traceback" not in done.stdout + done.stderr


def test_run_after_one_question_then_verify_then_a_second_run_is_refused(
    federation, experiment_file, tmp_path
):
    options = site_options(federation)
    done = cohortium(
        "run", experiment_file, *options, "--out", tmp_path / "out", "--json", answer="y\n"
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["format"] == "cohortium-run/1"
    assert {s["site"] for s in summary["sites"]} == {"north-hospital", "south-hospital", "bio-lab"}
    assert done.stderr.count("Approve for every site and start?") == 1
    assert "round 2 of 2: 3 sites returned" in done.stderr

    verify = shlex.split(summary["verify"])[1:]
    assert cohortium(*verify).returncode == 0
    untrusted = cohortium(*[v for v in verify if v not in (verify[2], verify[3])])
    assert untrusted.returncode == 1
    assert "onsistent, identity unknown" in untrusted.stdout

    again = cohortium("run", experiment_file, *options, "--out", tmp_path / "again", "--yes")
    fails_in_one_sentence(again, "do not fit what is left")


def test_without_yes_and_without_an_answer_nothing_is_charged(federation, experiment_file):
    done = cohortium("run", experiment_file, *site_options(federation), cwd=federation)
    assert done.returncode != 0
    ledgers = [f.parent / "state" / "ledger.jsonl" for f in site_files(federation)]
    assert all("charge" not in ledger.read_text() for ledger in ledgers)


def test_a_missing_experiment(federation):
    done = cohortium("run", federation / "none.yaml", *site_options(federation))
    fails_in_one_sentence(done, "There is no experiment file at")


def test_an_unknown_model(federation, tmp_path):
    values = tiny_experiment().model_dump(mode="json")
    values["model"]["kind"] = "unett"
    file = written(tmp_path / "bad.yaml", values)
    done = cohortium("run", file, *site_options(federation))
    fails_in_one_sentence(done, "kind 'unett'", "Did you mean 'unet'")


def test_a_shape_that_does_not_fit_the_data(federation, tmp_path):
    values = tiny_experiment().model_dump(mode="json")
    values["input"]["shape_yx"] = [512, 512]
    done = cohortium("run", written(tmp_path / "bad.yaml", values), *site_options(federation))
    fails_in_one_sentence(done, "grid of (512, 512) voxels", "smaller shape")


def test_a_missing_folder(federation, experiment_file):
    edit(federation / "bio-lab" / "site.yaml", "path: protected", "path: nowhere")
    done = cohortium("run", experiment_file, *site_options(federation))
    fails_in_one_sentence(done, "bio-lab", "nowhere", "Correct 'path' in the site file")


def test_a_site_without_subjects(federation, experiment_file, tmp_path):
    (tmp_path / "empty").mkdir()
    edit(federation / "bio-lab" / "site.yaml", "path: protected", f"path: {tmp_path / 'empty'}")
    done = cohortium("run", experiment_file, *site_options(federation), "--yes")
    fails_in_one_sentence(done, str(tmp_path / "empty"))


def test_a_label_outside_the_classes(federation, experiment_file):
    file = federation / "bio-lab" / "site.yaml"
    file.write_text(file.read_text().replace(', 2: "white matter"', ""))
    done = cohortium("run", experiment_file, *site_options(federation), "--yes")
    fails_in_one_sentence(done, "UNMAPPED_LABEL", "classes")


def test_debug_shows_the_traceback(federation):
    done = cohortium("--debug", "run", federation / "none.yaml", *site_options(federation))
    assert done.returncode != 0 and "Traceback" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["run"], ["demo"], ["audit"], ["audit", "verify"]])
def test_help_teaches_by_example(arguments):
    done = cohortium(*arguments, "--help")
    assert done.returncode == 0
    if arguments not in ([], ["audit"]):
        assert f"cohortium {arguments[0]}" in done.stdout.split("Options")[0].split("Usage")[1][20:]


def test_the_wheel_works_beside_folders_that_shadow_its_names(tmp_path):
    """Install only the project's wheel; its dependencies come from this environment."""
    root = Path(__file__).resolve().parents[2]
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, root]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = wheels.glob("cohortium-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)

    elsewhere = tmp_path / "somebody"
    for name in ("models", "configs", "data_adapters"):
        (elsewhere / name).mkdir(parents=True)
        (elsewhere / name / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    script = site / "bin" / "cohortium"
    env = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": ""}
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=elsewhere, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    where = "import federation.configs_folder as c; print(c.config_path('demo.yaml'))"
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.pop(0); {where}"],
        cwd=elsewhere, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == str(site / "federation" / "configs" / "demo.yaml")

    wrong = subprocess.run(
        [sys.executable, "-c", "import federation"],
        cwd=elsewhere, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert wrong.returncode == 1
    assert f"Python finds {elsewhere / 'models'}" in wrong.stderr
