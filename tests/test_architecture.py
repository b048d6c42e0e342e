"""The rooms of the house: who may import whom, and what never appears in the code."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("federation", "models", "data_adapters")
MAY_IMPORT = {
    "data_adapters": set(),
    "models": set(),
    "federation": {"data_adapters", "models"},
}
ONLY_IN = {
    "flwr": "federation/flower/",
    "mlflow": "federation/tracking/",
    "bioimageio": "federation/export/",
    "jsonschema": "federation/export/",
    "matplotlib": "federation/export/",
    "mlcroissant": "federation/export/",
    "onnx": "federation/export/",
    "onnxruntime": "federation/export/",
    "rocrate": "federation/export/",
}

# Order inside federation/: a module may import what stands at or before its own place.
ORDER = (
    {"errors", "canonical", "files", "documents", "configs_folder", "lean_imports", "__init__"},
    {"passphrase", "key_slot"},
    {"experiment", "messages", "data_use", "cohort"},
    {"ledger"},
    {"authors", "software", "linking", "egress", "agent_state", "signed_requests", "starting"},
    {"run_record", "foreign_weights"},
    {"elsewhere"},
    {"certificates", "proxy"},
    {"hub_folder", "hub_runs"},
    {"privacy"},
    {"forecast", "spending"},
    {"audit"},
    {
        "site",
        "site_config",
        "site_keys",
        "systemd",
        "site_data",
        "consent",
        "exclusions",
        "headers",
        "algorithms",
    },
    {"originals", "separation", "usage"},
    {"withdrawal", "merging", "look", "site_file", "leaving", "readiness_parts"},
    {"release", "losses", "evidence", "checkpoint"},
    {"steps"},
    {"training", "scoring"},
    {"readiness"},
    {"readiness_page"},
    {"rounds"},
    {"flower", "tracking"},
    {"run", "demo"},
    {"export"},
    {"lineage"},
    {"cli"},
)
# The ledger's event and policy types are what a privacy plan is made of, so ledger comes first.
AUDIT_MAY_IMPORT = {"audit", "ledger", "errors", "canonical", "files", "experiment"}


def modules() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place(module: str) -> int | None:
    return next((i for i, names in enumerate(ORDER) if module in names), None)


def seeded_randomness_in(text: str) -> set[str]:
    """Return calls that draw from a generator with a seed, or with state that others share."""
    forbidden = r"np\.random|torch\.rand\w*\((?!.*generator=)|import random|\.manual_seed\((?!0\))"
    return set(re.findall(forbidden, text))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", modules(), ids=relative)
class TestModule:
    def test_imports_only_rooms_it_may(self, path):
        room = relative(path).split("/")[0]
        foreign = {name.split(".")[0] for name in imports_of(path)} & set(ROOMS) - {room}
        assert foreign <= MAY_IMPORT[room]

    def test_heavy_packages_stay_in_their_one_place(self, path):
        _heavy_packages_stay(path, relative(path))

    def test_is_at_most_500_lines(self, path):
        assert len(path.read_text().splitlines()) <= 500

    def test_runs_no_text_as_code_and_unpickles_nothing(self, path):
        tree = ast.parse(path.read_text())
        called = {
            n.func.id
            for n in ast.walk(tree)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        assert not called & {"eval", "exec", "compile", "__import__"}
        tops = {name.split(".")[0] for name in imports_of(path)}
        assert not tops & {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}

    def test_nothing_random_at_a_site_comes_from_a_seeded_or_shared_generator(self, path):
        private = ("federation/privacy", "federation/rounds", "federation/training")
        drawn = ("data_adapters/subjects", "data_adapters/patches", "data_adapters/prepare")
        if relative(path).startswith((*private, *drawn)):
            assert not seeded_randomness_in(path.read_text())


@pytest.mark.parametrize(
    "path", [p for p in modules() if relative(p).startswith("federation/")], ids=relative
)
def test_imports_inside_federation_run_one_way(path):
    parts = Path(relative(path)).with_suffix("").parts
    own = place(parts[1])
    assert own is not None, f"{parts[1]} has no place in ORDER"
    for name in imports_of(path):
        pieces = name.split(".")
        if pieces[0] != "federation" or len(pieces) < 2:
            continue
        other = place(pieces[1])
        if other is None or pieces[1] == parts[1]:
            continue
        assert other <= own, f"{relative(path)} imports {name}"
        if parts[1] == "audit":
            assert pieces[1] in AUDIT_MAY_IMPORT, f"{relative(path)} imports {name}"


def _heavy_packages_stay(path: Path, name: str) -> None:
    tops = {imported.split(".")[0] for imported in imports_of(path)}
    for package, folder in ONLY_IN.items():
        assert package not in tops or name.startswith(folder)


def modules_loaded_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/"
    )
    return {line.split(".")[0] for line in done.stdout.splitlines()}


def test_importing_the_packages_imports_neither_flower_nor_mlflow():
    loaded = modules_loaded_by("import federation, models, data_adapters")
    assert not loaded & {"flwr", "mlflow", "torch", "monai", "opacus"}


def test_reading_an_experiment_and_making_its_plan_needs_no_torch():
    loaded = modules_loaded_by("import federation.experiment, federation.privacy.plan")
    assert not loaded & {"flwr", "mlflow", "torch", "monai", "opacus"}


def test_verifying_needs_no_torch():
    loaded = modules_loaded_by("import federation.audit.checking, federation.cli.audit")
    assert not loaded & {"flwr", "mlflow", "torch", "monai", "opacus"}


def test_lineage_needs_no_torch():
    loaded = modules_loaded_by("import federation.lineage.reading, federation.lineage.picture")
    assert not loaded & {"flwr", "mlflow", "torch", "monai", "opacus", "rocrate", "mlcroissant"}


def test_the_command_line_starts_without_what_takes_seconds_to_load():
    loaded = modules_loaded_by("import federation.cli.app")
    assert "typer" in loaded
    assert not loaded & {"flwr", "mlflow", "torch", "monai", "opacus", "scipy", "dp_accounting"}


def test_an_agent_loads_nothing_that_only_monais_unused_parts_want():
    lean = "from federation.lean_imports import import_monai; import_monai(); "
    agent = "import federation.flower.serve, federation.scoring, federation.losses"
    unused = {"mlflow", "pandas", "matplotlib", "sklearn"}
    assert {"torch", "monai", "opacus"} <= (loaded := modules_loaded_by(lean + agent))
    assert not loaded & unused
    assert modules_loaded_by(f"{lean} import mlflow.entities, sklearn") >= {"mlflow", "sklearn"}
    assert modules_loaded_by(agent) & unused, "MONAI loads none of them by itself any more"


def test_the_guards_fire_on_what_is_planted(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("def f():\n    from flwr.app import Message\n    return eval('1')\n")
    module = TestModule()
    with pytest.raises(AssertionError):
        _heavy_packages_stay(planted, "federation/site.py")
    with pytest.raises(AssertionError):
        module.test_runs_no_text_as_code_and_unpickles_nothing(planted)
    assert seeded_randomness_in("x = torch.randperm(4)\n") and seeded_randomness_in("np.random.x")
