"""Who is asked to score a model, and how often."""

import pytest

from federation.messages import EvaluateReply


@pytest.fixture
def silent(site):
    """A site that declares no public subjects."""
    made = site("b")

    def evaluate(request):
        made.seen.append(("evaluate", request))
        return EvaluateReply({})

    made.evaluate = evaluate
    return made


def num_asked(fake):
    return [kind for kind, _ in fake.seen].count("evaluate")


def test_a_site_without_public_subjects_is_asked_for_scores_once(over, site, silent):
    scored = site("a")
    events = over([scored, silent], rounds=2).events
    assert (num_asked(scored), num_asked(silent)) == (3, 1)
    assert [event.scores["b"] for event in events] == [{}, {}, {}]
    assert all(event.scores["a"] for event in events)


def test_where_no_site_has_public_subjects_rounds_close_without_a_question(over, silent, caplog):
    events = over([silent], rounds=2).events
    assert num_asked(silent) == 1
    assert [event.round for event in events] == [0, 1, 2]
    assert "no scores" not in caplog.text


def test_a_site_whose_scores_failed_once_is_asked_again(over, site):
    broken = site("a", fails={"evaluate": OSError("disk")})
    events = over([broken], rounds=2).events
    assert num_asked(broken) == 3
    assert all("a" not in event.scores for event in events)
