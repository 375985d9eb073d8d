"""What registered models can do: draw, walk through their latents, translate, be compared."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Literal

import typer

from genmodels.cli.options import AsJson, Dataset, Seed

ModelUri = Annotated[str, typer.Argument(help="models:/NAME/VERSION or models:/NAME@ALIAS, as `retrain` prints it.")]
Numbers = Annotated[
    list[int], typer.Argument(min=0, help="Numbers of images in the grid of `genmodels sample`, row by row from 0.")
]
Concept = Annotated[str, typer.Argument(metavar="N,N,...", help="Numbers of images that have it, as in 3,14,15.")]
Steps = Annotated[int, typer.Option(min=2, help="Images in a row.")]
Out = Annotated[Path, typer.Option(help="The picture to write.")]

app = typer.Typer()
PANEL = "Trained models"


@app.command(rich_help_panel=PANEL)
def sample(
    model_uri: ModelUri,
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 64,
    seed: Seed = 0,
    label: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Class to draw, for a model that is told one; of several each in turn."),
    ] = None,
    truncation: Annotated[
        float | None,
        typer.Option(help="Largest |z| of the normal numbers in a latent: less makes images likelier and more alike."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Standard deviation of those numbers: below 1 does so too, as is usual for flows.")
    ] = 1.0,
    out: Out = Path("grid.png"),
) -> None:
    """Draw images from a registered model into one picture."""
    from genmodels.evaluation.pictures import grid
    from genmodels.pictures import save
    from genmodels.terminal import console, working
    from genmodels.tracking.registry import sample

    with working(f"sampling {model_uri}"):
        labels = list(islice(cycle(label), n)) if label else None
        images = sample(model_uri, n, seed=seed, labels=labels, truncation=truncation, temperature=temperature)
        save(grid(images, columns=math.ceil(math.sqrt(n))), out)
    console.print(f"{n} images of {model_uri} are in {out}.")


@app.command(rich_help_panel=PANEL)
def interpolate(
    model_uri: ModelUri,
    images: Numbers,
    path: Annotated[
        Literal["spherical", "linear"], typer.Option(help="Along the sphere where latents lie, or straight.")
    ] = "spherical",
    steps: Steps = 8,
    seed: Seed = 0,
    out: Out = Path("interpolation.png"),
) -> None:
    """Draw what lies between images of a registered model: a row from each of them to the next."""
    from genmodels.latents import interpolation, latents_of, model_with_latents

    with drawing(model_uri, out) as draw:
        model = model_with_latents(model_uri)
        draw(interpolation(model, latents_of(model, images, seed=seed), steps=steps, path=path), columns=steps)


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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
        yield lambda images, columns: save(grid(images, columns=columns, rows_apart=True), out)
    console.print(f"The picture is {out}.")


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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
