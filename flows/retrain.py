"""The flow: prepare, train, evaluate, register, promote."""

import re
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.tasks import Task

from flows import steps
from genmodels.errors import GenmodelsError
from genmodels.spec import EvaluationReport, PrepareReport, Promotion, Record, RegisterReport, TrainReport
from genmodels.steps.resolve import resolve


class Outcome(Record):
    """What a retraining came to; the JSON that `genmodels retrain` prints."""

    run_key: str
    model_uri: str
    version: int
    aliases: list[str]
    metrics: dict[str, dict[str, Any]]
    dataset_digest: str
    seconds: dict[str, float]
    addresses: dict[str, str]
    contact_sheet: str | None


def run_name() -> str:
    """retrain-MODEL-DATASET-DATE-TIME."""
    given = flow_run.parameters
    subject = re.sub(r"[^\w-]+", "_", f"{given['model']}-{given['dataset']}").strip("_")
    return f"retrain-{subject}-{datetime.now():%Y%m%d-%H%M%S}"


class _Ended(Exception):
    """A step ended otherwise than with its report."""

    def __init__(self, state: State):
        self.state = state


@flow(
    name="retrain",
    flow_run_name=run_name,
    persist_result=False,
    on_cancellation=[steps.stop_jobs],
    on_crashed=[steps.stop_jobs],
)
def retrain(
    model: str = "progressive_gan",
    dataset: str = "digits",
    preset: str = "demo",
    overrides: Sequence[str] = (),
    seed: int = 0,
    workers: int = 2,
) -> Outcome | State:
    """Train a model on a data set, evaluate it, register it, and make it the champion if it is better.

    Args:
        model: a name from `genmodels models`.
        dataset: a name from `genmodels datasets`, folder:PATH or s3://bucket/prefix.
        preset: demo, paper or another of the model's presets.
        overrides: key=value, over the preset.
        seed: of everything random.
        workers: data-parallel training processes.
    """
    seconds: dict[str, float] = {}

    def done(step: Task[..., Any], *arguments: Any) -> Any:
        started = time.monotonic()
        state = step(*arguments, return_state=True)
        seconds[step.name] = round(time.monotonic() - started, 2)
        if not state.is_completed():
            raise _Ended(state)
        return state.result()

    try:
        spec = resolve(model, dataset, preset, overrides, seed, workers)
        prepared: PrepareReport = done(steps.prepare, spec)
        spec = spec.with_dataset(prepared.dataset_digest)
        trained: TrainReport = done(steps.train, spec)
        evaluated: EvaluationReport = done(steps.evaluate, spec)
        registered: RegisterReport = done(steps.register, spec)
        promotion: Promotion = done(steps.promote, spec)
    except GenmodelsError as error:
        return Failed(message=f"Nothing was started: {error}", data=error)
    except _Ended as ended:
        return ended.state
    return Completed(message=promotion.reason, data=(registered, trained, evaluated))
