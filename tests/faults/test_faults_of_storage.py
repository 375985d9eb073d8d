"""Faults below the steps: an upload that is cut off for good, and a node whose disk is full."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_proxy import FaultProxy

from genmodels.data.manifest import open_dataset
from genmodels.errors import AccessError, DataError
from genmodels.settings import Settings
from genmodels.steps.prepare import prepare
from genmodels.steps.prune import prune
from genmodels.steps.resolve import resolve
from genmodels.storage.objects import TRANSFER, ObjectStore, store
from genmodels.tracking.journal import Entry, Journal
from genmodels.tracking.runs import MetricsQueue
from genmodels.training.checkpoints import Checkpoints

ALL = -1  # days: also what was written a moment ago
KEY = "mlflow/0/models/m-0/artifacts/cut-off"


def test_an_upload_in_parts_whose_process_is_killed(
    tracking: Settings, bucket: ObjectStore, configure: Callable[..., None], tmp_path: Path
):
    """No object is there, and prune finds and takes away the parts."""
    file = tmp_path / "file"
    file.write_bytes(os.urandom(2 * TRANSFER.multipart_threshold))
    line = FaultProxy(tracking.s3_endpoint)
    line.latency = 0.1
    configure(s3_endpoint=line.url)
    script = f"from genmodels.storage.objects import store; store().upload({str(file)!r}, {KEY!r})"
    process = subprocess.Popen([sys.executable, "-c", script])
    while not any("partNumber=" in request for request in line.unanswered):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    line.close()

    configure(s3_endpoint=tracking.s3_endpoint)
    assert not store().exists(KEY)
    assert [upload.key for upload in store().uploads()] == [KEY]
    assert prune(older_than_days=1).objects["uploads"] == [], "it may still be under way"
    assert prune(older_than_days=ALL, dry_run=False).objects["uploads"] == [KEY]
    assert not list(store().uploads())


@pytest.fixture
def small_disk(configure: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of a MiB that is the place of the node's cache and of temporary files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if (tried := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode != 0:
        pytest.skip(f"nothing may be mounted here: {tried.stderr.strip()}")
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_journal_on_a_disk_that_has_room_for_a_part_of_what_is_appended(small_disk: Path):
    """All of it is refused, what was there before stays as it was, and what comes after is read whole."""
    small, large = [Entry(0, 1, "loss", 0.5)], [Entry(0, 2, f"loss {i}", 0.5) for i in range(1000)]
    journal = Journal(small_disk / "journal.jsonl")
    journal.append(small)
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(bytes(free - (8 << 10)))

    with pytest.raises(OSError, match="No space left on device"):
        journal.append(large)
    assert journal.first(9)[0] == small

    filler.unlink()
    journal.append(large)
    assert journal.first(9999)[0] == small + large
    journal.close()


def test_a_full_disk_on_a_node(
    tracking: Settings,
    bucket: ObjectStore,
    configure: Callable[..., None],
    small_disk: Path,
    caplog: pytest.LogCaptureFixture,
):
    """Data are refused, a checkpoint's loss is told, metrics are lost without an end of training; and all is well
    once there is room."""
    spec = resolve("gan", "digits")
    digest = prepare(spec).dataset_digest
    configure(cache_dir=str(small_disk / "cache"))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1020 << 10))

    with pytest.raises(AccessError, match="is full; free some space"):
        open_dataset(spec.dataset_name, digest)
    assert not [*small_disk.rglob(".new-*")], "what was half written is gone"

    checkpoints = Checkpoints(bucket, "runs/full", keep=2)
    checkpoints.save({"weights": torch.zeros(100_000)}, 8)
    with pytest.raises(DataError, match=r"could not be written .* free some disk space"):
        checkpoints.wait()
    assert not list(bucket.list("runs/full/"))

    queue = MetricsQueue(lambda: "0" * 32, small_disk / "queue", sample_system=False)
    queue.log({f"loss {i}": 1.0 for i in range(1000)}, 8)
    queue.image("samples", np.random.default_rng(0).integers(256, size=(256, 256, 3), dtype=np.uint8), 8)
    assert "Metrics are lost" in caplog.text
    assert "A picture is lost" in caplog.text
    queue.close()

    filler.unlink()
    open_dataset(spec.dataset_name, digest)


def test_a_full_disk_below_the_stack_is_one_sentence(small_disk: Path):
    (small_disk / "filler").write_bytes(bytes(1020 << 10))
    environment = {**os.environ, "GENMODELS_HOME": str(small_disk / "home")}
    up = [sys.executable, "-m", "genmodels", "up"]
    done = subprocess.run(up, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 77
    assert "genmodels: A disk is full" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
