"""A flow on the real stack, and a server that is away or killed for a while: it ends by itself, once and whole.

These take minutes each, so they run with `make soak` only; `test_soak.py` has a short share of each in every run.
"""

import json
import signal
import sqlite3
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fault_proxy import FaultProxy
from PIL import Image
from private_stack import IMAGES, LONG, PATIENCE, SMALL, PrivateStack, assert_clean, prefect, wait_for_images
from sklearn.datasets import load_digits
from waiting import wait_for

from genmodels.spec import PrepareReport, RunSpec
from genmodels.steps.jobs import job_under_way
from genmodels.steps.reports import is_done, load_report
from genmodels.steps.resolve import resolve

pytestmark = LONG

STEPS = ("prepare", "train", "evaluate", "register")


def away(line: FaultProxy, seconds: float) -> None:
    with line.away():
        time.sleep(seconds)


def failing(line: FaultProxy, seconds: float) -> None:
    line.busy = 1.0
    time.sleep(seconds)
    line.mend()


def late(line: FaultProxy, seconds: float) -> None:
    line.latency = 10.0
    time.sleep(seconds)
    line.mend()


def down_and_up(private: PrivateStack) -> None:
    private.local.down()
    private.up()


def lock_database(private: PrivateStack) -> None:
    with sqlite3.connect(private.home / "prefect/prefect.db", timeout=60) as database:
        database.execute("BEGIN IMMEDIATE")
        time.sleep(20)


OUTAGES: dict[str, tuple[str, Callable[[PrivateStack], None]]] = {
    "S3 away for a minute in download": ("prepare", lambda p: away(p.s3, 60)),
    "S3 away for a minute in checkpoint": ("train", lambda p: away(p.s3, 60)),
    "S3 away for a minute in registration": ("register", lambda p: away(p.s3, 60)),
    "MLflow away for three minutes in training": ("train", lambda p: away(p.mlflow, 180)),
    "MLflow away for a minute in registration": ("register", lambda p: away(p.mlflow, 60)),
    "Prefect away for two minutes in training": ("train", lambda p: away(p.prefect, 120)),
    "Prefect answers 503 to everything": ("train", lambda p: failing(p.prefect, 30)),
    "Prefect answers late": ("train", lambda p: late(p.prefect, 60)),
    "Prefect's database locked for 20 s": ("train", lock_database),
    "Prefect killed": ("train", lambda p: p.kill("prefect")),
    "Ray's head killed": ("train", lambda p: p.kill("ray")),
    "the stack down and up": ("train", down_and_up),
}


@pytest.fixture
def asked(private: PrivateStack, tmp_path: Path) -> RunSpec:
    """A run on digits of the test's own, so that nothing of it has been done before."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(zlib.crc32(tmp_path.name.encode())).integers(0, 16, (400, 8, 8))
    digits, _ = load_digits(return_X_y=True)
    for index, pixels in enumerate(15 * np.reshape(digits[:400], noise.shape) + noise):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return resolve("gan", f"folder:{folder}", "demo", [*SMALL, "resolution=8"], workers=2)


def bound(asked: RunSpec) -> RunSpec | None:
    report = load_report("prepare", asked, PrepareReport)
    return asked.with_dataset(report.dataset_digest) if report else None


def wait_for_step(flow: subprocess.Popen[str], asked: RunSpec, step: str) -> None:
    """Until the step's job runs; in training, until it is well under way."""

    def running() -> bool:
        assert flow.poll() is None, flow.communicate()[0]
        spec = asked if step == "prepare" else bound(asked)
        before = STEPS[STEPS.index(step) - 1] if step in {"evaluate", "register"} else None
        if spec is None or (before and not is_done(before, spec)):
            return False
        job = job_under_way(step, spec)
        info = job.info() if job else None
        return info is not None and info.status == "RUNNING"

    wait_for(running, PATIENCE)
    if step == "train" and (spec := bound(asked)):
        wait_for_images(spec, IMAGES // 10)


def outcome(flow: subprocess.Popen[str]) -> dict[str, object]:
    output, _ = flow.communicate(timeout=1200)
    assert flow.returncode == 0, output[-3000:]
    return json.loads(output.splitlines()[-1])


def assert_whole(private: PrivateStack, asked: RunSpec) -> None:
    spec = bound(asked)
    assert spec
    assert_clean(private, spec)


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_flow_survives_without_help(private: PrivateStack, asked: RunSpec, outage: str):
    step, happen = OUTAGES[outage]
    flow = private.flow(asked)
    wait_for_step(flow, asked, step)
    happen(private)
    address = outcome(flow)["addresses"]
    assert_whole(private, asked)
    assert isinstance(address, dict)
    run = prefect(f"flow_runs/{address['prefect'].rpartition('/')[2]}")
    assert run["state"]["type"] == "COMPLETED", "its end has arrived"


@pytest.mark.parametrize("step", STEPS)
def test_killed_then_cancelled_in_each_step_and_run_again(private: PrivateStack, asked: RunSpec, step: str):
    first = private.flow(asked)
    wait_for_step(first, asked, step)
    first.send_signal(signal.SIGKILL)
    first.wait()

    second = private.flow(asked)
    assert second.stdout
    page = next(line for line in second.stdout if line.startswith("Follow it at")).split()[-1]
    prefect(f"flow_runs/{page.rpartition('/')[2]}/set_state", state={"type": "CANCELLING"})
    second.communicate(timeout=300)
    state = prefect(f"flow_runs/{page.rpartition('/')[2]}")["state"]["type"]
    assert (second.returncode, state) in {(1, "CANCELLED"), (0, "COMPLETED")}  # the step may have been over by then

    outcome(private.flow(asked))
    assert_whole(private, asked)


def test_the_same_run_started_twice_at_once(private: PrivateStack, asked: RunSpec):
    flows = [private.flow(asked) for _ in range(2)]
    first, second = (outcome(flow) for flow in flows)
    assert first["version"] == second["version"]
    assert_whole(private, asked)
