"""Descriptions of data sets, judged by mlcroissant, offline."""

# ruff: noqa: F811 - fixtures that are imported

import getpass
import json
import socket
from dataclasses import replace

import mlcroissant
import pytest
import rdflib

from federation.errors import FederationError
from federation.export import croissant as module
from federation.export import formats, identifiers
from tests.federation.export.silent_site import (  # noqa: F401 - fixtures among them
    SITES,
    about,
    finished,
)


@pytest.fixture
def folder(finished, about, tmp_path, no_network):
    formats.export(finished, about, "croissant", tmp_path / "croissant")
    return tmp_path / "croissant"


def test_there_is_one_for_each_site_whose_data_the_model_was_trained_on(folder):
    assert {path.name for path in folder.iterdir()} == {f"{site}.json" for site in SITES}


def test_mlcroissant_finds_no_fault(folder, finished):
    for site in finished.record.contributors:
        data = mlcroissant.Dataset(jsonld=str(folder / f"{site.site}.json"))
        issues = data.metadata.ctx.issues
        assert not issues.errors and not issues.warnings
        metadata = data.metadata
        assert metadata.name == site.dataset
        assert metadata.license == [site.licence]
        assert metadata.conforms_to == ["http://mlcommons.org/croissant/1.0"]
        assert [creator.name for creator in metadata.creators] == [site.site]
        assert metadata.url == identifiers.data_set(site.commitment)
        for told in (site.modality, site.source_kind, "pydicom 3.0.2", "withheld"):
            assert told in metadata.description
        assert site.data_use in metadata.description
        value = json.loads((folder / f"{site.site}.json").read_text())
        assert value["usageInfo"] == site.data_use == "DUO:0000007 MONDO:0004975; DUO:0000021"


def test_it_says_that_the_data_stay_and_points_at_none(folder):
    for path in folder.iterdir():
        value = json.loads(path.read_text())
        assert value["distribution"] == [] and not value["isAccessibleForFree"]
        assert "stay at the site" in value["conditionsOfAccess"]
        assert '"contentUrl"' not in path.read_text()
        assert mlcroissant.Dataset(jsonld=value).metadata.distribution == []


def test_the_names_are_those_of_the_crate(folder, finished, about, tmp_path):
    formats.export(finished, about, "ro-crate", tmp_path / "crate")
    prov = rdflib.Graph().parse(tmp_path / "crate" / "prov.ttl")
    metadata = json.loads((tmp_path / "crate" / "ro-crate-metadata.json").read_text())
    in_crate = {one["@id"] for one in metadata["@graph"]}
    in_prov = {str(one) for one in prov.subjects()}
    for path in folder.iterdir():
        described = rdflib.Graph().parse(path, format="json-ld")
        named = {str(one) for one in described.subjects() if str(one).startswith("urn:cohortium:")}
        kinds = {one.split(":")[2] for one in named}
        assert kinds == {"data", "site"} and named <= in_crate & in_prov


def test_nothing_of_this_machine_is_in_them_and_they_are_always_the_same(
    folder, finished, about, tmp_path
):
    formats.export(finished, about, "croissant", tmp_path / "again")
    for path in folder.iterdir():
        content = path.read_bytes()
        assert content == (tmp_path / "again" / path.name).read_bytes()
        for secret in (str(tmp_path), getpass.getuser(), socket.gethostname()):
            word = f'"{secret}"' if len(secret) < 6 else secret
            assert word.encode() not in content


@pytest.mark.parametrize("name", ["../outside", "a/b", "A", "", "north-hospital"])
def test_a_site_whose_name_cannot_name_one_file_is_refused(name, finished, about, tmp_path):
    (first, *rest) = finished.record.sites
    (*before, last) = finished.record.events
    event = replace(last, returned=(name, "north-hospital"))
    record = replace(
        finished.record, sites=(replace(first, site=name), *rest), events=(*before, event)
    )
    with pytest.raises(FederationError, match="cannot name one file"):
        formats.export(replace(finished, record=record), about, "croissant", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_mlcroissant_finds_wrong_is_not_written(finished, about, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "VERSION", "http://mlcommons.org/croissant/77")
    with pytest.raises(FederationError, match="mlcroissant finds"):
        formats.export(finished, about, "croissant", tmp_path / "out")
    assert not (tmp_path / "out").exists()
