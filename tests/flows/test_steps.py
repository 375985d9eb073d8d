"""What becomes of a step that fails: retried only if the cause can pass, and told in one sentence."""

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import gethostname
from typing import Any
from weakref import ref

import numpy as np
import pytest
import requests
from fault_proxy import FaultProxy
from finished_run import finished_run
from PIL import Image
from prefect import flow, get_client
from prefect.client.schemas.objects import State
from prefect.logging import disable_run_logger
from prefect.tasks import Task
from test_retrain import prefect
from waiting import wait_for

from flows import steps
from flows.artifacts import best_effort
from flows.retrain import retrain
from genmodels.settings import Settings
from genmodels.spec import PrepareReport, RunSpec
from genmodels.steps import jobs
from genmodels.steps.jobs import Job, RayJobs
from genmodels.steps.reports import folder, load_report
from genmodels.steps.resolve import resolve
from genmodels.storage.objects import store
from genmodels.tracking.registry import Registry
from genmodels.tracking.rest import TrackingServer
from genmodels.tracking.runs import open_run


@flow
def only(step: Task[..., Any], spec: RunSpec) -> State:
    return step.with_options(retry_delay_seconds=0)(spec, return_state=True)


def tasks(stack: Settings, state: State) -> list[dict[str, Any]]:
    """The task runs of the flow run that ended in this state."""
    query = {"flow_runs": {"id": {"any_": [str(state.state_details.flow_run_id)]}}}
    return requests.post(f"{stack.prefect_api_url}/task_runs/filter", json=query, timeout=30).json()


def test_what_can_pass_is_tried_again(stack: Settings, monkeypatch: pytest.MonkeyPatch):
    elsewhere = stack.model_copy(update={"ray_address": "http://127.0.0.1:9"})
    monkeypatch.setattr(jobs, "settings", lambda: elsewhere)
    spec = resolve("progressive_gan", "digits", overrides=["fmap_max=3"]).with_dataset("0" * 64)
    [task] = tasks(stack, only(steps.train, spec, return_state=True))
    assert task["run_count"] == steps.RETRIES + 1
    message = task["state"]["message"]
    assert message.startswith("train progressive_gan failed: The Ray cluster at http://127.0.0.1:9 does not answer")
    assert "Not retried again; start the flow anew" in message


def test_what_cannot_pass_is_not_tried_again(stack: Settings, tmp_path: Path):
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(b"not a picture")
    [task] = tasks(stack, only(steps.prepare, resolve("progressive_gan", f"folder:{tmp_path}"), return_state=True))
    assert task["run_count"] == 1
    assert task["state"]["type"] == "FAILED"
    assert task["state"]["message"].startswith(f"prepare folder:{tmp_path} failed on {gethostname()}: ")
    assert task["state"]["message"].endswith("Not retried: it cannot pass by itself.")


@pytest.fixture
def line(stack: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """To the Ray cluster, for this process only."""
    line = FaultProxy(stack.ray_address)
    beyond_it = stack.model_copy(update={"ray_address": line.url})
    monkeypatch.setattr(jobs, "settings", lambda: beyond_it)
    yield line
    line.close()


def sleeping(seed: int) -> Job:
    """A training's job in which nothing happens."""
    spec = resolve("progressive_gan", "digits", overrides=["fmap_max=5"], seed=seed).with_dataset("0" * 64)
    job = Job("train", spec, 1, RayJobs())
    store().put_record(f"{folder('train', spec)}/spec.json", spec)
    job.cluster.submit(job.id, "exec sleep 300", {})
    return job


def status(job: Job) -> str | None:
    info = job.info()
    return info and info.status


def in_mlflow(run_id: str) -> str:
    """How a run stands."""
    return TrackingServer().get("runs/get", run_id=run_id)["run"]["info"]["status"]


def test_a_cancel_while_ray_does_not_answer_stops_the_job_later(stack: Settings, line: FaultProxy):
    def run_that_follows() -> str | None:
        running = {"state": {"type": {"any_": ["RUNNING"]}}}
        runs = prefect(stack, "flow_runs/filter", flow_runs=running)
        return next((run["id"] for run in runs if run["labels"].get(steps.JOB_LABEL) == job.id), None)

    def told() -> bool:
        logs = prefect(stack, "logs/filter", logs={"flow_run_id": {"any_": [run]}})
        return any(log["message"].startswith("Not stopped yet") for log in logs)

    job = sleeping(seed=1)
    mlflow_run = open_run(job.spec)
    with ThreadPoolExecutor(1) as elsewhere:
        ending = elsewhere.submit(only, steps.train, job.spec, return_state=True)
        run = wait_for(run_that_follows)
        with line.away():
            prefect(stack, f"flow_runs/{run}/set_state", state={"type": "CANCELLING"}, force=True)
            wait_for(lambda: ending.done() or told())
        ending.result()
    assert status(job) == "STOPPED"
    [task] = tasks(stack, ending.result())
    assert task["state"]["type"] == "CANCELLED"
    assert in_mlflow(mlflow_run) == "KILLED"
    assert open_run(job.spec) == mlflow_run
    assert in_mlflow(mlflow_run) == "RUNNING", "when it is run again"


def test_the_hook_of_a_cancelled_run_waits_for_ray(stack: Settings, line: FaultProxy):
    job = sleeping(seed=2)
    mlflow_run, spec_key = open_run(job.spec), f"{folder('train', job.spec)}/spec.json"
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(retrain)
        client.update_flow_run_labels(run.id, {steps.JOB_LABEL: job.id, steps.SPEC_LABEL: spec_key})
    line.cut()
    threading.Timer(4, line.mend).start()
    steps.stop_jobs(retrain, run, State(type="CANCELLING"))  # type: ignore[arg-type]
    wait_for(lambda: status(job) == "STOPPED")
    assert in_mlflow(mlflow_run) == "KILLED"


def test_a_folder_that_has_changed_is_prepared_again(stack: Settings, tmp_path: Path):
    def end_of_prepare() -> tuple[str, dict[str, int]]:
        state = only(steps.prepare, spec, return_state=True)
        [task] = tasks(stack, state)
        report = load_report("prepare", spec, PrepareReport)
        assert report
        return task["state"]["name"], report.rows

    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    for index in range(16):
        Image.fromarray(pixels[index]).save(tmp_path / f"{index}.png")
    spec = resolve("progressive_gan", f"folder:{tmp_path}", overrides=["resolution=8"])
    name, rows = end_of_prepare()
    assert (name, sum(rows.values())) == ("Completed", 16)
    assert end_of_prepare() == ("Cached", rows)
    for index in range(16, 20):
        Image.fromarray(pixels[index]).save(tmp_path / f"{index}.png")
    name, rows = end_of_prepare()
    assert (name, sum(rows.values())) == ("Completed", 20)


def test_a_version_that_was_deleted_in_mlflow_is_registered_again(stack: Settings):
    def end_of_register() -> str:
        [task] = tasks(stack, only(steps.register, spec, return_state=True))
        return task["state"]["name"]

    spec = finished_run("progressive_gan", "digits", "fmap_max=5", seed=1)
    assert end_of_register() == "Completed"
    assert end_of_register() == "Cached"
    registry = Registry()
    [gone] = registry.versions(spec.registered_name, spec.run_key)
    which = {"name": gone.name, "version": str(gone.version)}
    registry.server.send("DELETE", "mlflow/model-versions/delete", json=which)
    assert end_of_register() == "Completed", "by another job than the first, which succeeded"
    [again] = registry.versions(spec.registered_name, spec.run_key)
    assert again.version > gone.version


def test_what_could_not_be_published_is_not_kept():
    class Picture:
        """Stands for what a flow of days cannot keep of each failure."""

    pictures: list[ref[Picture]] = []

    @best_effort
    def publish() -> None:
        picture = Picture()
        pictures.append(ref(picture))
        raise ConnectionError(picture)

    with disable_run_logger():
        publish()
        publish()
    gc.collect()
    assert [picture() for picture in pictures] == [None, None]


def test_bad_input_to_the_flow_itself_starts_no_step(stack: Settings):
    """As it comes from Prefect's pages, where no command has looked at it before."""
    state = retrain("progressive_gan", "digits", overrides=["latnt=3"], return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith(
        "Nothing was started: Unknown setting of progressive_gan 'latnt'; did you mean"
    )
    assert tasks(stack, state) == []
