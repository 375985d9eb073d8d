"""Retention, on the real object store and registry: what goes, what stays, and that a dry run takes nothing."""

from datetime import UTC, datetime
from typing import Any

import pytest

from genmodels.data.manifest import Column, Manifest, Shard, Table
from genmodels.errors import UnavailableError
from genmodels.settings import Settings
from genmodels.spec import PrepareReport, TrainReport
from genmodels.steps.prune import prune
from genmodels.storage.objects import ObjectStore, Upload
from genmodels.tracking.registry import Registry
from genmodels.tracking.rest import TrackingServer

ALL = -1  # days: also what was written a moment ago
FINISHED, UNFINISHED, WITHOUT_WEIGHTS = "a" * 64, "b" * 64, "c" * 64
NAMED, UNNAMED = "1" * 64, "2" * 64
WHOLE, PART = "3" * 64, "4" * 64


def a_manifest(digest: str) -> Manifest:
    shard = Shard(file="train/image@8-0.npy", rows=1, bytes=1, sha256="0" * 64)
    table = Table(rows=1, columns={"image@8": Column(dtype="uint8", shape=(1, 8, 8), shards=[shard])})
    common: dict[str, Any] = {"resolution": 8, "channels": 1, "classes": 0, "class_names": [], "licence": ""}
    return Manifest(name="mnist", digest=digest, tables={"train": table}, set_aside={}, **common)


def logged_model(status: str | None, **tags: str) -> str:
    """A model in MLflow, whole or not."""
    server = TrackingServer()
    answer = server.post("logged-models", experiment_id="0", name="of-a-test")["model"]["info"]["model_id"]
    if status:
        server.send("PATCH", f"mlflow/logged-models/{answer}", json={"model_id": answer, "status": status})
    return answer


@pytest.fixture
def littered(tracking: Settings, bucket: ObjectStore) -> dict[str, list[str]]:
    """A bucket after a while: by kind the keys that may go."""
    train: dict[str, Any] = {"weights_digest": "", "images_shown": 1, "updates": {}, "losses": {}}
    train |= {"images_per_second": 1, "seconds": 1, "startup_seconds": 1, "restarts": 0, "rollbacks": 0}
    for run_key in (FINISHED, WITHOUT_WEIGHTS):
        weights = bucket.uri(f"runs/{run_key}/weights.safetensors")
        bucket.put_record(f"runs/{run_key}/train.json", TrainReport(run_key=run_key, weights_uri=weights, **train))
    bucket.put(f"runs/{FINISHED}/weights.safetensors", b"weights")
    for run_key in (FINISHED, UNFINISHED, WITHOUT_WEIGHTS):
        bucket.put(f"runs/{run_key}/spec.json", b"{}")
        bucket.put(f"runs/{run_key}/samples/000000000001.png", b"png")
        bucket.put(f"runs/{run_key}/checkpoints/000000000001.pt", b"12345")

    manifest = a_manifest(WHOLE)
    bucket.put_record(manifest.key, manifest)
    bucket.put(f"datasets/mnist/{WHOLE}/train/image@8-0.npy", b"whole")
    bucket.put(f"datasets/mnist/{PART}/train/image@8-0.npy", b"part")
    report = PrepareReport(
        dataset="mnist",
        dataset_digest=WHOLE,
        manifest_uri=bucket.uri(manifest.key),
        rows={},
        set_aside={},
        images_per_second=1,
        seconds=1,
        sources={"train.gz": NAMED},
    )
    bucket.put_record(f"prepared/{'5' * 64}.json", report)
    bucket.put(f"prepared/{'6' * 64}/prepare.progress.json", b"{}")
    for sha256 in (NAMED, UNNAMED):
        bucket.put(f"raw/{sha256}", b"raw")
    bucket.put("raw/pins/0.json", b"{}")

    models = {name: logged_model(status) for name, status in (("ready", "LOGGED_MODEL_READY"), ("used", None))}
    models |= {"failed": logged_model("LOGGED_MODEL_UPLOAD_FAILED"), "unknown": "m-" + "0" * 32}
    Registry().add("of-a-test", model_id=models["used"], tags={"run_key": FINISHED}, description="", summary="")
    for model in models.values():
        bucket.put(f"mlflow/0/models/{model}/artifacts/weights", b"model")
    bucket.client.create_multipart_upload(Bucket=bucket.bucket, Key="runs/left")
    return {
        "checkpoints": [f"runs/{run_key}/checkpoints/000000000001.pt" for run_key in (FINISHED, UNFINISHED)],
        "raw": [f"raw/{UNNAMED}"],
        "data sets": [f"datasets/mnist/{PART}/train/image@8-0.npy"],
        "artifacts": sorted(f"mlflow/0/models/{models[name]}/artifacts/weights" for name in ("failed", "unknown")),
        "uploads": ["runs/left"],
    }


def keys(bucket: ObjectStore) -> set[str]:
    return {entry.key for entry in bucket.list("")}


def test_only_what_nobody_needs_goes(littered: dict[str, list[str]], bucket: ObjectStore):
    before = keys(bucket)
    planned = prune(older_than_days=ALL)
    assert planned.dry_run
    assert planned.objects == littered
    assert planned.bytes == {"checkpoints": 10, "raw": 3, "data sets": 4, "artifacts": 10}
    assert keys(bucket) == before, "a dry run takes nothing"
    assert len(list(bucket.uploads())) == 1

    done = prune(older_than_days=ALL, dry_run=False)
    assert done.objects == littered
    assert before - keys(bucket) == {key for kind, listed in littered.items() if kind != "uploads" for key in listed}
    assert not list(bucket.uploads())
    assert prune(older_than_days=ALL).objects == {kind: [] for kind in littered}


def test_an_upload_that_the_store_knows_no_more_is_as_good_as_given_up(bucket: ObjectStore):
    """SeaweedFS says so only of an id that it never gave for the key; other servers of every upload that has ended."""
    gone = {"Bucket": bucket.bucket, "Key": "runs/ended", "UploadId": "0" * 40}
    with pytest.raises(bucket.client.exceptions.NoSuchUpload):
        bucket.client.abort_multipart_upload(**gone)
    bucket.abort(Upload(key=gone["Key"], id=gone["UploadId"], begun=datetime.now(UTC)))


def test_what_was_written_lately_stays(littered: dict[str, list[str]], bucket: ObjectStore):
    before = keys(bucket)
    assert prune(older_than_days=1, dry_run=False).objects == {kind: [] for kind in littered}
    assert keys(bucket) == before


def test_raw_files_stay_while_a_data_set_does_not_say_where_it_came_from(
    littered: dict[str, list[str]], bucket: ObjectStore
):
    key = f"prepared/{'5' * 64}.json"
    report = bucket.get_record(key, PrepareReport)
    assert report
    bucket.put_record(key, report.model_copy(update={"sources": {}}))
    assert prune(older_than_days=ALL).objects["raw"] == []


def test_nothing_goes_while_the_registry_cannot_be_asked(
    littered: dict[str, list[str]], bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    before = keys(bucket)
    elsewhere = Registry(TrackingServer())
    elsewhere.server.url = "http://127.0.0.1:9"
    monkeypatch.setattr("genmodels.steps.prune.Registry", lambda: elsewhere)
    with pytest.raises(UnavailableError):
        prune(older_than_days=ALL, dry_run=False)
    assert keys(bucket) == before
