"""What a site file may say: sources, terms, consent, and who is not a person."""

import pytest
from pydicom import dcmread

from data_adapters.gate import policy
from federation import run
from federation.errors import FederationError, PrivacyBudgetError
from federation.headers import PERSONAL
from federation.privacy.plan import make_plan
from federation.run import open_sites
from federation.separation import one_address
from federation.site import Permission, load_site_config, open_site
from federation.site_data import open_site_data
from tests.conftest import edit
from tests.experiments import tiny_experiment

PROTECTED = "protected: {kind: ome_zarr, path: protected"
DECLARED = "human_subjects: {value: false, who: Dr A. Example, why: water phantoms}"


@pytest.fixture
def file(federation):
    return federation / "bio-lab" / "site.yaml"


@pytest.fixture
def new_file(file):
    """The site file of a site that has no ledger yet."""
    (file.parent / "state" / "ledger.jsonl").unlink()
    return file


def add(file, *lines):
    edit(file, "policy:", "\n".join([*lines, "policy:"]))


def test_one_source_is_a_list_of_one_and_paths_start_at_the_file(file):
    (source,) = load_site_config(file).protected
    assert source.path == file.parent / "protected"
    (public,) = load_site_config(file).public.source
    assert public.path == file.parent / "public"


def test_several_sources_hold_one_population(file):
    text = file.read_text()
    line = next(line for line in text.splitlines() if line.startswith(PROTECTED))
    one = line.removeprefix("protected: ")
    other = one.replace("path: protected", "path: more, subjects: {crosswalk: who.csv}")
    file.write_text(text.replace(line, f"protected:\n- {one}\n- {other}"))
    (file.parent / "more").mkdir()
    with pytest.raises(FederationError, match=r"no readable file .*who.csv"):
        open_site(file)
    (file.parent / "who.csv").write_text("id,subject\n")
    config = open_site(file).config
    assert [source.path.name for source in config.protected] == ["protected", "more"]
    assert config.tables == (file.parent / "who.csv",)


def test_an_unknown_key_in_a_source_is_named_with_its_place(file):
    edit(file, PROTECTED, PROTECTED + ", lables: x")
    with pytest.raises(FederationError, match=r"'lables' in 'protected.*Did you mean 'labels'"):
        load_site_config(file)


def test_the_mirror_of_a_pacs_is_made(file):
    text = file.read_text()
    line = next(line for line in text.splitlines() if line.startswith(PROTECTED))
    pacs = "{kind: dicomweb, path: mirror, url: 'http://127.0.0.1:1/dicom-web', classes: {A: a}}"
    file.write_text(text.replace(line, f"protected: {pacs}"))
    open_site_data(file)
    assert (file.parent / "mirror").stat().st_mode & 0o777 == 0o700


def test_two_sites_over_one_pacs_are_refused(federation, tmp_path):
    files = []
    for name in ("bio-lab", "north-hospital"):
        file = federation / name / "site.yaml"
        text = file.read_text()
        line = next(line for line in text.splitlines() if line.startswith("protected:"))
        pacs = f"{{kind: dicomweb, path: {tmp_path / name}, url: 'http://127.0.0.1:1/d', "
        file.write_text(text.replace(line, f"protected: {pacs}classes: {{A: a}}}}"))
        files.append(file)
    with pytest.raises(FederationError, match=r"both protect http://127.0.0.1:1/d"):
        open_sites(files)
    edit(files[1], "http://127.0.0.1:1/d", "http://127.0.0.1:0001/d/")
    with pytest.raises(FederationError, match=r"both protect http://127.0.0.1:1/d"):
        open_sites(files)
    edit(files[1], "http://127.0.0.1:0001/d/", "http://127.0.0.1:1/other")
    assert len(open_sites(files)) == 2
    edit(files[1], str(tmp_path / "north-hospital"), str(tmp_path / "bio-lab"))
    with pytest.raises(FederationError, match=r"both protect .*bio-lab"):
        open_sites(files)


def test_what_one_site_protects_another_does_not_publish(federation):
    lab = federation / "bio-lab"
    edit(federation / "north-hospital" / "site.yaml", "path: public", f"path: {lab / 'protected'}")
    files = [lab / "site.yaml", federation / "north-hospital" / "site.yaml"]
    with pytest.raises(FederationError, match=r"both read .*protected, one as public"):
        open_sites(files)


def test_two_sources_do_not_share_a_mirror(file):
    text = file.read_text()
    line = next(line for line in text.splitlines() if line.startswith(PROTECTED))
    one = "{kind: dicomweb, path: mirror, url: 'http://127.0.0.1:1/%s', classes: {A: a}}"
    file.write_text(text.replace(line, f"protected:\n- {one % 'a'}\n- {one % 'b'}"))
    with pytest.raises(FederationError, match="a 'path' of its own"):
        open_site_data(file)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://pacs.example/dicom-web", "HTTPS://PACS.Example.:443/dicom-web/", True),
        ("http://pacs.example:80", "http://pacs.example/", True),
        ("http://[::1]:8042/dicom-web", "http://[::1]:8042/dicom-web/", True),
        ("https://pacs.example/a", "https://pacs.example/A", False),
        ("https://pacs.example:444/a", "https://pacs.example/a", False),
    ],
)
def test_one_pacs_has_many_spellings(one, other, same):
    assert (one_address(one) == one_address(other)) is same


def test_a_dicomdir_is_a_file_and_guards_its_whole_folder(federation):
    north = federation / "north-hospital"
    (north / "protected" / "DICOMDIR").touch()
    edit(north / "site.yaml", "path: protected", "path: protected/DICOMDIR")
    text = (north / "site.yaml").read_text().replace("site: north-hospital", "site: second")
    text = text.replace("state: state", "state: other").replace("protected/DICOMDIR", "protected")
    (north / "second.yaml").write_text(text)
    with pytest.raises(FederationError, match="Its subjects have one budget"):
        open_sites([north / "site.yaml", north / "second.yaml"])


def test_a_state_folder_among_the_images_is_refused(file):
    edit(file, "state: state", "state: protected/state")
    with pytest.raises(FederationError, match="would be taken for images"):
        open_site(file)


# Not of people


def test_data_of_no_people_may_run_without_privacy_and_the_ledger_says_who_said_so(
    new_file, open_experiment
):
    add(new_file, DECLARED)
    site = open_site(new_file)
    site.approve(open_experiment, make_plan(open_experiment), Permission("test"))
    (note, *_) = site.ledger.book.notes
    assert (note.seq, note.body["what"]) == (1, "declaration")
    assert (note.body["by"], note.body["reason"]) == ("Dr A. Example", "water phantoms")
    assert open_site(new_file).ledger.book.declaration == site.config.declaration


def test_images_of_people_need_no_declaration_and_saying_so_changes_nothing(
    new_file, open_experiment
):
    add(new_file, "human_subjects: {value: true, who: Dr A. Example, why: patients}")
    site = open_site(new_file)
    assert site.ledger.book.declaration is None
    with pytest.raises(PrivacyBudgetError, match="forbids"):
        site.approve(open_experiment, make_plan(open_experiment), Permission("test"))


def test_a_declaration_added_to_a_protected_data_set_is_refused(file):
    add(file, DECLARED)
    with pytest.raises(FederationError, match="Protection is not taken away afterwards"):
        open_site(file)


@pytest.mark.parametrize("new", ["", DECLARED.replace("water", "agar")])
def test_a_declaration_changed_or_taken_out_is_refused(new_file, new):
    add(new_file, DECLARED)
    open_site(new_file)
    edit(new_file, DECLARED, new)
    with pytest.raises(FederationError, match=r"Dr A\. Example: water phantoms"):
        open_site(new_file)


def test_a_reason_that_could_steer_a_terminal_is_refused(file):
    add(file, DECLARED.replace("water phantoms", '"\\e[31mred"'))
    with pytest.raises(FederationError, match="printable"):
        load_site_config(file)


CHECKED = DECLARED.replace("}", ", headers_checked_by: Dr B. Example}")


@pytest.fixture
def phantoms(federation):
    """The file of a new site whose DICOM headers can say what only people have."""
    file = federation / "north-hospital" / "site.yaml"
    (file.parent / "state" / "ledger.jsonl").unlink()

    def declared(line, **headers):
        add(file, line)
        for number, path in enumerate(sorted((file.parent / "protected").rglob("*.dcm"))):
            image = dcmread(path)
            image.PatientBirthDate = image.PatientSex = ""
            for name, value in headers.items() if number == 0 else ():
                setattr(image, name, value)
            image.save_as(path)
        site = open_site(file)
        site.ingest("protected")
        site.ingest("public")
        return site

    return declared


def test_headers_of_a_living_being_contradict_a_declaration_of_no_people(phantoms, open_experiment):
    site = phantoms(DECLARED, PatientAge="044Y", PatientBirthDate="19800101")
    with pytest.raises(FederationError, match=r"PatientAge, PatientBirthDate.*checked_by") as error:
        run.approve(open_experiment, [site], approver="test")
    assert "1980" not in str(error.value) and "state folder" not in str(error.value)
    with pytest.raises(FederationError, match="PatientAge"):
        site.approve(open_experiment, make_plan(open_experiment), Permission("test"))
    assert [record.kind for record in site.ledger.records] == ["genesis", "note"]
    run.approve(tiny_experiment(), [site], approver="test")  # with privacy, as it is


def test_who_checked_the_headers_stands_in_the_ledger(phantoms, open_experiment):
    site = phantoms(CHECKED, PatientAge="044Y")
    run.approve(open_experiment, [site], approver="test")
    said = site.ledger.book.declaration
    assert said is not None
    assert (said.by, said.reason) == (
        "Dr A. Example",
        "water phantoms; headers checked by Dr B. Example",
    )


def test_a_name_and_an_identifier_are_what_phantoms_have(phantoms, open_experiment):
    site = phantoms(DECLARED, PatientName="Phantom", PatientWeight=20.0)
    run.approve(open_experiment, [site], approver="test")


def test_headers_that_nobody_looked_at_are_not_taken_as_clean(phantoms, open_experiment):
    site = phantoms(DECLARED)
    (site.cache("protected") / "headers.json").unlink()
    with pytest.raises(FederationError, match="Ingest the data again"):
        run.approve(open_experiment, [site], approver="test")


def test_what_counts_as_of_a_living_being_is_in_the_standards_table():
    assert set(policy().values()) >= PERSONAL


def test_checking_afterwards_does_not_take_protection_away(phantoms):
    site = phantoms(DECLARED, PatientAge="044Y")
    file = site.config.state.parent / "site.yaml"
    edit(file, DECLARED, CHECKED)
    with pytest.raises(FederationError, match="not taken away afterwards") as error:
        open_site(file)
    assert "new data set" not in str(error.value)


def test_consent_and_no_people_do_not_go_together(file):
    add(file, DECLARED, "consent: {path: consent.csv}")
    with pytest.raises(FederationError, match="names people"):
        load_site_config(file)


# Terms


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["data_use: [DUO:0000018]"], "no permission"),
        (["data_use: [DUO:0000006, DUO:0000021]"], "DUO:0000021: Dr A. Example"),
        (["data_use: [DUO:0000006]", "acknowledged: {DUO:0000006: me}"], "needs nobody's word"),
        (["data_use: [research]"], "no code of the Data Use Ontology"),
    ],
)
def test_terms_that_cannot_be_checked_are_refused(file, lines, why):
    add(file, *lines)
    with pytest.raises(FederationError, match=why):
        load_site_config(file)


def test_an_acknowledged_modifier_is_taken(file):
    add(file, "data_use: [DUO:0000042, DUO:0000021]", "acknowledged: {DUO:0000021: Dr A. Example}")
    assert load_site_config(file).terms is not None


def test_an_experiment_for_something_else_is_refused_before_anything_is_recorded(file):
    add(file, "data_use: [DUO:0000006, DUO:0000018]")
    site = open_site(file)
    with pytest.raises(FederationError, match=r"bio-lab: .*health.*only; DUO:0000018.*data_use"):
        run.quote(tiny_experiment(), [site])
    with pytest.raises(FederationError, match="do not permit"):
        run.approve(tiny_experiment(), [site], approver="test")
    assert [record.kind for record in site.ledger.records] == ["genesis"]


def test_terms_that_became_narrower_end_an_approval(file):
    from federation.errors import Refused

    experiment = tiny_experiment()
    run.approve(experiment, [open_site(file)], approver="test")
    add(file, "data_use: [DUO:0000006]")
    with pytest.raises(Refused, match=r"not_approved.*do not permit"):
        open_site(file).approved(experiment.digest())
