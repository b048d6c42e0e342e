"""What becomes of rounds with too few sites, of late ones, of lost ones and of huge updates."""

import time

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from federation.cohort import CohortPolicy
from federation.errors import Refused
from federation.flower.client_app import client_app
from federation.flower.cohort import wait_for_nodes
from federation.flower.collecting import Collector
from federation.flower.grid import LocalGrid
from federation.flower.server_app import RunStoppedError
from models.weights import weights_digest


def failing_in(site, rounds, code="budget", times=1_000):
    """Let a site decline in these rounds, so many times."""
    honest, left = site.train, [times]

    def train(request):
        if request.round in rounds and left[0]:
            left[0] -= 1
            site.seen.append(("train", request))
            raise Refused(code)
        return honest(request)

    site.train = train
    return site


class Losing(LocalGrid):
    """A grid that loses answers: ``lost[name]`` says how many of a site's updates."""

    def __init__(self, sites, lost):
        super().__init__({one.name: client_app(one) for one in sites})
        self.lost = lost

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        return [reply for reply in replies if not self._is_lost(reply)]

    def _is_lost(self, reply):
        name = self.names[reply.metadata.src_node_id]
        if reply.metadata.message_type != "train" or not self.lost.get(name):
            return False
        self.lost[name] -= 1
        return True


class TestSkip:
    SKIP = CohortPolicy(below_minimum="skip")

    def test_leaves_the_model_goes_on_and_is_never_called_completed(self, over, site, weights):
        sites = [site("a", step=1.0), failing_in(site("b", step=3.0), {2})]
        result = over(sites, rounds=3, min_sites=2, policy=self.SKIP)
        assert [e.outcome for e in result.events] == [
            "completed",
            "completed",
            "skipped",
            "completed",
        ]
        np.testing.assert_array_equal(result.weights["scale"], weights["scale"] + 2 * 2.0)
        skipped = result.events[2]
        assert (skipped.returned, skipped.refused) == (("a",), {"b": "budget"})
        assert skipped.scores["a"]["dice"] == result.events[1].scores["a"]["dice"]

    def test_what_was_paid_in_it_stands_and_its_head_is_shown(self, over, site):
        asked = site("a")
        result = over([asked, failing_in(site("b"), {1})], rounds=2, min_sites=2, policy=self.SKIP)
        assert [(r["round"], r["site"]) for r in result.receipts] == [(1, "a"), (2, "a"), (2, "b")]
        second = [request for kind, request in asked.seen if kind == "train"][1]
        assert set(second.heads) == {"a"}

    def test_a_skipped_round_is_not_in_the_average(self, over, site):
        sites = [site("a"), failing_in(site("b"), {2})]
        more = {"min_sites": 2, "ema_decay": 0.5}
        result = over(sites, rounds=3, policy=self.SKIP, **more)
        whole = over([site("a"), site("b")], rounds=2, **more)
        assert weights_digest(result.weights) == weights_digest(whole.weights)

    def test_of_every_round_is_no_finished_run(self, over, site):
        sites = [site("a"), failing_in(site("b"), {1, 2})]
        with pytest.raises(
            RunStoppedError, match=r"Each of the 2 rounds was skipped.*never trained"
        ):
            over(sites, rounds=2, min_sites=2, policy=self.SKIP)


class TestWait:
    WAIT = CohortPolicy(below_minimum="wait", waits=2, wait_s=0.3, deadline_s=0.3)

    def run(self, over, sites, lost=None, policy=WAIT, **more):
        def losing(_):
            return Losing(sites, lost or {})

        return over(sites, min_sites=2, policy=policy, wrap=losing, **more)

    def test_asks_the_late_again_with_the_same_request_so_nobody_pays_twice(
        self, over, paying_site
    ):
        sites = [paying_site("a"), paying_site("b")]
        result = self.run(over, sites, {"b": 1}, rounds=2)
        assert [event.returned for event in result.events] == [("a", "b")] * 3
        digests = [r.digest() for kind, r in sites[1].seen if kind == "train" and r.round == 1]
        assert len(digests) == 2 and len(set(digests)) == 1
        assert [key for key, _ in sites[1].charges] == [(1, 1), (2, 1)]
        # Who had answered is not asked again.
        assert len([kind for kind, _ in sites[0].seen if kind == "train"]) == 2

    def test_gives_up_after_the_times_it_was_told_and_says_who_was_late(self, over, paying_site):
        sites = [paying_site("a"), paying_site("b")]
        with pytest.raises(RunStoppedError, match=r"Round 1: 1 of 2 .*b did not answer in time"):
            self.run(over, sites, {"b": 1_000})
        assert len([kind for kind, _ in sites[1].seen if kind == "train"]) == 3
        assert len(sites[1].charges) == 1

    def test_does_not_ask_again_who_declined(self, over, site):
        declined = failing_in(site("b"), {1})
        with pytest.raises(RunStoppedError, match="budget"):
            self.run(over, [site("a"), declined])
        assert len([kind for kind, _ in declined.seen if kind == "train"]) == 1

    def test_takes_a_site_that_was_not_there_when_the_run_began(self, over, site):
        slow = site("b", fails={"describe": Refused("not_approved")})
        began = []

        def describe(request, honest=slow.describe):
            began.append(request)
            if len(began) > 1:
                slow.fails = {}
            return honest(request)

        slow.describe = describe
        result = self.run(over, [site("a"), slow], rounds=1)
        assert len(began) == 2
        assert result.events[0].returned == ("a", "b")

    def test_takes_a_site_into_a_round_that_has_begun(self, over, site):
        late, tired = site("c", fails={"describe": Refused("not_approved")}), site("b")

        def tired_of_it(request):
            late.fails = {}
            raise Refused("budget")

        tired.train = tired_of_it
        result = self.run(over, [site("a"), tired, late], rounds=1)
        assert result.events[0].returned == ("a", "b")
        assert result.events[1].returned == ("a", "c")
        assert [d.site for d in result.descriptions] == ["a", "b", "c"]

    def test_ends_when_a_node_comes(self):
        class Growing(LocalGrid):
            num_looks = 0

            def get_node_ids(self):
                self.num_looks += 1
                return [2, 3] if self.num_looks > 1 else [2]

        waiting = Collector(Growing({}), timeout_s=30.0)
        wait_for_nodes(Growing({}), waiting)
        assert waiting.seconds_left > 20


class Leaving(LocalGrid):
    """A grid from which sites go away: ``leaves[name]`` says when each is asked for the last time.

    Flower's SuperLink answers in place of a node that is not there. It is back two looks later.
    """

    def __init__(self, sites, leaves, *, returns=True):
        super().__init__({one.name: client_app(one) for one in sites})
        self.leaves, self.returns, self.away = dict(leaves), returns, {}

    def get_node_ids(self):
        here = [i for i in super().get_node_ids() if i not in self.away]
        if self.returns:
            self.away = {i: looks - 1 for i, looks in self.away.items() if looks > 1}
        return here

    def pull_messages(self, message_ids):
        message_id = next((one for one in message_ids if one in self._pushed), None)
        if message_id is None:
            return []
        message = self._pushed[message_id]
        node_id, kind = message.metadata.dst_node_id, message.metadata.message_type
        name = self.names[node_id]
        if self.leaves.get(name, (None, 0))[0] == kind and self.leaves[name][1]:
            self.leaves[name] = (kind, self.leaves[name][1] - 1)
            self.away[node_id] = 2
        if node_id not in self.away:
            return super().pull_messages([message_id])
        del self._pushed[message_id]
        return [Message(Error(ErrorCode.NODE_UNAVAILABLE), reply_to=message)]


class TestASiteThatGoesAway:
    """Under the default policy: it stops a run at its deadline, and not before."""

    @pytest.fixture(autouse=True)
    def _fast(self, monkeypatch):
        monkeypatch.setattr("federation.flower.collecting.LOOK_S", 0.01)

    def run(self, over, sites, leaves, *, returns=True, **more):
        grids = []

        def leaving(_):
            grids.append(Leaving(sites, leaves, returns=returns))
            return grids[0]

        return over(sites, wrap=leaving, **({"min_sites": 2} | more))

    def test_and_comes_back_is_asked_for_the_same_again_and_pays_once(self, over, paying_site):
        sites = [paying_site("a"), paying_site("b")]
        result = self.run(over, sites, {"b": ("train", 3)}, rounds=2)
        assert [event.returned for event in result.events] == [("a", "b")] * 3
        assert [key for key, _ in sites[1].charges] == [(1, 1), (2, 1)]
        assert len([kind for kind, _ in sites[0].seen if kind == "train"]) == 2

    def test_while_it_describes_itself_takes_part(self, over, paying_site):
        sites = [paying_site("a"), paying_site("b")]
        result = self.run(over, sites, {"b": ("query", 1)}, rounds=1)
        assert [event.returned for event in result.events] == [("a", "b")] * 2

    def test_for_good_is_late_at_the_deadline(self, over, paying_site):
        sites = [paying_site("a"), paying_site("b")]
        began = time.monotonic()
        with pytest.raises(RunStoppedError, match=r"Round 1: 1 of 2 .*b did not answer in time"):
            self.run(
                over,
                sites,
                {"b": ("train", 1)},
                returns=False,
                policy=CohortPolicy(deadline_s=0.5),
            )
        assert 0.4 < time.monotonic() - began < 10

    def test_is_not_waited_for_where_there_are_enough(self, over, paying_site):
        sites = [paying_site("a"), paying_site("b")]
        result = self.run(over, sites, {"b": ("train", 1)}, returns=False, min_sites=1)
        assert (result.events[1].returned, result.events[1].late) == (("a",), ("b",))

    def test_is_not_waited_for_where_it_would_not_suffice(self, over, paying_site):
        sites = [paying_site("a"), failing_in(paying_site("b"), {1}), paying_site("c")]
        with pytest.raises(RunStoppedError, match=r"Round 1: 1 of 3"):
            self.run(over, sites, {"c": ("train", 1)}, returns=False, min_sites=3)


class TestTheCohort:
    def test_of_a_round_says_who_returned_declined_and_was_late(self, over, paying_site):
        sites = [paying_site("a"), failing_in(paying_site("b"), {1}), paying_site("c")]
        result = over(
            sites,
            policy=CohortPolicy(sites=5, deadline_s=0.3),
            wrap=lambda _: Losing(sites, {"c": 9}),
        )
        event = result.events[1]
        assert (event.returned, event.refused, event.late) == (("a",), {"b": "budget"}, ("c",))
        assert (event.num_sites, event.outcome, event.lacks_sites) == (5, "completed", True)

    def test_is_not_waited_for_a_second_time_to_score_a_round_in_which_it_was_late(
        self, over, paying_site
    ):
        late = paying_site("b")
        sites = [paying_site("a"), late]
        policy = CohortPolicy(deadline_s=0.3)
        result = over(sites, policy=policy, wrap=lambda _: Losing(sites, {"b": 1}))
        assert [sorted(event.scores) for event in result.events] == [["a", "b"], ["a"]]
        assert [r.round for kind, r in late.seen if kind == "evaluate"] == [0]

    def test_holds_no_others_than_the_experiment_names(self, over, site):
        stranger = site("x")
        policy = CohortPolicy(sites=("a", "gone"))
        result = over([site("a"), stranger], policy=policy)
        assert result.events[1].refused == {"x": "not_declared"}
        assert result.events[1].late == ("gone",)
        assert [kind for kind, _ in stranger.seen] == ["describe"]

    def test_of_more_sites_than_are_declared_trains_nothing(self, over, site):
        sites = [site("a"), site("b"), site("c")]
        with pytest.raises(
            RunStoppedError, match=r"for 2 sites \(cohort\.sites\), and 3 want.*a, b, c"
        ):
            over(sites, policy=CohortPolicy(sites=2))
        assert all(kind == "describe" for one in sites for kind, _ in one.seen)


class TestALostRound:
    def test_is_asked_for_anew_of_that_site_alone(self, over, paying_site):
        sites = [paying_site("a"), paying_site("b", dies=(2,))]
        result = over(sites, rounds=3, min_sites=2, retries=1)
        assert [event.returned for event in result.events] == [("a", "b")] * 4
        assert [key for key, _ in sites[0].charges] == [(1, 1), (2, 1), (3, 1)]
        assert [key for key, _ in sites[1].charges] == [(1, 1), (2, 1), (2, 2), (3, 1)]
        attempts = {(r["round"], r["site"]): r["attempt"] for r in result.receipts}
        assert attempts[2, "a"] == 1 and attempts[2, "b"] == 2

    def test_is_asked_for_no_more_often_than_sites_have_agreed_to_pay(self, over, paying_site):
        sites = [paying_site("a"), paying_site("b", dies=(1, 2, 3))]
        with pytest.raises(RunStoppedError, match=r"Round 3.*\(lost: .*more algorithm\.retries"):
            over(sites, rounds=3, min_sites=2, retries=2)
        assert [key for key, _ in sites[1].charges] == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]

    def test_without_retries_is_a_refusal_like_any_other(self, over, paying_site):
        sites = [paying_site("a"), paying_site("b", dies=(1,))]
        result = over(sites, rounds=1)
        assert result.events[1].refused == {"b": "lost"}


class TestAHugeUpdate:
    def test_is_refused_and_the_run_goes_on(self, over, site, weights):
        # Nine weights, each moved by the step: the norm is three steps.
        policy = CohortPolicy(max_update_norm=3.01)
        result = over([site("a", step=1.0), site("b", step=100.0)], policy=policy)
        assert result.events[1].refused == {"b": "invalid_reply"}
        np.testing.assert_array_equal(result.weights["scale"], weights["scale"] + 1.0)

    def test_is_told_with_norm_and_limit(self, over, site):
        with pytest.raises(RunStoppedError, match=r"L2 norm is 300, past the 3\.01 that the exp"):
            over([site("b", step=100.0)], policy=CohortPolicy(max_update_norm=3.01))

    def test_has_a_norm_however_large_its_values(self, over, site):
        with pytest.raises(RunStoppedError, match=r"L2 norm is 9e\+37"):
            over([site("b", step=3e37)], policy=CohortPolicy(max_update_norm=1.0))
