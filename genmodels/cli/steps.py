"""One step by hand, which is also what Prefect's tasks run as Ray jobs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genmodels.cli.options import AsJson, Dataset, Model, Overrides, Preset, Seed, Workers
from genmodels.errors import GenmodelsError, SpecError, first_problem

if TYPE_CHECKING:
    from genmodels.spec import Record, RunSpec

Spec = Annotated[str, typer.Argument(help="Where the spec lies: a path, an s3:// address, or - for standard input.")]
OnRay = Annotated[bool, typer.Option("--ray", hidden=True, help="This process is a Ray job.")]

app = typer.Typer()
PANEL = "One step by hand, in this process: no Prefect, no Ray"


@app.command(rich_help_panel=PANEL)
def spec(
    model: Model,
    dataset: Dataset,
    preset: Preset = "demo",
    overrides: Overrides = None,
    workers: Workers = 1,
    seed: Seed = 0,
) -> None:
    """Print the spec of a run, for the commands below: `genmodels spec progressive_gan -d digits > spec.json`."""
    from genmodels.steps.resolve import resolve

    print(resolve(model, dataset, preset, overrides or [], seed, workers).model_dump_json(indent=2))


@app.command(rich_help_panel=PANEL)
def prepare(spec: Spec, as_json: AsJson = False, ray: OnRay = False) -> None:
    """Download, check and preprocess the data set of a spec into the object store."""
    run_step("prepare", read_spec(spec), as_json, ray)


@app.command(rich_help_panel=PANEL)
def train(spec: Spec, as_json: AsJson = False, ray: OnRay = False) -> None:
    """Train the model of a spec, or go on from its last checkpoint; `prepare` comes first."""
    run_step("train", prepared(read_spec(spec)), as_json, ray)


@app.command(rich_help_panel=PANEL)
def evaluate(spec: Spec, as_json: AsJson = False, ray: OnRay = False) -> None:
    """Measure a trained model, with the floor and the ceiling of each number; `train` comes first."""
    run_step("evaluate", prepared(read_spec(spec)), as_json, ray)


@app.command(rich_help_panel=PANEL)
def register(spec: Spec, as_json: AsJson = False, ray: OnRay = False) -> None:
    """Register a trained model in MLflow, with alias challenger; `evaluate` comes first."""
    run_step("register", prepared(read_spec(spec)), as_json, ray)


def run_step(name: str, spec: "RunSpec", as_json: bool, ray: bool) -> None:
    """Run one step. Within a Ray job its failure is left in the object store for whoever follows the job."""
    from contextlib import nullcontext
    from importlib import import_module

    from genmodels.steps.costs import metered, tell_mlflow
    from genmodels.steps.jobs import started_by
    from genmodels.steps.reports import save_failure
    from genmodels.terminal import print_report, watching

    step = getattr(import_module(f"genmodels.steps.{name}"), name)
    # What may be done by several processes has a meter in each.
    with nullcontext() if name in {"train", "evaluate"} else metered(name, spec, started_by()):
        if ray:
            try:
                report: Record = step(spec) if name == "register" else step(spec, ray=True)
            except GenmodelsError as error:
                save_failure(name, spec, error)
                raise
        else:
            with watching(name, spec):
                report = step(spec)
    if name != "prepare":  # which belongs to no run
        tell_mlflow(name, spec)
    if as_json or ray:
        print(report.model_dump_json())
    else:
        print_report(report)


def read_spec(address: str) -> "RunSpec":
    """The spec at a path, at an s3:// address or on standard input; SpecError if there is none."""
    from pydantic import ValidationError

    from genmodels.spec import RunSpec

    try:
        if address.startswith("s3://"):
            from genmodels.storage.objects import store

            text = store().read(address)
        else:
            text = sys.stdin.buffer.read() if address == "-" else Path(address).read_bytes()
        return RunSpec.model_validate_json(text)
    except OSError as error:
        raise SpecError(
            f"The spec {address} cannot be read: {error.strerror}; make one with `genmodels spec`."
        ) from None
    except ValidationError as error:
        where, problem = first_problem(error)
        raise SpecError(
            f"{address} is not a spec: {where or 'it'}: {problem}; make one with `genmodels spec`."
        ) from None
    except ValueError:  # a NUL, half a surrogate
        raise SpecError(f"The spec {address!r} cannot be read: no file has such a name.") from None


def prepared(spec: "RunSpec") -> "RunSpec":
    """The spec bound to its prepared data; SpecError if `prepare` has not run."""
    from genmodels.spec import PrepareReport
    from genmodels.steps.reports import load_report

    if spec.dataset_digest is not None:
        return spec
    report = load_report("prepare", spec, PrepareReport)
    if report is None:
        raise SpecError(f"The data of {spec.dataset} are not prepared: run `genmodels prepare` with this spec first.")
    return spec.with_dataset(report.dataset_digest)
