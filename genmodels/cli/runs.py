"""Whole runs by the flow, and what schedules, promotes and sums them up."""

import json
from datetime import timedelta
from typing import Annotated, Literal

import typer

from genmodels.cli.options import AsJson, Dataset, Model, Overrides, Preset, Seed, Workers
from genmodels.errors import SpecError

app = typer.Typer()
PANEL = "A run"


@app.command(rich_help_panel=PANEL)
def retrain(
    model: Model,
    dataset: Dataset,
    preset: Preset = "demo",
    overrides: Overrides = None,
    workers: Workers = 1,
    seed: Seed = 0,
    promotion: Annotated[
        Literal["automatic", "manual"],
        typer.Option(help="Who makes a challenger champion: the rule, or a person, who is asked on the run's page."),
    ] = "automatic",
    as_json: AsJson = False,
) -> None:
    """Run the flow: prepare the data, train, evaluate, register, and promote the model if it beats the champion.

    Steps that are done already are not done again, and a run that was cut off goes on from its last checkpoint.
    """
    from genmodels.steps.resolve import resolve

    resolve(model, dataset, preset, overrides or [], seed, workers)  # refuses bad input before Prefect is imported

    from flows.retrain import retrain_now

    outcome = retrain_now(model, dataset, preset, overrides or [], seed=seed, workers=workers, promotion=promotion)
    if as_json:
        print(outcome.model_dump_json())
    else:
        from genmodels.pictures import kept
        from genmodels.terminal import print_outcome

        print_outcome(outcome, kept(outcome.pictures, outcome.model_uri))


@app.command(rich_help_panel=PANEL)
def serve(
    limit: Annotated[int, typer.Option(min=1, help="Flow runs that may go on at the same time.")] = 8,
) -> None:
    """Publish the deployments in Prefect and run what is due or asked for on its pages, until it is stopped."""
    from flows.deployments import serve as serve_deployments

    serve_deployments(limit)


@app.command(rich_help_panel=PANEL)
def alerts(as_json: AsJson = False) -> None:
    """Publish the alerts in Prefect, which `serve` does as well; what is there already is left as it is.

    They tell of failures, crashes, cancellations, refused challengers, steps without progress, missed schedules and
    questions to a person. Whom they tell is a block of Prefect's (Slack, webhook, mail): GENMODELS_ALERT_BLOCK.
    """
    from flows.deployments import publish_alerts
    from genmodels.terminal import print_table

    changes = publish_alerts()
    if as_json:
        print(json.dumps(changes))
    else:
        print_table(["automation", ""], list(changes.items()))


@app.command(rich_help_panel=PANEL)
def promote(
    version: Annotated[str, typer.Argument(metavar="MODEL@VERSION", help="progressive_gan.digits@3, or ...@previous.")],
    because: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a registered version the champion, whatever its numbers: a rollback. The champion becomes `previous`."""
    from genmodels.terminal import console
    from genmodels.tracking.promotion import appoint

    promotion = appoint(version, because)
    if as_json:
        print(promotion.model_dump_json())
    else:
        console.print(f"{promotion.name} version {promotion.version} is the champion. {promotion.reason}")


@app.command(rich_help_panel=PANEL)
def costs(
    since: Annotated[str, typer.Option(metavar="DURATION", help="Such as 12h, 7d or 4w.")] = "7d",
    as_json: AsJson = False,
) -> None:
    """Sum up what steps cost, by model and by what started them: device time, energy, bytes moved, peak memory."""
    from genmodels.steps.costs import costs_since, totals
    from genmodels.terminal import print_costs

    records = costs_since(duration(since))
    sums = {"models": totals(records, by="model"), "started_by": totals(records, by="started_by")}
    if as_json:
        print(json.dumps({kind: {name: c.model_dump() for name, c in found.items()} for kind, found in sums.items()}))
    else:
        for kind, found in sums.items():
            print_costs(kind.replace("_", " "), found)


def duration(text: str) -> timedelta:
    """The time that such as 90m, 12h, 7d or 4w stand for."""
    unit = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}.get(text[-1:])
    if unit is None or not text[:-1].isdecimal() or len(text) > 6:
        raise SpecError(f"{text!r} is not a duration; expected a number and one of m, h, d, w, such as 7d.")
    return timedelta(**{unit: int(text[:-1])})
