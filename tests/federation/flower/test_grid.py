import threading
import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from federation.flower.grid import LocalGrid


def app_that(does):
    app = ClientApp()

    @app.train()
    def train(message, context):
        does(message)
        return Message(message.content, reply_to=message)

    return app


def echo():
    return app_that(lambda message: None)


def to_all(grid, **values):
    content = RecordDict({"config": ConfigRecord(values)})
    return [grid.create_message(content, "train", node, "1") for node in grid.get_node_ids()]


def test_node_ids_follow_the_names_whatever_the_order_of_registration():
    first = LocalGrid({"b": echo(), "a": echo(), "c": echo()})
    second = LocalGrid({"c": echo(), "b": echo(), "a": echo()})
    assert first.names == second.names
    assert list(first.names.values()) == ["a", "b", "c"]


def test_sites_run_in_name_order():
    order = []
    sites = {name: app_that(lambda m, name=name: order.append(name)) for name in "cab"}
    grid = LocalGrid(sites)
    grid.send_and_receive(reversed(to_all(grid)))
    assert order == ["a", "b", "c"]


def test_a_site_gets_copies_and_no_shared_objects():
    seen = []
    grid = LocalGrid({"a": app_that(lambda message: seen.append(message.content))})
    (message,) = to_all(grid, text="x")
    (reply,) = grid.send_and_receive([message])
    assert seen[0] == message.content
    assert seen[0] is not message.content
    assert reply.content is not seen[0]


def test_the_recorder_sees_every_byte_both_ways():
    seen = []
    grid = LocalGrid({"a": echo(), "b": echo()}, recorder=lambda *event: seen.append(event))
    grid.send_and_receive(to_all(grid, text="marker-in-the-message"))
    assert [event[:2] for event in seen] == [
        ("to_site", "a"),
        ("from_site", "a"),
        ("to_site", "b"),
        ("from_site", "b"),
    ]
    assert all(b"marker-in-the-message" in data for _, _, data in seen)


def test_replies_refer_to_the_message_they_answer():
    grid = LocalGrid({"a": echo()})
    (reply,) = grid.send_and_receive(to_all(grid))
    assert reply.metadata.src_node_id == grid.get_node_ids()[0]
    assert len(reply.metadata.reply_to_message_id) == 64


def test_a_site_works_when_its_reply_is_pulled_and_each_reply_is_pulled_once():
    order = []
    sites = {name: app_that(lambda m, name=name: order.append(name)) for name in "ab"}
    grid = LocalGrid(sites)
    first, second = grid.push_messages(to_all(grid))
    assert order == []
    (reply,) = grid.pull_messages([second])
    assert (order, reply.metadata.reply_to_message_id) == (["b"], second)
    assert grid.pull_messages([second]) == []
    (reply,) = grid.pull_messages([first, second])
    assert (order, reply.metadata.reply_to_message_id) == (["b", "a"], first)


def test_messages_that_nobody_waits_for_any_more_are_forgotten():
    grid, content = LocalGrid({"a": echo()}), RecordDict({"config": ConfigRecord({})})
    (node,) = grid.get_node_ids()
    (old,) = grid.push_messages([grid.create_message(content, "train", node, "1", ttl=0.01)])
    time.sleep(0.02)
    (new,) = grid.push_messages([grid.create_message(content, "train", node, "1")])
    assert grid.pull_messages([old]) == []
    assert len(grid.pull_messages([new])) == 1


def test_pulling_from_threads_lets_as_many_sites_work_at_once_as_there_are_workers():
    both_here = threading.Barrier(2, timeout=10)
    grid = LocalGrid({n: app_that(lambda m: both_here.wait()) for n in "abcd"}, max_workers=2)
    ids, replies = grid.push_messages(to_all(grid)), []
    until = time.monotonic() + 10
    while len(replies) < 4 and time.monotonic() < until:
        replies += grid.pull_messages(ids)
    assert [grid.names[r.metadata.src_node_id] for r in replies[:2]] in (["a", "b"], ["b", "a"])
    assert {reply.metadata.reply_to_message_id for reply in replies} == set(ids)


def test_an_app_that_raises_answers_with_an_error_without_text():
    def fail(message):
        raise ValueError("DOE^JANE")

    (reply,) = (grid := LocalGrid({"a": app_that(fail)})).send_and_receive(to_all(grid))
    assert reply.has_error()
    assert "DOE" not in repr(reply)


def test_sites_that_have_not_begun_by_the_deadline_are_left_out():
    grid = LocalGrid({"a": app_that(lambda m: time.sleep(0.05)), "b": echo()})
    (reply,) = grid.send_and_receive(to_all(grid), timeout=0.01)
    assert grid.names[reply.metadata.src_node_id] == "a"


def test_threads_run_sites_at_once_and_do_not_wait_past_the_deadline():
    both_here, gate = threading.Barrier(2, timeout=10), threading.Event()
    sites = {
        "a": app_that(lambda m: both_here.wait()),
        "b": app_that(lambda m: both_here.wait()),
        "slow": app_that(lambda m: gate.wait(10)),
    }
    grid = LocalGrid(sites, max_workers=3)
    began = time.monotonic()
    replies = grid.send_and_receive(to_all(grid), timeout=1.0)
    took_s = time.monotonic() - began
    gate.set()
    assert [grid.names[r.metadata.src_node_id] for r in replies] == ["a", "b"]
    assert took_s < 5


def test_at_least_one_worker_is_needed():
    with pytest.raises(ValueError, match="max_workers is 0; give at least 1"):
        LocalGrid({"a": echo()}, max_workers=0)
