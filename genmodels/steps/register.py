"""Register: from a trained and evaluated run to a version of its registered model, a challenger."""

import json
import math
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from genmodels.data.manifest import Manifest, manifest_key, open_dataset
from genmodels.errors import SpecError
from genmodels.evaluation.extractors import classifier_of
from genmodels.models import MODELS
from genmodels.spec import EvaluationReport, Metric, RegisterReport, RunSpec, TrainReport, is_points
from genmodels.steps.changes import differences
from genmodels.steps.reports import folder, load_registered, load_report, report_key, save_report
from genmodels.steps.train import load_trained
from genmodels.storage.objects import store
from genmodels.tracking import packaging
from genmodels.tracking.promotion import evaluation_of, spec_of
from genmodels.tracking.protocol import contradictions
from genmodels.tracking.registry import ModelVersion, Registry, register_extractor
from genmodels.tracking.rest import TrackingServer
from genmodels.tracking.runs import MetricsQueue, find_run, open_run, queue_folder, queue_prefix


def register(spec: RunSpec) -> RegisterReport:
    """Log the evaluation to the spec's MLflow run, export the model, and register it with the alias `challenger`.

    Repeated, or done by two at once, it ends with one version; after another evaluation, with its scores. Raises
    SpecError if the run is not evaluated yet.
    """
    if report := load_registered(spec):
        return report
    started = time.monotonic()
    trained = load_report("train", spec, TrainReport)
    evaluation = load_report("evaluate", spec, EvaluationReport)
    if trained is None or evaluation is None:
        missing = "train" if trained is None else "evaluate"
        raise SpecError(
            f"The run {spec.run_key[:8]} of {spec.model} on {spec.dataset} is not ready: `{missing}` it first."
        )
    registry = Registry()
    server = registry.server
    before = store().get_record(report_key("register", spec), RegisterReport)
    store().put_record(f"{folder('register', spec)}/spec.json", spec)
    run_id = find_run(spec, server) or open_run(spec)
    model = _logged_model(run_id, registry) or _log_model(spec, run_id, registry)
    if before is None:
        _log_metrics(model, evaluation, trained.images_shown, model["creation_timestamp_ms"], server)
    _log_pictures(run_id, spec, evaluation, trained.images_shown, server)

    version = registry.add(
        spec.registered_name,
        model_id=model["model_id"],
        run_id=run_id,
        tags=_traces(run_id, server) | score_tags(evaluation) | _guards(trained),
        description=describe(spec, evaluation, trained, json.loads(_tag(model, "export")), run_id, registry),
        summary=f"{MODELS[spec.model].title} trained on {spec.dataset}; `champion` is the best version so far.",
    )
    if before:
        tell_scores(spec, version, evaluation)
    registry.set_alias(version.name, "challenger", version.version)
    _register_classifier(spec)
    report = RegisterReport(
        evaluation=spec.evaluation,
        run_key=spec.run_key,
        name=version.name,
        version=version.version,
        model_uri=version.uri,
        mlflow_run_id=run_id,
        seconds=time.monotonic() - started,
    )
    save_report("register", spec, report)
    return report


def tell_scores(spec: RunSpec, version: ModelVersion, evaluation: EvaluationReport) -> None:
    """Replace the scores that MLflow shows of a registered version by those of a later evaluation."""
    registry = Registry()
    trained = load_report("train", spec, TrainReport)
    model = _logged_model(version.run_id, registry)
    if trained and model:
        _log_metrics(model, evaluation, trained.images_shown, time.time_ns() // 1_000_000, registry.server)
        facts = json.loads(_tag(model, "export"))
        registry.describe(version, describe(spec, evaluation, trained, facts, version.run_id, registry))
    registry.set_tags(version, score_tags(evaluation))  # last: by them a rerun sees that all was told


def score_tags(evaluation: EvaluationReport) -> dict[str, str]:
    """What MLflow shows of an evaluation in a version's tags."""
    return {f"evaluation.{metric.name}": metric.with_interval for metric in evaluation.metrics}


def _guards(trained: TrainReport) -> dict[str, str]:
    """What the guards say of the weights; the gate of promotion looks at the values of some."""
    values = {f"guard.{name}": f"{value:.4g}" for name, value in trained.guards.items()}
    return values | ({"guard.objections": ", ".join(trained.objections)} if trained.objections else {})


def _register_classifier(spec: RunSpec) -> None:
    """What the evaluation's `fid_classifier` looked through, where it trained one."""
    if classifier := classifier_of(str(spec.dataset_digest)):
        facts = classifier.model_dump(include={"resolution", "channels", "classes", "accuracy"})
        digest = str(spec.dataset_digest)
        with packaging.TRACING:
            register_extractor(classifier.load(), dataset=spec.dataset_name, dataset_digest=digest, **facts)


def _traces(run_id: str, server: TrackingServer) -> dict[str, str]:
    """The tags of the run that lead from a version back to what made it: data, code, flow run, Ray job."""
    tags = {tag["key"]: tag["value"] for tag in server.get("runs/get", run_id=run_id)["run"]["data"]["tags"]}
    names = ("run_key", "dataset_digest", "code_version", "commit", "seed", "processor")
    return {key: value for key, value in tags.items() if key in names or value.startswith("http")}


def _log_model(spec: RunSpec, run_id: str, registry: Registry) -> dict[str, Any]:
    manifest, _ = open_dataset(spec.dataset_name, str(spec.dataset_digest))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary, "export")
        shape = {"channels": manifest.channels, "classes": manifest.classes}
        with packaging.TRACING:  # to the end of `log`, since MLflow reads the programs back
            facts = packaging.export(load_trained(spec), spec, **shape, folder=folder)
            packaging.log(
                folder,
                facts,
                name=f"{spec.model}-{spec.dataset_name}",
                experiment=spec.dataset_name,
                run_id=run_id,
                tags={"run_key": spec.run_key, "evaluation": store().uri(report_key("evaluate", spec))},
            )
    model = _logged_model(run_id, registry)
    assert model, "the model that was logged is among the run's outputs"
    return model


def _logged_model(run_id: str, registry: Registry) -> dict[str, Any] | None:
    """The first whole model that was logged to the run and not deleted: an earlier attempt's, if there was one."""
    outputs = registry.server.get("runs/get", run_id=run_id)["run"].get("outputs", {})
    for output in outputs.get("model_outputs", []):
        model = registry.logged_model(output["model_id"])
        if model and model["status"] == "LOGGED_MODEL_READY" and _tag(model, "export"):
            return model
    return None


def _tag(info: dict[str, Any], key: str) -> str:
    return next((tag["value"] for tag in info.get("tags", []) if tag["key"] == key), "")


def _log_metrics(
    model: dict[str, Any], evaluation: EvaluationReport, images_shown: int, milliseconds: int, server: TrackingServer
) -> None:
    """The finite ones (JSON has no others), of the run and of the model, so that MLflow can rank models. The time is at
    first the model's, not now: MLflow keeps equal values once, so that a second attempt doubles none."""
    values = {f"evaluation/{metric.name}": metric.value for metric in evaluation.metrics}
    values |= {f"gap_closed/{metric.name}": metric.gap_closed for metric in evaluation.metrics}
    common = {"timestamp": milliseconds, "step": images_shown, "model_id": model["model_id"]}
    finite = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
    metrics = [{"key": key, "value": value, **common} for key, value in finite.items()]
    server.post("runs/log-batch", run_id=model["source_run_id"], metrics=metrics)


def _log_pictures(
    run_id: str, spec: RunSpec, evaluation: EvaluationReport, images_shown: int, server: TrackingServer
) -> None:
    """As the last step of the run's pictures, for the compare page, and as files, for the version's description. What
    training could not deliver leaves the queue on this occasion, and the run is over."""
    folder = server.get("runs/get", run_id=run_id)["run"]["info"]["artifact_uri"]
    queue = MetricsQueue(lambda: run_id, queue_folder(spec), prefix=queue_prefix(spec), sample_system=False)
    for name, address in evaluation.pictures.items():
        png = store().read(address)
        server.put_artifact(folder, f"evaluation/{name}.png", png)
        queue.image(f"evaluation/{name}", png, images_shown)
    queue.close()


MAX_DESCRIPTION_LENGTH = 5000  # as MLflow declares it to its database, and PostgreSQL means it
MAX_CHANGES, MAX_CHANGE_LENGTH = 20, 100
DESCRIPTION = """\
{title} on `{dataset}`, preset `{preset}`, seed {seed}: {images:,} images shown in {seconds:,.0f} s of training.
`{primary}` decides whether it becomes champion. Data: digest `{digest}`, licence {licence}.

{against}

| metric | value | 95 % interval | real data | untrained | gap closed | champion |
|---|---|---|---|---|---|---|
{rows}

{pictures}

To load it where it is the champion:

```python
import mlflow
model = mlflow.pyfunc.load_model("models:/{name}@champion")
{call}  # {dtype}, (N, H, W, C)
```

To put back what was champion before it, should this one disappoint:

```bash
genmodels promote {name}@previous --because "..."
```
"""


def describe(
    spec: RunSpec,
    evaluation: EvaluationReport,
    trained: TrainReport,
    facts: dict[str, Any],
    run_id: str,
    registry: Registry,
) -> str:
    """The version's page in markdown: what it is, what changed against the champion, its numbers, its pictures, how to
    load it and how to roll back. The last of many numbers may not fit; MLflow shows them among the run's metrics."""
    against, others = _against_champion(spec, evaluation, registry)
    rows = [
        f"| {metric.title} | {' | '.join(metric.cells.values())} "
        f"| {others[metric.name].with_interval if metric.name in others else '–'} |"
        for metric in evaluation.metrics
    ]
    pictures = [
        f"![{name}](get-artifact?path=evaluation%2F{name}.png&run_uuid={run_id})" for name in evaluation.pictures
    ]
    call = {
        "samples": 'images = model.predict({"seed": [0, 1, 2, 3]})',
        "translates": f"translated = model.predict(images, params={{'to': '{facts.get('domains', [''])[-1]}'}})",
        "reconstructs": "reconstructed = model.predict(images)",
    }
    manifest = store().get_record(manifest_key(spec.dataset_name, str(spec.dataset_digest)), Manifest)
    text = partial(
        DESCRIPTION.format,
        title=MODELS[spec.model].title,
        dataset=spec.dataset,
        preset=spec.preset,
        seed=spec.seed,
        images=trained.images_shown,
        seconds=trained.seconds,
        primary=evaluation.primary,
        digest=str(spec.dataset_digest)[:8],
        licence=manifest.licence if manifest else "unknown",
        against=against,
        pictures="\n".join(pictures),
        name=spec.registered_name,
        call=call[facts["kind"]],
        dtype="float32" if is_points(facts["resolution"]) else "uint8",
    )
    while len(described := text(rows="\n".join(rows))) > MAX_DESCRIPTION_LENGTH and rows:
        rows.pop()
    return described


def _against_champion(spec: RunSpec, evaluation: EvaluationReport, registry: Registry) -> tuple[str, dict[str, Metric]]:
    """What changed against the champion of this moment, in words, and the champion's metrics if they compare."""
    try:
        champion = registry.aliased(spec.registered_name, "champion")
    except SpecError:  # the first version of all
        champion = None
    if champion is None:
        return "There was no champion to compare it with.", {}
    before = spec_of(champion)
    if before and before.run_key == spec.run_key:
        return "It is the champion.", {}
    if before is None:
        return f"What version {champion.version}, the champion, was made from is gone.", {}
    changed = [f"- {what}: {was} → {now}"[:MAX_CHANGE_LENGTH] for what, (was, now) in differences(before, spec).items()]
    more = [f"- and {len(changed) - MAX_CHANGES} more"] if len(changed) > MAX_CHANGES else []
    against = "\n".join([f"Against version {champion.version}, the champion:", "", *changed[:MAX_CHANGES], *more])
    scores = evaluation_of(champion, registry)
    if scores is None or contradictions(evaluation, scores):
        return f"{against}\n\nThe champion was judged otherwise, so its numbers do not compare.", {}
    return against, {metric.name: metric for metric in scores.metrics}
