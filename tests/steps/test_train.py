"""Training on two real Ray workers: killed at any place and started again, it ends with the weights of a quiet run."""

import os
import time
from collections.abc import Callable

import psutil
import pytest
import torch
from torch.distributed import DistBackendError
from waiting import wait_for

from genmodels.errors import SpecError, UnavailableError
from genmodels.settings import Settings
from genmodels.spec import RunSpec, TrainReport
from genmodels.steps.jobs import attach_or_submit
from genmodels.steps.prepare import prepare
from genmodels.steps.reports import folder, load_report, read_failure, read_progress, save_failure
from genmodels.steps.resolve import resolve
from genmodels.steps.train import _told, train
from genmodels.storage.objects import store

BUDGET = ["fade_images=1000", "stable_images=1000", "final_images=3000", "fmap_max=32", "training.checkpoint_seconds=1"]


@pytest.fixture(scope="module")
def spec(stack: Settings) -> RunSpec:
    asked = resolve("progressive_gan", "digits", "demo", BUDGET, seed=11, workers=2)
    return asked.with_dataset(prepare(asked).dataset_digest)


@pytest.fixture(scope="module")
def quiet(spec: RunSpec) -> TrainReport:
    """The report of an uninterrupted run, of which nothing else is left."""
    report = followed(spec)
    forget(spec)
    return report


def followed(spec: RunSpec) -> TrainReport:
    for _ in attach_or_submit("train", spec).follow():
        pass
    report = load_report("train", spec, TrainReport)
    assert report
    return report


def forget(spec: RunSpec) -> None:
    store().delete([info.key for info in store().list(f"{folder('train', spec)}/")])


def kill_one(spec: RunSpec, chosen: Callable[[list[str]], bool]) -> None:
    """SIGKILL for a process of this stack, once there is a checkpoint from the middle of training."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        progress = read_progress("train", spec)
        if progress and progress.done > 2000 and len([*store().list(f"{folder('train', spec)}/checkpoints/")]) > 1:
            break
        time.sleep(0.2)
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("GENMODELS_HOME") == os.environ["GENMODELS_HOME"]
            if ours and chosen(process.cmdline()):
                process.kill()
                return
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    pytest.fail("there was no such process")


def test_a_killed_worker_changes_nothing(spec: RunSpec, quiet: TrainReport):
    job = attach_or_submit("train", spec)
    kill_one(spec, lambda command: bool(command) and command[0].startswith("ray::RayTrainWorker"))
    save_failure("train", spec, UnavailableError("The object store was away."))  # as a worker does before it ends
    for _ in job.follow():
        pass
    assert read_failure("train", spec) is None
    report = load_report("train", spec, TrainReport)
    assert report
    assert report.weights_digest == quiet.weights_digest
    assert (report.images_shown, report.updates) == (quiet.images_shown, quiet.updates)
    assert report.restarts == 1
    forget(spec)


def test_a_killed_driver_changes_nothing(spec: RunSpec, quiet: TrainReport):
    job = attach_or_submit("train", spec)
    kill_one(spec, lambda command: command[1:4] == ["-m", "genmodels", "job"])
    with pytest.raises(UnavailableError):
        for _ in job.follow():
            pass
    report = followed(spec)
    assert report.weights_digest == quiet.weights_digest
    assert report.restarts == 1


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("by peer"),
        DistBackendError("NCCL communicator was aborted"),
        RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
        torch.AcceleratorError("CUDA error: unspecified launch failure", 719),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_next_start_of_the_workers_may_mend_ends_nothing(error: Exception):
    assert _told(error) is None
    assert isinstance(_told(torch.OutOfMemoryError("CUDA out of memory")), SpecError)


def test_other_images_are_shown_where_classes_are_to_be_balanced(stack: Settings):
    digests = list[str]()
    for balanced in ("false", "true"):
        asked = resolve("gan", "digits", overrides=["images=640", f"training.balanced_classes={balanced}"])
        digests.append(train(asked.with_dataset(prepare(asked).dataset_digest)).weights_digest)
    assert digests[0] != digests[1], "with all else as it was, the seed and so the order of draws"


def test_trainings_go_on_beside_each_other_while_there_is_room_and_wait_where_there_is_none(stack: Settings):
    """Two trainings without an end take a core each; a third, which wants all, says what it waits for."""
    cores = os.cpu_count()
    assert cores
    asked = resolve("progressive_gan", "digits", "demo", BUDGET, seed=12, workers=1)
    asked = asked.with_dataset(prepare(asked).dataset_digest)
    endless = asked.config | {"final_images": 10**8}
    specs = [
        asked.model_copy(
            update={"config": config, "training": asked.training.model_copy(update={"cpus_per_worker": n})}
        )
        for config, n in ((endless, 1), (endless | {"stable_images": 10**8}, 1), (asked.config, cores))
    ]
    jobs = [attach_or_submit("train", spec) for spec in specs[:2]]
    try:
        wait_for(lambda: all(read_progress("train", spec) for spec in specs[:2]), 300)
        jobs.append(attach_or_submit("train", specs[2]))
        waits = f"waits for room on the cluster: of the {cores} CPU that it needs {cores - 2} are free."
        wait_for(lambda: waits in jobs[2].cluster.log(jobs[2].id), 120)
    finally:
        for job in jobs[:2]:
            job.stop()
    followed(specs[2])
    for spec in specs:
        forget(spec)
