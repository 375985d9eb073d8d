"""Evaluate: how well the model predicts held-out real data, how much what it makes is like them and what its codes keep
of them, beside the same scores of real data and of the untrained model."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from socket import gethostname
from typing import Any

import torch

from genmodels.data.manifest import Manifest, open_dataset
from genmodels.errors import GenmodelsError, SpecError, UnavailableError
from genmodels.evaluation import reals
from genmodels.evaluation.bootstrap import REPLICATES, Estimate
from genmodels.evaluation.extractors import extractors_of
from genmodels.evaluation.tasks import tasks_of
from genmodels.evaluation.tasks.base import Looks
from genmodels.settings import settings
from genmodels.spec import EvaluationReport, Metric, Record, RunSpec, digest
from genmodels.steps.costs import metered
from genmodels.steps.jobs import started_by
from genmodels.steps.reports import Tracker, folder, load_report, progress_key, save_report
from genmodels.steps.train import load_trained, untrained
from genmodels.storage.objects import store

PROTOCOL = 5  # another number has every model judged again
FEW_PIXELS = 2**20  # are judged before Ray has started another process

Part = tuple[str, int]  # whom a task judges ("model", "untrained", or the "anchors" without either), and its place
Measured = tuple[dict[str, Estimate], dict[str, bytes]]


class Anchors(Record):
    """Scores that do not depend on the model: what real data get, and the metrics of images made without one."""

    floor: dict[str, float]
    baselines: list[Metric]


def evaluate(spec: RunSpec, *, ray: bool = False) -> EvaluationReport:
    """Judges the trained model of a spec; the report there is, if it was made by the same protocol, is returned. A
    later one takes its place, also where the spec has it judged on other data than it learnt from.

    With `ray` this is the process of a Ray job, and where there is much to do each part is a task of its own in the
    cluster, on a GPU if it has any.

    Raises:
        MissingObject: before the model is trained.
        SpecError, DataError: if the model or the data set is none that can be judged.
        UnavailableError: if a server does not answer, or a task was lost.
    """
    started = time.perf_counter()
    tracker = Tracker(progress_key("evaluate", spec))
    try:
        with metered("evaluate", spec, started_by()):
            evaluation = Evaluation(spec, tracker.train_classifier)
            report = load_report("evaluate", spec, EvaluationReport)
            if report and report.protocol == evaluation.protocol():
                return report
            parts = evaluation.parts()
            tracker.total = sum(evaluation.looks(part) for part in parts)
            spread = ray and evaluation.pixels > FEW_PIXELS
            found = {} if spread else {part: evaluation.measure(part, tracker.count) for part in parts}
        if spread:
            tracker.close()
            found = _measured_by_tasks(spec, parts, tracker.total)
        metrics: list[Metric] = []
        pictures: dict[str, bytes] = {}
        for place, _ in enumerate(evaluation.tasks):
            anchors = evaluation.anchors(place)
            assert anchors
            judged, drawn = found["model", place]
            ceiling, _ = found["untrained", place]
            metrics += [
                _metric(name, score, floor=anchors.floor.get(name), untrained=ceiling[name].value)
                for name, score in judged.items()
            ]
            metrics += anchors.baselines
            pictures |= drawn
        report = EvaluationReport(
            evaluation=spec.evaluation,
            run_key=spec.run_key,
            primary=evaluation.tasks[0].primary,
            metrics=metrics,
            protocol=evaluation.protocol(),
            pictures=_upload(pictures, spec),
            not_offered=evaluation.not_offered,
            seconds=time.perf_counter() - started,
        )
        save_report("evaluate", spec, report)
        return report
    finally:
        tracker.close()


class Evaluation:
    """What it takes to judge a trained model on one machine, part by part."""

    def __init__(self, spec: RunSpec, train_classifier: Callable[[int, int], None] = lambda done, total: None):
        self.spec = spec
        self.manifest, dataset = open_dataset(spec.dataset_name, spec.judged_on or str(spec.dataset_digest))
        if spec.judged_on:
            _check_alike(self.manifest, spec)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        extractors, without = extractors_of(self.manifest, dataset, self.device, train_classifier)
        self.model = load_trained(spec).to(self.device)
        self.tasks, not_judged = tasks_of(self.model, self.manifest, dataset, extractors, spec.evaluation)
        self.not_offered = without | not_judged

    @property
    def pixels(self) -> int:
        """Of the images that each score takes."""
        return reals.count(self.manifest) * self.manifest.resolution**2

    def parts(self) -> list[Part]:
        """All that is not known yet."""
        subjects = ("anchors", "model", "untrained")
        all_parts = [(subject, place) for place, _ in enumerate(self.tasks) for subject in subjects]
        return [part for part in all_parts if part[0] != "anchors" or self.anchors(part[1]) is None]

    def looks(self, part: Part) -> int:
        """The images that a part takes."""
        subject, place = part
        return self.tasks[place].anchor_looks if subject == "anchors" else self.tasks[place].looks

    def measure(self, part: Part, progress: Looks) -> Measured:
        """The scores of a model and its pictures, or nothing where the anchors are put into the object store."""
        subject, place = part
        task = self.tasks[place]
        if subject == "anchors":
            baselines = task.baselines(replicates=REPLICATES, progress=progress)
            anchors = Anchors(
                floor={name: score.value for name, score in task.floor(progress).items()},
                baselines=[_metric(name, score) for name, score in baselines.items()],
            )
            store().put_record(self._anchors_key(place), anchors)
            return {}, {}
        if subject == "model":
            judged = task.judge(self.model, replicates=REPLICATES, progress=progress)
            return judged.scores, dict(judged.pictures())
        start = untrained(self.spec).to(self.device)
        told = lambda stage, images: progress(f"{stage} untrained", images)  # noqa: E731
        return task.judge(start, replicates=0, progress=told).scores, {}

    def anchors(self, place: int) -> Anchors | None:
        """Those of a task, if they were ever measured by its protocol."""
        return store().get_record(self._anchors_key(place), Anchors)

    def protocol(self, place: int | None = None) -> dict[str, Any]:
        """All that must be equal for two scores of a task, or of all of them, to be comparable."""
        tasks = self.tasks if place is None else [self.tasks[place]]
        protocol = {
            "version": PROTOCOL,
            "task": ", ".join(task.kind for task in tasks),
            "dataset_digest": self.manifest.digest,
            "resolution": self.manifest.resolution,
            "reference": "held-out images; the floor is as many of the training set",
            "images": reals.count(self.manifest),
            "bootstrap_replicates": REPLICATES,
        }
        for task in tasks:
            protocol |= task.protocol
        return protocol

    def _anchors_key(self, place: int) -> str:
        return f"evaluations/{digest(self.protocol(place))}.json"


def _check_alike(manifest: Manifest, spec: RunSpec) -> None:
    """Raises SpecError if a model knows nothing of data that shall judge it."""
    own, _ = open_dataset(spec.dataset_name, str(spec.dataset_digest))
    for what in ("resolution", "channels", "class_names"):
        if getattr(own, what) != getattr(manifest, what):
            raise SpecError(
                f"The run {spec.run_key[:8]} of {spec.model} cannot be judged on {spec.dataset} as it is now, whose "
                f"{what.replace('_', ' ')} changed; train it again."
            )


def _measured_by_tasks(spec: RunSpec, parts: Sequence[Part], total: int) -> dict[Part, Measured]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    ray.init(ignore_reinit_error=True)
    remote: Any = ray.remote
    tracker = remote(num_cpus=0)(Tracker).remote(progress_key("evaluate", spec), total)
    gpus = max(ray.cluster_resources().get("GPU", 0), settings().worker_resources.get("GPU", 0))
    task = remote(num_cpus=1, num_gpus=min(1, gpus))(_measure)
    waiting = {part: task.remote(spec, part, tracker, started_by()) for part in parts}
    try:
        return {part: ray.get(reference) for part, reference in waiting.items()}
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise UnavailableError(f"A task of the evaluation was lost ({type(error).__name__}); try again.") from error
    finally:
        with suppress(RayError):  # progress is no reason to fail
            ray.get(tracker.close.remote(), timeout=10)


def _measure(spec: RunSpec, part: Part, tracker: Any, started_by: str) -> Measured:
    try:
        with metered("evaluate", spec, started_by):
            return _evaluation(spec.model_dump_json()).measure(part, tracker.count.remote)
    except GenmodelsError as error:
        error.where = gethostname()
        raise


@lru_cache(maxsize=1)
def _evaluation(spec: str) -> Evaluation:
    """One for all the parts that a process is given."""
    return Evaluation(RunSpec.model_validate_json(spec))


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
