"""The crate, read back by rocrate and rdflib, offline, and held against its profile."""

# ruff: noqa: F811 - fixtures that are imported

import getpass
import json
import socket
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import pytest
import rdflib
import rocrate
import yaml
from rocrate.rocrate import ROCrate

from federation.errors import FederationError
from federation.experiment import load_experiment
from federation.export import crate as module
from federation.export import formats, identifiers
from federation.run_record import open_finished
from models.weights import weights_digest
from tests.experiments import demo_values, unprotected
from tests.federation.classification import classification
from tests.federation.export.silent_site import (  # noqa: F401 - fixtures among them
    SITES,
    about,
    finished,
    make_finished,
)

SDO = "http://schema.org/"


@pytest.fixture
def folder(finished, about, tmp_path, no_network):
    formats.export(finished, about, "ro-crate", tmp_path / "crate")
    return tmp_path / "crate"


@pytest.fixture
def crate(folder):
    return ROCrate(folder)


def graph_of(folder):
    """Return the crate's metadata as RDF; its context is the copy that rocrate brings."""
    value = json.loads((folder / "ro-crate-metadata.json").read_text())
    assert value["@context"] == "https://w3id.org/ro/crate/1.1/context"
    context = Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld"
    value["@context"] = json.loads(context.read_text())["@context"]
    return rdflib.Graph().parse(data=json.dumps(value), format="json-ld", publicID="arcp://x/")


def ids(values):
    values = values if isinstance(values, list) else [values]
    return {getattr(one, "id", one) for one in values}


def test_rocrate_reads_it_back_with_files_and_things(crate, finished):
    record = finished.record
    assert {e.id for e in crate.data_entities} == set(module._FILES)
    model = crate.get(identifiers.model(record.model_digest))
    assert model["encoding"].id == "model.safetensors"
    sites = record.contributors
    assert [site.site for site in sites] == list(SITES), "not the one that returned nothing"
    for site in sites:
        data = crate.get(identifiers.data_set(site.commitment))
        assert data["identifier"] == site.commitment and data["name"] == site.dataset
        assert data["creator"].id == identifiers.site(site.public_key)
        assert crate.get(identifiers.site(site.public_key))["identifier"].startswith("SHA256:")
    assert not crate.get(identifiers.data_set(record.sites[2].commitment))
    values = {v["name"]: v["value"] for v in crate.root_dataset["variableMeasured"]}
    assert values["epsilon of this run at bio-lab"] == 3.5
    assert values["delta of the run's privacy"] == record.experiment.privacy.delta
    assert values["ledger head of bio-lab"] == record.heads["bio-lab"]
    assert values["experiment digest"] == record.experiment.digest()


def test_the_files_are_those_of_the_run(folder, finished):
    for name in ("model.safetensors", "run.json"):
        assert (folder / name).read_bytes() == (finished.path / name).read_bytes()
    assert load_experiment(folder / "experiment.yaml") == finished.record.experiment
    again = open_finished(folder)
    assert weights_digest(again.weights) == finished.record.model_digest
    metadata = ROCrate(folder)
    for name in module._FILES:
        told = metadata.get(name)
        content = (folder / name).read_bytes()
        assert told["sha256"] == sha256(content).hexdigest()
        assert told["contentSize"] == str(len(content))


class TestProcessRunCrate:
    """https://w3id.org/ro/wfrun/process/0.5, "Requirements", each MUST, and RO-Crate 1.1's."""

    def test_the_metadata_file_conforms_to_ro_crate_1_1_and_is_about_the_root(self, folder):
        (descriptor,) = _entities(folder, "ro-crate-metadata.json")
        assert descriptor["@type"] == "CreativeWork"
        assert descriptor["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
        assert descriptor["about"] == {"@id": "./"}

    def test_the_root_is_a_dataset_with_name_description_date_and_licence(self, folder, finished):
        (root,) = _entities(folder, "./")
        assert root["@type"] == "Dataset"
        assert root["name"] and root["description"] and root["license"]["@id"]
        assert datetime.fromisoformat(root["datePublished"])
        assert root["datePublished"] == finished.record.finished, "no other time"

    def test_the_root_must_reference_a_creative_work_with_the_permalink(self, crate):
        profile = crate.root_dataset["conformsTo"]
        assert profile.id == "https://w3id.org/ro/wfrun/process/0.5"
        assert profile.type == "CreativeWork" and profile["version"] == "0.5"

    def test_the_software_must_have_a_type_and_an_id(self, crate):
        (software,) = crate.get_by_type("SoftwareApplication")
        assert software.id.startswith("urn:"), "an absolute URI, as it should be"
        assert software["name"] and software["url"]
        assert software["softwareVersion"] and not software.get("version")

    def test_the_action_must_have_type_id_and_instrument(self, crate, finished):
        (action,) = crate.get_by_type("CreateAction")
        (software,) = crate.get_by_type("SoftwareApplication")
        assert action.id == identifiers.run(finished.record.run)
        assert action["instrument"].id == software.id
        assert ids(crate.root_dataset["mentions"]) == {action.id}

    def test_the_action_should_tell_who_what_from_and_when(self, crate, finished):
        (action,) = crate.get_by_type("CreateAction")
        record = finished.record
        sites = record.contributors
        assert action["name"] and action["description"]
        assert action["endTime"] == record.finished
        assert ids(action["agent"]) >= {"https://orcid.org/0000-0002-1825-0097"}
        assert ids(action["agent"]) >= {identifiers.site(s.public_key) for s in sites}
        assert ids(action["object"]) >= {identifiers.data_set(s.commitment) for s in sites}
        assert identifiers.experiment(record.experiment.digest()) in ids(action["object"])
        assert ids(action["result"]) >= {
            "model.safetensors",
            identifiers.model(record.model_digest),
        }
        for one in (*action["object"], *action["result"]):
            assert one.type in ("File", "CreativeWork")
        for one in action["agent"]:
            assert one.type in ("Person", "Organization")

    def test_everything_that_is_referred_to_is_described(self, folder):
        entities = _entities(folder)
        named = {one["@id"] for one in entities}
        assert len(named) == len(entities), "no two with one @id"
        elsewhere = ("https://w3id.org/ro/crate/", "http://schema.org/")
        referred = {ref for one in entities for ref in _refs(one)}
        assert {ref for ref in referred - named if not ref.startswith(elsewhere)} == set()

    def test_every_file_is_part_of_the_root(self, folder):
        (root,) = _entities(folder, "./")
        files = {path.name for path in folder.iterdir()} - {"ro-crate-metadata.json"}
        assert {one["@id"] for one in root["hasPart"]} == files


def _entities(folder, named=None):
    graph = json.loads((folder / "ro-crate-metadata.json").read_text())["@graph"]
    return [one for one in graph if named in (None, one["@id"])]


def _refs(entity):
    for name, value in entity.items():
        for one in value if isinstance(value, list) else [value]:
            if name != "@id" and isinstance(one, dict):
                yield one["@id"]


def test_the_metadata_are_rdf_without_a_download(folder, finished):
    graph = graph_of(folder)
    asked = f"""
        SELECT ?data WHERE {{
            ?action a <{SDO}CreateAction> ; <{SDO}object> ?data ;
                    <{SDO}result> <{identifiers.model(finished.record.model_digest)}> .
            ?data <{SDO}additionalType> <{SDO}Dataset> }}"""
    sites = finished.record.contributors
    assert {str(row.data) for row in graph.query(asked)} == {
        identifiers.data_set(site.commitment) for site in sites
    }


class TestProv:
    PREFIX = (
        "PREFIX prov: <http://www.w3.org/ns/prov#> "
        "PREFIX rdfs: <http://www.w3.org/2000/01/rdf-schema#> "
    )

    @pytest.fixture
    def ask(self, folder, finished):
        graph = rdflib.Graph().parse(folder / "prov.ttl", format="turtle")
        model = rdflib.URIRef(identifiers.model(finished.record.model_digest))

        def ask(text):
            found = graph.query(self.PREFIX + text, initBindings={"model": model})
            return {tuple(map(str, row)) for row in found}

        return ask

    def test_it_tells_what_the_model_was_derived_from(self, ask, finished):
        sites = finished.record.contributors
        assert ask(
            "SELECT ?data ?who WHERE { ?model prov:wasDerivedFrom ?data . "
            "?data prov:wasAttributedTo ?site . ?site rdfs:label ?who }"
        ) == {(identifiers.data_set(site.commitment), site.site) for site in sites}

    def test_it_tells_what_data_may_be_used_for(self, ask, crate, finished):
        obo = "http://purl.obolibrary.org/obo/"
        terms = {f"{obo}{one}" for one in ("DUO_0000007", "MONDO_0004975", "DUO_0000021")}
        assert {
            term
            for _, term in ask(
                "PREFIX dcterms: <http://purl.org/dc/terms/> SELECT ?data ?term WHERE "
                "{ ?model prov:wasDerivedFrom ?data . ?data dcterms:accessRights ?term }"
            )
        } == terms
        for site in finished.record.contributors:
            data = crate.get(identifiers.data_set(site.commitment))
            assert ids(data["usageInfo"]) == terms
            assert {one.type for one in data["usageInfo"]} == {"DefinedTerm"}

    def test_it_tells_who_is_responsible(self, ask):
        assert ask(
            "SELECT ?name WHERE { ?model prov:wasAttributedTo ?who . ?who rdfs:label ?name }"
        ) == {("Josiah Carberry",), ("Ada Example",)}
        taking_part = ask(
            "SELECT ?name WHERE { ?model prov:wasGeneratedBy/prov:wasAssociatedWith ?who . "
            "?who rdfs:label ?name }"
        )
        assert {(site,) for site in SITES} <= taking_part

    def test_it_tells_what_the_run_was_planned_by_and_what_it_left_in_ledgers(self, ask, finished):
        record = finished.record
        (plan,) = ask(
            "SELECT ?plan WHERE { ?model prov:wasGeneratedBy ?run . "
            "?run prov:qualifiedAssociation/prov:hadPlan ?plan }"
        )
        assert plan == (identifiers.experiment(record.experiment.digest()),)
        heads = ask(
            "SELECT ?head WHERE { ?model prov:wasGeneratedBy ?run . "
            "?head prov:wasGeneratedBy ?run ; prov:wasAttributedTo ?site }"
        )
        assert {(identifiers.head(head),) for head in record.heads.values()} <= heads


def test_the_same_run_gives_the_same_bytes_and_no_identifier_of_this_machine(
    folder, finished, about, tmp_path
):
    formats.export(finished, about, "ro-crate", tmp_path / "again")
    for path in folder.iterdir():
        content = path.read_bytes()
        assert content == (tmp_path / "again" / path.name).read_bytes()
        for secret in (str(tmp_path), getpass.getuser(), socket.gethostname()):
            word = f'"{secret}"' if len(secret) < 6 else secret
            assert word.encode() not in content, path.name


@pytest.mark.parametrize("experiment", [classification(), unprotected(classification())])
def test_other_tasks_and_no_privacy(experiment, about, tmp_path):
    run = make_finished(tmp_path / "other", experiment)
    if experiment.privacy.kind == "none":
        run = replace(run, record=replace(run.record, epsilon=dict.fromkeys(SITES)))
    formats.export(run, about, "ro-crate", tmp_path / "crate")
    values = ROCrate(tmp_path / "crate").root_dataset["variableMeasured"]
    told = {one["name"]: one["value"] for one in values}
    without = experiment.privacy.kind == "none"
    assert told["epsilon of this run at bio-lab"] == ("infinite" if without else 3.5)
    assert ("delta of the run's privacy" in told) != without


def test_weights_that_a_run_started_from_are_named(finished, about, tmp_path):
    values = demo_values()
    values["initial_weights"] = {"file": "s.safetensors", "sha256": "ab" * 32, "public": True}
    experiment = type(finished.record.experiment).model_validate(values)
    run = replace(finished, record=replace(finished.record, experiment=experiment))
    formats.export(run, about, "ro-crate", tmp_path / "crate")
    (action,) = ROCrate(tmp_path / "crate").get_by_type("CreateAction")
    assert "urn:cohortium:weights:" + "ab" * 32 in ids(action["object"])
    graph = rdflib.Graph().parse(tmp_path / "crate" / "prov.ttl")
    assert "urn:cohortium:weights:" + "ab" * 32 in {str(o) for o in graph.objects()}
    yaml.safe_load((tmp_path / "crate" / "experiment.yaml").read_text())


def test_a_commitment_that_is_none_is_refused_and_nothing_is_left(finished, about, tmp_path):
    (first, *rest) = finished.record.sites
    sites = (replace(first, commitment="../x> . <urn:evil"), *rest)
    run = replace(finished, record=replace(finished.record, sites=sites))
    with pytest.raises(FederationError, match=r"Restore run\.json"):
        formats.export(run, about, "ro-crate", tmp_path / "crate")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_hostile_words_stay_words(finished, about, tmp_path):
    (first, *rest) = finished.record.sites
    hostile = '"""@en . <urn:evil> a <urn:evil> . """\n</script>'
    sites = (replace(first, dataset=hostile, licence=hostile), *rest)
    run = replace(finished, record=replace(finished.record, sites=sites))
    formats.export(run, about, "ro-crate", tmp_path / "crate")
    graph = rdflib.Graph().parse(tmp_path / "crate" / "prov.ttl")
    assert rdflib.URIRef("urn:evil") not in set(graph.subjects())
    assert (
        ROCrate(tmp_path / "crate").get(identifiers.data_set(first.commitment))["name"] == hostile
    )
