"""The flow that judges all registered versions once more, after a metric or a reference set changed."""

from typing import cast

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import steps
from flows.artifacts import models_side_by_side
from genmodels.errors import GenmodelsError
from genmodels.spec import EvaluationReport, PrepareReport, RunSpec
from genmodels.steps.register import score_tags, tell_scores
from genmodels.steps.reports import load_report
from genmodels.tracking.promotion import evaluation_of, spec_of
from genmodels.tracking.registry import ModelVersion, Registry


@flow(name="evaluate-again", persist_result=False, on_cancellation=[steps.stop_jobs], on_crashed=[steps.stop_jobs])
def evaluate_again(registered_model: str | None = None) -> State:
    """Judge every registered version by today's protocol, on the held-out images of its data set as it is now. Those
    that were judged so already are left as they are; no version becomes champion by this alone.

    Args:
        registered_model: Its name, such as progressive_gan.digits; all registered models unless given.
    """
    try:
        registry = Registry()
        if registered_model:
            registry.aliases(registered_model)  # raises for one that is unknown, of which there would be no version
        versions = registry.versions(registered_model or "")
        known = [(version, _on_present_data(spec)) for version in versions if (spec := spec_of(version))]
        rows = [_row(version, spec, registry) for version, spec in known]
    except GenmodelsError as error:
        return Failed(message=str(error), data=error)
    if rows:
        create_table_artifact(rows, "evaluate-again", "The primary metric of each registered version")
    for dataset in sorted({version.dataset for version, _ in known}):
        models_side_by_side(dataset)
    failed = [row["version"] for row in rows if row["result"] == "failed"]
    if failed:
        return Failed(message=f"{len(failed)} of {len(rows)} versions could not be judged: {', '.join(failed)}.")
    changed = sum(row["result"] == "judged again" for row in rows)
    return Completed(message=f"{changed} of {len(rows)} registered versions were judged again.")


def _on_present_data(spec: RunSpec) -> RunSpec:
    """The same, judged on what its data set was last found to be."""
    prepared = load_report("prepare", spec, PrepareReport)
    return spec.model_copy(update={"judged_on": prepared.dataset_digest}) if prepared else spec


def _row(version: ModelVersion, spec: RunSpec, registry: Registry) -> dict[str, str]:
    before = evaluation_of(version, registry)
    state = steps.evaluate_again(spec, return_state=True)
    if not state.is_completed():
        return {"version": version.uri, "before": _primary(before), "now": str(state.message), "result": "failed"}
    after = cast(EvaluationReport, state.result())
    if after == before and score_tags(after).items() <= version.tags.items():  # an earlier run may have told nobody
        return {"version": version.uri, "before": _primary(before), "now": _primary(after), "result": "unchanged"}
    tell_scores(spec, version, after)
    return {"version": version.uri, "before": _primary(before), "now": _primary(after), "result": "judged again"}


def _primary(report: EvaluationReport | None) -> str:
    if report is None:
        return "none"
    metric = report.metric(report.primary)
    return f"{metric.name} {metric.with_interval}"
