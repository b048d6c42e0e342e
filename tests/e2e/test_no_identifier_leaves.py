"""Planted identifiers are in the sites' sources, and in nothing that a site keeps or sends.

One real run by the command line over three sites: DICOM, OME-Zarr read where it lies, OME-Zarr
copied. ``tests/leaks`` opens every container and knows the spellings; it is tested by itself.
"""

import contextlib
import hashlib
import io
from pathlib import Path

import pytest
import yaml

from federation.errors import FederationError
from federation.run import approve, ingest_sites, open_sites, run_experiment
from tests.conftest import edit
from tests.experiments import tiny_experiment
from tests.leaks import Searcher, Token, search_bytes, search_folder
from tests.leaks.planting import ARCHIVE, IN_DICOM, IN_OME_ZARR, lay_out, source_of
from tests.leaks.runs import Ran, check_clean, recorded, typed

SITES = {"clinic": "dicom", "lab": "ome_zarr", "depot": "ome_zarr"}
TOKENS = tuple(dict.fromkeys(IN_DICOM + IN_OME_ZARR))


def written(folder: Path, *names: str) -> Ran:
    for name in names:
        lay_out(folder / "sites", name, SITES[name])
    if "depot" in names:
        file = folder / "sites" / "depot" / "site.yaml"
        edit(file, "kind: ome_zarr,", "kind: ome_zarr, rechunk: true,")
    return Ran(folder, names)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    """A whole run: ingest, approval, two rounds, MLflow, receipts, with every byte recorded."""
    done = written(tmp_path_factory.mktemp("run"), *SITES)
    experiment = done.folder / "tiny.yaml"
    experiment.write_text(yaml.safe_dump(tiny_experiment().model_dump(mode="json")))
    options = [part for file in done.site_files for part in ("--site", str(file))]
    arguments = ["run", str(experiment), *options, "--out", str(done.out), "--yes", "--json"]
    with pytest.MonkeyPatch.context() as patch, recorded(patch, done):
        done.screen += typed(patch, arguments)
    return done


@pytest.mark.parametrize("name", SITES)
def test_the_searcher_sees_every_token_in_the_source(ran, name):
    tokens = IN_DICOM if SITES[name] == "dicom" else IN_OME_ZARR
    folder = source_of(ran.site(name)).parent.parent
    searcher = Searcher(tokens)
    missed = set(tokens) - {hit.token for hit in searcher.in_folder(folder)}
    assert not missed


def test_the_searcher_sees_into_what_it_is_to_search(ran):
    """What may be there is found: a pseudonym in a manifest, a data set in MLflow and messages."""
    (site, *_) = open_sites(ran.site_files)
    pseudonym = Token(site.manifest("protected").scans[0].subject)
    assert search_folder(ran.state(site.name), [pseudonym])
    public = Token(site.config.dataset)
    assert any("mlflow.db > sqlite" in hit.where for hit in search_folder(ran.out, [public]))
    assert search_bytes(ran.wire, [public])
    assert "round 2 of 2: 3 sites returned" in ran.screen


@pytest.mark.parametrize("name", SITES)
def test_no_identifier_is_in_a_sites_state(ran, name):
    check_clean(search_folder(ran.state(name), TOKENS))


HASHES = ("md5", "sha1", "sha256", "sha512", "blake2b", "blake2s")


def guesses(source: Path):
    """Yield what somebody who knows a subject could hash and look for: names, numbers, paths."""
    yield from ("Wurzelbacher^Ottokar", "Tiefenbacher^Leopoldine", "19610203", "ACC7719034")
    for number in range(4):
        yield from (f"MRN0047-113077{number}", f"MRN0047-113077{number}^^^Nimmerleinskasse")
        yield f"Spender Quellwasser {number}"
    for path in sorted(source.rglob("*")):
        if path.suffix in {".dcm", ".zarr"} or path.name.startswith("Aufnahmestapel"):
            yield from (str(path), path.name, path.relative_to(source).as_posix())
            yield path.relative_to(source / path.relative_to(source).parts[0]).as_posix()


@pytest.mark.parametrize("name", SITES)
def test_no_identifier_is_kept_as_a_hash_without_a_key(ran, name):
    """Whoever can guess an identifier could confirm it: it would be there in all but name."""
    texts = set(guesses(source_of(ran.site(name))))
    digests = {hashlib.new(kind, text.encode()).hexdigest() for kind in HASHES for text in texts}
    tokens = [Token(digest[:16], "digest") for digest in sorted(digests)]
    check_clean(search_folder(ran.state(name), tokens))


def test_no_identifier_is_in_the_runs_results(ran):
    check_clean(search_folder(ran.out, TOKENS))


def test_no_identifier_is_in_a_message_of_the_run(ran):
    check_clean(search_bytes(ran.wire, TOKENS))


def test_no_identifier_is_on_the_screen(ran):
    check_clean(search_bytes(ran.screen.encode(), TOKENS))


def garbled(folder: Path) -> None:
    """Overwrite every chunk."""
    chunks = [path for path in folder.rglob("*") if path.is_file() and "c" in path.parts]
    assert chunks
    for path in chunks:
        path.write_bytes(b"\xa5" * 100)


def without_metadata(folder: Path) -> None:
    """Overwrite what describes the images and their arrays."""
    found = [*folder.rglob("zarr.json")]
    assert found
    for path in found:
        path.write_bytes(b"{")


def gone(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("clinic", garbled),
        ("clinic", without_metadata),
        ("depot", garbled),
        ("lab", garbled),
        ("lab", without_metadata),
        ("lab", gone),
    ],
)
def test_no_identifier_is_left_by_a_round_that_fails(name, damage, tmp_path, monkeypatch, caplog):
    done = written(tmp_path, name)
    sites = open_sites(done.site_files)
    ingest_sites(sites)
    experiment = tiny_experiment(steps_per_round=8, min_sites=1)
    approve(experiment, sites, approver="test")
    read_in_place = name == "lab"
    damage(source_of(done.site(name)) if read_in_place else done.state(name) / "cache")
    screen = io.StringIO()
    with recorded(monkeypatch, done), contextlib.redirect_stderr(screen):
        try:
            run_experiment(experiment, sites, out=done.out)
        except FederationError as error:
            done.screen += str(error)
    assert (done.state(name) / "site.log").is_file(), "nothing failed"
    done.screen += screen.getvalue() + caplog.text
    check_clean(search_bytes(done.screen.encode(), TOKENS))
    check_clean(search_bytes(done.wire, TOKENS))
    check_clean(search_folder(done.out, TOKENS))
    check_clean(search_folder(done.state(name), TOKENS))


@pytest.mark.parametrize("name", SITES)
def test_no_identifier_is_shown_or_kept_by_the_operators_commands(name, tmp_path, monkeypatch):
    """Not even the subject that is taken out, whom the operator names."""
    done = written(tmp_path, name)
    (file,) = map(str, done.site_files)
    page = tmp_path / "page.html"
    raw = "MRN0047-1130770" if SITES[name] == "dicom" else "Spender Quellwasser 0"
    full = f"{raw}^^^Nimmerleinskasse" if SITES[name] == "dicom" else raw
    for arguments in (
        ["check", file, "--html", str(page)],
        ["check", file, "--json"],
        ["ingest", file],
        ["exclude", file, full, "--by", "test"],
        ["ingest", file, "--json"],
    ):
        done.screen += typed(monkeypatch, ["site", *arguments])
    assert page.stat().st_size > 1000
    # The operator may be told where the images lie; the folder is the site's own word.
    tokens = [token for token in TOKENS if token.text != ARCHIVE]
    check_clean(search_bytes(done.screen.encode(), tokens))
    check_clean(search_bytes(page.read_bytes(), tokens))
    check_clean(search_folder(done.state(name), TOKENS))


@pytest.mark.parametrize("name", ["clinic", "lab"])
def test_what_is_set_aside_is_named_on_the_screen_alone(name, tmp_path, monkeypatch):
    done = written(tmp_path, name)
    spoiled = spoil(source_of(done.site(name)) / "protected")
    sites = open_sites(done.site_files)
    (report,) = [parts["protected"] for parts in ingest_sites(sites).values()]
    assert report.quarantined
    # The code, the sentence and the remedy can be shown to anybody.
    said = "\n".join(f"{q.code} {q.sentence} {q.remedy}" for q in report.quarantined)
    check_clean(search_bytes(said.encode(), TOKENS))
    check_clean(search_folder(done.state(name), TOKENS))
    page = tmp_path / "page.html"
    (file,) = map(str, done.site_files)
    screen = typed(monkeypatch, ["site", "check", file, "--html", str(page)])
    in_its_name = {hit.token for hit in search_bytes(str(spoiled).encode(), TOKENS)}
    tokens = [token for token in TOKENS if token not in in_its_name]
    check_clean(search_bytes(screen.encode() + page.read_bytes(), tokens))


def spoil(protected: Path) -> Path:
    """Damage the first subject's first file, or its image's metadata."""
    subject = sorted(protected.iterdir())[0]
    metadata = sorted(subject.glob("*.zarr/zarr.json"))
    path = metadata[0] if metadata else sorted(subject.rglob("*.dcm"))[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path
