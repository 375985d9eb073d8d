"""Registering on the real MLflow and the real object store."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from finished_run import evaluated, finished_run

from genmodels.errors import SpecError
from genmodels.settings import Settings
from genmodels.spec import EvaluationReport, EvaluationSpec, RunSpec, TrainReport
from genmodels.steps.changes import changes, registered
from genmodels.steps.register import describe, register
from genmodels.steps.reports import load_report, report_key, save_report
from genmodels.storage.objects import store
from genmodels.tracking.registry import Registry, sample
from genmodels.tracking.rest import TrackingServer
from genmodels.tracking.runs import find_run, open_run


def test_a_registered_version_leads_back_to_all_that_made_it(tracking: Settings):
    spec = finished_run(seed=100)
    run_id = open_run(
        spec, tags={"prefect.flow_run": "http://127.0.0.1:4200/runs/flow-run/1"}, parameters={"generator": 7}
    )
    report = register(spec)
    assert register(spec) == report
    version = Registry().find(f"models:/{report.name}@challenger")
    assert version.version == report.version
    assert version.run_id == report.mlflow_run_id == run_id
    assert version.tags["run_key"] == spec.run_key
    assert version.tags["dataset_digest"] == spec.dataset_digest
    assert version.tags["prefect.flow_run"].endswith("/flow-run/1")
    assert version.tags["evaluation.sliced_wasserstein_8"] == "0.5 [0.49, 0.51]"

    run = TrackingServer().get("runs/get", run_id=run_id)["run"]
    metrics = {metric["key"]: (metric["value"], metric["step"]) for metric in run["data"]["metrics"]}
    assert metrics["evaluation/sliced_wasserstein_8"] == (0.5, 60_000)
    assert metrics["gap_closed/sliced_wasserstein_8"] == (pytest.approx(0.6), 60_000)
    parameters = {entry["key"]: entry["value"] for entry in run["data"]["params"]}
    assert parameters["parameters.generator"] == "7"
    assert parameters["latent"] == "64"
    assert parameters["training.precision"] == "fp32"
    [dataset] = [entry["dataset"] for entry in run["inputs"]["dataset_inputs"]]
    assert dataset["name"] == "digits"
    assert str(spec.dataset_digest).startswith(dataset["digest"])
    assert run["info"]["status"] == "FINISHED"
    files = TrackingServer().get("artifacts/list", run_id=run_id, path="evaluation")["files"]
    assert [file["path"] for file in files] == ["evaluation/contact_sheet.png"]


def test_two_at_once_and_a_lost_report_make_one_version(tracking: Settings):
    spec = finished_run(seed=101)
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(register, [spec, spec]))
    assert reports[0].version == reports[1].version
    store().delete([report_key("register", spec)])
    assert register(spec).version == reports[0].version
    assert len(Registry().versions(reports[0].name, spec.run_key)) == 1
    history = TrackingServer().get(
        "metrics/get-history", run_id=find_run(spec), metric_key="evaluation/sliced_wasserstein_8"
    )
    assert len({(metric["value"], metric["step"]) for metric in history["metrics"]}) == 1


@pytest.mark.parametrize(("seed", "with_version"), [(108, True), (109, False)])
def test_a_model_that_was_deleted_from_mlflow_is_logged_anew(tracking: Settings, seed: int, with_version: bool):
    spec, registry = finished_run(seed=seed), Registry()
    gone = registry.find(register(spec).model_uri)
    server = registry.server
    if with_version:
        server.send("DELETE", "mlflow/model-versions/delete", json={"name": gone.name, "version": str(gone.version)})
    server.send("DELETE", f"mlflow/logged-models/{gone.model_id}")
    assert registry.logged_model(gone.model_id) is None
    again = registry.find(register(spec).model_uri)
    assert again.model_id != gone.model_id
    assert [version.version for version in registry.versions(gone.name, spec.run_key)] == [again.version]
    assert sample(again.uri, 2).shape == (2, 8, 8, 1)


def test_scores_of_another_evaluation_take_the_place_of_those_before(tracking: Settings):
    spec = finished_run("vae", "digits", "hidden=[4]", "architecture=dense", seed=107, value=0.5)
    first = register(spec)
    otherwise = spec.model_copy(update={"evaluation": EvaluationSpec(iwae_samples=9)})
    evaluated(otherwise, value=0.4)
    second = register(otherwise)
    assert second.version == first.version
    assert register(otherwise) == second
    version = Registry().find(second.model_uri)
    assert version.tags["evaluation.sliced_wasserstein_8"] == "0.4 [0.39, 0.41]"
    run = TrackingServer().get("runs/get", run_id=second.mlflow_run_id)["run"]
    assert {m["value"] for m in run["data"]["metrics"] if m["key"] == "evaluation/sliced_wasserstein_8"} == {0.4}


def test_metrics_that_are_not_finite_are_not_sent(tracking: Settings):
    """A value that is a number, too, may leave a closed gap that is none."""
    spec = finished_run(seed=110)
    evaluation = load_report("evaluate", spec, EvaluationReport)
    assert evaluation
    [primary, diversity] = evaluation.metrics
    infinite = diversity.model_copy(update={"value": math.inf, "high": math.inf})
    far = primary.model_copy(update={"name": "far", "value": sys.float_info.max / 2, "floor": 1.099})
    save_report("evaluate", spec, evaluation.model_copy(update={"metrics": [primary, infinite, far]}))
    run = TrackingServer().get("runs/get", run_id=register(spec).mlflow_run_id)["run"]
    names = {metric["key"] for metric in run["data"]["metrics"] if not metric["key"].startswith("cost")}
    assert names == {"evaluation/sliced_wasserstein_8", "gap_closed/sliced_wasserstein_8", "evaluation/far"}


def test_what_is_not_trained_or_evaluated_is_not_registered(tracking: Settings):
    spec = finished_run(seed=102)
    store().delete([report_key("evaluate", spec)])
    with pytest.raises(SpecError, match="`evaluate` it first"):
        register(spec)
    store().delete([report_key("train", spec)])
    with pytest.raises(SpecError, match="`train` it first"):
        register(spec)
    assert find_run(spec) is None


def test_a_version_says_what_changed_against_the_champion_how_to_load_it_and_how_to_roll_back(tracking: Settings):
    def description(spec: RunSpec) -> str:
        report = register(spec)
        answer = TrackingServer().get("model-versions/get", name=report.name, version=str(report.version))
        return answer["model_version"]["description"]

    overrides = ["fmap_max=3", "latent=3"]
    champion = finished_run("progressive_gan", "digits", *overrides, seed=103, value=0.25)
    Registry().set_alias("progressive_gan.digits", "champion", register(champion).version)
    said = description(finished_run("progressive_gan", "digits", "fmap_max=3", "latent=5", seed=104, value=0.75))
    version = Registry().find("models:/progressive_gan.digits@champion").version
    assert f"Against version {version}, the champion:\n\n- latent: 3 → 5\n- seed: 103 → 104\n\n" in said
    assert "| sliced_wasserstein_8 | 0.75 | 0.74 to 0.76 | 0.1 | 1.1 | 35.0% | 0.25 [0.24, 0.26] |" in said
    assert f"Data: digest `{str(champion.dataset_digest)[:8]}`, licence " in said
    assert 'mlflow.pyfunc.load_model("models:/progressive_gan.digits@champion")' in said
    assert "genmodels promote progressive_gan.digits@previous" in said

    otherwise = finished_run("progressive_gan", "digits", *overrides, seed=105, protocol={"images": 17})
    assert "The champion was judged otherwise, so its numbers do not compare." in description(otherwise)
    TrackingServer().send(
        "DELETE", "mlflow/registered-models/alias", json={"name": "progressive_gan.digits", "alias": "champion"}
    )
    alone = finished_run("progressive_gan", "digits", *overrides, seed=106)
    assert "There was no champion to compare it with." in description(alone)

    evaluation, trained = (
        load_report("evaluate", alone, EvaluationReport),
        load_report("train", alone, TrainReport),
    )
    assert evaluation and trained
    many = evaluation.model_copy(update={"metrics": evaluation.metrics * 100})
    long = describe(alone, many, trained, {"kind": "samples", "resolution": 8}, "0", Registry())
    assert 4900 < len(long) <= 5000, "as much as MLflow keeps, with all but the last metrics"
    assert "genmodels promote progressive_gan.digits@previous" in long


def test_what_was_judged_otherwise_is_not_what_was_asked_for(tracking: Settings):
    spec = finished_run("vae", "digits", "resolution=8", "hidden=[8]", seed=106)
    report = register(spec)
    found = registered(spec)
    assert found is not None and found.version == report.version

    otherwise = spec.model_copy(update={"evaluation": EvaluationSpec(iwae_samples=7)})
    assert registered(otherwise) is None
    assert changes(otherwise).startswith("configuration changed since version ")
    evaluated(otherwise, value=0.4)
    register(otherwise)
    found = registered(otherwise)
    assert found is not None and found.version == report.version
