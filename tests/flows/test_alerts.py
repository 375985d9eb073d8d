"""The alerts on the real server, from what happens to a run to what arrives at a receiver of HTTP requests."""

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from queue import Queue
from threading import Thread
from typing import Any
from uuid import UUID

import pytest
import requests
from finished_run import finished_run
from prefect import flow, get_client, task
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.webhook import Webhook
from prefect.flow_engine import run_flow
from prefect.states import Pending
from test_approval import NAME, TINY, challenger
from test_deployments import registered
from test_retrain import prefect
from waiting import wait_for

from flows import alerts, events
from flows.artifacts import alarm_event
from flows.deployments import publish_alerts
from flows.retrain import deployed, retrain
from genmodels.errors import SpecError
from genmodels.settings import Settings
from genmodels.spec import Alarm, Progress, RunSpec
from genmodels.steps.resolve import resolve
from genmodels.tracking.promotion import appoint

pytestmark = pytest.mark.timeout(300)
STALL_SECONDS = 40  # more than a busy Prefect keeps an event waiting
KINDS = {"failure", "crash", "cancellation", "approval", "missed-schedule", "gate-refusal", "no-progress"}


@pytest.fixture
def receiver() -> Iterator[tuple[str, "Queue[dict[str, str]]"]]:
    """The address of a real HTTP server, and what was posted to it."""
    received: Queue[dict[str, str]] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing between the tests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()


@pytest.fixture
def none_published(stack: Settings) -> Iterator[None]:
    """No automations before and after."""
    delete_automations()
    yield
    delete_automations()


def delete_automations() -> None:
    with get_client(sync_client=True) as client:
        for automation in client.read_automations():
            client.delete_automation(automation.id)


def automations(stack: Settings) -> dict[str, dict[str, Any]]:
    return {found["name"]: found for found in prefect(stack, "automations/filter", sort="NAME_ASC")}


def test_publishing_twice_changes_nothing_and_what_a_person_attached_stays(
    stack: Settings, none_published: None, configure: Callable[..., None]
):
    assert set(publish_alerts().values()) == {"created"}
    published = automations(stack)
    actions = {name: [action["type"] for action in found["actions"]] for name, found in published.items()}
    nobody_is_told = {f"genmodels-{kind}": ["do-nothing"] for kind in KINDS}
    assert actions == nobody_is_told | {"genmodels-silence": ["change-flow-run-state"]}
    assert set(publish_alerts().values()) == {"unchanged"}
    assert automations(stack) == published

    crash = published["genmodels-crash"]
    url = f"{stack.prefect_api_url}/automations/{crash['id']}"
    ours = {key: crash[key] for key in ("name", "description", "tags", "trigger")}
    ours["actions"] = [{"type": "cancel-flow-run"}]
    assert requests.put(url, json=ours, timeout=30).ok, "an action from Prefect's pages"
    assert requests.patch(url, json={"enabled": False}, timeout=30).ok
    configure(alert_minutes="30")
    changes = publish_alerts()
    assert {name for name, change in changes.items() if change == "updated"} == {"genmodels-no-progress"}
    after = automations(stack)
    assert after["genmodels-no-progress"]["trigger"]["within"] == 1800
    assert after["genmodels-crash"]["actions"] == [{"type": "cancel-flow-run"}]
    assert not after["genmodels-crash"]["enabled"]


def test_a_block_that_is_not_there_is_refused(stack: Settings, none_published: None, configure: Callable[..., None]):
    configure(alert_block="slack-webhook/nowhere")
    with pytest.raises(SpecError, match="Prefect has no block 'slack-webhook/nowhere'"):
        publish_alerts()
    assert not automations(stack)


def test_a_notification_block_is_told_in_words(
    stack: Settings,
    none_published: None,
    receiver: tuple[str, "Queue[dict[str, str]]"],
    configure: Callable[..., None],
):
    """Slack, mail and the like are such blocks; this one posts to the receiver."""
    address, received = receiver
    block = CustomWebhookNotificationBlock(
        name="receiver",
        url=address,
        json_data={"subject": "{{subject}}", "body": "{{body}}"},
    )
    block.save("receiver", overwrite=True)
    configure(alert_block="custom-webhook/receiver")
    publish_alerts()
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployed(retrain).apply(), parameters={}, state=Pending())
    state = {"type": "FAILED", "message": "train vae failed on worker 1 of 2: no space left."}
    url = f"{stack.prefect_api_url}/flow_runs/{run.id}/set_state"
    requests.post(url, json={"state": state, "force": True}, timeout=60).raise_for_status()
    told = received.get(timeout=90)
    assert told["subject"] == "genmodels: a run failed"
    assert told["body"].startswith(f"{run.name}: train vae failed on worker 1 of 2: no space left.\n")
    assert told["body"].endswith(f"/runs/flow-run/{run.id}")


@task(task_run_name="{name}")
def step(name: str, pace: int, seconds: float) -> None:
    """Comes on by so much each second."""
    with events.Pulse() as pulse:
        for second in range(round(seconds)):
            pulse.beat(Progress(step="train", stage="4x4", done=second * pace, total=1000))
            time.sleep(1)


@flow(name="moving")
def move(pace: int, seconds: float = STALL_SECONDS + 20) -> None:
    step("moving" if pace else "standing", pace, seconds)


def test_a_killed_run_does_not_stay_running_and_one_that_lives_does(
    stack: Settings, none_published: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(alerts, "SILENCE", timedelta(seconds=45))
    monkeypatch.setenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")  # Prefect's least
    alerts.publish(["moving"])
    parameters = {"pace": 10, "seconds": 70}
    runs, processes = [], []
    for _ in range(2):
        with get_client(sync_client=True) as client:
            run = client.create_flow_run_from_deployment(deployed(move).apply(), parameters=parameters, state=Pending())
        process = get_context("spawn").Process(target=execute, args=(run.id,), daemon=True)
        process.start()
        runs.append(run.id)
        processes.append(process)

    def state(run: UUID) -> str:
        return prefect(stack, f"flow_runs/{run}")["state"]["type"]

    def beats(run: UUID) -> int:
        wanted = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
        return prefect(stack, "events/filter", filter=wanted)["total"]

    killed, lives = runs
    wait_for(lambda: all(map(beats, runs)))
    processes[0].kill()
    wait_for(lambda: state(killed) == "CRASHED")
    assert state(lives) == "RUNNING"
    processes[1].join()
    assert state(lives) == "COMPLETED"


def execute(run: UUID) -> None:
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(run)
    run_flow(move, flow_run=found, parameters=found.parameters)


@flow(name="watched")
def watch(alarm: Alarm, spec: RunSpec) -> None:
    alarm_event(alarm, spec)


def test_the_alarm_of_a_guard_is_an_event(stack: Settings):
    spec = resolve("gan", "digits").with_dataset("0" * 64)
    facts = {"value": math.inf, "threshold": 10.0, "images": 640, "action": "stop"}
    watch(Alarm.model_validate({"guard": "mode_collapse", "message": "the model repeats itself", **facts}), spec)
    wanted = {"event": {"name": ["genmodels.guard.mode_collapse"]}}
    [event] = wait_for(lambda: prefect(stack, "events/filter", filter=wanted)["events"])
    assert spec.run_key[:8] in event["resource"]["prefect.resource.id"] + event["resource"]["prefect.resource.name"]
    assert event["payload"] == {"guard": "mode_collapse", "message": "the model repeats itself", **facts} | {
        "value": "Infinity"
    }
    assert {related["prefect.resource.role"] for related in event["related"]} >= {"flow-run", "flow"}


def test_each_alert_arrives_at_a_receiver(
    stack: Settings,
    none_published: None,
    receiver: tuple[str, "Queue[dict[str, str]]"],
    configure: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
):
    address, received = receiver
    Webhook(url=address).save("receiver", overwrite=True)  # pyright: ignore[reportArgumentType]
    configure(alert_block="webhook/receiver", alert_minutes=str(STALL_SECONDS / 60))
    monkeypatch.setattr(events, "BEAT_SECONDS", 2.0)
    assert set(alerts.publish(["retrain", "moving"]).values()) == {"created"}
    retraining, mover = deployed(retrain).apply(), deployed(move).apply()

    def created(deployment: Any, parameters: dict[str, Any]) -> Any:
        with get_client(sync_client=True) as client:
            return client.create_flow_run_from_deployment(deployment, parameters=parameters, state=Pending())

    def put_into(type: str, name: str) -> None:
        run = created(retraining, {})
        for state in ({"type": "RUNNING"}, {"type": type, "name": name, "message": f"as {name}"}):
            url = f"{stack.prefect_api_url}/flow_runs/{run.id}/set_state"
            assert requests.post(url, json={"state": state}, timeout=60).json()["status"] == "ACCEPT"

    _, best = challenger(950, 0.3)
    appoint(f"{NAME}@{best}")
    registered(finished_run("progressive_gan", "digits", *TINY, seed=951, value=0.9))
    late = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2020-01-01T00:00:00Z"}}}
    url = f"{stack.prefect_api_url}/deployments/{retraining}/create_flow_run"
    nobody_takes = requests.post(url, json=late, timeout=60).json()["id"]

    with ThreadPoolExecutor(2) as pool:
        for pace in (0, 10):
            run = created(mover, {"pace": pace})
            pool.submit(run_flow, move, flow_run=run, parameters={"pace": pace})
        for type, name in {"CRASHED": "Crashed", "CANCELLED": "Superseded", "PAUSED": "Asking"}.items():
            put_into(type, name)
        put_into("FAILED", "Diverged")
        bad = {"overrides": ["latnt=3"]}
        with suppress(SpecError):
            run_flow(retrain, flow_run=created(retraining, bad), parameters=bad)
        refused = {"overrides": TINY, "seed": 951, "workers": 1}
        run_flow(retrain, flow_run=created(retraining, refused), parameters=refused)

    told: dict[str, list[dict[str, str]]] = {}
    while set(told) != KINDS or len(told["failure"]) < 2:
        message = received.get(timeout=90)
        told.setdefault(message["alert"], []).append(message)
    assert prefect(stack, f"flow_runs/{nobody_takes}")["state_name"] == "Late"
    requests.delete(f"{stack.prefect_api_url}/flow_runs/{nobody_takes}", timeout=60)
    assert {about["message"] for about in told["failure"]} >= {"as Diverged"}
    assert any("Unknown setting of progressive_gan 'latnt'" in about["message"] for about in told["failure"])
    assert [about["message"] for about in told["cancellation"]] == ["as Superseded"], "by type, whatever its name"
    assert [about["message"] for about in told["approval"]] == ["as Asking"]
    [refusal] = told["gate-refusal"]
    assert "Not better beyond the noise" in refusal["message"]
    [standing] = told["no-progress"]  # of its two events at one moment either is Prefect's last
    assert standing["message"] in {"standing: started", "standing: 4x4 · 0 of 1,000 images"}
    assert told["missed-schedule"][0]["address"].endswith(nobody_takes)
    for about in told["crash"] + told["no-progress"] + told["gate-refusal"]:
        run = about["address"].rpartition("/")[2]
        assert prefect(stack, f"flow_runs/{run}")["name"] == about["run"]
