"""Evaluate: how well the model predicts held-out real data, how much what it makes is like them and what its codes keep
of them, beside the same scores of real data and of the untrained model."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from genmodels.data.dataset import Dataset
from genmodels.data.manifest import Manifest, open_dataset
from genmodels.evaluation import reals
from genmodels.evaluation.bootstrap import REPLICATES, Estimate
from genmodels.evaluation.extractors import (
    Extractor,
    classifier_extractor,
    find_classifier,
    inception_extractor,
    why_no_classifier,
    why_no_inception,
)
from genmodels.evaluation.tasks import tasks_of
from genmodels.evaluation.tasks.base import Task
from genmodels.spec import EvaluationReport, Metric, Progress, Record, RunSpec, digest
from genmodels.steps.reports import ProgressWriter, folder, load_report, progress_key, save_report
from genmodels.steps.train import load_trained, untrained
from genmodels.storage.objects import store

PROTOCOL = 2  # another number has every model judged again


class Anchors(Record):
    """Scores that do not depend on the model: what real data get, and the metrics of images made without one."""

    floor: dict[str, float]
    baselines: list[Metric]


def evaluate(spec: RunSpec, *, ray: bool = False) -> EvaluationReport:
    """Judges the trained model of a spec; the report there is, if it was made by the same protocol, is returned.

    One process does it; with `ray` it is that of a Ray job.

    Raises:
        MissingObject: before the model is trained.
        SpecError, DataError: if the model or the data set is none that can be judged.
        UnavailableError: if a server does not answer.
    """
    started = time.perf_counter()
    manifest, dataset = open_dataset(spec.dataset_name, str(spec.dataset_digest))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tracker = Tracker(progress_key("evaluate", spec))
    try:
        extractors, without = _extractors(manifest, dataset, device, tracker)
        model, start = load_trained(spec).to(device), untrained(spec).to(device)
        tasks, not_judged = tasks_of(model, manifest, dataset, extractors)
        protocol = _protocol(manifest, tasks)
        report = load_report("evaluate", spec, EvaluationReport)
        if report and report.protocol == protocol:
            return report
        unknown = [task for task in tasks if not store().exists(_anchors_key(_protocol(manifest, [task])))]
        tracker.total = sum(2 * task.looks for task in tasks) + sum(task.anchor_looks for task in unknown)
        metrics: list[Metric] = []
        pictures: dict[str, bytes] = {}
        for task in tasks:
            anchors = _anchors(task, _protocol(manifest, [task]), tracker)
            judged = task.judge(model, replicates=REPLICATES, progress=tracker)
            ceiling = task.judge(start, replicates=0, progress=tracker.untrained).scores
            metrics += [
                _metric(name, score, floor=anchors.floor.get(name), untrained=ceiling[name].value)
                for name, score in judged.scores.items()
            ]
            metrics += anchors.baselines
            pictures |= judged.pictures()
        report = EvaluationReport(
            run_key=spec.run_key,
            primary=tasks[0].primary,
            metrics=metrics,
            protocol=protocol,
            pictures=_upload(pictures, spec),
            not_offered=without | not_judged,
            seconds=time.perf_counter() - started,
        )
        save_report("evaluate", spec, report)
        return report
    finally:
        tracker.close()


class Tracker:
    """Counts looks at images, each made or measured once, as the step's progress."""

    def __init__(self, key: str):
        self.total = 0
        self._write = ProgressWriter(key)
        self._last: Progress | None = None
        self._done, self._started = 0, time.monotonic()

    def __call__(self, stage: str, images: int) -> None:
        self._done += images
        self.tell(stage, self._done, self.total, self._done / max(time.monotonic() - self._started, 1e-3))

    def untrained(self, stage: str, images: int) -> None:
        """The same with the untrained model."""
        self(f"{stage} untrained", images)

    def train_classifier(self, done: int, total: int) -> None:
        self.tell("train classifier", done, total, done / max(time.monotonic() - self._started, 1e-3))

    def tell(self, stage: str, done: int, total: int, per_second: float) -> None:
        self._last = Progress(step="evaluate", stage=stage, done=done, total=total, per_second=per_second)
        self._write(self._last)

    def close(self) -> None:
        """Leaves the last progress."""
        self._write.close(self._last)


def _extractors(
    manifest: Manifest, dataset: Dataset, device: torch.device, tracker: Tracker
) -> tuple[list[Extractor], dict[str, str]]:
    """Those that can be had, and why the others cannot."""
    found, not_offered = [], {}
    if reason := why_no_classifier(manifest):
        not_offered["classifier"] = reason
    else:
        classifier = find_classifier(manifest, dataset, device, tracker.train_classifier)
        found.append(classifier_extractor(classifier, device))
    if reason := why_no_inception(manifest):
        not_offered["inception"] = reason
    else:
        found.append(inception_extractor(device))
    return found, not_offered


def _protocol(manifest: Manifest, tasks: Sequence[Task]) -> dict[str, Any]:
    """All that must be equal for two scores of these tasks to be comparable."""
    protocol = {
        "version": PROTOCOL,
        "task": ", ".join(task.kind for task in tasks),
        "dataset_digest": manifest.digest,
        "resolution": manifest.resolution,
        "reference": "held-out images; the floor is as many of the training set",
        "images": reals.count(manifest),
        "bootstrap_replicates": REPLICATES,
    }
    for task in tasks:
        protocol |= task.protocol
    return protocol


def _anchors(task: Task, protocol: dict[str, Any], tracker: Tracker) -> Anchors:
    """Measured once for a protocol, and kept."""
    if anchors := store().get_record(_anchors_key(protocol), Anchors):
        return anchors
    baselines = task.baselines(replicates=REPLICATES, progress=tracker)
    anchors = Anchors(
        floor={name: score.value for name, score in task.floor(tracker).items()},
        baselines=[_metric(name, score) for name, score in baselines.items()],
    )
    store().put_record(_anchors_key(protocol), anchors)
    return anchors


def _anchors_key(protocol: dict[str, Any]) -> str:
    return f"evaluations/{digest(protocol)}.json"


def _metric(name: str, score: Estimate, floor: float | None = None, untrained: float | None = None) -> Metric:
    return Metric(
        name=name,
        value=score.value,
        low=score.low,
        high=score.high,
        floor=floor,
        untrained=untrained,
        better=score.better,
        note=score.note,
    )


def _upload(pictures: dict[str, bytes], spec: RunSpec) -> dict[str, str]:
    """The address of each picture."""
    keys = {name: f"{folder('evaluate', spec)}/pictures/{name}.png" for name in pictures}
    for name, png in pictures.items():
        store().put(keys[name], png, content_type="image/png")
    return {name: store().uri(key) for name, key in keys.items()}
