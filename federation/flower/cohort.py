"""Who takes part in a run: the sites that answered with a statement about themselves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from federation.errors import FederationError, Refused
from federation.flower import wire
from federation.flower.grid import NamedGrid
from federation.flower.refusals import INVALID_REPLY, NO_REPLY
from federation.messages import DescribeRequest, Description


@dataclass(frozen=True)
class Cohort:
    """The sites of a run.

    Attributes:
        sites: Node id to the site's statement, in the order of site names.
        refused: Site (or node, where the name is not known) to the code it declined with.
        details: What was wrong with a statement that could not be read.
    """

    sites: Mapping[int, Description]
    refused: Mapping[str, str]
    details: Mapping[str, str]

    @property
    def names(self) -> dict[int, str]:
        """Node id to site name."""
        return {node_id: site.site for node_id, site in self.sites.items()}


def ask_who_takes_part(grid: Grid, request: DescribeRequest, *, timeout_s: float) -> Cohort:
    """Ask every connected node for its description.

    Raises:
        FederationError: Two nodes call themselves by the same name.
    """
    names = _node_names(grid)
    content = wire.encode_describe_request(request)
    messages = addressed(grid, names, content, MessageType.QUERY, round_number=0)
    answers = Answers.of(grid.send_and_receive(messages, timeout=timeout_s), names)
    sites: dict[int, Description] = {}
    for node_id, reply in answers.by_node.items():
        try:
            sites[node_id] = _described(reply, names[node_id], known=isinstance(grid, NamedGrid))
        except (Refused, FederationError) as error:
            answers.refuse(node_id, error)
    _check_names_differ(sites)
    ordered = dict(sorted(sites.items(), key=lambda item: item[1].site))
    return Cohort(ordered, answers.refused, answers.details)


def addressed(
    grid: Grid, nodes: Iterable[int], content: RecordDict, message_type: str, *, round_number: int
) -> list[Message]:
    """Return one message with the same content to each node."""
    return [
        grid.create_message(content, message_type, node_id, group_id=str(round_number))
        for node_id in nodes
    ]


class Answers:
    """Replies to one question, sorted into those to read and those refused, by site."""

    def __init__(self, by_node: dict[int, RecordDict], names: Mapping[int, str]) -> None:
        self.by_node = by_node
        self._names = names
        self.refused: dict[str, str] = {}
        self.details: dict[str, str] = {}

    @classmethod
    def of(cls, replies: Iterable[Message], names: Mapping[int, str]) -> "Answers":
        """Match replies with the nodes that were asked. Others, and error replies, do not count."""
        contents: dict[int, list[RecordDict]] = {node_id: [] for node_id in names}
        for reply in replies:
            if reply.has_content() and reply.metadata.src_node_id in contents:
                contents[reply.metadata.src_node_id].append(reply.content)
        answers = cls({n: found[0] for n, found in contents.items() if len(found) == 1}, names)
        answers._refuse_uncertain(contents)
        return answers

    def refuse(self, node_id: int, error: FederationError) -> None:
        """Note that this site's reply does not count, and why."""
        site = self._names[node_id]
        if isinstance(error, Refused):
            self.refused[site] = error.code
        else:
            self.refused[site] = INVALID_REPLY
            self.details[site] = str(error)

    def _refuse_uncertain(self, contents: Mapping[int, list[RecordDict]]) -> None:
        for node_id, found in contents.items():
            if not found:
                self.refused[self._names[node_id]] = NO_REPLY
            elif len(found) > 1:
                self.refuse(node_id, FederationError(f"{len(found)} replies to one request"))


def _node_names(grid: Grid) -> dict[int, str]:
    if isinstance(grid, NamedGrid):
        return grid.names
    return {node_id: f"node {node_id}" for node_id in grid.get_node_ids()}


def _described(content: RecordDict, name: str, *, known: bool) -> Description:
    description = wire.decode_description(content)
    if known and description.site != name:
        raise FederationError("the site gives another name than the one it is registered by")
    return description


def _check_names_differ(sites: Mapping[int, Description]) -> None:
    names = [site.site for site in sites.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FederationError(
            f"More than one node calls itself {', '.join(twice)}. Nothing was trained. "
            "Give every site its own name, or remove the node that does not belong."
        )
