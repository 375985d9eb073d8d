"""A version in the registry that looks trained and evaluated, made of a run and of a model without files."""

import io
import json

import numpy as np
from PIL import Image

from genmodels.spec import EvaluationReport, Metric, RunSpec, TrainReport
from genmodels.steps.reports import folder, report_key, save_report
from genmodels.storage.objects import store
from genmodels.tracking.registry import ModelVersion, Registry
from genmodels.tracking.rest import TrackingServer
from genmodels.tracking.runs import open_run

KIND = {"autoencoder": "reconstructs", "cyclegan": "translates"}


def metric(name: str, value: float, half_width: float = 0.1, **more: object) -> Metric:
    return Metric(name=name, value=value, low=value - half_width, high=value + half_width, **more)  # type: ignore[arg-type]


def judged_version(
    model: str,
    dataset: str,
    *metrics: Metric,
    seed: int = 0,
    seconds: float = 60.0,
    data: str = "a" * 64,
    protocol: dict[str, object] | None = None,
    not_offered: dict[str, str] | None = None,
    preset: str = "demo",
    registered_as: str | None = None,
    config: dict[str, object] | None = None,
) -> ModelVersion:
    """The version of that model's run on that data set; the seed tells it from others."""
    spec = spec_of(model, dataset, seed=seed, data=data)
    spec = spec.model_copy(update={"preset": preset, "config": spec.config | (config or {})})
    store().put_record(f"{folder('train', spec)}/spec.json", spec)
    evaluated(spec, *metrics, protocol=protocol, not_offered=not_offered)
    save_report(
        "train",
        spec,
        TrainReport(
            run_key=spec.run_key,
            weights_uri="",
            weights_digest="",
            images_shown=60_000,
            updates={},
            losses={},
            images_per_second=60_000 / seconds,
            seconds=seconds,
            startup_seconds=5.0,
            restarts=0,
            rollbacks=0,
        ),
    )
    grid = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels.repeat(32, 0).repeat(32, 1)).save(grid, "PNG")
    store().put(f"{folder('train', spec)}/samples/{60_000:012d}.png", grid.getvalue())

    run_id = open_run(spec, parameters={"encoder": 1_500, "decoder": 2_000_000})
    tags = {"run_key": spec.run_key, "evaluation": store().uri(report_key("evaluate", spec))}
    export = {"export": json.dumps({"kind": KIND.get(model, "samples")})}
    logged = TrackingServer().post(
        "logged-models",
        experiment_id="0",
        name="without-files",
        tags=[{"key": key, "value": value} for key, value in (tags | export).items()],
    )
    return Registry().add(
        registered_as or f"{model}.{spec.dataset_name}",
        model_id=logged["model"]["info"]["model_id"],
        run_id=run_id,
        tags={**tags, "dataset_digest": data},
        description="",
        summary="",
    )


def spec_of(model: str, dataset: str, *, seed: int = 0, data: str = "a" * 64) -> RunSpec:
    """Whose run key is of that data set's name too, which that of a real one is not."""
    config = {"made_for": dataset}
    return RunSpec(model=model, dataset=dataset, config=config, seed=seed, code_version="test", dataset_digest=data)


def evaluated(
    spec: RunSpec,
    *metrics: Metric,
    protocol: dict[str, object] | None = None,
    not_offered: dict[str, str] | None = None,
) -> None:
    """Leave an evaluation report with these metrics."""
    report = EvaluationReport(
        run_key=spec.run_key,
        primary=metrics[0].name,
        metrics=list(metrics),
        protocol={"images": 180, "resolution": 8, "dataset_digest": spec.dataset_digest, **(protocol or {})},
        pictures={},
        not_offered=not_offered or {},
        seconds=3.0,
    )
    save_report("evaluate", spec, report)
