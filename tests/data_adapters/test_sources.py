"""Specs of a site's YAML: strict, and light to import."""

import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from data_adapters.sources import DicomSource, OmeZarrSource, Source
from data_adapters.subject_ids import names_a_subject

OME_ZARR = {"kind": "ome_zarr", "path": "x", "labels": "parts", "classes": {1: "left"}}


def test_the_kind_chooses_the_source():
    adapter = TypeAdapter(Source)
    assert isinstance(
        adapter.validate_python({"kind": "dicom", "path": "x", "classes": {"A": "a"}}), DicomSource
    )
    assert isinstance(adapter.validate_python(OME_ZARR), OmeZarrSource)
    with pytest.raises(ValidationError, match="kind"):
        adapter.validate_python({"path": "x", "classes": {"A": "a"}})


def test_class_names_do_not_depend_on_their_order_in_the_file():
    one = DicomSource(path="x", classes={"B": "tail", "A": "head", "C": "tail"})
    other = OmeZarrSource(path="x", labels="l", classes={2: "tail", 0: "background", 1: "head"})
    assert one.class_names() == other.class_names() == ("background", "head", "tail")


@pytest.mark.parametrize(
    "change",
    [
        {"classes": {}},
        {"classes": {0: "left"}},
        {"classes": {1: "background"}},
        {"classes": {1: ""}},
        {"labels": "../../elsewhere"},
        {"labels": ".."},
        {"channel": -1},
        {"surprise": 1},
        {"classes": {value: f"c{value}" for value in range(1, 300)}},
    ],
)
def test_what_cannot_be_meant_is_refused(change):
    with pytest.raises(ValidationError):
        OmeZarrSource.model_validate(OME_ZARR | change)


def test_sources_are_frozen():
    source = OmeZarrSource.model_validate(OME_ZARR)
    with pytest.raises(ValidationError):
        source.channel = 2


@pytest.mark.parametrize("name", ["x", "XXX", "Anonymized", "patient", " ", "0", "-", "N/A"])
def test_placeholders_name_nobody(name):
    assert not names_a_subject(name)


@pytest.mark.parametrize("name", ["1", "A", "sub-01", "10", "Anonymous-7", "患者-1"])
def test_identifiers_name_somebody(name):
    assert names_a_subject(name)


def test_importing_the_package_and_its_specs_loads_nothing_heavy():
    heavy = ["torch", "monai", "highdicom", "tensorstore", "zarr", "mlflow", "flwr", "opacus"]
    code = (
        "import sys, data_adapters, data_adapters.sources, data_adapters.ingest;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
