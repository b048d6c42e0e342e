"""OME-Zarr behind http and S3: real servers on this machine's loopback, and servers that fail."""

import datetime
import ipaddress
import socket
import ssl
import time
from contextlib import ExitStack

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from data_adapters import zarr_remote
from data_adapters.ome_zarr import discover_ome_zarr
from data_adapters.ome_zarr_images import Wanted, open_image
from data_adapters.reasons import Unusable
from data_adapters.sources import OmeZarrSource
from data_adapters.zarr_places import Place
from tests.data_adapters.http_stores import serving
from tests.data_adapters.stores import whole, write_image, write_labels

IMAGE = np.arange(4 * 6 * 8, dtype=np.uint16).reshape(4, 6, 8)
LABELS = (IMAGE % 2).astype(np.uint8)


@pytest.fixture
def serve(tmp_path):
    """Serve the folder of this test; returns its URL."""
    with ExitStack() as stack:

        def start(answer=None, context=None):
            folder = tmp_path / "served"
            return stack.enter_context(serving(folder, answer=answer, context=context))

        yield start


@pytest.fixture
def impatient(monkeypatch):
    """Do not wait as long as a real site would."""
    monkeypatch.setattr(zarr_remote, "METADATA_TIMEOUT_S", 1.0)
    fast = {"max_retries": 1, "initial_delay": "10ms", "max_delay": "20ms"}
    monkeypatch.setattr(zarr_remote, "RETRIES", fast)


def put_image(path, **options):
    write_image(path, [IMAGE, IMAGE[:, ::2, ::2]], scales=[[2, 1, 1], [2, 2, 2]], **options)
    write_labels(path, "parts", [LABELS], scales=[[2, 1, 1]], **options)


def listed(tmp_path, *urls, **changes):
    (tmp_path / "images.csv").write_text("path,subject\n" + "".join(f"{u},P-1\n" for u in urls))
    values = {"labels": "parts", "classes": {1: "left"}} | changes
    return OmeZarrSource(path=tmp_path, images=tmp_path / "images.csv", **values)


def check(scan):
    """Read like a local image, but for ingest to copy."""
    np.testing.assert_array_equal(whole(scan.image_czyx)[0], IMAGE)
    np.testing.assert_array_equal(whole(scan.labels_zyx), LABELS)
    np.testing.assert_allclose(np.linalg.norm(scan.affine_ras[:3, :3], axis=0), [2e-3, 1e-3, 1e-3])
    assert (scan.in_place, scan.stamp) == (False, "")
    region = tuple(slice(0, size) for size in scan.image_czyx.shape)
    assert scan.image_czyx.region_stamp(region) == ""


@pytest.mark.parametrize(
    "options",
    [
        {"version": "0.4", "chunk_key_encoding": {"name": "v2", "separator": "/"}},
        {"version": "0.5", "chunks": (2, 3, 4)},
        {"version": "0.5", "chunks": (2, 3, 4), "shards": (4, 6, 8)},
    ],
    ids=["0.4", "0.5", "sharded"],
)
def test_a_store_behind_http_is_read_like_a_folder(tmp_path, serve, options):
    layout = {key: value for key, value in options.items() if key != "shards"}
    path = tmp_path / "served" / "a b.ome.zarr"
    put_image(path, **layout)
    if "shards" in options:
        put_sharded(path, options)
    (candidate,) = discover_ome_zarr(listed(tmp_path, f"{serve()}/a b.ome.zarr/")).candidates
    assert candidate.where.endswith("/a b.ome.zarr")
    check(candidate.read())


def put_sharded(path, options):
    import zarr

    zarr.create_array(
        path / "0", data=IMAGE, chunks=options["chunks"], shards=options["shards"], overwrite=True
    )


def test_a_chunk_that_is_not_there_is_the_fill_value(tmp_path, serve):
    put_image(tmp_path / "served/a.zarr")
    next(p for p in (tmp_path / "served/a.zarr/0/c").rglob("*") if p.is_file()).unlink()
    image = open_image(Place(f"{serve()}/a.zarr"), Wanted())
    assert not whole(image.voxels).any()


def test_damaged_pixels_of_a_remote_store(tmp_path, serve):
    put_image(tmp_path / "served/a.zarr")
    chunk = next(p for p in (tmp_path / "served/a.zarr/0/c").rglob("*") if p.is_file())
    chunk.write_bytes(b"not zstd")
    image = open_image(Place(f"{serve()}/a.zarr"), Wanted())
    with pytest.raises(Unusable, match="UNDECODABLE_PIXELS"):
        whole(image.voxels)


def refusal(tmp_path, url):
    (candidate,) = discover_ome_zarr(listed(tmp_path, url)).candidates
    started = time.monotonic()
    with pytest.raises(Unusable) as caught:
        candidate.read()
    assert time.monotonic() - started < 5
    assert "127.0.0.1" not in caught.value.at("").sentence
    return caught.value.code, caught.value.detail


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (401, "permission denied"),
        (403, "permission denied"),
        (404, "there is no Zarr group at this address"),
        (503, "aborted"),
    ],
)
def test_a_server_that_refuses_is_unreachable(tmp_path, serve, impatient, answer, detail):
    assert refusal(tmp_path, f"{serve(answer)}/a.zarr") == ("UNREACHABLE", detail)


def self_signed(folder):
    """A certificate for the loopback that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), serial_number=1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8
    private = key.private_bytes(pem, form, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(private + certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


def test_a_server_with_a_certificate_of_its_own_making(tmp_path, serve, impatient):
    put_image(tmp_path / "served/a.zarr")
    url = serve(context=self_signed(tmp_path)).replace("http:", "https:")
    expected = ("UNREACHABLE", "its certificate is not trusted")
    assert refusal(tmp_path, f"{url}/a.zarr") == expected


def test_nobody_answers(tmp_path, impatient):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.zarr"
    assert refusal(tmp_path, url) == ("UNREACHABLE", "aborted")


def test_a_server_that_keeps_silent_is_given_up(tmp_path, impatient):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.zarr"
        assert refusal(tmp_path, url) == ("UNREACHABLE", "no answer in time")


def test_an_address_with_a_secret_in_it_is_refused_and_not_shown(tmp_path):
    urls = ["https://me:secret@lab.example/a.zarr", "https://lab.example/b.zarr?signature=secret"]
    for candidate in discover_ome_zarr(listed(tmp_path, *urls)).candidates:
        assert "secret" not in candidate.where
        with pytest.raises(Unusable, match="UNREACHABLE"):
            candidate.read()


@pytest.mark.parametrize("url", ["http://lab.example/a.zarr", "HTTP://10.0.0.1/a.zarr"])
def test_plain_http_is_for_this_machine(tmp_path, url):
    code, detail = refusal(tmp_path, url)
    assert code == "UNREACHABLE" and "the address is not https" in detail


@pytest.mark.parametrize("url", ["https://me:secret@[::1/a.zarr", "s3:///a.zarr"])
def test_what_is_no_address_is_refused(tmp_path, url):
    assert refusal(tmp_path, url) == ("UNREACHABLE", "the address is none")
    assert "secret" not in discover_ome_zarr(listed(tmp_path, url)).candidates[0].where


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("endpoint", ["http://lab.example:9000", "lab.example:9000"])
def test_so_it_is_for_s3(tmp_path, monkeypatch, name, endpoint):
    monkeypatch.setenv(name, endpoint)
    code, detail = refusal(tmp_path, "s3://lab/a.zarr")
    assert code == "UNREACHABLE" and "AWS_ENDPOINT_URL is not https" in detail
    monkeypatch.setenv(name, "https://lab.example:9000")
    assert zarr_remote.kvstore_spec("s3://lab/a.zarr", "")["endpoint"].startswith("https:")


def test_finding_remote_images_touches_no_network(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("looked at the network")

    monkeypatch.setattr(zarr_remote, "kvstore_spec", fail)
    urls = ["https://lab.example/a.zarr", "s3://lab/b.zarr"]
    assert len(discover_ome_zarr(listed(tmp_path, *urls)).candidates) == 2


def test_a_remote_level_may_not_leave_its_image(tmp_path, serve):
    put_image(tmp_path / "served/a.zarr")
    put_image(tmp_path / "served/b.zarr")
    place = Place(f"{serve()}/a.zarr")
    for path in ("../b.zarr/0", "/b.zarr/0", "0/../../b.zarr/0"):
        with pytest.raises(Unusable, match="PATH_OUTSIDE"):
            place.child(path)


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of an S3-compatible server; returns what uploads a folder and notes requests."""
    pytest.importorskip("moto", reason="moto[s3] is not installed")
    boto3 = pytest.importorskip("boto3")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    requests, answer = [], server._server.app

    def noted(environ, start_response):
        requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        return answer(environ, start_response)

    server._server.app = noted
    host, port = server.get_host_and_port()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    client = boto3.client("s3", region_name="us-east-1", verify=False)
    client.create_bucket(Bucket="lab")

    def upload(folder):
        for path in folder.rglob("*"):
            if path.is_file():
                key = path.relative_to(folder.parent).as_posix()
                client.put_object(Bucket="lab", Key=key, Body=path.read_bytes())

    upload.requests = requests
    yield upload
    server.stop()


def test_a_store_in_an_s3_bucket_is_read_like_a_folder(tmp_path, bucket):
    put_image(tmp_path / "a.zarr")
    bucket(tmp_path / "a.zarr")
    (candidate,) = discover_ome_zarr(listed(tmp_path, "s3://lab/a.zarr")).candidates
    check(candidate.read())


def test_a_bucket_that_asks_for_credentials_that_are_not_there(
    tmp_path, bucket, monkeypatch, impatient
):
    put_image(tmp_path / "a.zarr")
    bucket(tmp_path / "a.zarr")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert refusal(tmp_path, "s3://lab/a.zarr") == ("UNREACHABLE", "permission denied")


def test_an_image_that_is_not_in_the_bucket(tmp_path, bucket, impatient):
    expected = ("UNREACHABLE", "there is no Zarr group at this address")
    assert refusal(tmp_path, "s3://lab/none.zarr") == expected


def test_amazon_is_asked_only_for_what_the_environment_says(monkeypatch, tmp_path):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    spec = zarr_remote.kvstore_spec("s3://lab/deep/a.zarr", "0")
    assert (spec["bucket"], spec["path"]) == ("lab", "deep/a.zarr/0/")
    assert spec["aws_credentials"] == {"type": "anonymous"}
    assert not {"endpoint", "aws_region"} & set(spec)
    (tmp_path / "credentials").touch()
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    spec = zarr_remote.kvstore_spec("s3://lab/a.zarr", "")
    assert (spec["aws_credentials"], spec["aws_region"]) == ({"type": "profile"}, "eu-central-1")
