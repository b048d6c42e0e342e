"""Whatever stands in the metadata, one image is read or refused by name; nothing else happens."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_adapters.ome_zarr import discover_ome_zarr
from data_adapters.reasons import REASONS, Unusable
from data_adapters.sources import OmeZarrSource
from tests.data_adapters.stores import whole, write_image, write_labels, write_plate

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(["", "..", "/", "t", "affine", "\0", "micrometer", "0" * 5000, "❤"]),
    st.just([]),
    st.just({}),
    st.just([[[[]]]]),
    st.just({"type": "scale", "scale": [1e308, 1e308, 1e308]}),
)


def leaves(node, path=()):
    """Yield the path of every value in a JSON document, inner ones too."""
    yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from leaves(value, (*path, index))


def replaced(document, path, value):
    if not path:
        return value
    holder = document
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    return document


def put(path, version):
    image = np.arange(60, dtype=np.uint16).reshape(1, 3, 4, 5)
    options = {"version": version, "translations": [[0.0, 1.0, 2.0, 3.0]]}
    write_image(path, [image], "czyx", omero=["DAPI"], **options)
    labels = [(image[0] % 2).astype(np.uint8)]
    write_labels(path, "parts", labels, version=version, translations=[[1.0, 2.0, 3.0]])


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("0.4", ".zattrs"),
        ("0.4", "0/.zarray"),
        ("0.4", "labels/parts/.zattrs"),
        ("0.5", "zarr.json"),
        ("0.5", "0/zarr.json"),
        ("0.5", "labels/parts/0/zarr.json"),
    ],
)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_one_value_may_be_anything(tmp_path, version, name, data):
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    put(tmp_path / "data/P-1/a.zarr", version)
    file = tmp_path / "data/P-1/a.zarr" / name
    document = json.loads(file.read_text())
    path = data.draw(st.sampled_from(sorted(leaves(document), key=repr)))
    file.write_text(json.dumps(replaced(document, path, data.draw(ODD))))
    source = OmeZarrSource(path=tmp_path / "data", labels="parts", classes={1: "left"})
    found = discover_ome_zarr(source)
    for candidate in found.candidates:
        candidate.fingerprint()
        try:
            scan = candidate.read()
            assert np.isfinite(scan.affine_ras).all()
            if np.prod(scan.image_czyx.shape, dtype=object) < 10**6:
                whole(scan.image_czyx)
                whole(scan.labels_zyx)
        except Unusable as refused:
            assert refused.code in REASONS
            assert str(tmp_path) not in refused.at("").sentence
            assert "{" not in refused.at("").sentence


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_one_value_of_a_plate_may_be_anything(tmp_path, version, data):
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    (tmp_path / "data").mkdir()
    write_plate(
        tmp_path / "data/p.zarr",
        {"A/1": ["0"]},
        version=version,
        put_field=lambda path: put(path, version),
    )
    group = data.draw(st.sampled_from([".", "A/1"]))
    file = tmp_path / "data/p.zarr" / group / ("zarr.json" if version == "0.5" else ".zattrs")
    document = json.loads(file.read_text())
    path = data.draw(st.sampled_from(sorted(leaves(document), key=repr)))
    file.write_text(json.dumps(replaced(document, path, data.draw(ODD))))
    source = OmeZarrSource(path=tmp_path / "data", labels="parts", classes={1: "left"})
    found = discover_ome_zarr(source)
    assert not found.candidates
    for entry in found.quarantined:
        assert entry.code in REASONS
