"""The flow: prepare, train, evaluate, register, promote."""

import logging
import re
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import psutil
from prefect import Flow, flow, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import CancelledRun, FailedRun, MissingResult, UnfinishedRun
from prefect.flow_engine import run_flow
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed, Pending
from prefect.tasks import Task
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.urls import url_for
from pydantic import Field

from flows import approval, steps
from flows.artifacts import commands, costs_table
from flows.connection import asking_prefect
from flows.forms import Dataset, Hours, Model, Override, Preset, PromotionBy, Seed, Workers
from genmodels.errors import GenmodelsError
from genmodels.settings import settings
from genmodels.spec import (
    EvaluationReport,
    Metric,
    PrepareReport,
    Promotion,
    Record,
    RegisterReport,
    RunSpec,
    TrainReport,
)
from genmodels.steps.jobs import latest_job
from genmodels.steps.resolve import resolve
from genmodels.terminal import StepDisplay
from genmodels.tracking.promotion import rematch
from genmodels.tracking.registry import Registry
from genmodels.tracking.runs import run_page

SET_BY_PEOPLE = {
    "concurrency_limit",
    "concurrency_options",
    "job_variables",
    "parameters",
    "paused",
    "schedules",
    "tags",
}


class Outcome(Record):
    """What a retraining came to; the JSON that `genmodels retrain` prints."""

    run_key: str
    model_uri: str = Field(description="models:/NAME/VERSION")
    version: int
    aliases: list[str]
    promotion: str = Field(description="why it is the champion now, or is not")
    metrics: dict[str, dict[str, float | str | None]] = Field(
        description="by name: value, interval, floor, untrained, gap closed, and a note on what it is"
    )
    dataset_digest: str
    seconds: dict[str, float] = Field(description="by step, as waited for in this run")
    startup_seconds: float | None = Field(None, description="from the command to the first optimiser step of this run")
    addresses: dict[str, str] = Field(
        description="of the flow run in Prefect, the run in MLflow, the training's Ray job"
    )
    pictures: dict[str, str] = Field(description="s3 addresses, by name")


def run_name() -> str:
    """FLOW-MODEL-DATASET-DATE-TIME."""
    given = flow_run.parameters
    subject = re.sub(r"[^\w-]+", "_", f"{given['model']}-{given['dataset']}").strip("_")
    return f"{flow_run.flow_name}-{subject}-{datetime.now():%Y%m%d-%H%M%S}"


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
    model: Model = "progressive_gan",
    dataset: Dataset = "digits",
    preset: Preset = "demo",
    overrides: Sequence[Override] = (),
    seed: Seed = 0,
    workers: Workers = 2,
    promotion: PromotionBy = "automatic",
    answer_within_hours: Hours = 168,
) -> Outcome | State:
    """Train a model on a data set, evaluate it, register it, and make it the champion if it is better.

    Args:
        model: What learns; `genmodels models` says what data each needs.
        dataset: A name from `genmodels datasets`, folder:PATH, or s3://BUCKET/PREFIX.
        preset: The settings to start from; demo learns in minutes on a CPU, paper is the paper's.
        overrides: KEY=VALUE replaces a setting of the model, training.KEY=VALUE one of the engine, evaluation.KEY=VALUE
            one of how it is judged.
        seed: Of everything random; the same seed gives the same model.
        workers: Data-parallel training processes on the Ray cluster.
        promotion: Who makes a challenger champion; automatic is the rule, manual a person, who is asked on this page.
        answer_within_hours: How long a person has for that; without an answer nothing changes, and the run fails.
    """
    seconds: dict[str, float] = {}
    states: list[State] = []
    watch = steps.watcher.get()

    def done(step: Task[..., Any], spec: RunSpec, *inputs: Any) -> Any:
        started = time.monotonic()
        state = step(spec, *inputs, return_state=True, wait_for=states[-1:])
        seconds[step.name] = round(time.monotonic() - started, 2)
        if not state.is_completed():
            raise _Ended(state)
        states.append(state)
        if watch:
            watch.finished(step.name, "done before" if cached() else f"{seconds[step.name]:.1f} s")
        return state.result()

    def cached() -> bool:
        return states[-1].name == "Cached"

    try:
        question = approval.asked() if promotion == "manual" else None
        spec = question.spec if question else resolve(model, dataset, preset, overrides, seed, workers)
    except GenmodelsError as error:
        return Failed(message=f"Nothing was started: {error}", data=error)
    try:
        if spec.dataset_digest is None:
            prepared: PrepareReport = done(steps.prepare, spec)
            spec = spec.with_dataset(prepared.dataset_digest)
        commands(flow_run.parameters, spec)
        trained: TrainReport = done(steps.train, spec)
        evaluated: EvaluationReport = done(steps.evaluate, spec, not cached())
        registered: RegisterReport = done(steps.register, spec, not cached())
        if rival := rematch(spec):
            champion, judged_alike = rival
            try:
                scores = done(steps.evaluate_again, judged_alike)
            except _Ended as ended:
                error = ended.state.result(raise_on_failure=False)
                if ended.state.is_cancelled() or getattr(error, "transient", False):
                    raise  # else it never can be judged so, and the gate says that no number decides
            else:
                from genmodels.steps.register import tell_scores  # brings MLflow, a second of every start

                tell_scores(judged_alike, champion, scores)
        if promotion == "automatic":
            decision: Promotion = done(steps.promote, spec)
        else:
            decision = done(steps.approve, spec, approval.ask(spec, within_hours=answer_within_hours))
    except _Ended as ended:
        costs_table(spec)
        state = ended.state  # a new one: that of a task would be summed up as "1/1 states failed"
        return State(type=state.type, message=state.message, data=state.result(raise_on_failure=False))
    except approval.Unanswered as error:
        return Cancelled(message=str(error)) if error.cancelled else Failed(message=str(error), data=error)
    except GenmodelsError as error:
        return Failed(message=str(error), data=error)
    costs_table(spec)
    outcome = Outcome(
        run_key=spec.run_key,
        model_uri=registered.model_uri,
        version=registered.version,
        aliases=sorted(Registry().find(registered.model_uri).aliases),
        promotion=decision.reason,
        metrics={metric.name: _numbers(metric) for metric in evaluated.metrics},
        dataset_digest=str(spec.dataset_digest),
        seconds=seconds,
        startup_seconds=_startup_seconds(trained),
        addresses={
            "prefect": steps.flow_url(),
            "mlflow": run_page(registered.mlflow_run_id),
            "ray": _training_url(spec),
        },
        pictures=evaluated.pictures,
    )
    if watch:
        watch.outcome = outcome
    return Completed(message=decision.reason, data=outcome)


def _startup_seconds(trained: TrainReport) -> float | None:
    """From this process's start to training; None if training had begun before."""
    began = psutil.Process().create_time()
    first_step = trained.first_step_time.timestamp() if trained.first_step_time else 0.0
    return round(first_step - began, 2) if first_step > began else None


def _numbers(metric: Metric) -> dict[str, float | str | None]:
    return {**metric.model_dump(exclude={"name", "better"}), "gap_closed": metric.gap_closed}


@asking_prefect()
def retrain_now(
    model: str,
    dataset: str,
    preset: str = "demo",
    overrides: Sequence[str] = (),
    seed: int = 0,
    workers: int = 1,
    promotion: PromotionBy = "automatic",
) -> Outcome:
    """Run the flow in this process, and show in the terminal (stderr) how it goes.

    Raises what the flow fails with: SpecError for bad input, before anything is written, and the errors of the steps.
    """
    parameters = {
        "model": model,
        "dataset": dataset,
        "preset": preset,
        "overrides": list(overrides),
        "seed": seed,
        "workers": workers,
    }
    resolve(**parameters)
    parameters["promotion"] = promotion
    with StepDisplay() as display:
        token = steps.watcher.set(display)
        try:
            created = _create_flow_run(parameters)
            display.console.print(f"Follow it at {url_for(created)}", soft_wrap=True)
            try:
                outcome = run_flow(retrain, flow_run=created, parameters=parameters)
            except (CancelledRun, UnfinishedRun):
                _end_cancelling(created)
                raise GenmodelsError(
                    "The run was cancelled in Prefect; start it again to go on from where it was."
                ) from None
            except MissingResult:  # Prefect took the last state, but its answer was lost, and the next is bare
                outcome = display.outcome
            except FailedRun as error:  # the same of a run that failed
                raise GenmodelsError(str(error)) from None
        finally:
            steps.watcher.reset(token)
    assert isinstance(outcome, Outcome)
    if outcome.startup_seconds:
        display.console.print(f"The first optimiser step came {outcome.startup_seconds:.1f} s after the start.")
    return outcome


def deployed(flow: Flow[..., Any], **options: Any) -> RunnerDeployment:
    """The deployment of a flow, under the flow's own name; `options` are those of Prefect's `to_deployment`, and hold
    for the first publishing. A later one renews the form and leaves what people have set on Prefect's pages."""
    entrypoint = {"entrypoint_type": EntrypointType.MODULE_PATH}
    deployment = cast(RunnerDeployment, flow.to_deployment(flow.name, **entrypoint, **options))
    deployment.model_fields_set.difference_update(SET_BY_PEOPLE)  # of which alone Prefect makes an update
    return deployment


def _create_flow_run(parameters: dict[str, Any]) -> FlowRun:
    """A flow run of the deployment, for this process to execute: Prefect's pages offer Cancel for no other."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setLevel(logging.CRITICAL)  # the display says it better, and Prefect keeps it
    deployment = deployed(retrain)
    with get_client(sync_client=True) as client:
        return client.create_flow_run_from_deployment(
            cast(UUID, deployment.apply()), parameters=parameters, state=Pending()
        )


def _end_cancelling(run: FlowRun) -> None:
    """A run that was cancelled before it began: its flow never ran to say so, and there is no runner to do it."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run.id).state
        if state and state.type == StateType.CANCELLING:
            client.set_flow_run_state(run.id, Cancelled(message="Cancelled before it began."))


def _training_url(spec: RunSpec) -> str:
    """The page of the Ray job that trained, or of all jobs if the cluster has forgotten it."""
    try:
        job = latest_job("train", spec)
    except GenmodelsError:
        job = None
    return job.url if job else f"{settings().ray_pages}/#/jobs"
