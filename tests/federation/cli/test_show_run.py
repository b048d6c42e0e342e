"""What people see of rounds in which sites were missing: it must not be overlooked."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from federation.cli import show
from federation.messages import RoundFinished
from tests.experiments import tiny_experiment

WHOLE = RoundFinished(1, ("a", "b"), {}, {"a": {"dice": 0.5}})
FEWER = RoundFinished(2, ("a",), {"b": "budget"}, {}, late=("c",), num_declared=5)
SKIPPED = RoundFinished(2, (), {"a": "lost"}, {}, late=("b",), outcome="skipped")


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (WHOLE, "round 1 of 2: 2 sites returned, Dice on public subjects 0.500"),
        (
            FEWER,
            "round 2 of 2: [bold yellow]1 of 5 sites returned[/], b refused: budget, c late",
        ),
        (
            SKIPPED,
            "round 2 of 2: [bold red]SKIPPED[/], too few: 0 of 2 sites returned, the model is as "
            "it was, a refused: lost, b late",
        ),
    ],
)
def test_a_rounds_line_says_how_many_of_how_many_and_who_is_missing(event, line):
    assert show._round_line(tiny_experiment(), event) == line


@pytest.mark.parametrize(
    ("event", "site", "state"),
    [
        (WHOLE, "a", "[green]returned[/]"),
        (FEWER, "b", "[red]refused: budget[/]"),
        (FEWER, "c", "[yellow]late[/]"),
        (FEWER, "x", "[dim]no reply[/]"),
        (RoundFinished(1, ("a",), {}, {}, outcome="skipped"), "a", "[red]skipped[/]"),
    ],
)
def test_a_sites_line_says_what_became_of_it(event, site, state):
    assert show._state(event, site) == state


def test_the_end_of_a_run_counts_the_rounds_without_all_sites_and_says_who_was_missing():
    before = RoundFinished(0, ("a",), {}, {}, num_declared=5)
    assert show.incomplete_rounds([before, WHOLE]) == []
    skipped, fewer = show.incomplete_rounds([before, WHOLE, FEWER, SKIPPED])
    assert "Skipped for want of sites: 1 of 3 rounds" in skipped
    assert "what sites paid in them stands" in skipped
    assert "Without all sites: 1 of 3 rounds[/] (2)" in fewer
    assert "a (lost) 1 x, b (budget) 1 x, b (late) 1 x, c (late) 1 x." in fewer


def test_the_summary_for_programs_has_each_rounds_cohort(capsys):
    summary = SimpleNamespace(
        run="ab",
        experiment=tiny_experiment(),
        events=(WHOLE, FEWER),
        sites=(),
        seconds=1.0,
        out=Path("x"),
        store="",
        verify_command="",
        mean_score=lambda when: 0.5,
    )
    show.summary_json(summary)
    rounds = json.loads(capsys.readouterr().out)["rounds"]
    assert rounds[1] == {
        "round": 2,
        "outcome": "completed",
        "returned": ["a"],
        "refused": {"b": "budget"},
        "late": ["c"],
        "num_sites": 5,
    }
