"""One MLflow run for each run key, whoever opens it and however often."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from finished_run import prepared

from genmodels.errors import SpecError, UnavailableError
from genmodels.settings import Settings, settings
from genmodels.storage.objects import store
from genmodels.tracking.rest import TrackingServer
from genmodels.tracking.runs import find_run, open_run, set_status, set_tags


def info(run_id: str) -> dict[str, str]:
    return TrackingServer().get("runs/get", run_id=run_id)["run"]["info"]


def test_many_at_once_open_the_same_run(tracking: Settings):
    spec = prepared("progressive_gan", "digits").model_copy(update={"seed": 300})
    with ThreadPoolExecutor(4) as pool:
        [run_id] = set(pool.map(lambda _: open_run(spec), range(4)))
    found = TrackingServer().post(
        "runs/search", experiment_ids=[info(run_id)["experiment_id"]], filter=f"tags.run_key = '{spec.run_key}'"
    )
    assert [run["info"]["run_id"] for run in found["runs"]] == [run_id]


def test_a_run_whose_maker_died_before_saying_so_is_used(tracking: Settings):
    spec = prepared("progressive_gan", "digits").model_copy(update={"seed": 301})
    run_id = open_run(spec)
    store().delete([f"runs/{spec.run_key}/mlflow.json"])
    assert open_run(spec) == run_id


def test_a_run_is_reopened_with_what_it_was_started_with(tracking: Settings):
    spec = prepared("progressive_gan", "digits").model_copy(update={"seed": 302})
    run_id = open_run(spec, tags={"ray.job": "http://127.0.0.1:8265/#/jobs/1"})
    set_status(run_id, "KILLED")
    assert info(run_id)["status"] == "KILLED"
    resumed = spec.model_copy(update={"workers": 2, "training": spec.training.model_copy(update={"log_seconds": 9.0})})
    assert open_run(resumed, tags={"ray.job": "http://127.0.0.1:8265/#/jobs/2"}) == run_id
    assert info(run_id)["status"] == "RUNNING"
    data = TrackingServer().get("runs/get", run_id=run_id)["run"]["data"]
    tags, parameters = ({entry["key"]: entry["value"] for entry in data[kind]} for kind in ("tags", "params"))
    assert parameters["workers"] == "1"
    assert parameters["training.log_seconds"] == "2.0"
    assert tags["workers"] == "2"
    assert tags["ray.job"].endswith("/2")
    assert tags["density"] == "implicit"
    assert tags["dataset_digest"] == spec.dataset_digest


def test_a_run_deleted_in_mlflow_comes_back_when_it_is_opened(tracking: Settings):
    spec = prepared("progressive_gan", "digits").model_copy(update={"seed": 303})
    run_id = open_run(spec)
    TrackingServer().post("runs/delete", run_id=run_id)
    assert open_run(spec) == run_id
    assert info(run_id)["lifecycle_stage"] == "active"


def test_a_run_that_mlflow_lost_is_made_anew(tracking: Settings):
    spec = prepared("progressive_gan", "digits").model_copy(update={"seed": 304})
    store().put(f"runs/{spec.run_key}/mlflow.json", b'{"run_id": "00000000000000000000000000000000"}')
    run_id = open_run(spec)
    assert run_id != "0" * 32
    assert find_run(spec) == run_id


def test_hostile_text_in_tags_comes_back_as_it_was(tracking: Settings):
    spec = prepared("progressive_gan", "digits").model_copy(update={"seed": 305})
    text = "<img src=x onerror=alert(1)> ../../etc \x1b[31m 🙂\n# heading"
    run_id = open_run(spec, tags={"note": text})
    set_tags(run_id, {"again": text})
    tags = {
        entry["key"]: entry["value"] for entry in TrackingServer().get("runs/get", run_id=run_id)["run"]["data"]["tags"]
    }
    assert tags["note"] == tags["again"] == text


def test_a_value_that_mlflow_would_cut_off_is_refused(tracking: Settings):
    spec = prepared("progressive_gan", "digits").model_copy(update={"seed": 306, "config": {"prompt": "x" * 6001}})
    with pytest.raises(SpecError, match="6001 characters"):
        open_run(spec)


def test_an_mlflow_that_is_away_is_named(tracking: Settings, monkeypatch: pytest.MonkeyPatch):
    spec = prepared("progressive_gan", "digits").model_copy(update={"seed": 307})
    monkeypatch.setattr(settings(), "mlflow_url", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:9 does not answer"):
        open_run(spec)
