"""A run that looks trained and evaluated to whatever comes after, without the minutes that takes."""

import hashlib
import io
from functools import cache

import numpy as np
import safetensors.torch
from PIL import Image

from genmodels.spec import EvaluationReport, Metric, RunSpec, TrainReport
from genmodels.steps.prepare import prepare
from genmodels.steps.reports import folder, save_report
from genmodels.steps.resolve import resolve
from genmodels.steps.train import untrained
from genmodels.storage.objects import store

PROTOCOL = {"data": "held-out", "images": 256}


@cache
def prepared(model: str, dataset: str, *overrides: str, preset: str = "demo") -> RunSpec:
    spec = resolve(model, dataset, preset, overrides)
    return spec.with_dataset(prepare(spec).dataset_digest)


def finished_run(
    model: str = "progressive_gan",
    dataset: str = "digits",
    *overrides: str,
    preset: str = "demo",
    seed: int = 0,
    value: float = 0.5,
    half_width: float = 0.01,
    protocol: dict[str, object] | None = None,
) -> RunSpec:
    """A spec whose weights (as they are drawn), training report and evaluation report lie in the object store. The
    seed belongs to the run key, so each test takes its own."""
    spec = prepared(model, dataset, *overrides, preset=preset).model_copy(update={"seed": seed})
    weights = safetensors.torch.save({n: t.contiguous() for n, t in untrained(spec).state_dict().items()})
    store().put(f"{folder('train', spec)}/weights.safetensors", weights)
    train = TrainReport(
        run_key=spec.run_key,
        weights_uri=store().uri(f"{folder('train', spec)}/weights.safetensors"),
        weights_digest=hashlib.sha256(weights).hexdigest(),
        images_shown=60_000,
        updates={},
        losses={},
        images_per_second=500.0,
        seconds=120.0,
        startup_seconds=5.0,
        restarts=0,
        rollbacks=0,
    )
    save_report("train", spec, train)
    evaluated(spec, value=value, half_width=half_width, protocol=protocol)
    return spec


def evaluated(
    spec: RunSpec, *, value: float, half_width: float = 0.01, protocol: dict[str, object] | None = None
) -> None:
    """Leave an evaluation report with that primary metric, and its picture."""
    sheet = io.BytesIO()
    pixels = np.random.default_rng(spec.seed).integers(0, 256, (8, 8)).repeat(32, 0).repeat(32, 1).astype(np.uint8)
    Image.fromarray(pixels).save(sheet, "PNG")
    store().put(f"{folder('evaluate', spec)}/contact_sheet.png", sheet.getvalue())
    primary = Metric(
        name="sliced_wasserstein_8",
        value=value,
        low=value - half_width,
        high=value + half_width,
        floor=0.1,
        untrained=1.1,
    )
    diversity = Metric(name="ms_ssim", value=0.25, low=0.2, high=0.3)
    evaluation = EvaluationReport(
        evaluation=spec.evaluation,
        run_key=spec.run_key,
        primary=primary.name,
        metrics=[primary, diversity],
        protocol=protocol or PROTOCOL,
        pictures={"contact_sheet": store().uri(f"{folder('evaluate', spec)}/contact_sheet.png")},
        seconds=3.0,
    )
    save_report("evaluate", spec, evaluation)
