"""One round of training as the hub sees it: what each site was asked, and what came of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from federation.checkpoint import storage_errors
from federation.cohort import Cohort
from federation.errors import FederationError, Refused, StorageError
from federation.flower import wire
from federation.flower.cohort import addressed
from federation.flower.collecting import note_refusal
from federation.flower.refusals import NO_REPLY
from federation.flower.spool import Spool
from federation.flower.validation import check_reply, check_update
from federation.messages import TrainRequest
from models.errors import ModelError
from models.weight_files import WeightFile


@dataclass(frozen=True)
class RoundRules:
    """What holds for every reply.

    Attributes:
        retries: Lost rounds that each site pays for once more, in the whole run.
        max_update_norm: Largest L2 norm of an update, or None.
    """

    retries: int = 0
    max_update_norm: float | None = None


class TrainingRound:
    """Takes replies one at a time; valid updates go to the spool, nothing of them stays in memory.

    Args:
        request: The same for every site, with the attempt that all of them begin with.
        repeats: Site name to the lost rounds it has paid for before this one.

    Attributes:
        updates: By site name, those that are valid.
        receipts: By site name, of these.
        refused: By site name, the code of those whose reply does not count, or did not come.
        details: What exactly was wrong with a reply, where that is known.
        repeats: As given, with this round's added.
        spool: To be entered before the first reply.
    """

    def __init__(
        self,
        request: TrainRequest,
        spool: Spool,
        *,
        rules: RoundRules,
        repeats: Mapping[str, int],
    ) -> None:
        self.repeats = dict(repeats)
        self.updates: dict[str, WeightFile] = {}
        self.receipts: dict[str, dict[str, object]] = {}
        self.refused: dict[str, str] = {}
        self.details: dict[str, str] = {}
        self.spool = spool
        self._rules = rules
        self._cohort = Cohort({})
        self._first = request
        self._asked: dict[int, TrainRequest] = {}
        self._digests: dict[int, str] = {}
        self._answered: set[tuple[int, int]] = set()

    def messages(
        self, grid: Grid, cohort: Cohort, nodes: Iterable[int], *, timeout_s: float
    ) -> list[Message]:
        """Return what to send to these nodes: again the same, if they were asked before."""
        self._cohort, messages = cohort, []
        by_attempt: dict[int, list[int]] = {}
        for node_id in nodes:
            request = self._asked.setdefault(node_id, self._first)
            self.refused[cohort.sites[node_id].site] = NO_REPLY
            by_attempt.setdefault(request.attempt, []).append(node_id)
        for some in by_attempt.values():
            request = self._asked[some[0]]
            content = wire.encode_train_request(request)
            messages += addressed(
                grid,
                some,
                content,
                MessageType.TRAIN,
                round_number=request.round,
                timeout_s=timeout_s,
            )
        return messages

    def let_go(self) -> None:
        """Forget what was asked, with the weights in it: the round is over."""
        self._asked.clear()
        self._first = replace(self._first, weights={})

    def late(self) -> list[int]:
        """Return the nodes that were asked and have not answered."""
        return [n for n in self._asked if self.refused.get(self._name(n)) == NO_REPLY]

    def take(self, node_id: int, content: RecordDict | None) -> bool:
        """Take a reply; return whether the site lost the round and is to be asked anew."""
        if content is None or node_id not in self._asked:
            return False
        request, name = self._asked[node_id], self._name(node_id)
        if (node_id, request.attempt) in self._answered:
            self._refuse(node_id, FederationError("2 replies to one request"))
            return False
        self._answered.add((node_id, request.attempt))
        try:
            self._keep(node_id, request, content)
        except StorageError:
            raise
        except ModelError:
            self._refuse(node_id, FederationError("the update is not float32 weights"))
        except FederationError as error:
            self._refuse(node_id, error)
            return isinstance(error, Refused) and error.code == "lost" and self._repeated(node_id)
        else:
            self.refused.pop(name, None)
        return False

    def _keep(self, node_id: int, request: TrainRequest, content: RecordDict) -> None:
        site = self._cohort.sites[node_id]
        reply = wire.decode_train_reply(content)
        content.clear()
        check_reply(request, site, reply, request_digest=self._digest(request))
        receipt = dict(reply.receipt)
        update = self.spool.keep(node_id, reply.payload)
        del reply
        with storage_errors(update.path):
            check_update(request.weights, update, max_norm=self._rules.max_update_norm)
        self.updates[site.site], self.receipts[site.site] = update, receipt

    def _repeated(self, node_id: int) -> bool:
        """Raise the attempt of a site whose process died, if it has paid for one more."""
        name, request = self._name(node_id), self._asked[node_id]
        if self.repeats.get(name, 0) >= self._rules.retries:
            return False
        self.repeats[name] = self.repeats.get(name, 0) + 1
        self._asked[node_id] = replace(request, attempt=request.attempt + 1)
        return True

    def _refuse(self, node_id: int, error: FederationError) -> None:
        name = self._name(node_id)
        self.updates.pop(name, None)
        self.receipts.pop(name, None)
        self.spool.drop(node_id)
        note_refusal(name, error, self.refused, self.details)

    def _digest(self, request: TrainRequest) -> str:
        if request.attempt not in self._digests:
            self._digests[request.attempt] = request.digest()
        return self._digests[request.attempt]

    def _name(self, node_id: int) -> str:
        return self._cohort.sites[node_id].site
