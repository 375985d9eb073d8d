"""The local stack: start it, stop it, look at it."""

import json
from typing import Any

import typer

from genmodels.cli.options import AsJson
from genmodels.errors import UnavailableError

app = typer.Typer()
PANEL = "The local stack"


@app.command(rich_help_panel=PANEL)
def up(as_json: AsJson = False) -> None:
    """Start SeaweedFS (S3), MLflow, Prefect and a Ray head in the background, and wait until each answers.

    What runs already is left alone. Ports that are taken are replaced by free ones. All state lies under
    GENMODELS_HOME (.genmodels); everything listens on this machine only.
    """
    from genmodels.stack.local import LocalStack
    from genmodels.terminal import starting

    stack = LocalStack()
    with starting() as show:
        stack.up(on_change=show)
    report_status(stack, as_json)


@app.command(rich_help_panel=PANEL)
def down() -> None:
    """Stop what `up` started. All data, runs and models are kept for the next `up`."""
    from genmodels.stack.local import LocalStack
    from genmodels.terminal import console, working

    with working("stopping the stack"):
        ran = LocalStack().down()
    console.print("The stack is stopped; its data are kept." if ran else "The stack was not running.")


@app.command(rich_help_panel=PANEL)
def status(as_json: AsJson = False) -> None:
    """Show address, state and log file of each service; the exit code is 75 unless all of them answer."""
    from genmodels.stack.local import LocalStack

    stack = LocalStack()
    if not report_status(stack, as_json):
        raise UnavailableError("The stack is not running as a whole; start it with `genmodels up`.")


def report_status(stack: Any, as_json: bool) -> bool:
    """Prints the state of each service; True if all run."""
    from genmodels.terminal import print_table

    services = stack.status()
    if as_json:
        print(json.dumps({"home": str(stack.home), "services": {s.name: vars(s) for s in services}}))
    else:
        rows = [[s.title, s.state, s.address, s.log] for s in services]
        print_table(["service", "state", "address", "log"], rows)
    return bool(services) and all(s.state == "running" for s in services)
