"""The first step: fetch a data set, preprocess it, and leave it in the object store under the digest of its content."""

import logging
import os
import time
from contextlib import suppress

from genmodels.data.catalogue import find
from genmodels.data.download import BytesDone, locate
from genmodels.data.entries import CatalogueEntry
from genmodels.data.manifest import cache_folder, publish, whats_missing
from genmodels.data.preprocess import VERSION, preprocess
from genmodels.errors import DataError, SpecError
from genmodels.settings import settings
from genmodels.spec import PrepareReport, Progress, RunSpec, digest
from genmodels.steps.reports import ProgressWriter, progress_key, save_report
from genmodels.storage.files import new_folder
from genmodels.storage.objects import store

log = logging.getLogger(__name__)


def prepare(spec: RunSpec, *, ray: bool = False) -> PrepareReport:
    """Makes sure that the data of a spec are prepared, and says where.

    What was prepared from the same source in the same way is found again and checked, not made again. Two who prepare
    the same at once write the same objects.

    Raises:
        SpecError: for an unknown data set or a resolution below 4 of images.
        DataError: if the source is not what it should be.
        UnavailableError, AccessError: if the source or the object store cannot be reached or refuses.
    """
    entry, resolution = find(spec.dataset), int(spec.config["resolution"])
    if resolution < min(4, entry.resolution):
        raise SpecError(f"resolution={resolution} is too small; the pyramid ends at 4×4.")
    progress = _Rates(ProgressWriter(progress_key("prepare", spec)))
    try:
        key = _key(spec, entry, progress.download)
        report = _found(key, spec) or _made(spec, entry, resolution, progress, ray)
        store().put_record(key, report)
    finally:
        progress.close()
    save_report("prepare", spec, report)
    return report


def prepared(spec: RunSpec) -> PrepareReport | None:
    """The report of what was prepared from the same source, as it is now, in the same way, if all of it is there; None
    if not, or if only a download can tell."""
    entry = find(spec.dataset)
    if any(file.sha256 is None for file in entry.files):  # a mirror's list or a pin may know
        try:
            located = locate(entry.name, entry.files, entry.how_to_get)
        except DataError:  # to be got by hand, and only the machines of the step may have it
            return None
        if any(file.sha256 is None for file in located):
            return None
    return _found(_key(spec, entry, lambda done, total: None), spec)


def _key(spec: RunSpec, entry: CatalogueEntry, progress: BytesDone) -> str:
    identity = entry.identity(progress)
    return f"prepared/{digest([spec.dataset_name, identity, int(spec.config['resolution']), VERSION])}.json"


def _found(key: str, spec: RunSpec) -> PrepareReport | None:
    report = store().get_record(key, PrepareReport)
    if report is None:
        return None
    if missing := whats_missing(spec.dataset_name, report.dataset_digest):
        log.warning("%s was prepared before, but %s; preparing it again.", spec.dataset, missing)
        return None
    log.info("%s is prepared already: %s", spec.dataset, report.manifest_uri)
    return report


def _made(spec: RunSpec, entry: CatalogueEntry, resolution: int, progress: "_Rates", ray: bool) -> PrepareReport:
    started = time.perf_counter()
    with (
        new_folder(settings().cache / "datasets" / "new") as folder,
        entry.examples(progress.download) as examples,
    ):
        done = preprocess(
            entry,
            examples,
            folder,
            name=spec.dataset_name,
            resolution=resolution,
            progress=progress.preprocess,
            ray=ray,
        )
        publish(done.manifest, folder)
        with suppress(OSError):  # the node has its copy already
            os.rename(folder, cache_folder(done.manifest.digest))
    log.info(
        "%s: %.0f images/s, set aside: %s", spec.dataset, done.images_per_second, done.manifest.set_aside or "none"
    )
    return PrepareReport(
        dataset=spec.dataset,
        dataset_digest=done.manifest.digest,
        manifest_uri=store().uri(done.manifest.key),
        rows=done.manifest.rows,
        set_aside=done.manifest.set_aside,
        images_per_second=done.images_per_second,
        seconds=time.perf_counter() - started,
        sources=dict(entry.identity(progress.download)) if entry.files else {},
    )


class _Rates:
    """Turns counts into progress with a rate."""

    def __init__(self, write: ProgressWriter):
        self._write = write
        self._last: Progress | None = None
        self._stage = ""
        self._started = 0.0

    def download(self, done: int, total: int) -> None:
        self._tell("download", done, total, "bytes")

    def preprocess(self, done: int, total: int) -> None:
        self._tell("preprocess", done, total, "images")

    def close(self) -> None:
        self._write.close(self._last)

    def _tell(self, stage: str, done: int, total: int, unit: str) -> None:
        if stage != self._stage:
            self._stage, self._started = stage, time.monotonic()
        rate = done / max(time.monotonic() - self._started, 1e-3)
        self._last = Progress(step="prepare", stage=stage, done=done, total=total, unit=unit, per_second=rate)
        self._write(self._last)
