import time

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from federation.errors import FederationError, Refused
from federation.flower.collecting import Answers, Collector, contents
from federation.flower.grid import LocalGrid


def echo():
    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(message.content, reply_to=message)

    return app


class Fake:
    """A grid whose replies come when, and as, a test says.

    ``says`` maps a node to a function of the number of looks so far, giving replies.
    """

    def __init__(self, **says):
        self.local = LocalGrid({name: echo() for name in says})
        self.nodes = {name: node for node, name in self.local.names.items()}
        self.says = {self.nodes[name]: say for name, say in says.items()}
        self.asked, self.looked, self.most_at_once = {}, 0, 0

    def push_messages(self, messages):
        ids = []
        for message in messages:
            ids.append(f"{len(self.asked)}")
            self.asked[ids[-1]] = message
        return ids

    def pull_messages(self, ids):
        self.looked += 1
        self.most_at_once = max(self.most_at_once, len(ids))
        return [r for i in ids for r in self.says[self.asked[i].metadata.dst_node_id](self, i)]

    def messages(self):
        content = RecordDict({"config": ConfigRecord({"x": 1})})
        return [self.local.create_message(content, "train", n, "1") for n in self.says]

    def collector(self, timeout_s=5.0):
        collector = Collector(self, timeout_s=timeout_s, poll_s=0.01)
        collector.ask(self.messages())
        return collector


def replies(grid, i):
    message = grid.asked[i]
    message.metadata.__dict__["_message_id"] = i
    return [Message(message.content, reply_to=message)]


def never(grid, i):
    return []


def fails(grid, i):
    message = grid.asked[i]
    message.metadata.__dict__["_message_id"] = i
    return [Message(Error(ErrorCode.NODE_UNAVAILABLE), reply_to=message)]


def after(looks):
    return lambda grid, i: replies(grid, i) if grid.looked > looks else []


def test_answers_come_one_at_a_time_as_they_are_there():
    grid = Fake(a=after(6), b=replies, c=after(3))
    order = [node for node, _ in grid.collector()]
    assert order == [grid.nodes[n] for n in "bca"]
    assert grid.most_at_once == 1


def test_time_that_is_up_ends_it_whoever_has_not_answered():
    grid = Fake(a=never, b=replies)
    began = time.monotonic()
    assert [node for node, _ in grid.collector(0.2)] == [grid.nodes["b"]]
    assert 0.15 < time.monotonic() - began < 3


def test_more_time_takes_an_answer_that_was_late():
    grid = Fake(a=never)
    collector = grid.collector(0.05)
    assert list(collector) == []
    grid.says[grid.nodes["a"]] = replies
    assert list(collector) == []
    collector.wait_until(5.0)
    assert [node for node, _ in collector] == [grid.nodes["a"]]


def test_an_error_of_the_transport_is_no_answer_and_is_not_waited_for():
    grid = Fake(a=fails, b=replies)
    assert dict(grid.collector(60.0))[grid.nodes["a"]] is None


def test_an_answer_ends_what_else_the_node_was_asked():
    grid = Fake(a=replies)
    collector = grid.collector(60.0)
    collector.ask(grid.messages())
    assert len(list(collector)) == 1


def test_more_can_be_asked_while_answers_come():
    grid, seen = Fake(a=replies), []
    collector = grid.collector()
    for node, _ in collector:
        seen.append(node)
        if len(seen) < 3:
            collector.ask(grid.messages())
    assert seen == [grid.nodes["a"]] * 3


def test_a_reply_of_another_node_does_not_count():
    def forged(grid, i):
        message = grid.asked[i]
        message.metadata.__dict__["_message_id"] = i
        reply = Message(message.content, reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 99
        return [reply]

    assert list(Fake(a=forged).collector(0.1)) == []


def test_a_message_that_is_not_stored_has_no_answer():
    grid = Fake(a=replies)
    grid.push_messages = lambda messages: [None]
    assert list(grid.collector(0.1)) == []


class TestAnswers:
    def test_are_sorted_by_who_gave_one(self):
        one = RecordDict({"config": ConfigRecord({"x": 1})})
        given = [(1, one), (3, one), (3, one), (4, None), (9, one)]
        answers = Answers.of(given, {1: "a", 2: "b", 3: "c", 4: "d"})
        assert answers.by_node == {1: one}
        assert answers.refused == {"b": "no_reply", "c": "invalid_reply", "d": "no_reply"}
        assert answers.details == {"c": "2 replies to one request"}

    @pytest.mark.parametrize(
        ("error", "code", "details"),
        [
            (Refused("budget", "x"), "budget", {}),
            (FederationError("x"), "invalid_reply", {"a": "x"}),
        ],
    )
    def test_that_do_not_count_have_a_code(self, error, code, details):
        answers = Answers({}, {1: "a"})
        answers.refuse(1, error)
        assert (answers.refused, answers.details) == ({"a": code}, details)

    def test_of_stock_flower_are_read_the_same(self):
        grid = Fake(a=replies, b=fails)
        grid.push_messages(grid.messages())
        given = list(contents([*replies(grid, "0"), *fails(grid, "1")]))
        assert [node for node, _ in given] == [grid.nodes["a"]]
