"""One step by hand, which is also what Prefect's tasks run as Ray jobs."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Annotated

import typer

from genmodels.cli.options import AsJson, Dataset, Model, Overrides, Preset, Seed, Workers
from genmodels.errors import GenmodelsError, SpecError, first_problem

if TYPE_CHECKING:
    from genmodels.spec import Record, RunSpec

Spec = Annotated[str, typer.Argument(help="Where the spec lies: a path, an s3:// address, or - for standard input.")]
LOADING_DELAY_SECONDS = 300.0  # the imports stop a training that has all processors for about a hundredth of that

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
def prepare(spec: Spec, as_json: AsJson = False) -> None:
    """Download, check and preprocess the data set of a spec into the object store."""
    by_hand("prepare", spec, as_json)


@app.command(rich_help_panel=PANEL)
def train(spec: Spec, as_json: AsJson = False) -> None:
    """Train the model of a spec, or go on from its last checkpoint; `prepare` comes first."""
    by_hand("train", spec, as_json)


@app.command(rich_help_panel=PANEL)
def evaluate(spec: Spec, as_json: AsJson = False) -> None:
    """Measure a trained model, with the floor and the ceiling of each number; `train` comes first."""
    by_hand("evaluate", spec, as_json)


@app.command(rich_help_panel=PANEL)
def register(spec: Spec, as_json: AsJson = False) -> None:
    """Register a trained model in MLflow, with alias challenger; `evaluate` comes first."""
    by_hand("register", spec, as_json)


def by_hand(step: str, address: str, as_json: bool) -> None:
    """Run one step and show how it goes."""
    from genmodels.terminal import print_report, watching

    spec = spec_of_step(step, address)
    report = run_step(step, spec, watching=watching(step, spec))
    if as_json:
        print(report.model_dump_json())
    else:
        print_report(report)


@app.command(hidden=True)
def job(spec: Spec, steps: list[str]) -> None:
    """Be the process of a Ray job: run steps one after the other."""
    first, *later = steps
    with loading(later) if later else nullcontext():
        as_part_of_job(first, spec)
    for step in later:
        as_part_of_job(step, spec)


@contextmanager
def loading(steps: Sequence[str]) -> Iterator[None]:
    """Imports meanwhile, if it lasts, what later steps need: seconds that would else come after it. Of `torch.export`
    most is imported only when it is called."""
    modules = [*(f"genmodels.steps.{step}" for step in steps), "torch._dynamo"]
    timer = Timer(LOADING_DELAY_SECONDS, lambda: [import_module(module) for module in modules])
    timer.daemon = True
    timer.start()
    yield  # what fails ends the process, which does not wait for its imports
    timer.cancel()
    timer.join()


def as_part_of_job(step: str, address: str) -> None:
    """Run one step under its heading in the log. A failure is left in the object store for whoever follows it."""
    from genmodels.steps.jobs import HEADING
    from genmodels.steps.reports import save_failure

    print(HEADING.format(step), flush=True)
    spec = spec_of_step(step, address)
    try:
        run_step(step, spec, ray=True)
    except GenmodelsError as error:
        save_failure(step, spec, error)
        raise


def run_step(
    step: str, spec: "RunSpec", *, ray: bool = False, watching: AbstractContextManager[object] | None = None
) -> "Record":
    """Run one step, account for it, and return its report."""
    from genmodels.steps.costs import metered, tell_mlflow
    from genmodels.steps.jobs import started_by

    run = getattr(import_module(f"genmodels.steps.{step}"), step)
    # What may be done by several processes has a meter in each.
    meter = nullcontext() if step in {"train", "evaluate"} else metered(step, spec, started_by())
    with meter, watching or nullcontext():
        report = run(spec, ray=True) if ray and step != "register" else run(spec)
    if step != "prepare":  # which belongs to no run
        tell_mlflow(step, spec)
    return report


def spec_of_step(step: str, address: str) -> "RunSpec":
    """The spec at an address; for all steps but the first bound to its prepared data."""
    spec = read_spec(address)
    return spec if step == "prepare" else prepared(spec)


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
