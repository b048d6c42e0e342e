"""How a model came about, in W3C PROV (PROV-O, https://www.w3.org/TR/prov-o/) as Turtle.

Turtle is what every RDF library reads, and it names no context that would have to be downloaded.
"""

from rdflib import RDF, RDFS, BNode, Graph, Literal, URIRef
from rdflib.namespace import DCTERMS, FOAF, PROV, XSD

from federation.export import identifiers
from federation.export.about import About
from federation.run_record import FinishedRun, RunRecord


def turtle(run: FinishedRun, about: About) -> bytes:
    """Return the document; the same run always gives the same bytes."""
    record = run.record
    graph = Graph(bind_namespaces="none")
    for prefix, space in (("prov", PROV), ("dcterms", DCTERMS), ("foaf", FOAF), ("rdfs", RDFS)):
        graph.bind(prefix, space)
    graph.bind("xsd", XSD)
    _run(graph, record)
    _model(graph, record, about)
    for site in record.contributors:
        data, who = URIRef(identifiers.data_set(site.commitment)), _site(site.public_key)
        _typed(graph, data, PROV.Entity, f"data set {site.dataset} at {site.site}")
        graph.add((data, PROV.wasAttributedTo, who))
        graph.add((data, DCTERMS.license, Literal(site.licence)))
        for term in identifiers.terms(site.data_use):
            graph.add((data, DCTERMS.accessRights, URIRef(term)))
        _typed(graph, who, PROV.Agent, site.site)
        graph.add((who, RDF.type, PROV.Organization))
        graph.add((_activity(record), PROV.used, data))
        graph.add((_activity(record), PROV.wasAssociatedWith, who))
        graph.add((_model_of(record), PROV.wasDerivedFrom, data))
        _head(graph, record, site.site, who)
    return graph.serialize(format="turtle", encoding="utf-8")


def _activity(record: RunRecord) -> URIRef:
    return URIRef(identifiers.run(record.run))


def _model_of(record: RunRecord) -> URIRef:
    return URIRef(identifiers.model(record.model_digest))


def _site(public_key: str) -> URIRef:
    return URIRef(identifiers.site(public_key))


def _typed(graph: Graph, thing: URIRef, kind: URIRef, label: str) -> None:
    graph.add((thing, RDF.type, kind))
    graph.add((thing, RDFS.label, Literal(label)))


def _run(graph: Graph, record: RunRecord) -> None:
    """Add the run, what it was planned by, and the software that carried it out."""
    run, plan = _activity(record), URIRef(identifiers.experiment(record.experiment.digest()))
    _typed(graph, run, PROV.Activity, f"run {record.run} of {record.experiment.name}")
    graph.add((run, PROV.endedAtTime, Literal(record.finished, datatype=XSD.dateTime)))
    _typed(graph, plan, PROV.Plan, f"experiment {record.experiment.name}")
    graph.add((plan, RDF.type, PROV.Entity))
    graph.add((run, PROV.used, plan))
    version = record.versions.get("cohortium", "unknown")
    software = URIRef(identifiers.software(version))
    _typed(graph, software, PROV.SoftwareAgent, f"Cohortium {version}")
    graph.add((run, PROV.wasAssociatedWith, software))
    start = record.experiment.initial_weights
    if start is not None:
        weights = URIRef(identifiers.weights_file(start.sha256))
        _typed(graph, weights, PROV.Entity, f"weights {start.file} that the run started from")
        graph.add((run, PROV.used, weights))
        graph.add((_model_of(record), PROV.wasDerivedFrom, weights))


def _model(graph: Graph, record: RunRecord, about: About) -> None:
    """Add the model, and who answers for it."""
    run, model = _activity(record), _model_of(record)
    plan = URIRef(identifiers.experiment(record.experiment.digest()))
    _typed(graph, model, PROV.Entity, about.title)
    graph.add((model, PROV.wasGeneratedBy, run))
    graph.add((model, PROV.generatedAtTime, Literal(record.finished, datatype=XSD.dateTime)))
    graph.add((model, DCTERMS.license, Literal(about.licence)))
    for number, author in enumerate(about.authors, start=1):
        who = URIRef(identifiers.author(record.run, author, number))
        _typed(graph, who, PROV.Person, author.name)
        graph.add((who, FOAF.name, Literal(author.name)))
        graph.add((model, PROV.wasAttributedTo, who))
        graph.add((run, PROV.wasAssociatedWith, who))
        association = BNode(f"association{number}")
        graph.add((run, PROV.qualifiedAssociation, association))
        graph.add((association, RDF.type, PROV.Association))
        graph.add((association, PROV.agent, who))
        graph.add((association, PROV.hadPlan, plan))


def _head(graph: Graph, record: RunRecord, site: str, who: URIRef) -> None:
    """Add the newest record of a site's ledger, which the run made."""
    if site in record.heads:
        head = URIRef(identifiers.head(record.heads[site]))
        _typed(graph, head, PROV.Entity, f"ledger head of {site} after the run")
        graph.add((head, PROV.wasAttributedTo, who))
        graph.add((head, PROV.wasGeneratedBy, _activity(record)))
