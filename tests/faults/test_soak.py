"""Random kills: whatever ends in the middle of a run, the run ends as a quiet one does.

Two flows retrain the same run at once. Now and then, but always only after some step has gone on since, something is
killed: a worker, the workers' controller, a step's driver, a flow, a server, a line. Whoever started a flow starts it
again when it has ended otherwise than well. A round has one model; `GENMODELS_SOAK_SECONDS` is for how long there are
rounds.
"""

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest
from private_stack import PrivateStack, assert_clean, forget, small, trained

from genmodels.errors import GenmodelsError
from genmodels.spec import RunSpec, TrainReport
from genmodels.steps.reports import REPORTS, read_progress

SECONDS = float(os.environ.get("GENMODELS_SOAK_SECONDS", "0"))
ROUND_SECONDS = 1800
FLOWS = 2


def a_worker(private: PrivateStack, dice: random.Random) -> None:
    kill_one([*private.processes(lambda command: command[0].startswith("ray::RayTrainWorker"))], dice)


def a_controller(private: PrivateStack, dice: random.Random) -> None:
    kill_one([*private.processes(lambda command: command[0].startswith("ray::TrainController"))], dice)


def a_driver(private: PrivateStack, dice: random.Random) -> None:
    kill_one([*private.processes(lambda command: command[1:4] == ["-m", "genmodels", "job"])], dice)


def a_flow(private: PrivateStack, dice: random.Random) -> None:
    dice.choice(private.flows).kill()


def a_server(name: str) -> Callable[[PrivateStack, random.Random], None]:
    return lambda private, dice: private.kill(name)


def a_line(name: str) -> Callable[[PrivateStack, random.Random], None]:
    def away(private: PrivateStack, dice: random.Random) -> None:
        with dice.choice([getattr(private, name).away, getattr(private, name).mute])():
            time.sleep(dice.uniform(1, 5))

    return away


FAULTS: dict[str, Callable[[PrivateStack, random.Random], None]] = {
    "a worker": a_worker,
    "the workers' controller": a_controller,
    "a driver": a_driver,
    "a flow": a_flow,
    "MLflow": a_server("mlflow"),
    "S3": a_server("s3"),
    "the line to S3": a_line("s3"),
    "the line to MLflow": a_line("mlflow"),
    "the line to Prefect": a_line("prefect"),
}
SLOW_FAULTS = {"Prefect": a_server("prefect"), "Ray": a_server("ray")}  # which take long to come back


def kill_one(processes: list[psutil.Process], dice: random.Random) -> None:
    if processes:
        with suppress(psutil.NoSuchProcess):
            dice.choice(processes).kill()


def last_progress(spec: RunSpec) -> float:
    """When a step last said how far it is, in seconds since the epoch."""
    times = [0.0]
    with suppress(GenmodelsError):
        for step in REPORTS:
            if progress := read_progress(step, spec):
                times.append(progress.time.timestamp())
    return max(times)


def storm(private: PrivateStack, spec: RunSpec, faults: list[str], dice: random.Random) -> list[str]:
    """Retrains under these faults in turn until both flows have ended well; returns which have happened."""
    happened: list[str] = []
    gone_on_since = time.time()
    flows = [private.flow(spec) for _ in range(FLOWS)]
    deadline = time.monotonic() + ROUND_SECONDS
    while any(flow.poll() != 0 for flow in flows):
        assert time.monotonic() < deadline, f"still running after {happened}"
        flows = [private.flow(spec) if flow.poll() not in {None, 0} else flow for flow in flows]
        if len(happened) < len(faults) and last_progress(spec) > gone_on_since:
            time.sleep(dice.uniform(0, 2))
            happened.append(faults[len(happened)])
            (FAULTS | SLOW_FAULTS)[happened[-1]](private, dice)
            gone_on_since = time.time()
        time.sleep(0.2)
    return happened


@pytest.mark.timeout(SECONDS + ROUND_SECONDS)
def test_random_kills_change_nothing(private: PrivateStack, spec: RunSpec, quiet: TrainReport):
    """The short one: each fault once, in some order."""
    dice = random.Random(0)
    happened = storm(private, spec, dice.sample([*FAULTS], len(FAULTS)), dice)
    assert len(happened) >= len(FAULTS) // 2
    assert_clean(private, spec, quiet)


@pytest.mark.skipif(SECONDS == 0, reason="the long soak runs with GENMODELS_SOAK_SECONDS set, as by `make soak`")
@pytest.mark.timeout(SECONDS + 2 * ROUND_SECONDS)
def test_random_kills_for_a_long_time_change_nothing(private: PrivateStack):
    dice, seed = random.Random(), 100
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        spec = small(seed=(seed := seed + 1))
        quiet = trained(spec)
        forget(spec)
        faults = dice.choices([*FAULTS, *SLOW_FAULTS], k=12)
        print(f"seed {seed}: {storm(private, spec, faults, dice)}")
        assert_clean(private, spec, quiet)
