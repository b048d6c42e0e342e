"""``ro-crate``: a Process Run Crate (https://w3id.org/ro/wfrun/process/0.5, RO-Crate 1.1)."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from federation.export import identifiers
from federation.export.about import About, Citation
from federation.export.prov import turtle
from federation.ledger.keys import fingerprint_of
from federation.messages import Description
from federation.run_record import CLOSINGS, MODEL, RECEIPTS, RECORD, FinishedRun, RunRecord

PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
EXPERIMENT, PROVENANCE = "experiment.yaml", "prov.ttl"
_HOME = "https://pypi.org/project/cohortium/"
_FILES = {
    MODEL: ("Weights of the model (safetensors)", "application/octet-stream"),
    RECORD: ("What the run was: experiment, sites, rounds", "application/json"),
    EXPERIMENT: ("The experiment that every site approved", "application/yaml"),
    RECEIPTS: ("What sites signed for each update that left them", "application/json"),
    CLOSINGS: ("What sites signed at the end of the run", "application/json"),
    PROVENANCE: ("How the model came about, in W3C PROV-O", "text/turtle"),
}

Ref = dict[str, str]


def write(run: FinishedRun, about: About, folder: Path) -> None:
    """Fill a folder with the crate.

    Raises:
        FederationError: Something in the record cannot be named.
    """
    contents = _contents(run, about)
    crate = ROCrate(version="1.1")
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        told, form = _FILES[name]
        facts = {"name": name, "description": told, "encodingFormat": form}
        sums = {"sha256": sha256(content).hexdigest(), "contentSize": str(len(content))}
        crate.add_file(folder / name, name, properties=facts | sums)
    _describe_root(crate, run.record, about)
    values = _values(crate, run.record)
    crate.root_dataset["variableMeasured"] = values
    _describe_things(crate, run.record, about)
    _describe_run(crate, run.record, about)
    crate.metadata.write(folder)


def _contents(run: FinishedRun, about: About) -> dict[str, bytes]:
    """Return the files; receipts and closings as JSON that says what the run's own files say."""
    read = {name: (run.path / name).read_bytes() for name in (MODEL, RECORD)}
    values = run.record.experiment.model_dump(mode="json")
    signed = {RECEIPTS: run.receipts, CLOSINGS: run.closings}
    return {
        **read,
        EXPERIMENT: yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode(),
        **{name: _json(statements) for name, statements in signed.items()},
        PROVENANCE: turtle(run, about),
    }


def _json(values: Any) -> bytes:
    return json.dumps(list(values), indent=1, sort_keys=True).encode() + b"\n"


def _add(crate: ROCrate, named: str, kind: str, **properties: Any) -> Ref:
    """Add something that is no file, and return what refers to it."""
    crate.add(ContextEntity(crate, named, properties={"@type": kind, **properties}))
    return {"@id": named}


def _describe_root(crate: ROCrate, record: RunRecord, about: About) -> None:
    root = crate.root_dataset
    root["name"], root["description"] = about.title, about.description
    root["datePublished"] = record.finished
    root["license"] = _licence(crate, about.licence)
    root["conformsTo"] = _add(
        crate, PROFILE, "CreativeWork", name="Process Run Crate", version="0.5"
    )
    root["mentions"] = {"@id": identifiers.run(record.run)}
    root["author"] = _authors(crate, record, about)
    cited = [_cited(one) for one in about.cite]
    if cited:
        root["citation"] = [_add(crate, name, "CreativeWork", name=text) for name, text in cited]


def _licence(crate: ROCrate, spdx: str) -> Ref:
    return _add(crate, f"https://spdx.org/licenses/{spdx}", "CreativeWork", name=spdx)


def _terms(crate: ROCrate, data_use: str) -> list[Ref] | str:
    """Return what data may be used for, as terms of ontologies; in words where nothing is said."""
    named = identifiers.terms(data_use)
    return [_add(crate, one, "DefinedTerm", name=one.rpartition("/")[2]) for one in named] or (
        data_use
    )


def _cited(one: Citation) -> tuple[str, str]:
    return one.link or f"#cite-{sha256(one.text.encode()).hexdigest()[:12]}", one.text


def _authors(crate: ROCrate, record: RunRecord, about: About) -> list[Ref]:
    refs = []
    for number, author in enumerate(about.authors, start=1):
        facts: dict[str, Any] = {"name": author.name}
        if author.affiliation:
            named = f"#affiliation-{sha256(author.affiliation.encode()).hexdigest()[:12]}"
            facts["affiliation"] = _add(crate, named, "Organization", name=author.affiliation)
        name = identifiers.author(record.run, author, number)
        refs.append(_add(crate, name, "Person", **facts))
    return refs


def _values(crate: ROCrate, record: RunRecord) -> list[Ref]:
    """Add privacy, digests and ledger heads as values that a program finds."""
    digest = record.experiment.digest()
    values = [
        _value(
            crate, f"{identifiers.run(record.run)}:experiment-digest", "experiment digest", digest
        )
    ]
    for site in record.sites:
        if site.site in record.heads:
            head = record.heads[site.site]
            name = f"ledger head of {site.site}"
            values.append(_value(crate, identifiers.head(head), name, head))
        if site.site in record.epsilon:
            spent = record.epsilon[site.site]
            named = identifiers.epsilon(record.run, site.public_key)
            told = f"epsilon of this run at {site.site}"
            values.append(_value(crate, named, told, "infinite" if spent is None else spent))
    privacy = record.experiment.privacy
    if privacy.kind == "subject_dp":
        named = identifiers.delta(record.run)
        values.append(_value(crate, named, "delta of the run's privacy", privacy.delta))
    return values


def _value(crate: ROCrate, named: str, name: str, value: str | float) -> Ref:
    return _add(crate, named, "PropertyValue", name=name, value=value)


def _describe_things(crate: ROCrate, record: RunRecord, about: About) -> None:
    """Add model, experiment, sites and data sets: what the run's action refers to."""
    experiment = record.experiment
    model, digest = identifiers.model(record.model_digest), experiment.digest()
    _add(
        crate,
        model,
        "CreativeWork",
        name=about.title,
        description=about.intended_use,
        identifier=record.model_digest,
        encoding={"@id": MODEL},
        license={"@id": f"https://spdx.org/licenses/{about.licence}"},
        creator=[{"@id": name} for name in _author_names(record, about)],
        isBasedOn=[{"@id": identifiers.data_set(s.commitment)} for s in _parts(record)],
    )
    _add(
        crate,
        identifiers.experiment(digest),
        "CreativeWork",
        name=experiment.name,
        description=experiment.purpose,
        identifier=digest,
        encoding={"@id": EXPERIMENT},
    )
    for site in _parts(record):
        _describe_site(crate, site)


def _describe_site(crate: ROCrate, site: Description) -> None:
    who = _add(
        crate,
        identifiers.site(site.public_key),
        "Organization",
        name=site.site,
        identifier=fingerprint_of(bytes.fromhex(site.public_key)),
    )
    _add(
        crate,
        identifiers.data_set(site.commitment),
        # No Dataset: those are folders in the crate or on the web, and these data stay at the site.
        "CreativeWork",
        additionalType={"@id": "http://schema.org/Dataset"},
        name=site.dataset,
        description=(
            f"{site.modality} images ({site.source_kind}); number of subjects: "
            f"{site.num_subjects}. They stay at the site; its commitment to them is the identifier."
        ),
        identifier=site.commitment,
        conditionsOfAccess="The images stay at the site.",
        creditText=site.licence,
        usageInfo=_terms(crate, site.data_use),
        creator=who,
    )


def _describe_run(crate: ROCrate, record: RunRecord, about: About) -> None:
    version = record.versions.get("cohortium", "unknown")
    software = _add(
        crate,
        identifiers.software(version),
        "SoftwareApplication",
        name="Cohortium",
        softwareVersion=version,
        url=_HOME,
        softwareRequirements=[
            f"{name} {found}"
            for name, found in sorted(record.versions.items())
            if name != "cohortium"
        ],
    )
    data = [identifiers.data_set(site.commitment) for site in _parts(record)]
    sites = [identifiers.site(site.public_key) for site in _parts(record)]
    plan = identifiers.experiment(record.experiment.digest())
    _add(
        crate,
        identifiers.run(record.run),
        "CreateAction",
        name=f"Run {record.run} of {record.experiment.name}",
        description=(
            f"{record.experiment.algorithm.rounds} rounds of {record.experiment.algorithm.kind} "
            f"over {len(sites)} sites; {record.experiment.purpose}"
        ),
        endTime=record.finished,
        instrument=software,
        object=[{"@id": name} for name in (plan, EXPERIMENT, *data, *_start(crate, record))],
        result=[
            {"@id": identifiers.model(record.model_digest)},
            *({"@id": name} for name in (MODEL, RECORD, RECEIPTS, CLOSINGS)),
        ],
        agent=[{"@id": name} for name in (*_author_names(record, about), *sites)],
        actionStatus={"@id": "http://schema.org/CompletedActionStatus"},
    )


def _start(crate: ROCrate, record: RunRecord) -> list[str]:
    start = record.experiment.initial_weights
    if start is None:
        return []
    named = identifiers.weights_file(start.sha256)
    told = "Public weights that the run started from."
    _add(crate, named, "CreativeWork", name=start.file, description=told, sha256=start.sha256)
    return [named]


def _author_names(record: RunRecord, about: About) -> list[str]:
    numbered = enumerate(about.authors, start=1)
    return [identifiers.author(record.run, author, number) for number, author in numbered]


def _parts(record: RunRecord) -> tuple[Description, ...]:
    return record.contributors
