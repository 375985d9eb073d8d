"""Arguments and options that several commands take."""

from typing import Annotated

import typer

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
