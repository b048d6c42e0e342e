"""Who takes part in a run: the sites that answered with a statement about themselves."""

import time
from collections.abc import Iterable
from dataclasses import replace

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from federation.cohort import Cohort, CohortPolicy
from federation.errors import CheckpointError, FederationError, Refused
from federation.flower import wire
from federation.flower.collecting import Collector, ask_all
from federation.flower.grid import NamedGrid
from federation.flower.refusals import NO_REPLY, NOT_DECLARED
from federation.messages import DescribeRequest, Description

# Between two looks whether a site has come, in seconds.
_LOOK_S = 1.0
# How long a site that went away while it was asked is waited for, in seconds: the hub lets go of
# one that was killed within half a minute, and its agent tries every ten seconds.
RETURN_S = 45.0


def ask_who_takes_part(
    grid: Grid,
    request: DescribeRequest,
    *,
    policy: CohortPolicy,
    timeout_s: float,
    known: Cohort | None = None,
) -> Cohort:
    """Ask every connected node that is not known yet for its description.

    Args:
        known: Sites that have described themselves already; they are part of what is returned.

    Raises:
        FederationError: Two nodes call themselves by the same name, or there are more sites than
            the experiment declares.
    """
    sites = dict(known.sites) if known is not None else {}
    names = {node_id: name for node_id, name in _node_names(grid).items() if node_id not in sites}
    content = wire.encode_describe_request(request)
    messages = addressed(
        grid, names, content, MessageType.QUERY, round_number=0, timeout_s=timeout_s
    )
    answers = ask_all(grid, messages, names, timeout_s=timeout_s, return_s=RETURN_S)
    for node_id, reply in answers.by_node.items():
        try:
            site = _described(reply, names[node_id], known=isinstance(grid, NamedGrid))
            _require_declared(site.site, policy)
            sites[node_id] = site
        except (Refused, FederationError) as error:
            answers.refuse(node_id, error)
    _check_names_differ(sites.values())
    _check_number(sites.values(), policy)
    ordered = dict(sorted(sites.items(), key=lambda item: item[1].site))
    cohort = Cohort(ordered, answers.refused, answers.details)
    return Cohort(ordered, {**_absent(cohort, policy), **answers.refused}, answers.details)


def addressed(  # noqa: PLR0913 - two of them are named
    grid: Grid,
    nodes: Iterable[int],
    content: RecordDict,
    message_type: str,
    *,
    round_number: int,
    timeout_s: float,
) -> list[Message]:
    """Return one message with the same content to each node.

    Args:
        timeout_s: After this nobody waits for the answer, so that none is to be given.
    """
    group = str(round_number)
    return [
        grid.create_message(content, message_type, node_id, group_id=group, ttl=timeout_s)
        for node_id in nodes
    ]


def found_again(grid: Grid, cohort: Cohort) -> Cohort:
    """Return a cohort with the node ids that its sites have now: a hub gives new ones each start.

    Raises:
        CheckpointError: A site of it is not known any more.
    """
    if not isinstance(grid, NamedGrid):
        return cohort
    ids = {name: node_id for node_id, name in grid.registered.items()}
    if not set(cohort.names.values()) <= ids.keys():
        began = ", ".join(sorted(cohort.names.values()))
        raise CheckpointError(
            f"This run began with {began}, and other sites were given now: "
            f"{', '.join(sorted(ids))}. Nothing was sent. Give the same sites."
        )
    return replace(cohort, sites={ids[site.site]: site for site in cohort.sites.values()})


def wait_for_nodes(grid: Grid, waiting: Collector) -> None:
    """Return when a node has come or gone, or when time is up."""
    before = set(grid.get_node_ids())
    while waiting.seconds_left and set(grid.get_node_ids()) == before:
        time.sleep(min(_LOOK_S, waiting.seconds_left))


def _node_names(grid: Grid) -> dict[int, str]:
    if isinstance(grid, NamedGrid):
        return grid.names
    return {node_id: f"node {node_id}" for node_id in grid.get_node_ids()}


def _described(content: RecordDict, name: str, *, known: bool) -> Description:
    description = wire.decode_description(content)
    if known and description.site != name:
        raise FederationError("the site gives another name than the one it is registered by")
    return description


def _require_declared(site: str, policy: CohortPolicy) -> None:
    if policy.names is not None and site not in policy.names:
        raise Refused(NOT_DECLARED, site)


def _absent(cohort: Cohort, policy: CohortPolicy) -> dict[str, str]:
    """Return those who are named in the experiment and were not heard of."""
    heard = {*cohort.names.values(), *cohort.refused}
    return {name: NO_REPLY for name in policy.names or () if name not in heard}


def _check_names_differ(sites: Iterable[Description]) -> None:
    names = [site.site for site in sites]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FederationError(
            f"More than one node calls itself {', '.join(twice)}. Nothing was trained. "
            "Give every site its own name, or remove the node that does not belong."
        )


def _check_number(sites: Iterable[Description], policy: CohortPolicy) -> None:
    names = sorted(site.site for site in sites)
    if policy.num_sites is not None and len(names) > policy.num_sites:
        raise FederationError(
            f"The experiment is for {policy.num_sites} sites (cohort.sites), and {len(names)} want "
            f"to take part: {', '.join(names)}. Nothing was trained. Declare as many as there "
            "are, or name those that are meant."
        )
