"""Prune: take away what nobody needs any more, and nothing that a registered version needs.

What may go, once nothing was written to it for a number of days:

- checkpoints of a training that has left its weights, or that nobody went on with;
- raw files that no prepared data set names as its source;
- parts of data sets whose manifest was never written;
- files of models that were staged in MLflow but did not become whole;
- uploads in parts that were never ended.

Weights, specs, reports, pictures and whole data sets stay.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from genmodels.data.catalogue import CATALOGUE
from genmodels.data.manifest import Manifest
from genmodels.spec import PrepareReport, PruneReport, TrainReport
from genmodels.storage.objects import ObjectInfo, ObjectStore, store
from genmodels.tracking.registry import Registry

CHECKPOINT = re.compile(r"runs/([0-9a-f]{64})/(?:checkpoints|ray)/.*")  # what Ray itself keeps of a training as well
RAW = re.compile(r"raw/([0-9a-f]{64})")
DATASET = re.compile(r"(datasets/[^/]+/[0-9a-f]{64})/.*")
MODEL = re.compile(r"mlflow/\d+/models/(m-[0-9a-f]+)/.*")


def prune(*, older_than_days: int = 30, dry_run: bool = True) -> PruneReport:
    """What may go, listed; and gone, unless it is a dry run.

    Raises:
        UnavailableError, AccessError: if the object store or MLflow cannot be asked. Nothing is removed then, since
            only both together know what is needed.
    """
    before = datetime.now(UTC) - timedelta(days=older_than_days)
    registry = Registry()
    needed = {version.model_id for version in registry.versions()}
    kinds = {
        "checkpoints": _checkpoints(store(), before),
        "raw": _raw(store(), before),
        "data sets": _unfinished_datasets(store(), before),
        "artifacts": _staged_models(store(), before, registry, needed),
    }
    found = {kind: list(objects) for kind, objects in kinds.items()}
    uploads = [upload for upload in store().uploads() if upload.begun < before]
    if not dry_run:
        for objects in found.values():
            store().delete([entry.key for entry in objects])
        for upload in uploads:
            store().abort(upload)
    return PruneReport(
        dry_run=dry_run,
        older_than_days=older_than_days,
        objects={kind: [entry.key for entry in objects] for kind, objects in found.items()}
        | {"uploads": [upload.key for upload in uploads]},
        bytes={kind: sum(entry.size for entry in objects) for kind, objects in found.items()},
    )


def _checkpoints(store: ObjectStore, before: datetime) -> Iterator[ObjectInfo]:
    """Those of trainings that are over; a training nobody went on with for so long is, too."""
    for run_key, objects in _grouped(store.list("runs/"), CHECKPOINT, before).items():
        trained = store.get_record(f"runs/{run_key}/train.json", TrainReport)
        if trained is None or store.exists(f"runs/{run_key}/weights.safetensors"):
            yield from objects


def _raw(store: ObjectStore, before: datetime) -> Iterator[ObjectInfo]:
    """Those that no prepared data set was made from. A data set from before its sources were kept may have been made
    from any, so while there is such a one all of them stay."""
    named: set[str] = set()
    for entry in store.list("prepared/"):
        if re.fullmatch(r"prepared/[0-9a-f]{64}\.json", entry.key):
            report = store.get_record(entry.key, PrepareReport)
            if report and store.exists(report.manifest_uri.removeprefix(store.uri(""))):
                if not report.sources and _downloaded(report):
                    return
                named.update(report.sources.values())
    for sha256, objects in _grouped(store.list("raw/"), RAW, before).items():
        if sha256 not in named:
            yield from objects


def _downloaded(report: PrepareReport) -> bool:
    """Whether a data set is made from files that are kept under raw/."""
    entry = CATALOGUE.get(report.dataset)
    return entry is not None and bool(entry.files)


def _unfinished_datasets(store: ObjectStore, before: datetime) -> Iterator[ObjectInfo]:
    for prefix, objects in _grouped(store.list("datasets/"), DATASET, before).items():
        if store.get_record(f"{prefix}/manifest.json", Manifest) is None:
            yield from objects


def _staged_models(store: ObjectStore, before: datetime, registry: Registry, needed: set[str]) -> Iterator[ObjectInfo]:
    """Files of models that MLflow does not know as whole. Whatever a version points to is needed, whole or not."""
    for model_id, objects in _grouped(store.list("mlflow/"), MODEL, before).items():
        if model_id in needed:
            continue
        model = registry.logged_model(model_id)
        if model is None or model["status"] != "LOGGED_MODEL_READY":
            yield from objects


def _grouped(objects: Iterable[ObjectInfo], pattern: re.Pattern[str], before: datetime) -> dict[str, list[ObjectInfo]]:
    """Objects by what the pattern's group finds in their keys; only groups to which nothing was written since."""
    groups: dict[str, list[ObjectInfo]] = defaultdict(list)
    for entry in objects:
        if match := pattern.fullmatch(entry.key):
            groups[match[1]].append(entry)
    return {name: group for name, group in groups.items() if max(entry.modified for entry in group) < before}
