"""What is published in Prefect, and the flows that Prefect starts itself, on the real stack."""

import base64
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from fault_proxy import FaultProxy
from finished_run import finished_run, prepared
from PIL import Image
from prefect import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, State
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectAlreadyExists
from test_retrain import prefect, ray_jobs
from waiting import wait_for

from flows.deployments import deployments
from flows.evaluate_again import evaluate_again
from flows.promote import promote
from flows.watch_dataset import watch_dataset
from genmodels.models import MODELS
from genmodels.settings import Settings
from genmodels.spec import EvaluationReport, RegisterReport, RunSpec
from genmodels.steps.evaluate import PROTOCOL
from genmodels.steps.reports import folder, load_report, report_key, save_report
from genmodels.storage.objects import store
from genmodels.tracking.registry import Registry
from genmodels.tracking.rest import TrackingServer
from genmodels.tracking.runs import open_run

pytestmark = pytest.mark.timeout(600)

TINY = ["fmap_max=8", "latent=8", "resolution=8"]
NAMES = {"retrain", "retrain-all", "watch-dataset", "prune", "evaluate-again", "promote"}
ROOT = Path(__file__).parents[2]


def published() -> dict[str, dict[str, Any]]:
    """What Prefect's server knows of each deployment."""
    fields = {"entrypoint", "parameters", "parameter_openapi_schema", "description", "tags", "concurrency_options"}
    fields |= {"enforce_parameter_schema", "paused", "work_pool_name"}
    found = {}
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            limit = deployment.global_concurrency_limit
            schedules = [
                schedule.model_dump(include={"schedule", "active", "slug"}) for schedule in deployment.schedules
            ]
            flow = client.read_flow(deployment.flow_id).name
            found[f"{flow}/{deployment.name}"] = deployment.model_dump(include=fields) | {
                "limit": limit and limit.limit,
                "pull_steps": deployment.pull_steps or [],  # none at all after an update
                "schedules": [[str(value) for value in schedule.values()] for schedule in schedules],
            }
    return found


def forget() -> None:
    """As if nothing had been published."""
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)


@contextmanager
def serving() -> Iterator[None]:
    """`genmodels serve`, as people start it."""
    process = subprocess.Popen([sys.executable, "-m", "genmodels", "serve"], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert any("served" in line for line in process.stdout), "it says that it serves"
    yield
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_serving_and_prefect_deploy_publish_the_same(stack: Settings):
    forget()
    for deployment in deployments():
        deployment.apply()
    served = published()
    forget()
    assert set(served) == {f"{name}/{name}" for name in NAMES}

    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name="genmodels", type="process"))
    command = ["-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    deployed = published()
    forget()
    assert {deployment.pop("work_pool_name") for deployment in served.values()} == {None}
    assert {deployment.pop("work_pool_name") for deployment in deployed.values()} == {"genmodels"}
    assert deployed == served


def test_what_people_have_set_survives_that_it_is_published_again(stack: Settings):
    forget()
    for deployment in deployments():
        deployment.apply()
    first = published()
    parameters = {"retrain": {"workers": 4}, "retrain-all": {"models": ["vae"]}, "prune": {"dry_run": False}}
    with get_client(sync_client=True) as client:
        for name in NAMES:
            known = client.read_deployment_by_name(f"{name}/{name}")
            if known.schedules:  # that which is ours is paused, and a second one is made
                client.update_deployment_schedule(known.id, known.schedules[0].id, active=False)
            if name != "watch-dataset":
                client.create_deployment_schedules(known.id, [(CronSchedule(cron="0 1 * * *"), True)])
            theirs = {"tags": ["team"], "parameters": parameters.get(name, {}), "paused": True, "concurrency_limit": 3}
            wait_in_turn = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
            client.update_deployment(known.id, DeploymentUpdate(**theirs, concurrency_options=wait_in_turn))
    set_by_people = published()
    assert all(set_by_people[name] != first[name] for name in first)

    for deployment in deployments():
        deployment.apply()
    assert published() == set_by_people
    with serving():
        assert published() == set_by_people
    forget()


def test_serving_outlasts_an_absence_of_the_server(stack: Settings, monkeypatch: pytest.MonkeyPatch):
    """Of Prefect's own polls three in a row would have to fail, which takes minutes; here they fail each second."""
    line = FaultProxy(stack.prefect_api_url)
    monkeypatch.setenv("GENMODELS_PREFECT_API_URL", line.url)
    monkeypatch.setenv("PREFECT_RUNNER_POLL_FREQUENCY", "1")
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
    with serving():
        deployment = prefect(stack, "deployments/name/promote/promote")["id"]

        def is_served() -> None:
            url = f"{stack.prefect_api_url}/deployments/{deployment}/create_flow_run"
            run = requests.post(url, json={"parameters": {"version": "gan.nowhere@1"}}, timeout=30).json()["id"]
            wait_for(lambda: prefect(stack, f"flow_runs/{run}")["state"]["type"] == "FAILED")  # there is no such model

        is_served()
        with line.away():
            time.sleep(12)
        is_served()
    line.close()
    forget()


@pytest.fixture(scope="module")
def server(stack: Settings) -> Iterator[Settings]:
    """A server that all of this module's tests use."""
    with serving():
        yield stack


def test_forms_offer_what_there_is_and_explain_it(server: Settings):
    for name in NAMES:
        schema = prefect(server, f"deployments/name/{name}/{name}")["parameter_openapi_schema"]
        undescribed = [field for field, about in schema["properties"].items() if not about.get("description")]
        assert not undescribed, f"{name} does not explain {undescribed}"
    form = prefect(server, "deployments/name/retrain/retrain")["parameter_openapi_schema"]["properties"]
    assert form["model"]["enum"] == list(MODELS)
    assert {"demo", "paper"} <= set(form["preset"]["enum"])
    assert form["workers"]["minimum"] == 1
    assert "folder:PATH" in form["dataset"]["examples"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("retrain", {"model": "progressive_gn"}),
        ("retrain", {"workers": 0}),
        ("retrain", {"overrides": ["latent"]}),
        ("retrain-all", {"models": []}),
        ("promote", {"version": "progressive_gan.digits"}),
        ("prune", {"older_than_days": 0}),
    ],
)
def test_the_server_itself_refuses_what_no_form_offers(server: Settings, name: str, parameters: dict[str, Any]):
    deployment = prefect(server, f"deployments/name/{name}/{name}")["id"]
    url = f"{server.prefect_api_url}/deployments/{deployment}/create_flow_run"
    assert requests.post(url, json={"parameters": parameters}, timeout=30).status_code in {409, 422}


def test_schedules_make_runs_for_their_next_times(server: Settings):
    watch = prefect(server, "deployments/name/watch-dataset/watch-dataset")["id"]
    scheduled = {"flow_runs": {"tags": {"all_": ["auto-scheduled"]}, "deployment_id": {"any_": [watch]}}}
    runs = wait_for(lambda: prefect(server, "flow_runs/filter", **scheduled))
    assert {run["created_by"]["display_value"] for run in runs} == {"nightly"}
    assert {run["expected_start_time"][11:16] for run in runs} == {"03:15"}


def test_a_matrix_is_trained_so_many_at_once(server: Settings):
    """Both runs are done already, so that each only looks that up; then all models' samples stand side by side."""
    variants, greys = ["latent=4", "latent=3"], {}
    for variant, grey in zip(variants, (60, 180), strict=True):
        spec = finished_run("progressive_gan", "digits", "fmap_max=4", variant, seed=900)
        store().put(f"{folder('train', spec)}/samples/{60_000:012d}.png", png(grey))
        greys[rf"progressive\_gan v{registered(spec)}"] = grey
    matrix = {"models": ["progressive_gan"], "seeds": [900], "variants": variants, "workers": 1}
    matrix |= {"overrides": {"progressive_gan": ["fmap_max=4"]}}
    trainings = [job for job in ray_jobs() if job.startswith("train")]
    deployment = prefect(server, "deployments/name/retrain-all/retrain-all")["id"]
    url = f"{server.prefect_api_url}/deployments/{deployment}/create_flow_run"
    run = requests.post(url, json={"parameters": matrix}, timeout=30).json()["id"]

    def ended() -> dict[str, Any] | None:
        state = prefect(server, f"flow_runs/{run}")["state"]
        return state if state["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"} else None

    children = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}}
    assert wait_for(ended, 400)["message"] == "All 2 runs completed.", prefect(server, "flow_runs/filter", **children)
    first, second = sorted(prefect(server, "flow_runs/filter", **children), key=lambda child: child["start_time"])
    assert [child["parameters"]["overrides"][1] for child in (first, second)] == variants
    assert first["end_time"] <= second["start_time"], "one at once"
    assert [job for job in ray_jobs() if job.startswith("train")] == trainings, "nothing was trained again"
    shown = prefect(server, "artifacts/leaderboard-digits/latest")
    assert shown["flow_run_id"] == run
    for variant in variants:  # beside what tells the other tests' versions apart
        assert re.search(rf"\b{variant}\b", shown["data"]), shown["data"]
    rows = re.findall(r"^\| (!\[.*) \|$", shown["data"], re.MULTILINE)
    assert rows[0].count("![") > 1, "side by side"
    samples = dict(re.findall(r"!\[([^\]]+)\]\(data:image/webp;base64,([^)]+)\)", " ".join(rows)))
    for label, grey in greys.items():
        assert np.asarray(Image.open(io.BytesIO(base64.b64decode(samples[label])))).mean() == pytest.approx(grey, abs=3)


def png(grey: int) -> bytes:
    picture = io.BytesIO()
    Image.new("L", (64, 64), grey).save(picture, "PNG")
    return picture.getvalue()


def registered(spec: RunSpec) -> int:
    """Register a run, with a model without files in the place of its own; the number of the version."""
    server = TrackingServer()
    evaluation = {"key": "evaluation", "value": store().uri(report_key("evaluate", spec))}
    model = server.post("logged-models", experiment_id="0", name="without-files", tags=[evaluation])["model"]["info"]
    facts = {"run_key": spec.run_key, "dataset_digest": spec.dataset_digest, "code_version": spec.code_version}
    name = f"{spec.model}.{spec.dataset_name}"
    tags = {key: str(value) for key, value in facts.items()}
    run_id = open_run(spec)
    version = Registry(server).add(
        name, model_id=model["model_id"], run_id=run_id, tags=tags, description="", summary=""
    )
    store().put_record(f"runs/{spec.run_key}/spec.json", spec)
    about = {"run_key": spec.run_key, "name": name, "version": version.version, "model_uri": version.uri}
    save_report("register", spec, RegisterReport(**about, mlflow_run_id=run_id, seconds=0))
    return version.version


def pictures(folder: Path, count: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    for index in range(count):
        Image.fromarray(pixels[index]).save(folder / f"{index:03d}.png")


def artifact(stack: Settings, key: str) -> list[dict[str, Any]]:
    return json.loads(prefect(stack, f"artifacts/{key}/latest")["data"])


def test_a_watched_data_set_is_trained_on_again_only_when_something_changed(stack: Settings, tmp_path: Path):
    """From the first version, by way of new data, to the second, its rollback and its being judged again; and to a
    third, beside which the champion is judged on the new data."""

    def watch(*overrides: str) -> State:
        return watch_dataset("progressive_gan", dataset, overrides=[*TINY, *overrides], workers=1, return_state=True)

    dataset = f"folder:{tmp_path}"
    pictures(tmp_path, 120)
    first = finished_run("progressive_gan", dataset, *TINY, value=0.5)
    name = f"progressive_gan.{first.dataset_name}"
    registered(first)
    promote(f"{name}@1")
    jobs = ray_jobs()
    unchanged = watch()
    assert unchanged.name == "Unchanged"
    assert str(unchanged.message).startswith("Data, code and configuration are unchanged since 20")
    assert str(unchanged.message).endswith(f"models:/{name}/1.")
    assert ray_jobs() == jobs

    pictures(tmp_path, 130)
    prepared.cache_clear()
    second = finished_run("progressive_gan", dataset, *TINY, value=0.2)
    assert second.dataset_digest != first.dataset_digest
    state = watch()
    assert state.is_completed(), state.message
    assert str(state.message).startswith("Retrained, because data changed since version 1. ")
    assert [job.split("-")[0] for job in ray_jobs() if job not in jobs] == ["register"], "all else was done before"
    assert watch().name == "Unchanged"
    champion = Registry().find(f"models:/{name}@champion")
    assert champion.version == 2
    assert champion.tags["run_key"] == second.run_key

    rolled_back = promote(f"{name}@previous", "it flickers", return_state=True)
    assert rolled_back.message == "Appointed by hand in the place of version 2: it flickers"
    assert Registry().find(f"models:/{name}@champion").version == 1
    assert Registry().find(f"models:/{name}@previous").version == 2

    judged = evaluate_again(name, return_state=True)
    assert judged.message == "2 of 2 registered versions were judged again."
    report = load_report("evaluate", second, EvaluationReport)
    assert report
    assert report.protocol["version"] == PROTOCOL
    assert report.protocol["dataset_digest"] == second.dataset_digest
    told = Registry().find(f"models:/{name}/2").tags[f"evaluation.{report.primary}"]
    assert told == report.metric(report.primary).with_interval
    assert [row["result"] for row in artifact(stack, "evaluate-again")] == ["judged again", "judged again"]
    key = re.sub(r"[^a-z0-9]+", "-", f"leaderboard-{first.dataset_name}")
    leaderboard = prefect(stack, f"artifacts/{key}/latest")["data"]
    primary = load_report("evaluate", first, EvaluationReport).metric(report.primary)  # type: ignore[union-attr]
    assert f"progressive\\_gan v1 \\(champion\\) | implicit | {primary.value:.4g} \\[" in leaderboard
    assert Registry().find(f"models:/{name}@champion").version == 1, "no alias moves"

    Registry().set_tags(champion, {f"evaluation.{report.primary}": "as before"})  # cut off before MLflow was told
    assert evaluate_again(name, return_state=True).message == "1 of 2 registered versions were judged again."
    assert Registry().find(f"models:/{name}/2").tags[f"evaluation.{report.primary}"] == told

    on_present_data = load_report("evaluate", first, EvaluationReport)
    assert on_present_data
    assert on_present_data.protocol == report.protocol, "of the data that came after it"

    pictures(tmp_path, 140)
    prepared.cache_clear()
    third = finished_run("progressive_gan", dataset, *TINY)
    store().delete([report_key("evaluate", third)])
    said = str(watch().message)
    assert "data changed since version 2. Not better beyond the noise: sliced_wasserstein" in said
    ours, theirs = (load_report("evaluate", spec, EvaluationReport) for spec in (third, first))
    assert ours
    assert theirs
    assert ours.protocol["dataset_digest"] == third.dataset_digest
    assert theirs.metrics == ours.metrics, "the same weights on the same data, whatever they had learnt from"
    assert watch().name == "Unchanged"


def test_a_champion_that_cannot_be_judged_on_the_new_data_stays_until_a_person_decides(stack: Settings, tmp_path: Path):
    """They have classes now, of which it knows nothing."""
    dataset = f"folder:{tmp_path}"
    pictures(tmp_path, 120)
    first = finished_run("progressive_gan", dataset, *TINY, value=0.5)
    name = f"progressive_gan.{first.dataset_name}"
    registered(first)
    promote(f"{name}@1")

    for index, picture in enumerate(sorted(tmp_path.glob("*.png"))):
        class_folder = tmp_path / f"class-{index % 2}"
        class_folder.mkdir(exist_ok=True)
        picture.rename(class_folder / picture.name)
    prepared.cache_clear()
    second = finished_run("progressive_gan", dataset, *TINY)
    store().delete([report_key("evaluate", second)])
    state = watch_dataset("progressive_gan", dataset, overrides=TINY, workers=1, return_state=True)
    assert state.is_completed(), state.message
    assert "so no number decides; `genmodels promote` does." in str(state.message)
    assert Registry().find(f"models:/{name}@champion").version == 1
    assert Registry().find(f"models:/{name}@challenger").version == 2


def test_what_cannot_be_is_refused_in_one_sentence(stack: Settings):
    missing = promote("progressive_gan.nowhere@1", return_state=True)
    assert missing.is_failed()
    assert str(missing.message).startswith(
        "No champion was changed: Unknown registered model 'progressive_gan.nowhere'"
    )
    for name in ("progressive_gan.nowhere", "it's"):
        unknown = evaluate_again(name, return_state=True)
        assert unknown.is_failed()
        assert str(unknown.message).startswith(f"Unknown registered model {name!r}")
    state = watch_dataset("progressive_gan", "photos", return_state=True)
    assert str(state.message).startswith("Nothing was started: progressive_gan learns from one set of images")
