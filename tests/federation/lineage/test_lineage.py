"""What made a model and what was made from data, over two real runs."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from federation.cli.app import app
from federation.errors import FederationError
from federation.experiment import Experiment
from federation.export import formats, identifiers
from federation.export.about import About, Author
from federation.lineage.graph import FRESH
from federation.lineage.picture import _FILL, _INK, _RED, svg, told
from federation.lineage.reading import TOLD_MODELS, read_lineage
from federation.run import open_sites
from federation.run_record import open_finished, read_record, write_record
from federation.training import initial_weights
from federation.usage import _TOLD, used_by
from models.weights import weights_digest, weights_to_bytes
from tests.conftest import site_files
from tests.federation.lineage.conftest import FIRST

SITES = {"bio-lab", "north-hospital", "south-hospital"}


def lineage(*arguments):
    result = CliRunner().invoke(app, ["lineage", *map(str, arguments)])
    if isinstance(result.exception, FederationError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def as_json(*arguments):
    return json.loads(lineage(*arguments, "--json").stdout)


def model_of(world, which):
    return read_record(world.public / which).model_digest


@pytest.fixture(scope="module")
def public(world):
    return read_lineage([world.public])


@pytest.fixture(scope="module")
def everything(world):
    return read_lineage([world.public, *world.states])


class TestRunFoldersAlone:
    def test_each_model_was_made_from_what_took_part(self, world, public):
        assert public.problems == ()
        for which in ("one", "two"):
            made = public.of_model(model_of(world, which))
            assert [run.name for run in made.runs] == [world.runs[which].run]
            assert {data.site for data in made.data_sets} == SITES
        updates = {use.updates for use in public.of_model(model_of(world, "one")).uses}
        assert updates == {2}

    def test_one_data_set_in_two_experiments_is_not_linked(self, world, public):
        assert len(public.data_sets) == 2 * len(SITES)
        assert all(len(data.commitments) == 1 and not data.linked_by for data in public.data_sets)
        assert FRESH in public.notes
        assert FRESH in lineage(world.public).output.replace("\n", " ")

    def test_a_commitment_leads_to_its_own_model_alone(self, world, public):
        commitment = world.sites["bio-lab"].commitment(FIRST.digest())
        found = public.of_data_set(commitment)
        assert found.models == (model_of(world, "one"),)

    def test_withdrawals_are_not_seen_and_that_is_said(self, public):
        assert not any(use.withdrawn for use in public.uses)
        assert any("not given: bio-lab, north-hospital, south-hospital" in n for n in public.notes)

    def test_sites_sign_the_digest_that_the_models_file_has(self, world):
        for which, summary in world.runs.items():
            run = open_finished(world.public / which)
            assert {one["model_digest"] for one in run.closings} == {run.record.model_digest}
            assert weights_digest(run.weights) == weights_digest(summary.weights)


class TestWithLedgers:
    def test_the_sites_ledger_links_both_experiments(self, everything):
        assert {data.site for data in everything.data_sets} == SITES
        assert len(everything.data_sets) == len(SITES)
        assert all(data.linked_by == "ledger" for data in everything.data_sets)
        assert everything.notes == () and everything.problems == ()

    def test_one_ledger_links_that_sites_alone(self, world):
        found = read_lineage([world.public, world.state("bio-lab")])
        linked = [data for data in found.data_sets if data.linked_by]
        assert [(data.site, len(data.commitments)) for data in linked] == [("bio-lab", 2)]
        assert len(found.data_sets) == 1 + 2 * 2

    def test_a_data_set_leads_to_all_its_models_also_after_withdrawal(self, world, everything):
        found = everything.of_data_set("bio-lab/simulated-brain-mr-lab")
        assert set(found.models) == {model_of(world, "one"), model_of(world, "two")}
        gone = {use.run: use.withdrawn for use in found.uses}
        assert gone[world.runs["one"].run] and not gone[world.runs["two"].run]

    def test_a_withdrawal_in_the_middle_of_a_run_is_marked(self, world, everything):
        found = everything.of_data_set("north-hospital/simulated-brain-mr-north")
        gone = {use.run: (use.updates, bool(use.withdrawn)) for use in found.uses}
        assert gone == {world.runs["one"].run: (2, False), world.runs["two"].run: (1, True)}

    @pytest.mark.parametrize("site", sorted(SITES))
    def test_a_site_sees_its_models_from_its_own_folder(self, world, site):
        found = read_lineage([world.state(site)])
        assert {data.site for data in found.data_sets} == {site}
        assert set(found.models) == {model_of(world, "one"), model_of(world, "two")}
        for experiment in {run.experiment_digest for run in found.runs}:
            used = used_by(world.sites[site], experiment)
            updates = {u.run: u.updates for u in found.uses if u.run in used.runs}
            assert updates == used.runs
            assert {r.name: r.model for r in found.runs if r.name in updates} == used.models

    def test_the_file_of_models_after_withdrawal_is_the_sites(self, world):
        assert TOLD_MODELS == _TOLD
        assert (world.state("north-hospital") / TOLD_MODELS).is_file()

    def test_a_ledger_that_was_changed_is_named(self, world, tmp_path):
        ledger = world.state("bio-lab") / "ledger.jsonl"
        copy = tmp_path / "ledger.jsonl"
        copy.write_text(ledger.read_text().replace("Dr. Rivera", "Dr. Nobody"))
        found = read_lineage([copy])
        assert any("its ledger breaks a rule" in problem for problem in found.problems)
        assert lineage(copy).exit_code == 1


class TestOpenings:
    @pytest.fixture
    def openings(self, world, tmp_path):
        files = []
        for which, summary in world.runs.items():
            opening = world.sites["bio-lab"].opening(summary.experiment.digest())
            files.append(tmp_path / f"{which}.json")
            files[-1].write_text(json.dumps(opening.to_json()))
        return files

    @pytest.fixture
    def crate(self, world, tmp_path):
        about = About(
            title="t",
            description="d",
            authors=(Author(name="A"),),
            licence="MIT",
            intended_use="Tests.",
        )
        formats.export(open_finished(world.public / "one"), about, "ro-crate", tmp_path / "crate")
        return tmp_path / "crate"

    def test_two_openings_link_what_left(self, world, openings):
        found = read_lineage([world.public], openings=openings)
        (linked,) = [data for data in found.data_sets if data.linked_by]
        assert (linked.site, linked.linked_by, len(linked.commitments)) == ("bio-lab", "opening", 2)
        assert linked.root == world.sites["bio-lab"].manifest("protected").root
        assert found.problems == ()

    def test_an_opening_gives_the_commitment_in_the_crate(self, world, crate, openings):
        done = lineage(crate, "--opening", openings[0], "--json")
        assert done.exit_code == 0
        found = json.loads(done.stdout)
        (opened,) = [data for data in found["data_sets"] if data["root"]]
        metadata = json.loads((crate / "ro-crate-metadata.json").read_text())
        assert opened["id"] in {one["@id"] for one in metadata["@graph"]}

    def test_a_changed_voxel_breaks_the_link(self, world, crate, openings, tmp_path):
        shutil.copytree(world.folder / "sites", tmp_path / "sites")
        sites = open_sites(site_files(tmp_path / "sites"))
        (site,) = [one for one in sites if one.name == "bio-lab"]
        before = site.manifest("protected").root
        (image, *_) = sorted(
            (tmp_path / "sites" / "bio-lab").rglob("*protected*/*.zarr")
        ) or sorted(
            path
            for path in (tmp_path / "sites" / "bio-lab").rglob("*.zarr")
            if "public" not in str(path)
        )
        voxels = zarr.open_array(image / "0", mode="r+")
        place = tuple(size // 2 for size in voxels.shape)
        voxels[place] = voxels[place] + np.asarray(1, voxels.dtype)
        site.ingest("protected")
        after = site.manifest("protected").root
        assert before != after
        opening = json.loads(openings[0].read_text())
        assert opening["root"] == before
        changed = tmp_path / "changed.json"
        changed.write_text(json.dumps(opening | {"root": after}))
        done = lineage(crate, "--opening", changed)
        assert done.exit_code == 1
        assert "does not give its commitment" in done.output
        with pytest.raises(FederationError, match="not those that"):
            site.opening(FIRST.digest())

    def test_an_opening_of_something_else_does_not_fit(self, crate, openings):
        done = lineage(crate, "--opening", openings[1])
        assert done.exit_code == 1 and "nothing here tells of the site" in done.output


class TestWhatIsSigned:
    @pytest.fixture
    def run(self, world, tmp_path):
        return shutil.copytree(world.public / "one", tmp_path / "run")

    def test_a_changed_receipt_counts_for_nothing(self, run):
        receipts = json.loads((run / "receipts.json").read_text())
        for receipt in receipts:
            if receipt["site"] == "bio-lab":
                receipt["charge_seq"] += 1
        (run / "receipts.json").write_text(json.dumps(receipts))
        found = read_lineage([run])
        assert any("not validly signed" in problem for problem in found.problems)
        assert any("run.json alone" in problem for problem in found.problems)
        updates = {found.data_set_of(use).site: use.updates for use in found.uses}
        assert updates == {"bio-lab": 0, "north-hospital": 2, "south-hospital": 2}

    def test_another_model_than_sites_signed_is_a_problem(self, run):
        record = json.loads((run / "run.json").read_text())
        record["model_digest"] = "sha256:" + "0" * 64
        (run / "run.json").write_text(json.dumps(record))
        done = lineage(run)
        assert done.exit_code == 1 and "said to have ended with" in done.output


def test_a_run_that_started_from_a_model_leads_back_to_its_data(world, tmp_path):
    first = read_record(world.public / "one")
    values = FIRST.model_dump(mode="json")
    start = {"file": "m.safetensors", "sha256": first.model_sha256, "public": True}
    experiment = Experiment.model_validate(values | {"name": "tuned", "initial_weights": start})
    model = weights_to_bytes({n: a + 1 for n, a in initial_weights(FIRST).items()})
    folder = tmp_path / "tuned"
    folder.mkdir()
    for name in ("receipts.json", "closings.json"):
        (folder / name).write_text("[]")
    later = write_record(
        folder,
        experiment,
        run="tuned",
        model=model,
        events=(),
        sites=(),
        epsilon={},
        noise_multiplier=1.0,
        heads={},
    )
    found = read_lineage([world.public, folder])
    made = found.of_model(later.model_digest)
    assert {data.site for data in made.data_sets} == SITES
    assert made.models == (first.model_digest, later.model_digest)
    commitment = next(site.commitment for site in first.sites if site.site == "bio-lab")
    assert found.of_data_set(commitment).models == (first.model_digest, later.model_digest)
    assert "started from model" in told(made)
    assert svg(made).count("<g ") == len(SITES) + 2 + 2


class TestPicture:
    @pytest.fixture
    def root(self, everything):
        return ET.fromstring(svg(everything))

    def test_it_is_svg_with_title_and_description(self, root, everything, world):
        space = "{http://www.w3.org/2000/svg}"
        assert root.tag == f"{space}svg" and root.get("role") == "img"
        assert root.find(f"{space}title").text
        description = root.find(f"{space}desc").text
        assert description == told(everything)
        assert description.count("withdrawn on") == 2
        for summary in world.runs.values():
            assert summary.run[:12] in description

    def test_everything_is_in_it_once_and_inside(self, root, everything):
        space = "{http://www.w3.org/2000/svg}"
        boxes = root.findall(f"{space}g")
        parts = (everything.data_sets, everything.runs, everything.models)
        assert len(boxes) == sum(map(len, parts))
        corners = [
            (int(r.get("x")), int(r.get("y"))) for r in root.iter(f"{space}rect") if r.get("x")
        ]
        assert len(set(corners)) == len(boxes)
        assert all(x + 260 <= int(root.get("width")) for x, _ in corners)
        assert all(y + 82 <= int(root.get("height")) for _, y in corners)

    def test_withdrawals_are_told_by_more_than_colour(self, everything):
        drawn = svg(everything)
        assert len(re.findall("withdrawn [0-9]{4}-", drawn)) == 2
        assert drawn.count("stroke-dasharray") >= 2

    def test_it_says_itself_that_boxes_may_be_the_same_data(self, public, everything):
        assert "may be the same data" in svg(public)
        assert "may be the same data" not in svg(everything)

    @pytest.mark.parametrize("colour", [_INK, _RED])
    @pytest.mark.parametrize("ground", ["#ffffff", *(fill for fill, _ in _FILL.values())])
    def test_words_stand_out(self, colour, ground):
        light, dark = (_luminance(c) for c in (ground, colour))
        assert (light + 0.05) / (dark + 0.05) >= 4.5

    def test_names_of_others_are_words_and_no_markup(self, everything):
        (first, *rest) = everything.data_sets
        hostile = replace(first, names=('<script>alert("x")</script>&',))
        drawn = svg(replace(everything, data_sets=(hostile, *rest)))
        assert "<script" not in drawn
        ET.fromstring(drawn)

    def test_the_command_draws_it(self, world, tmp_path):
        done = lineage(world.public, "--out", tmp_path / "l.svg")
        assert done.exit_code == 0 and "Drawn" in done.output
        ET.parse(tmp_path / "l.svg")
        with pytest.raises(FederationError, match="cannot be written"):
            lineage(world.public, "--out", tmp_path / "none" / "l.svg")


def _luminance(colour):
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


class TestCommand:
    def test_help_teaches_by_example(self):
        assert lineage("--help").output.split("Examples:")[1].count("cohortium lineage") >= 5

    def test_json_is_versioned_and_names_things_as_exports_do(self, world):
        found = as_json(world.public, *world.states)
        assert found["format"] == "cohortium-lineage/1"
        record = read_record(world.public / "one")
        assert identifiers.model(record.model_digest) in {one["id"] for one in found["models"]}
        runs = {one["id"] for one in found["runs"]}
        data = {one["id"] for one in found["data_sets"]}
        for use in found["uses"]:
            assert use["run"] in runs and use["data_set"] in data
        commitments = {c for one in found["data_sets"] for c in one["commitments"]}
        assert {site.commitment for site in record.sites} <= commitments

    def test_a_model_by_how_its_digest_begins(self, world):
        digest = model_of(world, "one")
        for text in (digest, digest[:19], digest[7:17], identifiers.model(digest)):
            assert [m["digest"] for m in as_json(world.public, "--model", text)["models"]] == [
                digest
            ]

    def test_text_says_what_was_withdrawn(self, world):
        shown = lineage(world.public, *world.states).output
        assert shown.count("WITHDRAWN") == 4, "once below the model, once below the data set"

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            (("--model", "sha256:abcdef1"), "0 models here"),
            (("--model", "a"), "0 models here"),
            (("--dataset", "bio-lab/other"), r"bio-lab/simulated-brain-mr-lab"),
            (("--model", "a", "--dataset", "b"), "not both"),
        ],
    )
    def test_what_is_not_there_is_said(self, world, arguments, match):
        with pytest.raises(FederationError, match=match):
            lineage(world.public, *arguments)

    def test_an_empty_folder_is_said(self, tmp_path):
        with pytest.raises(FederationError, match="no finished run"):
            lineage(tmp_path)

    def test_a_file_that_is_no_ledger_is_said(self, tmp_path):
        (tmp_path / "ledger.jsonl").write_text("{}\n")
        with pytest.raises(FederationError, match="Give a site's ledger"):
            lineage(tmp_path)

    def test_the_same_run_found_twice_stands_once(self, world, tmp_path, public):
        shutil.copytree(world.public, tmp_path / "copy")
        twice = read_lineage([world.public, tmp_path / "copy"])
        assert asdict(twice) == asdict(public)
