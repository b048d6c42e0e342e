import pytest
from pydantic import ValidationError

from federation.cohort import CohortPolicy
from federation.experiment import Experiment
from federation.messages import RoundFinished
from tests.experiments import demo_values


def experiment(cohort=None, **algorithm):
    values = demo_values()
    values["algorithm"] |= algorithm
    return Experiment.model_validate(values if cohort is None else {**values, "cohort": cohort})


class TestThePolicyInAnExperiment:
    def test_is_not_in_the_digest_where_it_says_nothing_new(self):
        assert "cohort" not in experiment().model_dump(mode="json")
        assert experiment({}).digest() == experiment().digest()
        assert experiment({"below_minimum": "stop"}).digest() == experiment().digest()

    @pytest.mark.parametrize(
        "cohort",
        [
            {"sites": 3},
            {"sites": ["a", "b", "c"]},
            {"deadline_s": 3600},
            {"below_minimum": "skip"},
            {"below_minimum": "wait", "waits": 5},
            {"wait_s": 60},
            {"max_update_norm": 10.0},
        ],
    )
    def test_is_in_the_digest_where_it_says_something(self, cohort):
        changed = experiment(cohort)
        assert changed.digest() != experiment().digest()
        assert Experiment.model_validate(changed.model_dump(mode="json")).digest() == (
            changed.digest()
        )

    @pytest.mark.parametrize("sites", [2, ["a", "b"]])
    def test_cannot_declare_fewer_sites_than_the_minimum(self, sites):
        with pytest.raises(ValidationError, match=r"min_sites is 3 but cohort\.sites declares 2"):
            experiment({"sites": sites}, min_sites=3)

    @pytest.mark.parametrize(
        "cohort",
        [
            {"sites": 0},
            {"sites": [""]},
            {"sites": ["a\x1bb"]},
            {"sites": []},
            {"sites": ["a", "a"]},
            {"deadline_s": 0},
            {"deadline_s": float("inf")},
            {"below_minimum": "hope"},
            {"waits": 0},
            {"wait_s": -1},
            {"max_update_norm": 0},
            {"max_update_norm": float("nan")},
            {"unknown": 1},
        ],
    )
    def test_out_of_range_is_refused(self, cohort):
        with pytest.raises(ValidationError):
            experiment(cohort, min_sites=1)

    def test_knows_names_and_number(self):
        assert (CohortPolicy().names, CohortPolicy().num_sites) == (None, None)
        assert (CohortPolicy(sites=4).names, CohortPolicy(sites=4).num_sites) == (None, 4)
        named = CohortPolicy(sites=("a", "b"))
        assert (named.names, named.num_sites) == (("a", "b"), 2)


class TestARound:
    @pytest.mark.parametrize(
        ("event", "num_sites", "lacks_sites"),
        [
            (RoundFinished(1, ("a", "b"), {}, {}), 2, False),
            (RoundFinished(1, ("a",), {"b": "budget"}, {}, late=("c",)), 3, True),
            (RoundFinished(1, ("a",), {}, {}, num_declared=5), 5, True),
            (RoundFinished(1, ("a", "b"), {}, {}, num_declared=1), 2, False),
            (RoundFinished(1, ("a",), {"b": "lost"}, {}, outcome="skipped"), 2, False),
        ],
    )
    def test_knows_how_many_sites_there_should_have_been(self, event, num_sites, lacks_sites):
        assert (event.num_sites, event.lacks_sites) == (num_sites, lacks_sites)
