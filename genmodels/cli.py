"""The `genmodels` command. Every command imports what it needs when it runs, so that help is immediate."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from genmodels.errors import GenmodelsError, SpecError, UnavailableError

if TYPE_CHECKING:
    from genmodels.spec import Record, RunSpec

app = typer.Typer(
    help="Train generative models: Prefect flows, Ray workers, MLflow registry, S3 artifacts.",
    epilog="A first model in two commands: `genmodels up`, then `genmodels retrain progressive_gan --dataset digits`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

STACK = "The local stack"
RUN = "A run"
STEPS = "One step by hand, in this process: no Prefect, no Ray"
USE = "Trained models"
KNOW = "What there is"
CAPABILITIES = ("sample", "translate", "encode", "log_likelihood")

AsJson = Annotated[bool, typer.Option("--json", help="End with one JSON object on the last line of the output.")]
Model = Annotated[str, typer.Argument(help="A name from `genmodels models`.")]
Dataset = Annotated[
    str, typer.Option("--dataset", "-d", help="A name from `genmodels datasets`, folder:PATH or s3://bucket/prefix.")
]
Preset = Annotated[
    str,
    typer.Option(help="The model's settings to start from: `demo` learns in minutes on a CPU, `paper` is the paper's."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace one setting of the model, of the engine as training.KEY, or of the evaluation as evaluation.KEY; "
        "may be given several times.",
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Data-parallel training processes on the Ray cluster.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random; the same seed gives the same model.")]
Spec = Annotated[str, typer.Argument(help="Where the spec lies: a path, an s3:// address, or - for standard input.")]
OnRay = Annotated[bool, typer.Option("--ray", hidden=True, help="This process is a Ray job.")]
WalkPath = Literal["spherical", "linear"]
ModelUri = Annotated[str, typer.Argument(help="models:/NAME/VERSION or models:/NAME@ALIAS, as `retrain` prints it.")]


def main() -> None:
    """Run the command line; an error that is meant for people is one line, without a traceback."""
    try:
        app()
    except GenmodelsError as error:
        print(f"genmodels: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@app.callback()
def connect() -> None:
    """Point the clients of Prefect, Ray and MLflow at the stack of the settings, before any of them is imported."""
    from genmodels.settings import settings

    os.environ |= settings().client_environment()


@app.command(rich_help_panel=STACK)
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


@app.command(rich_help_panel=STACK)
def down() -> None:
    """Stop what `up` started. All data, runs and models are kept for the next `up`."""
    from genmodels.stack.local import LocalStack
    from genmodels.terminal import console, working

    with working("stopping the stack"):
        ran = LocalStack().down()
    console.print("The stack is stopped; its data are kept." if ran else "The stack was not running.")


@app.command(rich_help_panel=STACK)
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


@app.command(rich_help_panel=RUN)
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


@app.command(rich_help_panel=RUN)
def serve(
    limit: Annotated[int, typer.Option(min=1, help="Flow runs that may go on at the same time.")] = 8,
) -> None:
    """Publish the deployments in Prefect and run what is due or asked for on its pages, until it is stopped."""
    from flows.deployments import serve as serve_deployments

    serve_deployments(limit)


@app.command(rich_help_panel=RUN)
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


@app.command(rich_help_panel=RUN)
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


@app.command(rich_help_panel=RUN)
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


@app.command(rich_help_panel=STEPS)
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


@app.command(rich_help_panel=STEPS)
def prepare(spec: Spec, as_json: AsJson = False, ray: OnRay = False) -> None:
    """Download, check and preprocess the data set of a spec into the object store."""
    run_step("prepare", read_spec(spec), as_json, ray)


@app.command(rich_help_panel=STEPS)
def train(spec: Spec, as_json: AsJson = False, ray: OnRay = False) -> None:
    """Train the model of a spec, or go on from its last checkpoint; `prepare` comes first."""
    run_step("train", prepared(read_spec(spec)), as_json, ray)


@app.command(rich_help_panel=STEPS)
def evaluate(spec: Spec, as_json: AsJson = False, ray: OnRay = False) -> None:
    """Measure a trained model, with the floor and the ceiling of each number; `train` comes first."""
    run_step("evaluate", prepared(read_spec(spec)), as_json, ray)


@app.command(rich_help_panel=STEPS)
def register(spec: Spec, as_json: AsJson = False, ray: OnRay = False) -> None:
    """Register a trained model in MLflow, with alias challenger; `evaluate` comes first."""
    run_step("register", prepared(read_spec(spec)), as_json, ray)


def run_step(name: str, spec: "RunSpec", as_json: bool, ray: bool) -> None:
    """Run one step. Within a Ray job its failure is left in the object store for whoever follows the job."""
    from contextlib import nullcontext
    from importlib import import_module

    from genmodels.jobs import started_by
    from genmodels.steps.costs import metered, tell_mlflow
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
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise SpecError(f"{address} is not a spec: {where}: {first['msg']}; make one with `genmodels spec`.") from None
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


@app.command(rich_help_panel=USE)
def sample(
    model_uri: ModelUri,
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 64,
    seed: Seed = 0,
    truncation: Annotated[
        float | None,
        typer.Option(help="Largest |z| of the normal numbers in a latent: less makes images likelier and more alike."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("grid.png"),
) -> None:
    """Draw images from a registered model into one picture."""
    from genmodels.evaluation.pictures import grid
    from genmodels.pictures import save
    from genmodels.terminal import console, working
    from genmodels.tracking.registry import sample

    with working(f"sampling {model_uri}"):
        images = sample(model_uri, n, seed=seed, truncation=truncation)
        save(grid(images, columns=math.ceil(math.sqrt(n))), out)
    console.print(f"{n} images of {model_uri} are in {out}.")


Numbers = Annotated[
    list[int], typer.Argument(min=0, help="Numbers of images in the grid of `genmodels sample`, row by row from 0.")
]
Concept = Annotated[str, typer.Argument(metavar="N,N,...", help="Numbers of images that have it, as in 3,14,15.")]
Steps = Annotated[int, typer.Option(min=2, help="Images in a row.")]
Out = Annotated[Path, typer.Option(help="The picture to write.")]


@app.command(rich_help_panel=USE)
def interpolate(
    model_uri: ModelUri,
    images: Numbers,
    path: Annotated[WalkPath, typer.Option(help="Along the sphere where latents lie, or straight.")] = "spherical",
    steps: Steps = 8,
    seed: Seed = 0,
    out: Out = Path("interpolation.png"),
) -> None:
    """Draw what lies between images of a registered model: a row from each of them to the next."""
    from genmodels.latents import interpolation, latents_of, model_with_latents

    with drawing(model_uri, out) as draw:
        model = model_with_latents(model_uri)
        draw(interpolation(model, latents_of(model, images, seed=seed), steps=steps, path=path), columns=steps)


@app.command(rich_help_panel=USE)
def traverse(
    model_uri: ModelUri,
    coordinate: Annotated[int, typer.Argument(min=0, help="Which number of the latent vector; InfoGAN's codes lead.")],
    rows: Annotated[int, typer.Option(min=1, help="Images to start from: the first of `genmodels sample`.")] = 8,
    steps: Steps = 10,
    seed: Seed = 0,
    out: Out = Path("traversal.png"),
) -> None:
    """Draw what one number of the latent vector of a registered model does: a row for each of a few images."""
    from genmodels.latents import latents_of, model_with_latents, traversal

    with drawing(model_uri, out) as draw:
        model = model_with_latents(model_uri)
        draw(traversal(model, latents_of(model, range(rows), seed=seed), coordinate, steps=steps), columns=steps)


@app.command(rich_help_panel=USE)
def arithmetic(
    model_uri: ModelUri,
    a: Concept,
    b: Concept,
    c: Concept,
    seed: Seed = 0,
    out: Out = Path("arithmetic.png"),
) -> None:
    """Draw A - B + C of averaged latents, such as 7s - thin 7s + thin 1s.

    The first three rows are the images with their average at the end, the last one is the result.
    """
    from genmodels.latents import arithmetic, latents_of, model_with_latents, numbers

    with drawing(model_uri, out) as draw:
        concepts = [numbers(concept) for concept in (a, b, c)]
        model = model_with_latents(model_uri)
        sheet = arithmetic(model, *(latents_of(model, concept, seed=seed) for concept in concepts))
        draw(sheet, columns=len(concepts[0]) + 1)


@contextmanager
def drawing(model_uri: str, out: Path) -> Iterator[Callable[..., None]]:
    """Shows that work goes on; what it yields writes images (N, H, W, C) into the picture."""
    from genmodels.evaluation.pictures import grid
    from genmodels.pictures import save
    from genmodels.terminal import console, working

    with working(f"drawing from {model_uri}"):
        yield lambda images, columns: save(grid(images, columns=columns), out)
    console.print(f"The picture is {out}.")


@app.command(rich_help_panel=USE)
def compare(
    dataset: Dataset,
    every_version: Annotated[
        bool, typer.Option("--all", help="Every version, and not of each model the champion or the newest one.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write the leaderboard as a page that needs no other file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the registered models of a data set beside each other, and keep that as a run in MLflow.

    The numbers are those of each version's evaluation; nothing is evaluated again.
    """
    from genmodels.terminal import console, print_comparison, working
    from genmodels.tracking import comparison, leaderboard

    with working(f"comparing the models of {dataset}"):
        compared = comparison.compare(dataset, every_version=every_version)
        if html:
            leaderboard.save(leaderboard.page(compared), html)
        address = leaderboard.log(compared)
    if as_json:
        print(compared.model_dump_json())
        return
    print_comparison(compared)
    console.print(f"In MLflow: {address}")
    if html:
        console.print(f"The page is {html}.")


@app.command(rich_help_panel=USE)
def translate(
    model_uri: ModelUri,
    source: Annotated[Path, typer.Argument(metavar="IN", help="An image, or a folder of images.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The picture to write, or a folder if IN is one.")],
    to: Annotated[str, typer.Option(help="The domain to translate to, such as b.")],
) -> None:
    """Carry images to another domain with a registered model."""
    from genmodels.pictures import save, translated
    from genmodels.terminal import console, working

    with working(f"translating with {model_uri}"):
        images = translated(model_uri, source, to)
        for name, image in images.items():
            save(image, target / f"{name}.png" if source.is_dir() else target)
    console.print(f"{len(images)} image{'s' * (len(images) > 1)} in domain {to}: {target}.")


@app.command(rich_help_panel=KNOW)
def models(as_json: AsJson = False) -> None:
    """List the models: what data they need, their class of density, what they can do, their presets."""
    from genmodels.models import MODELS

    listed = {
        name: {
            "title": model.title,
            "kind": "unpaired" if model.unpaired else "images" + ", points" * model.Config.learns_points,
            "density": str(model.density),
            "capabilities": [method for method in CAPABILITIES if hasattr(model, method)],
            "presets": list(model.Config.presets),
        }
        for name, model in MODELS.items()
    }
    print_listed(listed, as_json)


@app.command(rich_help_panel=KNOW)
def datasets(as_json: AsJson = False) -> None:
    """List the data sets: kind, size, counts, licence and source. Besides these: folder:PATH and s3://bucket/prefix."""
    from genmodels.data.catalogue import CATALOGUE

    listed = {
        name: {
            "title": entry.title,
            "kind": entry.kind,
            "resolution": entry.resolution,
            "channels": entry.channels,
            "classes": entry.classes,
            "counts": dict(entry.counts),
            "licence": entry.licence,
            "source": entry.how_to_get or [file.urls[0] for file in entry.files] or "part of scikit-learn",
        }
        for name, entry in CATALOGUE.items()
    }
    print_listed(listed, as_json, leave_out=["source", "channels"])


def print_listed(listed: Mapping[str, Mapping[str, Any]], as_json: bool, leave_out: Sequence[str] = ()) -> None:
    """Prints named records as JSON, or as a table without the columns that are too wide for one."""
    from genmodels.terminal import in_words, print_table

    if as_json:
        print(json.dumps(listed))
        return
    columns = [column for column in next(iter(listed.values())) if column not in leave_out]
    rows = [[name, *(in_words(record[column]) for column in columns)] for name, record in listed.items()]
    print_table(["name", *columns], rows)


@app.command(rich_help_panel=KNOW)
def bench(
    model: Model,
    resolution: Annotated[int, typer.Option(min=4, help="Side of the images in pixels.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one step.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of one timed block; there are at least five blocks.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores unless given.")] = None,
    preset: Preset = "paper",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Time the real updates of the real engine on random colour images of ten classes in memory: images/s, FLOPs,
    memory. No server."""
    from genmodels.steps.resolve import configured
    from genmodels.terminal import print_report, working

    config, training, _ = configured(model, preset, overrides or [], resolution=resolution)

    import torch

    from genmodels.models import build
    from genmodels.models.base import DataInfo
    from genmodels.training.bench import bench

    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = DataInfo(channels=3, classes=10)  # as CIFAR-10's, for models that are told the class
    network = build(model, config.model_dump(), data, seed=0).to(device)
    with working(f"timing {model}") as say:
        report = bench(
            model, network, batch_images=batch_size, steps=steps, threads=threads, training=training, say=say
        )
    if as_json:
        print(report.model_dump_json())
    else:
        print_report(report)
