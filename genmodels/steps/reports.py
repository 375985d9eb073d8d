"""What a step leaves for others to read: its report, its progress and, if it failed, why.

All lie in the object store, so that whoever follows a step needs no connection to the process that runs it.
"""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from socket import gethostname
from typing import TypeVar

from genmodels.errors import AccessError, DataError, DivergedError, GenmodelsError, SpecError, UnavailableError
from genmodels.spec import (
    EvaluationReport,
    Judgement,
    Progress,
    Record,
    RegisterReport,
    RunSpec,
    TrainReport,
    digest,
)
from genmodels.storage.objects import store
from genmodels.tracking.registry import Registry

R = TypeVar("R", bound=Record)
log = logging.getLogger(__name__)
WRITE_SECONDS = 1.0
REPORTS: dict[str, type[Record]] = {
    "train": TrainReport,
    "evaluate": EvaluationReport,
    "register": RegisterReport,
}


class Failure(Record):
    """Why a step ended without a report."""

    message: str
    exit_code: int
    transient: bool
    where: str = ""

    def error(self) -> GenmodelsError:
        """The error again, in another process."""
        error = error_of(self.exit_code)(self.message)
        error.where = self.where
        return error


def error_of(exit_code: int) -> type[GenmodelsError]:
    """The kind of error that a step ends with this exit code for."""
    kinds = (SpecError, DataError, DivergedError, UnavailableError, AccessError)
    return {kind.exit_code: kind for kind in kinds}.get(exit_code, GenmodelsError)


def folder(step: str, spec: RunSpec) -> str:
    """Where a step's report, progress and failure lie."""
    if step == "prepare":
        return f"prepared/{digest([spec.dataset, spec.config['resolution']])}"
    return f"runs/{spec.run_key}"


def report_key(step: str, spec: RunSpec) -> str:
    """Key of a step's report."""
    return f"{folder(step, spec)}/{step}.json"


def progress_key(step: str, spec: RunSpec) -> str:
    """Key of a step's last progress."""
    return f"{folder(step, spec)}/{step}.progress.json"


def load_report(step: str, spec: RunSpec, kind: type[R]) -> R | None:
    """The report of a step that is done; None if it is not, if something that it left behind is gone, or if the spec
    asks for another evaluation."""
    report = store().get_record(report_key(step, spec), kind)
    if isinstance(report, Judgement) and report.evaluation != spec.evaluation:
        return None
    return report if report and all(store().exists(key) for key in _left_behind(report)) else None


def load_registered(spec: RunSpec) -> RegisterReport | None:
    """The report of `register` while MLflow still has the version and its model; else it is forgotten, or the job that
    left it would pass for done."""
    report = load_report("register", spec, RegisterReport)
    if report is None:
        return None
    registry = Registry()
    if any(registry.logged_model(version.model_id) for version in registry.versions(report.name, spec.run_key)):
        return report
    store().delete([report_key("register", spec)])
    return None


def is_done(step: str, spec: RunSpec) -> bool:
    """Whether a step's report is there, and all that it left behind. Never so for `prepare`, whose report stands under
    the data set's name: only the step itself knows whether the source is still what it was."""
    return step != "prepare" and load_report(step, spec, REPORTS[step]) is not None


def _left_behind(report: Record) -> Iterator[str]:
    """Keys of the objects that a report names by their addresses."""
    for value in report.model_dump().values():
        for address in value.values() if isinstance(value, dict) else [value]:
            if isinstance(address, str) and address.startswith(store().uri("")):
                yield address.removeprefix(store().uri(""))


def save_report(step: str, spec: RunSpec, report: Record) -> None:
    """Says that a step is done, and forgets the error of a worker that was started again since."""
    clear_failure(step, spec)
    store().put_record(report_key(step, spec), report)


def read_progress(step: str, spec: RunSpec) -> Progress | None:
    """The last progress of a step, if it ever reported one."""
    return store().get_record(progress_key(step, spec), Progress)


def save_failure(step: str, spec: RunSpec, error: GenmodelsError) -> None:
    """Leaves a step's error for whoever follows it."""
    where = error.where or gethostname()
    failure = Failure(message=str(error), exit_code=error.exit_code, transient=error.transient, where=where)
    store().put_record(f"{folder(step, spec)}/{step}.error.json", failure)


def read_failure(step: str, spec: RunSpec) -> Failure | None:
    """The error a step left, if it left one."""
    return store().get_record(f"{folder(step, spec)}/{step}.error.json", Failure)


def clear_failure(step: str, spec: RunSpec) -> None:
    """Forgets the error of an earlier attempt."""
    store().delete([f"{folder(step, spec)}/{step}.error.json"])


def newest_samples(spec: RunSpec, *, after: int = -1) -> tuple[int, bytes] | None:
    """Images shown and the PNG of the last sample grid of a training, if there is one beyond `after` images shown."""
    prefix = f"{folder('train', spec)}/samples/"
    keys = [info.key for info in store().list(prefix)]
    if not keys or (images := int(keys[-1].removeprefix(prefix).removesuffix(".png"))) <= after:
        return None
    return images, store().get(keys[-1])


class ProgressWriter:
    """Writes a step's progress at most once a second, in the background, and never fails or waits.

    Args:
        key: from `progress_key`.
    """

    def __init__(self, key: str):
        self._key = key
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="progress")
        self._writing: Future[None] | None = None
        self._written = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._written < WRITE_SECONDS or (self._writing and not self._writing.done()):
            return
        self._written = now
        self._writing = self._writer.submit(self._write, progress)

    def close(self, progress: Progress | None = None) -> None:
        """Ends with a last progress, whatever was written a moment ago."""
        self._writer.shutdown(wait=True)
        if progress is not None:
            self._write(progress)

    def _write(self, progress: Progress) -> None:
        try:
            store().put_record(self._key, progress)
        except GenmodelsError as error:
            log.warning("Progress was not written: %s", error)


class Tracker:
    """Counts an evaluation's looks at images, each made or measured once, as its progress.

    Args:
        key: from `progress_key`.
        total: looks in all.
    """

    def __init__(self, key: str, total: int = 0):
        self.total = total
        self._write = ProgressWriter(key)
        self._last: Progress | None = None
        self._done, self._started = 0, time.monotonic()

    def count(self, stage: str, images: int) -> None:
        self._done += images
        self.tell(stage, self._done, self.total, self._done / max(time.monotonic() - self._started, 1e-3))

    def train_classifier(self, done: int, total: int) -> None:
        self.tell("train classifier", done, total, done / max(time.monotonic() - self._started, 1e-3))

    def tell(self, stage: str, done: int, total: int, per_second: float) -> None:
        self._last = Progress(step="evaluate", stage=stage, done=done, total=total, per_second=per_second)
        self._write(self._last)

    def close(self) -> None:
        """Leaves the last progress."""
        self._write.close(self._last)
        self._last = None
