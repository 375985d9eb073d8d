"""The flow on the real stack, started as people start it, and Prefect's pages in a real browser."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from fault_proxy import FaultProxy
from playwright.sync_api import Page, expect
from waiting import wait_for

from genmodels.settings import Settings
from genmodels.spec import PrepareReport, Progress, RunSpec, TrainReport
from genmodels.steps.jobs import RayJobs, latest_job
from genmodels.steps.reports import folder, load_report, read_progress
from genmodels.steps.resolve import resolve
from genmodels.storage.objects import store

pytestmark = pytest.mark.timeout(600)  # the first test is charged for the whole run that the others look at

TINY = ["fmap_max=8", "latent=8", "fade_images=128", "stable_images=256", "final_images=1024"]
ENDLESS = ["fmap_max=8", "latent=8", "stable_images=256", "final_images=100000000", "training.checkpoint_seconds=1"]
STEPS = ["prepare digits", "train progressive_gan", "evaluate progressive_gan", "register progressive_gan"]


def started(*arguments: str, overrides: list[str]) -> subprocess.Popen[str]:
    """`genmodels retrain progressive_gan --dataset digits --json` in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "genmodels",
        "retrain",
        "progressive_gan",
        "--dataset",
        "digits",
        "--json",
        *arguments,
    ]
    command += [part for override in overrides for part in ("--set", override)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON that the command ends with."""
    output, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def wait_for_progress(spec: RunSpec, condition: Callable[[Progress], bool]) -> Progress:
    def found() -> Progress | None:
        progress = read_progress("train", spec)
        return progress if progress and condition(progress) else None

    return wait_for(found, 240)


def prefect(stack: Settings, path: str, **query: Any) -> Any:
    """Prefect's answer: to a filter if there is a query."""
    url = f"{stack.prefect_api_url}/{path}"
    answer = requests.post(url, json=query, timeout=30) if query else requests.get(url, timeout=30)
    answer.raise_for_status()
    return answer.json()


def flow_run_id(outcome: dict[str, Any]) -> str:
    return outcome["addresses"]["prefect"].rpartition("/")[2]


def of_run(run_id: str) -> dict[str, Any]:
    return {"flow_runs": {"id": {"any_": [run_id]}}}


def states(stack: Settings, run_id: str) -> dict[str, str]:
    """The name of each task's state, by the task's name."""
    return {task["name"]: task["state"]["name"] for task in prefect(stack, "task_runs/filter", **of_run(run_id))}


def artifacts(stack: Settings, run_id: str) -> dict[str, dict[str, Any]]:
    return {artifact["key"]: artifact for artifact in prefect(stack, "artifacts/filter", **of_run(run_id))}


def ray_jobs() -> list[str]:
    cluster = RayJobs()
    return [
        job["submission_id"] for job in cluster.session.get(f"{cluster.url}/api/jobs/").json() if job["submission_id"]
    ]


def bound(overrides: list[str], seed: int) -> RunSpec:
    """The spec that the command makes, once the data are prepared."""
    spec = resolve("progressive_gan", "digits", overrides=overrides, seed=seed)
    report = load_report("prepare", spec, PrepareReport)
    assert report
    return spec.with_dataset(report.dataset_digest)


@pytest.fixture(scope="module")
def outcome(stack: Settings) -> dict[str, Any]:
    """A whole tiny run."""
    return ended(started("--workers", "2", overrides=TINY))


def test_a_run_registers_its_model_and_says_where_everything_is(stack: Settings, outcome: dict[str, Any]):
    assert outcome["model_uri"] == f"models:/progressive_gan.digits/{outcome['version']}"
    assert "challenger" in outcome["aliases"]
    assert outcome["promotion"]
    of_a_champion = {"evaluate again"}  # there may be one that other tests left, judged otherwise
    assert set(outcome["seconds"]) - of_a_champion == {"prepare", "train", "evaluate", "register", "promote"}
    assert 0 < outcome["startup_seconds"] < sum(outcome["seconds"].values()) + 60
    primary = outcome["metrics"]["sliced_wasserstein"]
    assert primary["low"] <= primary["value"] <= primary["high"]
    assert store().exists(f"runs/{outcome['run_key']}/weights.safetensors")
    assert all(store().read(address) for address in outcome["pictures"].values())

    run_id = outcome["addresses"]["mlflow"].rpartition("/")[2].partition("?")[0]
    run = requests.get(f"{stack.mlflow_url}/api/2.0/mlflow/runs/get", params={"run_id": run_id}, timeout=30).json()
    tags = {tag["key"]: tag["value"] for tag in run["run"]["data"]["tags"]}
    assert tags["run_key"] == outcome["run_key"]
    assert tags["prefect_flow_run"] == outcome["addresses"]["prefect"]
    assert tags["ray_job"] == outcome["addresses"]["ray"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert tags.get("commit", "").removesuffix("-dirty") == head.stdout.strip(), "none where this is no checkout"
    lscpu = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    for fact in ("Model name", "CPU family", "Model", "Stepping"):
        assert re.findall(rf"^{fact}:\s+(.*)", lscpu, re.MULTILINE)[0] in tags["processor"]
    one_job = [job for job in ray_jobs() if f"-{outcome['run_key'][:12]}-" in job]
    assert one_job == [outcome["addresses"]["ray"].rpartition("/")[2]], "for all steps that have the run's key"
    done_now = [name for name in STEPS if not name.startswith("prepare")]
    assert {states(stack, flow_run_id(outcome))[name] for name in done_now} == {"Completed"}
    assert prefect(stack, f"flow_runs/{flow_run_id(outcome)}")["name"].startswith("retrain-progressive_gan-digits-2")


def test_a_run_says_what_it_cost_and_how_to_do_it_again(stack: Settings, outcome: dict[str, Any]):
    found = artifacts(stack, flow_run_id(outcome))
    wanted = "genmodels retrain progressive_gan --dataset digits --preset demo --workers 2 --seed 0"
    overrides = "".join(f" --set {override}" for override in TINY)
    commands = found["commands-progressive-gan-digits"]["data"]
    assert f"{wanted} --promotion automatic{overrides}\n" in commands
    [by_hand] = [line for line in commands.splitlines() if line.startswith("genmodels train ")]
    spec = RunSpec.model_validate_json(store().read(by_hand.split()[-1]))
    assert spec.run_key == outcome["run_key"]

    rows = json.loads(found["costs-progressive-gan-digits"]["data"])
    prepared_before = ["train", "evaluate", "register"]  # by another test, perhaps
    assert [row["step"] for row in rows] in (prepared_before, ["prepare", *prepared_before])
    run_id = outcome["addresses"]["mlflow"].rpartition("/")[2].partition("?")[0]
    run = requests.get(f"{stack.mlflow_url}/api/2.0/mlflow/runs/get", params={"run_id": run_id}, timeout=30).json()
    metrics = {metric["key"]: metric["value"] for metric in run["run"]["data"]["metrics"]}
    trained = load_report("train", spec, TrainReport)
    assert trained
    losses = json.loads(found["losses-progressive-gan-digits"]["data"])
    assert {row["term"] for row in losses} == set(trained.losses)
    assert metrics["cost/train/device_seconds"] >= 2 * trained.seconds, "of two workers"
    assert metrics["cost/train/bytes_sent"] > 0
    assert metrics["cost/evaluate/bytes_received"] > 0
    assert "cost/train/energy_joules" not in metrics, "no driver told"

    command = [sys.executable, "-m", "genmodels", "costs", "--since", "1d", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert set(told["started_by"]) >= {"retrain"}
    assert told["models"]["progressive_gan"]["device_seconds"] >= metrics["cost/train/device_seconds"]


def test_what_is_done_is_not_done_again_and_what_is_gone_is(stack: Settings, outcome: dict[str, Any]):
    jobs = ray_jobs()
    again = ended(started("--workers", "2", overrides=TINY))
    assert ray_jobs() == jobs
    assert {name: state for name, state in states(stack, flow_run_id(again)).items() if name in STEPS} == dict.fromkeys(
        STEPS, "Cached"
    )
    same = ("run_key", "model_uri", "version", "aliases", "metrics", "dataset_digest", "pictures")
    assert {key: again[key] for key in same} == {key: outcome[key] for key in same}
    assert {"samples-progressive-gan-digits", "metrics-progressive-gan-digits"} <= set(
        artifacts(stack, flow_run_id(again))
    )

    store().delete([outcome["pictures"]["samples"].removeprefix(store().uri(""))])
    repaired = ended(started("--workers", "2", overrides=TINY))
    assert states(stack, flow_run_id(repaired))["evaluate progressive_gan"] == "Completed"
    assert states(stack, flow_run_id(repaired))["train progressive_gan"] == "Cached"
    assert repaired["metrics"] == outcome["metrics"]
    assert store().read(outcome["pictures"]["samples"])


def test_a_lost_answer_to_the_last_word_of_a_run_loses_nothing(
    stack: Settings, outcome: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Prefect has taken the run's last state then; asked again it says so, but not what the run came to."""
    line = FaultProxy(stack.prefect_api_url)
    monkeypatch.setenv("GENMODELS_PREFECT_API_URL", line.url)
    line.loses = re.compile(rb'"type":\s*"COMPLETED"')
    again = ended(started("--workers", "2", overrides=TINY))
    assert (line.faults, again["model_uri"]) == (1, outcome["model_uri"])

    line.loses = re.compile(rb'"type":\s*"FAILED"')
    (tmp_path / "damaged.png").write_bytes(b"no image")
    command = [sys.executable, "-m", "genmodels", "retrain", "progressive_gan", "--dataset", f"folder:{tmp_path}"]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (line.faults, failed.returncode) == (2, 1)
    assert "Traceback" not in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("genmodels: prepare folder:")
    line.close()


def test_nothing_secret_is_in_prefect(stack: Settings, outcome: dict[str, Any]):
    query = {"flow_run_id": {"any_": [flow_run_id(outcome)]}}
    known = json.dumps(
        [
            prefect(stack, f"flow_runs/{flow_run_id(outcome)}"),
            prefect(stack, "logs/filter", logs=query),
            artifacts(stack, flow_run_id(outcome)),
        ]
    )
    assert "Following Ray job" in known
    assert stack.ray_token_path
    for secret in (stack.s3_secret_key.get_secret_value(), stack.ray_token_path.read_text().strip()):
        assert secret not in known


def test_prefects_pages_show_the_run(stack: Settings, outcome: dict[str, Any], page: Page):
    page.goto(outcome["addresses"]["prefect"])
    expect(page.get_by_text("Completed").first).to_be_visible()
    page.get_by_text("Task Runs", exact=True).click()
    for name in (*STEPS, "promote progressive_gan"):
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()

    page.get_by_text("Artifacts", exact=True).click()
    expect(page.get_by_text("samples-progressive-gan-digits").first).to_be_visible()
    found = artifacts(stack, flow_run_id(outcome))

    def open_artifact(key: str) -> None:
        address = stack.prefect_api_url.removesuffix("/api")
        page.goto(f"{address}/artifacts/artifact/{found[f'{key}-progressive-gan-digits']['id']}")

    open_artifact("samples")
    expect(page.get_by_text("after 1,408 images")).to_be_visible()
    picture = page.locator('img[src^="data:image"]')
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") >= 256

    open_artifact("train-progress")
    expect(page.get_by_text("Progress: 100%")).to_be_visible()
    expect(page.get_by_text("1,408 of 1,408 images")).to_be_visible()

    open_artifact("metrics")
    for text in ("gap closed", "sliced_wasserstein (primary)", f"{outcome['metrics']['fid_classifier']['value']:.4g}"):
        expect(page.get_by_text(text, exact=True)).to_be_visible()

    open_artifact("promotion")
    expect(page.get_by_text(outcome["promotion"]).first).to_be_visible()

    for key, address in (("mlflow-run", outcome["addresses"]["mlflow"]), ("train-job", outcome["addresses"]["ray"])):
        open_artifact(key)
        expect(page.locator(f'a[href="{address}"]').first).to_be_visible()


@pytest.fixture
def endless(stack: Settings, outcome: dict[str, Any]) -> Iterator[RunSpec]:
    """The spec of `started_endless`."""
    spec = bound(ENDLESS, seed=1)
    yield spec
    if job := latest_job("train", spec):
        job.stop()


@pytest.fixture
def started_endless() -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a retraining that would go on for days."""
    processes: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        processes.append(started("--seed", "1", overrides=ENDLESS))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


def test_a_cancel_before_the_flow_has_begun_ends_it(
    stack: Settings, started_endless: Callable[[], subprocess.Popen[str]], outcome: dict[str, Any]
):
    process = started_endless()
    assert process.stderr
    address = next(line for line in process.stderr if line.startswith("Follow it at")).split()[-1]
    run = address.rpartition("/")[2]
    prefect(stack, f"flow_runs/{run}/set_state", state={"type": "CANCELLING"}, force=True)
    assert process.wait(timeout=120) == 1
    assert "was cancelled in Prefect; start it again" in process.stderr.read()
    assert prefect(stack, f"flow_runs/{run}")["state"]["type"] == "CANCELLED"


def test_a_training_survives_its_flow_and_goes_on_after_a_cancel(
    stack: Settings, endless: RunSpec, started_endless: Callable[[], subprocess.Popen[str]], page: Page
):
    def job_and_status() -> tuple[str, str]:
        job = latest_job("train", endless)
        assert job
        info = job.info()
        assert info
        return job.id, info.status

    first = started_endless()
    wait_for_progress(endless, lambda progress: progress.done > 1000)
    first.kill()
    first.communicate()
    job, status = job_and_status()
    assert status == "RUNNING"

    second, third = started_endless(), started_endless()
    addresses = []
    for flow in (second, third):
        assert flow.stderr
        addresses.append(next(line for line in flow.stderr if line.startswith("Follow it at")).split()[-1])
    runs = [address.rpartition("/")[2] for address in addresses]
    for run in runs:
        wait_for(lambda run=run: prefect(stack, f"flow_runs/{run}")["labels"].get("genmodels.ray_job") == job)
    assert job_and_status() == (job, "RUNNING"), "both follow the job of the first"

    page.goto(addresses[0])
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Confirm").click()
    wait_for(lambda: prefect(stack, f"flow_runs/{runs[0]}")["state"]["type"] == "CANCELLED")
    page.close()  # it draws what goes on, which takes a core
    assert second.wait(timeout=60) == 1
    assert second.stderr
    assert "was cancelled in Prefect; start it again" in second.stderr.read()
    stopped = RayJobs().info(job)
    assert stopped
    assert stopped.status == "STOPPED"
    assert states(stack, runs[0])["train progressive_gan"] == "Cancelled"
    *_, newest = store().list(f"{folder('train', endless)}/checkpoints/")
    saved = int(newest.key.rpartition("/")[2].removesuffix(".pt"))
    assert saved > 1000

    cancelled = time.time()
    assert wait_for_progress(endless, lambda progress: progress.time.timestamp() > cancelled).done >= saved
    assert job_and_status()[0] != job, "nobody cancelled the other run, so it goes on in a job of its own"
    third.send_signal(signal.SIGINT)
    third.communicate(timeout=60)
    wait_for(lambda: job_and_status()[1] == "STOPPED")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["progressive_gn", "--dataset", "digits"], "did you mean progressive_gan"),
        (["progressive_gan", "--dataset", "digits", "--set", "resolution=12"], "power of two"),
    ],
)
def test_bad_input_is_refused_before_anything_is_started(stack: Settings, arguments: list[str], words: str):
    command = [sys.executable, "-m", "genmodels", "retrain", *arguments]
    runs, jobs = prefect(stack, "flow_runs/count", flows={}), ray_jobs()
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert (prefect(stack, "flow_runs/count", flows={}), ray_jobs()) == (runs, jobs)
