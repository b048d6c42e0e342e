"""The same for NIfTI in BIDS, for RTSTRUCT, and for a PACS: a real Orthanc.

See ``test_no_identifier_leaves``. The PACS's address and the password for it are looked for, too.
"""

import hashlib
from itertools import chain
from pathlib import Path

import pytest
import yaml

from federation.run import open_sites
from tests.data_adapters.orthanc import running_orthanc, why_not_here
from tests.experiments import tiny_experiment
from tests.leaks import Searcher, Token, search_bytes, search_folder
from tests.leaks.planting import ARCHIVE
from tests.leaks.planting_elsewhere import (
    IN_NIFTI,
    IN_PACS,
    IN_RTSTRUCT,
    lay_out_nifti,
    lay_out_pacs,
    lay_out_rtstruct,
)
from tests.leaks.runs import Ran, check_clean, recorded, typed

WITHOUT_PACS = {"scanners": IN_NIFTI, "radiotherapy": IN_RTSTRUCT}
TOKENS = tuple(dict.fromkeys((*IN_NIFTI, *IN_RTSTRUCT, *IN_PACS)))
SUBJECTS = {
    "scanners": "sub-Quittenbaum0",
    "radiotherapy": "MRN0047-1130770^^^Nimmerleinskasse",
    "ward": "MRN0047-1130770^^^Nimmerleinskasse",
}
needs_pacs = pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())
EVERYWHERE = [*WITHOUT_PACS, pytest.param("ward", marks=needs_pacs)]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """The server; None where it is not installed, and the other two sites run alone."""
    if why_not_here():
        yield None
        return
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture(scope="module")
def secrets(orthanc) -> tuple[Token, ...]:
    if orthanc is None:
        return ()
    return (Token(orthanc.password), Token(f"127.0.0.1:{orthanc.port}"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory, orthanc) -> Ran:
    """Check, ingest, run with two rounds, exclude somebody, ingest again; all bytes are kept."""
    done = written(tmp_path_factory.mktemp("run"), orthanc)
    experiment = done.folder / "tiny.yaml"
    experiment.write_text(yaml.safe_dump(tiny_experiment(min_sites=2).model_dump(mode="json")))
    options = [part for file in done.site_files for part in ("--site", str(file))]
    arguments = ["run", str(experiment), *options, "--out", str(done.out), "--yes", "--json"]
    with pytest.MonkeyPatch.context() as patch, recorded(patch, done):
        if orthanc is not None:
            patch.setenv("COHORTIUM_DICOMWEB_USER", orthanc.user)
            patch.setenv("COHORTIUM_DICOMWEB_PASSWORD", orthanc.password)
        for name, file in zip(done.names, done.site_files, strict=True):
            page = str(done.folder / "pages" / f"{name}.html")
            done.screen += typed(patch, ["site", "check", str(file), "--html", page])
        done.screen += typed(patch, arguments)
        for name, file in zip(done.names, done.site_files, strict=True):
            who = [str(file), SUBJECTS[name], "--by", "test"]
            done.screen += typed(patch, ["site", "exclude", *who])
            done.screen += typed(patch, ["site", "ingest", str(file), "--json"])
    return done


def written(folder: Path, orthanc) -> Ran:
    archive, sites = folder / "sites" / ARCHIVE, folder / "sites"
    (folder / "pages").mkdir()
    lay_out_nifti(sites / "scanners", archive / "scanners")
    lay_out_rtstruct(sites / "radiotherapy", archive / "radiotherapy")
    if orthanc is None:
        return Ran(folder, tuple(WITHOUT_PACS))
    lay_out_pacs(sites / "ward", folder / "exports", orthanc.url)
    orthanc.store(folder / "exports")
    return Ran(folder, (*WITHOUT_PACS, "ward"))


def held(done: Ran, name: str) -> list[Path]:
    """Return what holds a site's images: its folders, or the mirrors of the PACS."""
    if name == "ward":
        return [done.site(name) / f"mirror-{part}" for part in ("protected", "public")]
    return [done.source(name)]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_the_searcher_sees_every_token_in_the_source(ran, name):
    wanted = set(WITHOUT_PACS.get(name, IN_PACS))
    if name == "ward":
        # Names of files and their preambles are no part of what a PACS keeps.
        wanted -= {Token("Aufnahmestapel"), Token("Habakuk")}
    folder = ran.source(name).parent.parent if name in WITHOUT_PACS else ran.site(name)
    missed = wanted - {hit.token for hit in Searcher(tuple(wanted)).in_folder(folder)}
    assert not missed


def test_the_run_was_a_whole_one(ran):
    assert f"round 2 of 2: {len(ran.names)} sites returned" in ran.screen
    for site in open_sites(ran.site_files):
        pseudonym = Token(site.manifest("protected").scans[0].subject)
        assert search_folder(ran.state(site.name), [pseudonym])
        assert len(site.manifest("protected").subjects) == 1, "one of two was excluded"
        assert search_bytes(ran.wire, [Token(site.config.dataset)])


@pytest.mark.parametrize("name", EVERYWHERE)
def test_no_identifier_is_in_a_sites_state(ran, name, secrets):
    check_clean(search_folder(ran.state(name), (*TOKENS, *secrets)))


@pytest.mark.parametrize("name", EVERYWHERE)
def test_no_identifier_is_kept_as_a_hash_without_a_key(ran, name):
    """Nor is a file of the mirror named by one: see ``dicomweb_folder``."""
    paths = [path for folder in held(ran, name) for path in folder.rglob("*")]
    texts = {SUBJECTS[name], SUBJECTS[name].partition("^")[0], "19490523"}
    texts |= {text for path in paths for text in (str(path), path.name)}
    kinds = ("md5", "sha1", "sha256", "blake2b")
    digests = {hashlib.new(kind, text.encode()).hexdigest() for kind in kinds for text in texts}
    tokens = [Token(digest[:16], "digest") for digest in sorted(digests)]
    check_clean(search_folder(ran.state(name), tokens))


@needs_pacs
def test_no_name_in_a_mirror_tells_of_anybody(ran):
    names = [path.name for folder in held(ran, "ward") for path in folder.rglob("*")]
    assert len(names) > 20
    check_clean(search_bytes("\n".join(names).encode(), TOKENS))


def test_no_identifier_is_in_the_runs_results(ran, secrets):
    check_clean(search_folder(ran.out, (*TOKENS, *secrets)))


def test_no_identifier_is_in_a_message_of_the_run(ran, secrets):
    check_clean(search_bytes(ran.wire, (*TOKENS, *secrets)))


def test_no_identifier_is_on_the_screen_or_on_a_page(ran, secrets):
    """The operator may be told where the images lie: the folder is the site file's own word."""
    tokens = [token for token in chain(TOKENS, secrets[:1]) if token.text != ARCHIVE]
    check_clean(search_bytes(ran.screen.encode(), tokens))
    check_clean(search_folder(ran.folder / "pages", tokens))
