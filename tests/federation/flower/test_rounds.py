import itertools
import logging
import re
from dataclasses import replace
from logging.handlers import BufferingHandler

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy

from federation.checkpoint import Checkpoint, RunState
from federation.errors import FederationError, Refused
from federation.flower import records
from federation.flower.client_app import client_app
from federation.flower.grid import LocalGrid
from federation.flower.hub_run import HubRun
from federation.flower.server_app import RunStoppedError, server_app
from federation.flower.strategy import CohortStrategy
from federation.ledger.closings import Closing
from federation.ledger.receipts import Receipt
from models.weights import weights_digest


def reply_to(reply):
    return reply.metadata.reply_to_message_id


class OtherGrid(Grid):
    """A grid that is not ours: it knows no names, and replies arrive as ``arrive`` says.

    Replies to all that is open are there at once, as if every site had worked meanwhile.
    """

    def __init__(self, grid, arrive=lambda replies: replies):
        self.grid, self.arrive = grid, arrive
        self.open, self.here = [], []

    def __getattr__(self, name):
        return getattr(self.grid, name)

    run = property(lambda self: self.grid.run)

    def set_run(self, run): ...

    def create_message(self, *args, **kwargs):
        return self.grid.create_message(*args, **kwargs)

    def get_node_ids(self):
        return self.grid.get_node_ids()

    def push_messages(self, messages):
        ids = self.grid.push_messages(messages)
        self.open += ids
        return ids

    def pull_messages(self, message_ids):
        while self.open:
            self.here += self.grid.pull_messages([self.open.pop(0)])
            if not self.open:
                self.here = self.arrive(self.here)
        # What came first is there; what came later is on its way until then.
        first = list(itertools.takewhile(lambda r: reply_to(r) in message_ids, self.here))
        self.here = self.here[len(first) :]
        return first

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("this would hold every reply at once")


def changed(name, change):
    """Return a function that changes one array of an update."""
    return lambda update: {**update, name: change(update[name])}


class TestARun:
    def test_adds_the_mean_update_each_round_with_equal_weights(self, over, site, weights):
        sites = [site("b", step=2.0), site("lab", step=6.0), site("a", step=1.0)]
        result = over(sites, rounds=4, min_sites=3)
        for name, start in weights.items():
            np.testing.assert_array_equal(result.weights[name], start + 4 * 3.0)
        assert list(result.weights) == list(weights)

    def test_tells_of_each_round_as_it_ends(self, over, site):
        told = []
        result = over([site("a"), site("b")], rounds=2, on_event=told.append)
        assert tuple(told) == result.events
        assert [event.round for event in told] == [0, 1, 2]
        assert [event.returned for event in told] == [("a", "b")] * 3
        # The scores of a round are those of the weights it ended with.
        assert [event.scores["b"]["dice"] for event in told] == [0.0, 1.0, 2.0]

    def test_returns_statements_and_receipts_in_site_order(self, over, site):
        result = over([site("b"), site("a")], rounds=2)
        assert [one.site for one in result.descriptions] == ["a", "b"]
        receipts = [Receipt.from_json(receipt) for receipt in result.receipts]
        assert [(r.round, r.site) for r in receipts] == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
        assert all(receipt.verify() for receipt in receipts)

    def test_of_no_rounds_scores_and_changes_nothing(self, over, site, weights):
        trained = site("a")
        result = over([trained], rounds=0)
        assert result.weights["unet.weight"].tobytes() == weights["unet.weight"].tobytes()
        assert [kind for kind, _ in trained.seen] == ["describe", "evaluate", "close"]

    def test_shows_every_site_the_others_newest_heads_and_keeps_what_they_countersign(
        self, over, site
    ):
        def head_of(one):
            return lambda receipt: replace(receipt, head_after="sha256:" + one * 64)

        sites = [site("a", change_receipt=head_of("a")), site("b", change_receipt=head_of("b"))]
        result = over(sites, rounds=2)
        heads = {"a": "sha256:" + "a" * 64, "b": "sha256:" + "b" * 64}
        asked = [request for kind, request in sites[0].seen if kind == "train"]
        assert [request.heads for request in asked] == [{}, heads]
        closings = [Closing.from_json(closing) for closing in result.closings]
        assert [closing.site for closing in closings] == ["a", "b"]
        assert all(closing.verify() and closing.heads == heads for closing in closings)
        assert {c.model_digest for c in closings} == {weights_digest(result.weights)}

    @pytest.mark.parametrize(
        "change", [{"heads": {}}, {"run": "another"}, {"model_digest": None}, {"site": "b"}]
    )
    def test_passes_over_a_closing_statement_that_answers_something_else(
        self, over, site, change, caplog
    ):
        wrong = site("a", change_closing=lambda closing: replace(closing, **change))
        result = over([wrong, site("b")], rounds=1, min_sites=2)
        assert [closing["site"] for closing in result.closings] == ["b"]
        assert "No closing statement from" in caplog.text

    def test_carries_the_attempt_and_run(self, over, site, run_id):
        asked = site("a")
        over([asked], attempt=3)
        (request,) = [request for kind, request in asked.seen if kind == "train"]
        assert (request.attempt, request.run, request.round) == (3, run_id, 1)

    def test_keeps_flowers_progress_lines_off_the_terminal(self, over, site, capfd):
        handler = BufferingHandler(1000)
        logging.getLogger("flwr").addHandler(handler)
        try:
            over([site("a")], rounds=2)
        finally:
            logging.getLogger("flwr").removeHandler(handler)
        assert handler.buffer == []
        assert capfd.readouterr() == ("", "")

    def test_gives_the_same_bits_in_whatever_order_replies_arrive(self, over, site):
        def run(arrive):
            sites = [site("a", step=0.1), site("b", step=1e8), site("c", step=-1e8)]
            return over(sites, rounds=3, wrap=lambda grid: OtherGrid(grid, arrive)).weights

        first, second = run(list), run(lambda replies: list(reversed(replies)))
        assert [w.tobytes() for w in first.values()] == [w.tobytes() for w in second.values()]

    @pytest.mark.parametrize("rounds", [-1])
    def test_needs_sensible_numbers(self, over, site, rounds):
        with pytest.raises(ValueError, match="rounds is -1; give 0 or more"):
            over([site("a")], rounds=rounds)
        with pytest.raises(ValueError, match="min_sites is 0; give at least 1"):
            over([site("a")], min_sites=0)


class TestTheAverage:
    def test_is_what_is_scored_and_kept_while_training_goes_on_from_the_newest(
        self, over, site, weights
    ):
        trained = site("a")
        result = over([trained], rounds=3, ema_decay=0.5)
        start = weights["a.bias"]
        requests = [request for kind, request in trained.seen if kind == "train"]
        assert [float((r.weights["a.bias"] - start)[0]) for r in requests] == [0.0, 1.0, 2.0]
        # Weighed 1 to a half, and 1 to a half to a quarter.
        expected = [0.0, 1.0, 5 / 3, 17 / 7]
        assert [event.scores["a"]["dice"] for event in result.events] == pytest.approx(expected)
        np.testing.assert_allclose(result.weights["a.bias"], start + 17 / 7, rtol=1e-6)

    def test_changes_no_request_and_no_receipt_so_it_costs_nothing(self, over, site):
        def asked_and_paid(decay):
            trained = site("a")
            result = over([trained], rounds=3, ema_decay=decay)
            requests = [request.digest() for kind, request in trained.seen if kind == "train"]
            return requests, result.receipts

        assert asked_and_paid(0.0) == asked_and_paid(0.9)


BAD_UPDATES = {
    "NaN": changed("a.bias", lambda w: w * np.float32("nan")),
    "infinity": changed("a.bias", lambda w: w * np.float32("inf")),
    "overflow": changed("scale", lambda w: np.full_like(w, np.finfo(np.float32).max)),
    "missing name": lambda update: {"a.bias": update["a.bias"]},
    "other name": lambda update: {**update, "extra": update["a.bias"]},
    "other shape": changed("unet.weight", lambda w: w.T.copy()),
    "other type": changed("a.bias", lambda w: w.astype(np.float64)),
    "huge": lambda update: {**update, "extra": np.zeros(100_000, np.float32)},
}
BAD_RECEIPTS = {
    "another site's": {"site": "ward-b"},
    "another key's": {"public_key": "00" * 32},
    "another round's": {"round": 2},
    "another attempt's": {"attempt": 2},
    "another run's": {"run": "f" * 16},
    "another experiment's": {"experiment_digest": "sha256:" + "0" * 64},
    "another request's": {"request_digest": "sha256:" + "0" * 64},
    "another update's": {"update_digest": "sha256:" + "0" * 64},
    "another data set's": {"commitment": "sha256:" + "0" * 64},
}


class TestAReplyThatMustNotBeAveraged:
    def averaged_without(self, over, bad, site, weights):
        """Run with one bad site; check that only that site's reply is left out."""
        result = over([site("a", step=1.0), bad, site("c", step=3.0)], min_sites=2)
        (_, event) = result.events
        assert event.returned == ("a", "c")
        np.testing.assert_array_equal(result.weights["scale"], weights["scale"] + 2.0)
        assert {receipt["site"] for receipt in result.receipts} == {"a", "c"}
        return event.refused

    @pytest.mark.parametrize("what", BAD_UPDATES)
    def test_for_its_values_is_refused_and_the_run_goes_on(self, over, site, weights, what):
        # The start of "scale" is 2.5; adding the largest float32 to 1e38 overflows.
        bad = site("bad", change_update=BAD_UPDATES[what])
        if what == "overflow":
            big = {name: np.full_like(w, 1e38) for name, w in weights.items()}
            result = over([site("a"), bad], weights=big)
            assert result.events[1].refused == {"bad": "invalid_reply"}
        else:
            assert self.averaged_without(over, bad, site, weights) == {"bad": "invalid_reply"}

    @pytest.mark.parametrize("what", BAD_RECEIPTS)
    def test_for_its_receipt_is_refused(self, over, site, weights, what):
        bad = site("bad", change_receipt=lambda receipt: replace(receipt, **BAD_RECEIPTS[what]))
        assert self.averaged_without(over, bad, site, weights) == {"bad": "invalid_reply"}

    def test_for_its_size_is_refused_before_it_is_read(self, over, site):
        huge = site("bad", change_update=BAD_UPDATES["huge"])
        with pytest.raises(RunStoppedError, match=r"has 400\d+ bytes, this model allows"):
            over([huge])

    def test_for_a_forged_signature_is_refused(self, over, site, weights):
        class Forged(Receipt):
            def signed(self, key):
                return self

        bad = site("bad", change_receipt=lambda r: Forged(**vars(r)))
        assert self.averaged_without(over, bad, site, weights) == {"bad": "invalid_reply"}

    def test_because_the_site_declined_is_left_out(self, over, site, weights):
        bad = site("bad", fails={"train": Refused("budget")})
        assert self.averaged_without(over, bad, site, weights) == {"bad": "budget"}

    def test_because_it_came_twice_is_refused(self, over, site):
        def twice(replies):
            return [r for r in replies for _ in range(2 if r.metadata.src_node_id == 2 else 1)]

        with pytest.raises(RunStoppedError, match="2 replies to one request"):
            over([site("a"), site("b")], min_sites=2, wrap=lambda g: OtherGrid(g, twice))

    def test_because_nobody_asked_for_it_is_ignored(self, over, site):
        """Replies of nodes outside the cohort do not count."""
        declined = site("b", fails={"describe": Refused("not_approved")})
        result = over([site("a"), declined], rounds=2)
        assert [kind for kind, _ in declined.seen] == ["describe"]
        assert [event.refused for event in result.events] == [{"b": "not_approved"}] * 3


class TestTooFewSites:
    def test_end_the_run_and_the_message_says_who_why_and_what_to_do(self, over, site):
        sites = [
            site("ward-a"),
            site("ward-b", fails={"train": Refused("budget")}),
            site("lab", change_update=BAD_UPDATES["NaN"]),
        ]
        with pytest.raises(RunStoppedError) as caught:
            over(sites, rounds=3, min_sites=2)
        said = re.sub(r"budget: [0-9a-f]{16} in the site's log", "budget", str(caught.value))
        assert said == (
            "Round 1: 1 of 3 sites returned an update, and this run needs 2. The model was left "
            "as it was. lab sent a reply that fails validation (invalid_reply: weight 'a.bias' "
            "holds NaN or infinity). ward-b has too little privacy budget left (budget). Ask its "
            "operator to update the site's software, or run without this site. Run fewer rounds, "
            "ask for more noise, or run without this site."
        )

    def test_in_a_later_round_leave_what_was_paid_for(self, over, site):
        tired = site("b")

        def train(request, honest=tired.train):
            if request.round == 3:
                raise Refused("approval_used_up")
            return honest(request)

        tired.train = train
        with pytest.raises(RunStoppedError, match=r"^Round 3: 1 of 2 sites") as caught:
            over([site("a"), tired], rounds=5, min_sites=2)
        stopped = caught.value
        assert [event.round for event in stopped.events] == [0, 1, 2]
        assert [(r["round"], r["site"]) for r in stopped.receipts] == [
            (1, "a"),
            (1, "b"),
            (2, "a"),
            (2, "b"),
            (3, "a"),
        ]
        assert len(stopped.descriptions) == 2

    def test_before_the_first_round_nobody_is_asked_to_train(self, over, site):
        ready = site("a")
        declined = site("b", fails={"describe": Refused("not_approved")})
        with pytest.raises(RunStoppedError, match=r"1 of 2 sites returned a description.*approve"):
            over([ready, declined], min_sites=2)
        assert [kind for kind, _ in ready.seen] == ["describe"]

    def test_without_any_site_the_run_says_so(self, over):
        with pytest.raises(RunStoppedError, match="0 of 0 sites"):
            over([])

    def test_a_site_that_never_answers_is_named(self, over, site):
        def drop(replies):
            return [r for r in replies if r.metadata.message_type != "train"]

        with pytest.raises(RunStoppedError, match=r"a did not answer in time \(no_reply\)"):
            over([site("a")], wrap=lambda grid: OtherGrid(grid, drop), timeout_s=0.3)


class TestNames:
    def test_a_site_cannot_take_another_name_than_its_registered_one(self, over, site):
        liar = site("b")
        liar.describe = site("a").describe
        result = over([site("a"), liar])
        assert result.events[0].refused == {"b": "invalid_reply"}

    def test_two_nodes_of_one_name_end_the_run_before_training(self, over, site):
        liar, honest = site("b"), site("a")
        liar.describe = site("a").describe
        with pytest.raises(RunStoppedError, match="More than one node calls itself a"):
            over([honest, liar], wrap=OtherGrid)
        assert [kind for kind, _ in honest.seen] == ["describe"]


def test_a_site_that_cannot_score_ends_nothing(over, site):
    broken = site("b", fails={"evaluate": OSError("disk")})
    result = over([site("a"), broken], rounds=1)
    assert [sorted(event.scores) for event in result.events] == [["a"], ["a"]]
    assert result.events[1].returned == ("a", "b")


class TestPlainFlower:
    @pytest.fixture
    def strategy(self, experiment_digest, run_id, weights, tmp_path):
        with Checkpoint(tmp_path / "run") as checkpoint:
            state = RunState(run_id, experiment_digest)
            run = HubRun(state=state, weights=weights, checkpoint=checkpoint, min_sites=2)
            yield CohortStrategy(run)

    @pytest.mark.parametrize(
        ("start", "rounds"), [(Strategy.start, [1, 2]), (CohortStrategy.start, [0, 1, 2])]
    )
    def test_stock_start_runs_the_strategy_and_so_does_ours(
        self, strategy, site, weights, start, rounds
    ):
        grid = LocalGrid({name: client_app(site(name)) for name in ("a", "b")})
        result = start(strategy, grid, records.from_weights(weights), num_rounds=2)
        assert isinstance(result, Result)
        assert records.to_weights(result.arrays)["scale"] == weights["scale"] + 2.0
        assert result.train_metrics_clientapp[2] == {"num_sites": 2}
        assert result.evaluate_metrics_clientapp[2]["a/dice"] == 2.0
        assert [event.round for event in strategy.run.state.events] == rounds

    def test_a_server_app_runs_the_rounds(self, site, experiment_digest, run_id, weights):
        results = []
        app = server_app(
            on_result=results.append,
            experiment_digest=experiment_digest,
            run=run_id,
            weights=weights,
            rounds=2,
            min_sites=1,
        )
        assert isinstance(app, ServerApp)
        grid = LocalGrid({"a": client_app(site("a"))})
        app(grid, Context(1, 1, {}, RecordDict(), {}))
        assert results[0].weights["scale"] == weights["scale"] + 2.0

    def test_aggregating_before_configuring_is_a_mistake_in_the_program(self, strategy):
        with pytest.raises(RuntimeError, match="before it was configured"):
            strategy.aggregate_train(1, [])
        with pytest.raises(RuntimeError, match="before it was configured"):
            strategy.aggregate_evaluate(1, [])

    def test_errors_are_ones_the_cli_catches(self):
        assert issubclass(RunStoppedError, FederationError)
