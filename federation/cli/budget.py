"""``cohortium budget``: what an experiment will cost a site, and what was spent."""

import json
from pathlib import Path
from typing import Annotated

import typer

from federation.errors import FederationError

app = typer.Typer(no_args_is_help=True, help="Forecast and show what a site's subjects lose.")

FORECAST_HELP = """Say what an experiment would cost a site, before anybody approves it.

No image is opened and nothing is recorded. The figures are the filter's own: it is asked what it
would say. It names the largest epsilon that the experiment could ask for: written into its
privacy.epsilon, the run uses up what is left, and finishes. The tables tell what other numbers of
rounds, other noise and other sampling would cost.

\b
Examples:
  cohortium budget forecast experiment.yaml --site site.yaml
  cohortium budget forecast experiment.yaml --site site.yaml --json > forecast.json

Exit status: 0 it fits; 1 it does not; 2 the command cannot be run as given.
"""

SHOW_HELP = """Show what a site's subjects have lost so far, by experiment and by month.

\b
Examples:
  cohortium budget show site.yaml
  cohortium budget show site.yaml --json > spending.json
"""

SiteFile = Annotated[
    Path, typer.Argument(metavar="SITE.yaml", help="The site file.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback()
def budget() -> None:
    """Forecast and show what a site's subjects lose."""


@app.command("forecast", help=FORECAST_HELP)
def forecast_(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", show_default=False)],
    site: Annotated[Path, typer.Option("--site", metavar="SITE.yaml", help="The site file.")],
    as_json: AsJson = False,
) -> None:
    """Forecast an experiment's cost."""
    from federation.cli import show_budget
    from federation.experiment import load_experiment
    from federation.forecast import forecast
    from federation.privacy.plan import make_plan
    from federation.site import budget_of

    wanted = load_experiment(experiment)
    if wanted.privacy.kind != "subject_dp":
        raise FederationError(
            f"Experiment '{wanted.name}' has no privacy, so that there is nothing to forecast: "
            "its epsilon is infinite. Give it privacy: {kind: subject_dp, ...}."
        )
    found = forecast(make_plan(wanted), budget_of(site, wanted.digest()))
    if as_json:
        typer.echo(json.dumps({"experiment": wanted.name, **found.to_json()}, indent=2))
    else:
        show_budget.forecast(wanted.name, found)
    raise typer.Exit(0 if found.admitted else 1)


@app.command(help=SHOW_HELP)
def show(site_file: SiteFile, as_json: AsJson = False) -> None:
    """Show what was spent."""
    from federation.cli import show_budget
    from federation.site import has_ledger, load_site_config, open_site
    from federation.spending import spending
    from federation.usage import every_use

    if not has_ledger(load_site_config(site_file)):
        raise FederationError(
            f"The site of {site_file} has no ledger yet: nothing was approved or spent. Its first "
            "approval starts one."
        )
    site = open_site(site_file)
    ledger = site.ledger
    found = spending(site.name, ledger.policy, ledger.records, ledger.promised())
    used = every_use(site)
    if as_json:
        models = [
            {"experiment_digest": one.digest, "runs": one.runs, "models": one.models}
            for one in used
        ]
        typer.echo(json.dumps(found.to_json() | {"used_by": models}, indent=2))
    else:
        show_budget.spending(found, used, site.experiment_name)
