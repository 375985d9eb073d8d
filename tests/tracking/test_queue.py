"""Metrics and pictures reach a real server, each exactly once, whatever happens to the server or the process."""

import io
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from mlflow_process import LossyProxy, MlflowProcess
from PIL import Image

from genmodels.settings import Settings, settings
from genmodels.storage.objects import store
from genmodels.tracking.journal import Entry, Journal
from genmodels.tracking.rest import TrackingServer
from genmodels.tracking.runs import MetricsQueue
from genmodels.tracking.system import system_metrics


def history(run_id: str, key: str) -> list[tuple[int, float]]:
    answer = TrackingServer().get("metrics/get-history", run_id=run_id, metric_key=key, max_results=25000)
    return [(int(metric["step"]), float(metric["value"])) for metric in answer.get("metrics", [])]


def test_metrics_of_a_time_without_server_arrive_once_and_in_order(
    mlflow_process: MlflowProcess, bare_run: str, tmp_path: Path
):
    queue = MetricsQueue(lambda: bare_run, tmp_path)
    for step in range(3000):
        queue.log({"loss": step / 7, "rate": 1 / (step + 1)}, step)
        if step == 1000:
            mlflow_process.kill()
    time.sleep(2)  # a few deliveries fail
    mlflow_process.start()
    queue.close()
    expected = [(step, step / 7) for step in range(3000)]
    assert history(bare_run, "loss") == expected
    assert len(history(bare_run, "rate")) == 3000
    assert TrackingServer().get("runs/get", run_id=bare_run)["run"]["info"]["status"] == "FINISHED"


def test_a_killed_process_leaves_its_metrics_to_the_next(bare_run: str, mlflow_process: MlflowProcess, tmp_path: Path):
    """The first process is killed while it cannot deliver; the second goes through steps 60 to 99 again, as a
    training that resumes from a checkpoint does, with the same values at another time."""
    script = (
        "import os, pathlib, signal, sys; from genmodels.tracking.runs import MetricsQueue\n"
        "queue = MetricsQueue(lambda: sys.argv[1], pathlib.Path(sys.argv[2]))\n"
        "for step in range(100): queue.log({'loss': step / 7}, step)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "GENMODELS_MLFLOW_URL": "http://127.0.0.1:9"}
    process = subprocess.run([sys.executable, "-c", script, bare_run, str(tmp_path)], env=environment, check=False)
    assert process.returncode == -signal.SIGKILL
    assert history(bare_run, "loss") == []
    queue = MetricsQueue(lambda: bare_run, tmp_path)
    for step in range(60, 140):
        queue.log({"loss": step / 7}, step)
    queue.close()
    assert history(bare_run, "loss") == [(step, step / 7) for step in range(140)]


def test_steps_that_the_server_holds_are_not_sent_again_from_another_machine(bare_run: str, tmp_path: Path):
    for machine, steps in (("a", range(100)), ("b", range(60, 140))):
        queue = MetricsQueue(lambda: bare_run, tmp_path / machine)
        for step in steps:
            queue.log({"loss": step / 7}, step)
            if step % 20 == 0:
                queue.image("samples/fixed latents", np.full((8, 8, 3), step, np.uint8), step)
        queue.close()
    assert history(bare_run, "loss") == [(step, step / 7) for step in range(140)]
    files = TrackingServer().get("artifacts/list", run_id=bare_run, path="images")["files"]
    steps = Counter(int(file["path"].split("+")[2]) for file in files if file["path"].endswith(".png"))
    assert steps == dict.fromkeys(range(0, 140, 20), 1)


def test_nothing_is_lost_or_doubled_when_answers_are_lost(
    mlflow_process: MlflowProcess, bare_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every third answer of the server is thrown away after the server has done what was asked."""
    with LossyProxy(mlflow_process.port) as proxy:
        monkeypatch.setattr(settings(), "mlflow_url", proxy.url)
        queue = MetricsQueue(lambda: bare_run, tmp_path)
        for step in range(10):
            queue.log({"loss": step / 7}, step)
            queue.image("samples", np.full((8, 8), step, np.uint8), step)
            time.sleep(0.05)
        queue.close()
        assert proxy.lost > 5
    monkeypatch.setattr(settings(), "mlflow_url", mlflow_process.url)
    assert history(bare_run, "loss") == [(step, step / 7) for step in range(10)]
    files = [file["path"] for file in TrackingServer().get("artifacts/list", run_id=bare_run, path="images")["files"]]
    assert len(files) == 20  # a PNG file and a thumbnail for each


def test_pictures_come_back_as_they_were_logged(bare_run: str, mlflow_process: MlflowProcess, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 10, 3), np.uint8)
    queue = MetricsQueue(lambda: bare_run, tmp_path)
    queue.image("samples/grid", pixels, 7)
    queue.close()
    files = [file["path"] for file in TrackingServer().get("artifacts/list", run_id=bare_run, path="images")["files"]]
    [png], [webp] = ([path for path in files if path.endswith(end)] for end in (".png", ".webp"))
    assert png.startswith("images/samples~grid+step+7+timestamp+")
    picture, thumbnail = (
        np.asarray(
            Image.open(
                io.BytesIO(
                    requests.get(
                        f"{mlflow_process.url}/get-artifact", params={"run_id": bare_run, "path": path}, timeout=30
                    ).content
                )
            )
        )
        for path in (png, webp)
    )
    assert np.array_equal(picture, pixels)
    assert thumbnail.shape == (51 * 20, 51 * 10, 3)
    assert list(tmp_path.iterdir()) == [tmp_path / "queue.jsonl"]


def test_values_that_are_no_numbers_are_kept_as_such(bare_run: str, tmp_path: Path):
    queue = MetricsQueue(lambda: bare_run, tmp_path)
    for step, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        queue.log({"loss": value}, step)
    queue.close()
    (_, nan), (_, most), (_, least) = history(bare_run, "loss")
    assert math.isnan(nan)
    assert most > 1e308
    assert least < -1e308


def test_close_gives_up_when_its_time_is_over(bare_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    with monkeypatch.context() as away:
        away.setattr(settings(), "mlflow_url", "http://127.0.0.1:9")
        queue = MetricsQueue(lambda: bare_run, tmp_path)
        queue.log({"loss": 1.0}, 5)
        queue.close(timeout_seconds=1)
    assert "the rest waits in" in caplog.text
    MetricsQueue(lambda: bare_run, tmp_path).close()
    assert history(bare_run, "loss") == [(5, 1.0)]


def test_what_one_machine_could_not_deliver_another_does(
    s3: Settings, bare_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    prefix = "runs/0123/queue"
    with monkeypatch.context() as away:
        away.setattr(settings(), "mlflow_url", "http://127.0.0.1:9")
        queue = MetricsQueue(lambda: bare_run, tmp_path / "a", prefix=prefix)
        queue.log({"loss": 1.0}, 5)
        queue.image("samples", np.zeros((8, 8), np.uint8), 5)
        queue.close(timeout_seconds=1)
    assert f"the rest waits in {store().uri(prefix)}" in caplog.text
    MetricsQueue(lambda: bare_run, tmp_path / "b", prefix=prefix).close()
    assert history(bare_run, "loss") == [(5, 1.0)]
    files = [file["path"] for file in TrackingServer().get("artifacts/list", run_id=bare_run, path="images")["files"]]
    assert len(files) == 2  # a PNG file and a thumbnail
    assert list(store().list(prefix)) == []


def test_a_name_that_mlflow_refuses_is_refused_at_once(tmp_path: Path):
    queue = MetricsQueue(lambda: "0" * 32, tmp_path)
    with pytest.raises(ValueError, match="cannot be a metric's name"):
        queue.log({"loss\n": 1.0}, 0)
    with pytest.raises(ValueError, match="cannot be a picture's name"):
        queue.image("a+b", np.zeros((2, 2), np.uint8), 0)


def test_system_metrics_are_among_the_metrics(bare_run: str, tmp_path: Path):
    MetricsQueue(lambda: bare_run, tmp_path).close()
    keys = {metric["key"] for metric in TrackingServer().get("runs/get", run_id=bare_run)["run"]["data"]["metrics"]}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= keys


def test_a_gpu_in_parts_tells_no_use_and_the_machine_all_else(monkeypatch: pytest.MonkeyPatch):
    """As NVML answers for a GPU in MIG mode: its memory, but not its utilisation."""
    pynvml = pytest.importorskip("pynvml")

    def refuse(gpu: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda gpu: SimpleNamespace(used=1, total=2))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", refuse)
    values = system_metrics()
    assert "system/cpu_utilization_percentage" in values
    assert not [name for name in values if "gpu" in name]


def test_a_picture_that_is_gone_stops_the_delivery_aloud(
    bare_run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    journal = Journal(tmp_path / "queue.jsonl")
    journal.append([Entry(1, 2, "images/samples", file="gone.png")])
    journal.close()
    MetricsQueue(lambda: bare_run, tmp_path, sample_system=False).close()
    assert f"Metrics stay in {tmp_path}" in caplog.text
    assert "gone.png" in caplog.text


def test_journal_forgets_a_line_that_was_cut(tmp_path: Path):
    path = tmp_path / "queue.jsonl"
    journal = Journal(path)
    journal.append([Entry(1, 2, "loss", 0.5), Entry(1, 3, "loss", 0.25)])
    journal.close()
    path.write_bytes(path.read_bytes()[:-5])
    journal = Journal(path)
    journal.append([Entry(1, 4, "loss", 0.125)])
    assert journal.first(10)[0] == [Entry(1, 2, "loss", 0.5), Entry(1, 4, "loss", 0.125)]


def test_journal_is_emptied_when_all_is_taken(tmp_path: Path):
    journal = Journal(tmp_path / "queue.jsonl")
    writer = threading.Thread(target=lambda: [journal.append([Entry(0, step, "loss")]) for step in range(2000)])
    writer.start()
    steps: list[int] = []
    while writer.is_alive() or not journal.is_empty():
        entries, mark = journal.first(100)
        steps += [entry.step for entry in entries]
        journal.drop(mark)
    assert steps == list(range(2000))
    assert journal.path.stat().st_size == 0
