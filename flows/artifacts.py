"""What a person sees of a run in Prefect: progress, samples, metrics, links and the decision, as artifacts; and events.

What cannot be published is one warning in the log and never stops a run.
"""

import base64
import functools
import io
import json
import math
import re
import shlex
import time
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, cast
from uuid import UUID

from PIL import Image
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
)
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.context import TaskRunContext
from prefect.events import emit_event
from prefect.logging import get_run_logger

from genmodels.spec import Alarm, EvaluationReport, PrepareReport, Progress, Promotion, RunSpec
from genmodels.steps.costs import costs_of
from genmodels.steps.reports import REPORTS, folder, newest_samples
from genmodels.storage.objects import store
from genmodels.terminal import cost_cells, described
from genmodels.tracking import leaderboard
from genmodels.tracking.comparison import compare
from genmodels.tracking.leaderboard import escaped
from genmodels.tracking.runs import find_run, run_page

P = ParamSpec("P")
SAMPLES_PIXELS, SIDE_BY_SIDE_PIXELS = 768, 256


class Every:
    """True at most once in so many seconds."""

    def __init__(self, seconds: float):
        self._seconds, self._last = seconds, -math.inf

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


def best_effort(publish: Callable[P, None]) -> Callable[P, None]:
    """Makes a failure to publish one warning: the server being away for a while is no reason to stop a run."""
    failing = False

    @functools.wraps(publish)
    def published(*args: P.args, **kwargs: P.kwargs) -> None:
        nonlocal failing
        try:
            publish(*args, **kwargs)
        except Exception as error:  # whatever a client, a server or a proxy between them comes up with
            if not failing:
                get_run_logger().warning("Prefect's pages may be out of date: %s: %s", type(error).__name__, error)
            failing = True
        else:
            failing = False

    return published


def client() -> SyncPrefectClient:
    """The connection of the task that this process is in."""
    context = TaskRunContext.get()
    assert context and isinstance(context.client, SyncPrefectClient), "called by tasks only"
    return context.client


class _Artifact:
    """One that is made when it is first shown, and from then on changed."""

    def __init__(self, create: Callable[..., object], key: str):
        self._create, self._key = create, key
        self._id: UUID | None = None

    def show(self, content: float | str | list[dict[str, str]], description: str) -> None:
        if self._id is None:
            self._id = cast(UUID, self._create(content, self._key, description))
        else:
            data = json.dumps(content) if isinstance(content, list) else content
            client().update_artifact(self._id, ArtifactUpdate(data=data, description=description))


class Live:
    """The artifacts of a step while it runs: its progress, and the samples of a training."""

    def __init__(self, step: str, spec: RunSpec):
        self.step, self.spec, self._subject = step, spec, f"{spec.model} on {spec.dataset}"
        self._bar = _Artifact(create_progress_artifact, artifact_key(f"{step}-progress", spec))
        self._samples = _Artifact(create_image_artifact, artifact_key("samples", spec))
        self._losses = _Artifact(create_table_artifact, artifact_key("losses", spec))
        self._progress: Progress | None = None
        self._last, self._images_shown = "starting on Ray", -1
        self._linked = False
        self._progress_due, self._samples_due = Every(5), Every(10)
        self._alarms_told = 0

    def update(self, progress: Progress | None) -> None:
        """Publish what is new, if it is time to."""
        if progress:
            self._last, self._progress = described(progress), progress
            for raised in progress.alarms[self._alarms_told :]:
                alarm_event(raised, self.spec)
            self._alarms_told = len(progress.alarms)
        if self._progress_due():
            self._publish_progress(progress.done / max(1, progress.total) if progress else 0.0, self._last)
        if self.step == "train" and self._samples_due():
            self._publish_training()

    def finish(self, *, before: bool = False) -> None:
        """Publish what a step has come to that has succeeded, now or `before` this run."""
        self._publish_progress(1.0, "done before" if before else f"done · {self._last}")
        if self.step == "train":
            self._publish_training()

    def _publish_training(self) -> None:
        self._publish_samples()
        self._publish_run()
        self._publish_losses()

    @best_effort
    def _publish_progress(self, done: float, description: str) -> None:
        self._bar.show(100 * done, f"**{self.step}** · {description}")

    @best_effort
    def _publish_samples(self) -> None:
        found = newest_samples(self.spec, after=self._images_shown)
        if found is None:
            return
        self._images_shown, png = found
        self._samples.show(data_uri(png), f"{self._subject} after {self._images_shown:,} images")

    @best_effort
    def _publish_losses(self) -> None:
        if (progress := self._progress) is None:
            return
        rows = [{"term": name, "value": f"{value:.5g}"} for name, value in progress.values.items()]
        self._losses.show(rows, f"{self._subject} after {progress.done:,} images; their curves: MLflow")

    @best_effort
    def _publish_run(self) -> None:
        if not self._linked and (run_id := find_run(self.spec)):
            link("mlflow-run", "MLflow run: curves, samples, parameters", run_page(run_id), self.spec)
            self._linked = True


@best_effort
def alarm_event(alarm: Alarm, spec: RunSpec) -> None:
    """The alarm of a guard, as an event on which automations can act."""
    emit_event(
        event=f"genmodels.guard.{alarm.guard}",
        resource={
            "prefect.resource.id": f"genmodels.run.{spec.run_key}",
            "prefect.resource.name": f"{spec.model} on {spec.dataset}",
        },
        payload=json.loads(alarm.model_dump_json()),  # in which infinity is a word
    )


@best_effort
def link(name: str, text: str, address: str, spec: RunSpec) -> None:
    """A link to another tool's page."""
    create_link_artifact(address, link_text=text, key=artifact_key(name, spec), description=f"[{text}]({address})")


@best_effort
def commands(parameters: Mapping[str, Any], spec: RunSpec) -> None:
    """How to do the same again in a terminal: the run as a whole, and each step by hand."""
    given = dict(parameters)
    arguments = ["genmodels", "retrain", given["model"]]
    for name in ("dataset", "preset", "workers", "seed", "promotion"):
        arguments += [f"--{name}", str(given[name])]
    for override in given["overrides"]:
        arguments += ["--set", override]
    steps = [f"genmodels {step} {store().uri(f'{folder(step, spec)}/spec.json')}" for step in REPORTS]
    text = "\n".join([shlex.join(arguments), *steps])
    fence = "`" * (3 + max(map(len, re.findall("`+", text)), default=0))
    title = f"How to do this again: sources {spec.code_version}, data {spec.dataset_digest}"
    create_markdown_artifact(f"{title}\n\n{fence}\n{text}\n{fence}\n", artifact_key("commands", spec), title)


@best_effort
def dataset_table(report: PrepareReport, spec: RunSpec) -> None:
    """What the data set holds, and what was set aside and why."""
    rows = [{"table": table, "examples": f"{count:,}"} for table, count in report.rows.items()]
    rows += [{"table": f"set aside: {reason}", "examples": f"{count:,}"} for reason, count in report.set_aside.items()]
    create_table_artifact(rows, artifact_key("dataset", spec), f"{report.dataset}, digest `{report.dataset_digest}`")


@best_effort
def metrics_table(report: EvaluationReport, spec: RunSpec) -> None:
    """Each metric beside its floor (real data) and its ceiling (the untrained model)."""
    rows = [{"metric": metric.title, **metric.cells, "better": metric.better} for metric in report.metrics]
    primary = [metric.name for metric in report.metrics].index(report.primary)
    rows[primary]["metric"] += " (primary)"
    description = f"{spec.model} on {spec.dataset}; **{report.primary}** decides the promotion"
    create_table_artifact(rows, artifact_key("metrics", spec), description)


@best_effort
def costs_table(spec: RunSpec) -> None:
    """What each step has cost until now, over all attempts."""
    columns = ["device time", "energy", "sent", "received", "peak memory", "peak device memory"]
    steps = ["prepare", *REPORTS] if spec.dataset_digest else ["prepare"]
    costs = {step: costs_of(step, spec) for step in steps}
    rows = [{"step": step} | dict(zip(columns, cost_cells(cost), strict=True)) for step, cost in costs.items() if cost]
    if rows:
        description = f"{spec.model} on {spec.dataset}; a device is a GPU, or a process where there is none"
        create_table_artifact(rows, artifact_key("costs", spec), description)


@best_effort
def decision(promotion: Promotion, spec: RunSpec) -> None:
    """Why a challenger became champion, or why it did not."""
    verdict = "is the champion" if promotion.promoted else "stays a challenger"
    answered = ""
    if promotion.decided_by and promotion.decided:
        answered = (
            f"Answered by {escaped(promotion.decided_by)} (as claimed), {promotion.decided:%Y-%m-%d %H:%M} UTC.\n\n"
        )
    rows = [f"| challenger, version {promotion.version} | {promotion.challenger:.5g} |"]
    if promotion.champion is not None:
        rows.append(f"| champion until now, version {promotion.champion_version} | {promotion.champion:.5g} |")
    title = f"{promotion.name} version {promotion.version} {verdict}"
    table = "\n".join([f"| model | {promotion.metric} |", "|---|---|", *rows])
    create_markdown_artifact(
        f"# {title}\n\n{escaped(promotion.reason)}\n\n{answered}{table}\n", artifact_key("promotion", spec), title
    )


@best_effort
def models_side_by_side(dataset: str, *, every_version: bool = False) -> None:
    """The leaderboard of a data set with its models' samples, and the way to the same in MLflow."""
    comparison = compare(dataset, every_version=every_version)
    pictures = {
        contender.label: data_uri(png, SIDE_BY_SIDE_PIXELS)
        for contender in comparison.contenders
        if (png := leaderboard.picture(contender))
    }
    link = f"[The same in MLflow, and as a page]({leaderboard.log(comparison)})"
    create_markdown_artifact(
        f"{link}\n\n{leaderboard.markdown(comparison, pictures)}",
        key=_slug(f"leaderboard-{comparison.dataset}"),
        description=f"The registered models of {comparison.dataset} beside each other",
    )


def artifact_key(name: str, spec: RunSpec) -> str:
    """An artifact's key; one key is one history over all runs of a model on a data set."""
    return _slug(f"{name}-{spec.model}-{spec.dataset_name}")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def data_uri(png: bytes, pixels: int = SAMPLES_PIXELS) -> str:
    """The picture itself in the place of an address: it needs no credentials, does not expire, and any browser that
    reaches Prefect shows it."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((pixels, pixels))
    webp = io.BytesIO()
    image.save(webp, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(webp.getvalue()).decode()}"
