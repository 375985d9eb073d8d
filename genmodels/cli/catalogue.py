"""What there is to train and to train on, and how fast it trains here."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from genmodels.cli.options import AsJson, Model, Overrides, Preset

CAPABILITIES = ("sample", "translate", "encode", "log_likelihood")

app = typer.Typer()
PANEL = "What there is"


@app.command(rich_help_panel=PANEL)
def models(as_json: AsJson = False) -> None:
    """List the models: what data they need, their class of density, what they can do, their presets."""
    from genmodels.models import MODELS

    listed = {
        name: {
            "title": model.title,
            "kinds": ["unpaired"] if model.unpaired else ["images", *["points"] * model.Config.learns_points],
            "density": str(model.density),
            "capabilities": [method for method in CAPABILITIES if hasattr(model, method)],
            "presets": list(model.Config.presets),
        }
        for name, model in MODELS.items()
    }
    print_listed(listed, as_json)


@app.command(rich_help_panel=PANEL)
def datasets(as_json: AsJson = False) -> None:
    """List the data sets: kind, size, counts, licence and source. Besides these: folder:PATH and s3://bucket/prefix."""
    from genmodels.data.catalogue import CATALOGUE
    from genmodels.terminal import console, in_words

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
    if not as_json:
        console.print("\nSources:")
        for name, record in listed.items():
            source = in_words(record["source"])
            # What must be fetched by hand says so in a sentence of its own, which begins with the name.
            console.print(source if source.startswith(f"{name} ") else f"{name}: {source}")


def print_listed(listed: Mapping[str, Mapping[str, Any]], as_json: bool, leave_out: Sequence[str] = ()) -> None:
    """Prints named records as JSON, or as a table without the columns that are too wide for one."""
    from genmodels.terminal import in_words, print_table

    if as_json:
        print(json.dumps(listed))
        return
    columns = [column for column in next(iter(listed.values())) if column not in leave_out]
    rows = [[name, *(in_words(record[column]) for column in columns)] for name, record in listed.items()]
    print_table(["name", *columns], rows)


@app.command(rich_help_panel=PANEL)
def bench(
    model: Model,
    resolution: Annotated[int, typer.Option(min=4, help="Side of the images in pixels.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one step.")],
    steps: Annotated[
        int,
        typer.Option(
            min=1,
            help="Steps of one timed block, up to the next at which every lazy penalty is due; at least five blocks.",
        ),
    ] = 5,
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
