"""The flow over a matrix: several models on one data set, so many of them at once."""

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast
from uuid import UUID

from prefect import flow, get_client
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.runtime import flow_run
from prefect.states import Cancelling, Completed, Failed
from prefect.utilities.urls import url_for
from pydantic import Field

from flows.artifacts import models_side_by_side
from flows.forms import Dataset, Model, Override, Preset, PromotionBy, Seed, Workers
from flows.retrain import deployed, retrain
from genmodels.errors import GenmodelsError
from genmodels.steps.resolve import resolve

POLL_SECONDS = 2.0


def cancel_children(flow: Any, flow_run: FlowRun, state: State) -> None:
    """Hook: the runs that this one started end with it."""
    ours = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run.id]))
    with get_client(sync_client=True) as client:
        for child in client.read_flow_runs(flow_run_filter=ours):
            if child.state and not child.state.is_final():
                client.set_flow_run_state(child.id, Cancelling())


@flow(
    name="retrain-all",
    flow_run_name="retrain-all-{dataset}",
    persist_result=False,
    on_cancellation=[cancel_children],
    on_crashed=[cancel_children],
)
def retrain_all(
    models: Annotated[list[Model], Field(min_length=1)],
    dataset: Dataset = "digits",
    preset: Preset = "demo",
    overrides: Mapping[Model, Sequence[Override]] = {},
    variants: Sequence[Override] = (),
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0],  # noqa: B006
    workers: Workers = 2,
    at_once: Annotated[int, Field(ge=1)] = 1,
    promotion: PromotionBy = "automatic",
) -> State:
    """Train several models on one data set, each in a `retrain` run of its own; one that fails stops no other. Then
    show all registered models of the data set beside each other.

    Args:
        models: What learns, one run for each of them and each seed.
        dataset: A name from `genmodels datasets`, folder:PATH, or s3://BUCKET/PREFIX.
        preset: The settings to start from; demo learns in minutes on a CPU, paper is the paper's.
        overrides: By model, KEY=VALUE over the preset.
        variants: KEY=VALUE, such as adversarial_loss=hinge, one run for each of them and each model.
        seeds: Of everything random, one run for each of them, each variant and each model.
        workers: Data-parallel training processes of each run.
        at_once: How many of the runs may go on at the same time; one that waits for an answer counts no more. Where
            there are no GPUs a training takes all CPUs, and others wait for them, unless its overrides say
            training.cpus_per_worker=N.
        promotion: Who makes a challenger champion; automatic is the rule, manual a person, who is asked on each page.
    """
    waiting: list[dict[str, Any]] = [
        {"model": model, "dataset": dataset, "preset": preset, "overrides": [*overrides.get(model, ()), *change]}
        | {"seed": seed, "workers": workers}
        for model in models
        for change in [[variant] for variant in variants] or [[]]
        for seed in seeds
    ]
    try:
        for parameters in waiting:
            resolve(**parameters)
    except GenmodelsError as error:
        return Failed(message=f"Nothing was started: {error}", data=error)
    waiting = [parameters | {"promotion": promotion} for parameters in waiting]
    deployed(retrain).apply()
    started: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        while waiting or not all(_is_final(run) for run in started):
            while waiting and sum(_goes_on(run) for run in started) < at_once:
                started.append(_start(len(started), waiting.pop(0)))
            time.sleep(POLL_SECONDS)
            started = [run if _is_final(run) else client.read_flow_run(run.id) for run in started]
    models_side_by_side(dataset, every_version=bool(variants) or len(seeds) > 1)
    return _summary(started)


def _start(place: int, parameters: dict[str, Any]) -> FlowRun:
    """The `retrain` run at that place of the matrix; the same one if this flow run is tried again."""
    key = f"{flow_run.id}-{place}"
    return cast(FlowRun, run_deployment("retrain/retrain", parameters=parameters, timeout=0, idempotency_key=key))


def _is_final(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


def _goes_on(run: FlowRun) -> bool:
    return not _is_final(run) and not (run.state and run.state.is_paused())


def _summary(runs: list[FlowRun]) -> State:
    rows = [
        {
            "model": run.parameters["model"],
            "settings": ", ".join(run.parameters["overrides"]),
            "seed": run.parameters["seed"],
            "state": run.state_name,
            "result": run.state.message if run.state else "",
            "run": f"[{run.name}]({url_for('flow-run', obj_id=UUID(str(run.id)))})",
        }
        for run in runs
    ]
    create_table_artifact(rows, "retrain-all", "What came of each model")
    failed = [
        f"{row['model']} ({row['settings']} seed {row['seed']}): {row['result']}"
        for row in rows
        if row["state"] != "Completed"
    ]
    if failed:
        return Failed(message=f"{len(failed)} of {len(runs)} runs did not complete: {' · '.join(failed)}")
    return Completed(message=f"All {len(runs)} runs completed.")
