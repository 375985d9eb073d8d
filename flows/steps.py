"""One Prefect task per step: find its report, or follow its Ray job, and tell people how it goes.

A step's result is its report in the object store, under a key made from all that decides it. So a task's result is
never stored a second time by Prefect: a rerun, here or on another machine, finds the report and ends as `Cached`;
a report that is gone is made again.
"""

from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol, TypeVar

from prefect import get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, StateType, TaskRun
from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run, task_run
from prefect.states import Cancelled, Completed, Failed
from prefect.tasks import Task, exponential_backoff
from prefect.utilities.urls import url_for
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from flows.artifacts import Every, Live, best_effort, client, dataset_table, decision, link, metrics_table
from flows.events import Pulse, refused
from genmodels.errors import GenmodelsError, UnavailableError
from genmodels.spec import (
    Answer,
    EvaluationReport,
    PrepareReport,
    Progress,
    Promotion,
    Record,
    RegisterReport,
    RunSpec,
    TrainReport,
)
from genmodels.steps.jobs import Job, RayJobs, attach_or_submit
from genmodels.steps.prepare import prepared
from genmodels.steps.reports import folder, is_done, load_registered, load_report
from genmodels.storage.objects import store
from genmodels.tracking import promotion
from genmodels.tracking.runs import find_run, set_status

R = TypeVar("R", bound=Record)

RETRIES = 5  # over five minutes, for which a job's follower waits too
JOB_LABEL, SPEC_LABEL = "genmodels.ray_job", "genmodels.spec"
LOG_LINES, LOG_SECONDS = 20, 10.0


class Watcher(Protocol):
    """Who else is told how the steps go, and what they come to: the terminal of `genmodels retrain`."""

    outcome: Record | None

    def show(self, step: str, progress: Progress | None) -> None: ...
    def finished(self, step: str, text: str) -> None: ...


watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def is_transient(task: Task[..., Any], task_run: TaskRun, state: State) -> bool:
    """Whether what made a task fail can pass by itself."""
    return getattr(state.data, "transient", False)


STEP: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": RETRIES,
    "retry_delay_seconds": exponential_backoff(10),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_transient,
}


@task(name="prepare", task_run_name="prepare {spec.dataset}", **STEP)
def prepare(spec: RunSpec) -> State:
    """Download, check and preprocess the data set, unless that is done."""
    return _run("prepare", spec, PrepareReport, publish=dataset_table, done_before=prepared)


@task(name="train", task_run_name="train {spec.model}", tags=["training"], **STEP)
def train(spec: RunSpec) -> State:
    """Train the model, or go on from its last checkpoint."""
    return _run("train", spec, TrainReport)


@task(name="evaluate", task_run_name="evaluate {spec.model}", **STEP)
def evaluate(spec: RunSpec, fresh: bool = False) -> State:
    """Measure the trained model beside real data and the untrained model; `fresh`: it was trained in this run."""
    return _run("evaluate", spec, EvaluationReport, publish=metrics_table, fresh=fresh)


@task(name="evaluate again", task_run_name="evaluate {spec.model} again", **STEP)
def evaluate_again(spec: RunSpec) -> State:
    """Measure a model that was measured before, if that was by another protocol than today's."""
    return _run("evaluate", spec, EvaluationReport, again=True)


@task(name="register", task_run_name="register {spec.model}", **STEP)
def register(spec: RunSpec, fresh: bool = False) -> State:
    """Make the trained model a version in MLflow's registry, with alias challenger; `fresh`: it was measured in this
    run."""
    return _run("register", spec, RegisterReport, done_before=load_registered, fresh=fresh)


@task(name="promote", task_run_name="promote {spec.model}", **STEP)
def promote(spec: RunSpec) -> State:
    """Make the challenger the champion, if it is better beyond the noise."""
    return _decided(promotion.promote, spec)


@task(name="approve", task_run_name="approve {spec.model}", **STEP)
def approve(spec: RunSpec, answer: Answer | None) -> State:
    """Do with the challenger as a person answered; without an answer, as was decided before."""
    return _decided(partial(promotion.settle, answer=answer) if answer else promotion.promote, spec)


def _decided(decide: Callable[[RunSpec], Promotion], spec: RunSpec) -> State:
    try:
        outcome = decide(spec)
    except GenmodelsError as error:
        return _failed(error)
    decision(outcome, spec)
    if not outcome.promoted and not outcome.decided_by:
        refused(outcome)
    return Completed(message=outcome.reason, data=outcome)


def stop_jobs(flow: Any, flow_run: Any, state: State) -> None:
    """Hook: a flow run that is cancelled or crashes takes its Ray job with it; a checkpoint stays."""
    labels = get_client(sync_client=True).read_flow_run(flow_run.id).labels
    if job_id := labels.get(JOB_LABEL):
        unanswered, patience = retry_if_exception_type(UnavailableError), stop_after_delay(60)
        said = Retrying(retry=unanswered, stop=patience, wait=wait_fixed(2), reraise=True)
        said(RayJobs().stop, str(job_id))
        if spec := store().get_record(str(labels[SPEC_LABEL]), RunSpec):
            _tell_killed(spec)


def _run(
    step: str,
    spec: RunSpec,
    kind: type[R],
    *,
    publish: Callable[[R, RunSpec], None] | None = None,
    done_before: Callable[[RunSpec], R | None] | None = None,
    fresh: bool = False,
    again: bool = False,
) -> State:
    """The state a step's task ends in: with the report, or with the error and what will be done about it.

    The job of a step goes on to those behind it, and may have done this one before its task begins; a report is that
    of an earlier run only if it is not `fresh`. With `again` there is a job also where there is a report, and the step
    itself decides whether that still holds.
    """
    try:
        find_report = done_before or partial(load_report, step, kind=kind)
        report = None if again else find_report(spec)
        name = "Cached" if report and not fresh else None
        if report:
            Live(step, spec).finish(before=not fresh)
        else:
            links = {"prefect_flow_run": flow_url()}
            job = attach_or_submit(step, spec, links=links, started_by=_started_by(), going_on=not again, again=again)
            if not _follow(job, until_report=not again):
                return _cancelled(spec)
            report = load_report(step, spec, kind)
        if report is None:
            raise UnavailableError(f"The {step} step ended without leaving its report.")
    except GenmodelsError as error:
        return _cancelled(spec) if _is_cancelled() else _failed(error)
    if publish:
        publish(report, spec)
    return Completed(name=name, data=report)


def _cancelled(spec: RunSpec) -> State:
    _tell_killed(spec)
    return Cancelled(message=f"{task_run.name} was cancelled; run it again to go on from where it was.")


def _tell_killed(spec: RunSpec) -> None:
    """MLflow would show the training of a cancelled run as running for ever; one that is started again says so."""
    with suppress(GenmodelsError):  # MLflow or the object store is away, which a cancel does not wait for
        if spec.dataset_digest and not is_done("train", spec) and (run_id := find_run(spec)):
            set_status(run_id, "KILLED")


def _failed(error: GenmodelsError) -> State:
    if not error.transient:
        outlook = "Not retried: it cannot pass by itself."
    elif task_run.run_count <= RETRIES:
        outlook = f"Attempt {task_run.run_count} of {RETRIES + 1}; it is retried in a while."
    else:
        outlook = "Not retried again; start the flow anew when the cause is gone, and it goes on from where it was."
    where = f" on {error.where}" if error.where else ""
    return Failed(message=f"{task_run.name} failed{where}: {error} {outlook}", data=error)


def _follow(job: Job, *, until_report: bool) -> bool:
    """Tell people of a job until it is done; False if the flow run was cancelled, and the job stopped."""
    _announce(job)
    live, logs, watch, cancel_due = Live(job.step, job.spec), _LogRelay(job), watcher.get(), Every(3)
    try:
        with Pulse() as pulse:
            for update in job.follow(until_report=until_report):
                logs.relay(update.lines)
                live.update(update.progress)
                pulse.beat(update.progress)
                if watch:
                    watch.show(job.step, update.progress)
                if cancel_due() and _is_cancelled():
                    get_run_logger().info("Cancelled: stopping Ray job %s", job.id)
                    try:
                        job.stop()
                    except UnavailableError as error:
                        get_run_logger().warning("Not stopped yet, tried again in a while: %s", error)
                        continue
                    return False
    except (KeyboardInterrupt, TerminationSignal):
        # At once: a runner calls the hook, which has more patience, only when it has loaded the flow again.
        with suppress(UnavailableError):
            job.cluster.stop(job.id)
        raise
    live.finish()
    return True


def _announce(job: Job) -> None:
    """Where the job is, and, for the hook that stops it, its id and its spec."""
    get_run_logger().info("Following Ray job %s", job.url)
    link(f"{job.step}-job", f"Ray job {job.id}", job.url, job.spec)
    _label(job)


@best_effort
def _label(job: Job) -> None:
    spec_key = f"{folder(job.step, job.spec)}/spec.json"
    client().update_flow_run_labels(flow_run.id, {JOB_LABEL: job.id, SPEC_LABEL: spec_key})


def _is_cancelled() -> bool:
    """Whether somebody cancelled this flow run in Prefect; without a runner above this process nobody else looks."""
    try:
        state = client().read_flow_run(flow_run.id).state
    except Exception:  # Prefect is away; the job goes on
        return False
    return state is not None and state.type in {StateType.CANCELLING, StateType.CANCELLED}


def flow_url() -> str:
    """This flow run's page."""
    return url_for("flow-run", obj_id=flow_run.id) or ""


def _started_by() -> str:
    """The deployment, and the schedule if that started it, of the run that this one is part of; else the flow."""
    try:
        run = client().read_flow_run(flow_run.root_flow_run_id)
        if run.deployment_id is None:
            return str(flow_run.flow_name)
        name = client().read_deployment(run.deployment_id).name
    except Exception:  # Prefect is away; accounts are no reason to stop a run
        return str(flow_run.flow_name)
    if run.auto_scheduled and run.created_by:
        return f"{name}, {run.created_by.display_value}"
    return name


class _LogRelay:
    """A job's log lines in the task's log, so many in a while at most."""

    def __init__(self, job: Job):
        self._job, self._window = job, Every(LOG_SECONDS)
        self._sent = self._left_out = 0

    def relay(self, lines: list[str]) -> None:
        logger = get_run_logger()
        if self._window():
            if self._left_out:
                logger.info("(%d more lines in %s)", self._left_out, self._job.url)
            self._sent = self._left_out = 0
        shown = lines[: LOG_LINES - self._sent]
        for line in shown:
            logger.info(line)
        self._sent += len(shown)
        self._left_out += len(lines) - len(shown)
