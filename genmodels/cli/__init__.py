"""The `genmodels` command. Every command imports what it needs when it runs, so that help is immediate."""

import os
import sys
from typing import NoReturn

import typer

from genmodels.cli import catalogue, runs, stack, steps, trained
from genmodels.errors import FULL_DISK, AccessError, GenmodelsError

app = typer.Typer(
    help="Train generative models: Prefect flows, Ray workers, MLflow registry, S3 artifacts.",
    epilog="A first model in two commands: `genmodels up`, then `genmodels retrain progressive_gan --dataset digits`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (stack.app, runs.app, steps.app, trained.app, catalogue.app):
    app.add_typer(commands)


def main() -> None:
    """Run the command line; an error that is meant for people is one line, without a traceback."""
    try:
        app()
    except GenmodelsError as error:
        _end(error)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        _end(AccessError(f"A disk is full ({error}); free some space, or set GENMODELS_HOME or GENMODELS_CACHE_DIR."))


def _end(error: GenmodelsError) -> NoReturn:
    print(f"genmodels: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


@app.callback()
def connect() -> None:
    """Point the clients of Prefect, Ray and MLflow at the stack of the settings, before any of them is imported."""
    from genmodels.settings import settings

    os.environ |= settings().client_environment()
