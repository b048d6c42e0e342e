"""The searcher is tested before it is trusted: one token in every container and every spelling."""

import base64
import bz2
import gzip
import html
import io
import json
import lzma
import os
import sqlite3
import tarfile
import zipfile
import zlib
from urllib.parse import quote

import numpy as np
import pytest

from tests.leaks import Searcher, Token, search_bytes, search_folder
from tests.leaks.containers import Bounds

SECRET = Token("MRN-0047-113892")
NAME = Token("Wurzelbacher^Ottokar", "name")
FOREIGN = Token("Jägerström^Zoë", "name")
DATE = Token("19610203", "date")
UID = Token("1.2.826.0.1.3680043.8.498.777")
PATH = Token("/srv/archive/Ottokar W/scan 7.dcm")
PLANTED = SECRET.text.encode()
AROUND = b"before it \x00\x01\xff and ", b" and after\x00\xfe it"


def found_in(data, token=SECRET):
    return {hit.token for hit in search_bytes(data, [token])} == {token}


def within(data):
    return AROUND[0] + data + AROUND[1]


SPELLINGS = {
    "utf-8": lambda t: t.encode(),
    "lower case": lambda t: t.lower().encode(),
    "upper case": lambda t: t.upper().encode(),
    "utf-16-le": lambda t: t.encode("utf-16-le"),
    "utf-16-be": lambda t: t.encode("utf-16-be"),
    "hex": lambda t: t.encode().hex().encode(),
    "upper hex": lambda t: t.encode().hex().upper().encode(),
    "hex with spaces": lambda t: t.encode().hex(" ").encode(),
    "hex of lower case": lambda t: t.lower().encode().hex().encode(),
    "json": lambda t: json.dumps({"a": t}).encode(),
    "json, all escaped": lambda t: "".join(f"\\u{ord(c):04X}" for c in t).encode(),
    "json in json": lambda t: json.dumps(json.dumps([t])).encode(),
    "escaped slashes": lambda t: json.dumps(t).replace("/", "\\/").encode(),
    "percent": lambda t: quote(t, safe="").encode(),
    "percent, all": lambda t: "".join(f"%{b:02X}" for b in t.encode()).encode(),
    "percent twice": lambda t: quote(quote(t, safe=""), safe="").encode(),
    "html": lambda t: html.escape(t).encode("ascii", "xmlcharrefreplace"),
    "html, all": lambda t: "".join(f"&#{ord(c)};" for c in t).encode(),
    "html hex": lambda t: "".join(f"&#x{ord(c):X};" for c in t).encode(),
    "python escapes": lambda t: ascii(t).encode(),
    "back to front": lambda t: t[::-1].encode(),
}


@pytest.mark.parametrize("token", [SECRET, NAME, FOREIGN, UID, PATH], ids=lambda t: t.text)
@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_a_token_is_found_however_it_is_spelled(spelling, token):
    assert found_in(within(spelling(token.text)), token)


@pytest.mark.parametrize("case", [str, str.lower, str.upper, str.title])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
@pytest.mark.parametrize("alphabet", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("before", range(4))
def test_base64_is_seen_at_each_alignment(before, alphabet, encoding, case):
    text = "abc?>"[:before] + case(SECRET.text) + " and ÿÿ?> more"
    assert found_in(within(alphabet(text.encode(encoding))))


def test_wrapped_base64_is_seen():
    assert found_in(base64.encodebytes(bytes(range(90)) + PLANTED + bytes(range(90))))


@pytest.mark.parametrize(
    "text",
    [
        "Ottokar Wurzelbacher",
        "wurzelbacher, ottokar",
        "Wurzelbacher",
        "patient=OTTOKAR;",
        "ottokarwurzelbacher",
        "Ottokar_Wurzelbacher.nii",
        "rehcablezruW",
    ],
)
def test_parts_of_a_name_are_found_in_any_order(text):
    assert found_in(text.encode(), NAME)


def test_short_parts_of_a_name_are_words_and_not_voxels():
    short = Token("Quax^Ivo", "name")
    assert found_in(b"patient: quax, scanned", short)
    assert found_in(b"a\0=\0" + "quax".encode("utf-16-le") + b"!\0", short)
    assert not found_in(b"aquaxtic \x07quax\x08", short)
    assert found_in(b"quaxivo", short)


@pytest.mark.parametrize(
    "text",
    [
        "19610203",
        "1961-02-03",
        "03.02.1961",
        "3.2.1961",
        "02/03/1961",
        "2/3/1961",
        "03-Feb-1961",
        "1961/02/03",
        "3 February 1961",
        "datetime.date(1961, 2, 3)",
        "Feb 3, 1961",
        "1961-02-03T10:00:00",
    ],
)
def test_a_date_is_found_as_people_write_it(text):
    assert found_in(within(text.encode()), DATE)


@pytest.mark.parametrize("text", ["mrn_0047_113892", "MRN0047113892", "0047113892", "47113892"])
def test_an_identifier_is_found_without_its_marks(text):
    assert found_in(text.encode())


def test_a_uid_is_found_with_other_separators():
    assert found_in(UID.text.replace(".", "_").encode(), UID)


def in_zip(data, name="a.txt"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return file.getvalue()


def in_tar(data, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        info = tarfile.TarInfo("a.bin")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def in_npy(data, dtype=np.uint8):
    file = io.BytesIO()
    np.save(file, np.frombuffer(data, np.uint8).astype(dtype))
    return file.getvalue()


def in_npz(data):
    file = io.BytesIO()
    np.savez_compressed(file, a=np.frombuffer(data, np.uint8))
    return file.getvalue()


def in_safetensors_metadata(data):
    from safetensors.numpy import save

    return save({"w": np.zeros(3, np.float32)}, {"note": data.decode("latin-1")})


def in_safetensors_numbers(data):
    from safetensors.numpy import save

    return save({"w": np.frombuffer(data, np.uint8).astype(np.float32)})


def in_parquet(data, codec="zstd"):
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    table = pyarrow.table({"n": [1], "a": [data.decode("latin-1")]})
    parquet.write_table(table, file, compression=codec)
    return file.getvalue()


def in_sqlite(data):
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (n integer, packed blob)")
    connection.execute("insert into t values (1, ?)", (zlib.compress(data),))
    connection.commit()
    return connection.serialize()


def in_codec(name):
    def pack(data):
        import numcodecs

        return bytes(numcodecs.get_codec({"id": name}).encode(data + bytes(4000)))

    return pack


def raw_deflate(data):
    machine = zlib.compressobj(9, zlib.DEFLATED, -15)
    return machine.compress(data) + machine.flush()


def in_deflated_dicom(data):
    import pydicom
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    header = pydicom.Dataset()
    header.ensure_file_meta()
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    header.PatientComments = data.decode("latin-1")
    file = io.BytesIO()
    header.save_as(file, enforce_file_format=True)
    return file.getvalue()


CONTAINERS = {
    "zip": in_zip,
    "tar": in_tar,
    "tar.gz": lambda data: in_tar(data, "w:gz"),
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "zlib inside": lambda data: within(zlib.compress(data)),
    "gzip inside": lambda data: within(gzip.compress(data)),
    "deflate": raw_deflate,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": in_codec("zstd"),
    "zstd inside": lambda data: within(in_codec("zstd")(data)),
    "blosc": in_codec("blosc"),
    "npy": in_npy,
    "npy of uint16": lambda data: in_npy(data, np.uint16),
    "npy of float32": lambda data: within(in_npy(data, np.float32)),
    "npz": in_npz,
    "safetensors metadata": in_safetensors_metadata,
    "safetensors numbers": in_safetensors_numbers,
    "parquet, zstd": in_parquet,
    "parquet, snappy": lambda data: in_parquet(data, "snappy"),
    "sqlite": in_sqlite,
    "deflated DICOM": in_deflated_dicom,
}


@pytest.mark.parametrize("pack", CONTAINERS.values(), ids=CONTAINERS)
def test_a_token_is_found_in_every_container(pack):
    packed = pack(within(PLANTED))
    assert found_in(packed)
    assert not search_bytes(pack(within(b"nobody at all")), [SECRET])


@pytest.mark.parametrize("outer", ["zip", "gzip", "sqlite", "tar", "zlib inside"])
@pytest.mark.parametrize("spelling", ["utf-16-le", "hex", "json, all escaped", "html, all"])
@pytest.mark.parametrize("inner", ["zip", "zstd", "npz", "parquet, zstd"])
def test_spellings_in_containers_in_containers_are_found(outer, inner, spelling):
    data = SPELLINGS[spelling](SECRET.text)
    assert found_in(CONTAINERS[outer](CONTAINERS[inner](data)))


def test_a_container_in_base64_in_json_is_opened():
    packed = base64.b64encode(gzip.compress(bytes(50) + PLANTED)).decode()
    assert found_in(json.dumps({"artifact": packed}).encode())


CODECS = ["zstd", "blosc", "gzip"]


def zarr_array(folder, values, **how):
    import zarr

    place = str(folder / "image.zarr")
    array = zarr.create_array(place, shape=values.shape, dtype=values.dtype, **how)
    array[...] = values
    return array


def numbers(dtype):
    values = np.zeros((8, 64), dtype)
    values.reshape(-1)[70 : 70 + len(PLANTED)] = np.frombuffer(PLANTED, np.uint8)
    return values


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", ["v2", "v3", "v3 sharded"])
def test_a_token_is_found_in_the_voxels_of_zarr(tmp_path, layout, codec, dtype):
    import numcodecs
    from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

    if layout == "v2":
        how = {"zarr_format": 2, "compressors": numcodecs.get_codec({"id": codec})}
    else:
        how = {"compressors": {"zstd": ZstdCodec, "blosc": BloscCodec, "gzip": GzipCodec}[codec]()}
    if layout == "v3 sharded":
        how["shards"] = (8, 64)
    zarr_array(tmp_path, numbers(dtype), chunks=(2, 64), **how)
    assert {hit.token for hit in search_folder(tmp_path, [SECRET])} == {SECRET}


def test_a_zarr_store_in_a_zip_is_decoded(tmp_path):
    zarr_array(tmp_path, numbers(np.float32), chunks=(8, 64))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in tmp_path.rglob("*"):
            archive.write(path, path.relative_to(tmp_path))
    assert found_in(file.getvalue())


def test_attributes_of_zarr_are_read(tmp_path):
    zarr_array(tmp_path, np.zeros((2, 2), np.uint8), attributes={"who": FOREIGN.text})
    assert search_folder(tmp_path, [FOREIGN])


@pytest.mark.parametrize("table", ["text", "blob", "column"])
def test_a_token_that_stands_only_in_the_wal_is_found(tmp_path, table):
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("pragma journal_mode=wal")
    connection.execute("create table runs (a)")
    connection.commit()
    connection.execute("pragma wal_checkpoint(truncate)")
    if table == "column":
        connection.execute(f'alter table runs add column "{SECRET.text}"')
    else:
        value = SECRET.text if table == "text" else zlib.compress(PLANTED)
        connection.execute("insert into runs values (?)", (value,))
    connection.commit()
    assert (tmp_path / "store.db-wal").stat().st_size
    hits = search_folder(tmp_path, [SECRET])
    connection.close()
    assert hits


def test_names_of_files_and_folders_and_targets_of_links_are_searched(tmp_path):
    for place in ("file", "folder", "link", "member"):
        (tmp_path / place).mkdir()
    (tmp_path / "file" / f"{NAME.text}.dcm").write_bytes(b"")
    (tmp_path / "folder" / quote(FOREIGN.text)).mkdir()
    (tmp_path / "link" / "here").symlink_to(PATH.text)
    (tmp_path / "member" / "a.zip").write_bytes(in_zip(b"", f"{SECRET.text}/a.txt"))
    hits = search_folder(tmp_path, [NAME, FOREIGN, PATH, SECRET])
    assert {hit.token for hit in hits} == {NAME, FOREIGN, PATH, SECRET}


def test_extended_attributes_are_searched(tmp_path):
    path = tmp_path / "plain.txt"
    path.write_bytes(b"nothing")
    try:
        os.setxattr(path, "user.origin", PLANTED)
    except (AttributeError, OSError) as error:
        pytest.skip(f"no extended attributes here: {error}")
    assert search_folder(tmp_path, [SECRET])


def test_a_clean_tree_gives_no_hit(tmp_path):
    random = np.random.default_rng(7)
    (tmp_path / "weights.bin").write_bytes(random.bytes(200_000))
    (tmp_path / "manifest.json").write_text(json.dumps({"digests": [random.bytes(32).hex()] * 9}))
    (tmp_path / "a.npz").write_bytes(in_npz(random.bytes(50_000)))
    zarr_array(tmp_path, random.integers(0, 4096, (64, 512)).astype(np.uint16), chunks=(32, 512))
    assert not search_folder(tmp_path, [SECRET, NAME, FOREIGN, DATE, UID, PATH])


def test_random_chunks_match_nothing():
    tokens = [SECRET, NAME, FOREIGN, DATE, UID, PATH, Token("Quax^Ivo", "name"), Token("A93147")]
    noise = np.random.default_rng(1).bytes(8_000_000)
    assert not search_bytes(noise, tokens)
    assert search_bytes(noise + PLANTED, tokens)


def test_what_the_bounds_leave_closed_is_said():
    deep = PLANTED
    for _ in range(4):
        deep = gzip.compress(deep)
    shallow = Searcher([SECRET], Bounds(depth=2))
    assert not shallow.in_bytes(deep)
    assert any("deeper than 2" in line for line in shallow.unsearched)
    small = Searcher([SECRET], Bounds(content_bytes=1000))
    assert not small.in_bytes(gzip.compress(bytes(100_000) + PLANTED))
    assert any("more than 1000 bytes" in line for line in small.unsearched)
    with pytest.raises(AssertionError, match="deeper"):
        for _ in range(8):
            deep = gzip.compress(deep)
        search_bytes(deep, [SECRET])


def test_a_token_too_short_to_be_told_from_chance_is_refused():
    with pytest.raises(ValueError, match="too short"):
        Token("P-1")
