"""Tables of ``cohortium budget``. No decisions here."""

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from federation.cli.show import epsilon, epsilon_left
from federation.forecast import Forecast, Point
from federation.spending import NOT_COVERED, Spending
from federation.usage import UsedBy

_console = Console()


def forecast(name: str, found: Forecast) -> None:
    """Say what a run costs, then what its neighbours would."""
    _console.print(_sentence(name, found), highlight=False)
    _console.print(
        f"{found.charges} rounds and permitted repeats, {found.steps} steps in all, sampling rate "
        f"{found.sampling_rate:g}, noise {found.noise_multiplier:g} x clip norm, delta "
        f"{found.delta:g}.",
        highlight=False,
    )
    _console.print(_largest(found), highlight=False)
    # The filter counts what is charged: a repeat of a lost round costs what a round costs.
    _table("More or fewer rounds", "rounds charged, retries included", found.by_rounds)
    _table("More or less noise", "noise multiplier", found.by_noise)
    _table("Other sampling rates", "sampling rate", found.by_sampling_rate)
    _wanted(found)


def _sentence(name: str, found: Forecast) -> str:
    cost, left = epsilon(found.cost), epsilon_left(found.left)
    if found.admitted:
        more = f"{found.more_runs} more such run{'' if found.more_runs == 1 else 's'}"
        return (
            f"[bold]{found.site}[/]: '{name}' costs epsilon [bold]{cost}[/] of the {left} left "
            f"(limit {epsilon(found.limit)}); {more} would fit after it."
        )
    way = (
        f"it would fit with a noise multiplier of {found.noise_that_fits:g}"
        if found.noise_that_fits
        else "no amount of noise makes so many steps fit"
    )
    return (
        f"[bold]{found.site}[/]: '{name}' [bold red]does not fit[/]: it costs epsilon {cost} and "
        f"{left} is left (limit {epsilon(found.limit)}); {way}."
    )


def _largest(found: Forecast) -> str:
    """Say what to write for the most that is left; the number is rounded down, not shown so."""
    if found.epsilon_that_fits is None:
        return "No privacy.epsilon makes it fit: lower its rounds, retries or steps.\n"
    return (
        f"The largest privacy.epsilon with which all of them fit what is left: "
        f"[bold]{found.epsilon_that_fits:g}[/].\n"
    )


def _table(title: str, heading: str, points: Sequence[Point]) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column(heading, justify="right", no_wrap=True)
    for text in ("epsilon of the run alone", "fits what is left"):
        table.add_column(text, justify="right")
    for point in points:
        cost = "-" if point.epsilon is None else epsilon(point.epsilon)
        table.add_row(f"{point.value:g}", cost, _fits(point))
    _console.print(table)


def _fits(point: Point) -> str:
    return "yes" if point.fits else "[red]no[/]"


def _wanted(found: Forecast) -> None:
    table = Table(title="Noise for a wanted epsilon", title_justify="left", box=SIMPLE_HEAD)
    for text in ("epsilon", "noise multiplier", "fits what is left"):
        table.add_column(text, justify="right")
    for point in found.noise_for:
        noise = "-" if point.noise_multiplier is None else f"{point.noise_multiplier:g}"
        table.add_row(f"{point.value:g}", noise, _fits(point))
    _console.print(table)


def spending(found: Spending, used: Sequence[UsedBy], name_of: Callable[[str], str]) -> None:
    """Show the filter's state, by experiment and by month, and what it does not cover.

    Args:
        used: The runs that were charged, and their models.
    """
    _console.print(
        f"[bold]{found.site}[/]: each protected subject is promised epsilon at most "
        f"[bold]{epsilon(found.limit)}[/] at delta {found.delta:g}, over all experiments.\n"
        f"The filter stands at {epsilon(found.spent)}; with what is approved and not charged yet "
        f"at {epsilon(found.promised)}; {epsilon_left(found.left)} is left.\n",
        highlight=False,
    )
    table = Table(title="By experiment", title_justify="left", box=SIMPLE_HEAD)
    for text in ("experiment", "digest", "charges", "sent", "last", "epsilon alone"):
        table.add_column(text)
    for share in found.experiments:
        table.add_row(
            name_of(share.experiment_digest),
            share.experiment_digest.removeprefix("sha256:")[:12],
            str(share.charges),
            str(share.releases),
            share.last[:10],
            epsilon(share.epsilon),
        )
    _console.print(table)
    for other in found.beside:
        _console.print(
            f"{other.at[:10]} {other.kind}: {epsilon(other.epsilon)} alone. {other.reason}",
            highlight=False,
            markup=False,
        )
    _months(found)
    _models(used)
    _console.print("Not covered:", highlight=False)
    for line in NOT_COVERED:
        _console.print(f"- {line}", highlight=False)


def _months(found: Spending) -> None:
    table = Table(title="By month", title_justify="left", box=SIMPLE_HEAD)
    for text in ("month", "charges", "filter at its end"):
        table.add_column(text, justify="right")
    for month in found.months:
        table.add_row(month.month, str(month.charges), epsilon(month.epsilon))
    _console.print(table)


def _models(used: Sequence[UsedBy]) -> None:
    table = Table(title="Models that used the data", title_justify="left", box=SIMPLE_HEAD)
    for text in ("experiment", "run", "sent", "model"):
        table.add_column(text, overflow="fold")
    for one in used:
        for run, updates in one.runs.items():
            model = one.models.get(run, "not told: the run has not ended here")
            table.add_row(one.name, run[:12], str(updates), model.removeprefix("sha256:"))
    _console.print(table)
