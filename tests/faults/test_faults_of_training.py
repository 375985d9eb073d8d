"""Faults while real Ray workers train: what comes out is what comes out of a quiet training, bit for bit.

These take minutes each, so they run with `make soak` only; `test_soak.py` has a short share of each in every run.
"""

import os
import re
import signal
import time

import pytest
from private_stack import (
    IMAGES,
    LONG,
    PATIENCE,
    RANKED,
    PrivateStack,
    assert_clean,
    ended,
    forget,
    ranks,
    wait_for_images,
)
from waiting import wait_for

from genmodels.errors import SpecError
from genmodels.spec import RunSpec, TrainReport
from genmodels.steps.jobs import attach_or_submit
from genmodels.tracking.runs import queue_folder

pytestmark = LONG

SILENCE_SECONDS = 15.0


@pytest.fixture(autouse=True)
def _as_if_new(spec: RunSpec, quiet: TrainReport, private: PrivateStack):
    yield
    private.calm()
    forget(spec)


def test_a_silent_mlflow_and_an_s3_that_fails_now_and_then(private: PrivateStack, spec: RunSpec, quiet: TrainReport):
    """MLflow says nothing at all until training is over, then is gone for a moment; of S3's requests one in twenty
    meets a 503 or a reset, and the others are late."""
    private.s3.busy, private.s3.reset, private.s3.latency = 0.03, 0.02, 0.01
    with private.mlflow.mute():
        job = attach_or_submit("train", spec)
        wait_for_images(spec, IMAGES)  # no later than this it would have waited for MLflow
    with private.mlflow.away():
        assert job.info()
    report = ended(job)
    assert report.restarts == 0
    assert private.s3.faults > 0
    assert not (queue_folder(spec) / "queue.jsonl").read_bytes(), "all has been delivered"
    assert_clean(private, spec, quiet, whole=False)


def test_a_worker_killed_while_its_checkpoint_is_on_its_way_and_one_that_hangs(
    private: PrivateStack, spec: RunSpec, quiet: TrainReport
):
    spec = spec.model_copy(
        update={"training": spec.training.model_copy(update={"silence_seconds": SILENCE_SECONDS})}
    )  # which is no part of the run's key
    job = attach_or_submit("train", spec)
    wait_for_images(spec, IMAGES // 10)
    private.s3.latency = 0.1  # a checkpoint has some thirty blocks, and is followed by ten small requests
    wait_for(lambda: any(re.match("PUT .*/checkpoints/", line) for line in private.s3.unanswered), PATIENCE)
    first_group = ranks(job)
    os.kill(first_group[0], signal.SIGKILL)
    killed = time.time()
    private.s3.mend()
    wait_for_images(spec, 1, since=killed)
    wait_for(lambda: not set(ranks(job).values()) & set(first_group.values()), PATIENCE)
    os.kill(ranks(job)[1], signal.SIGSTOP)
    report = ended(job)
    assert report.restarts == 2
    assert len({pid for pid, rank in RANKED.findall(job.cluster.log(job.id)) if rank == "0"}) == 3, "groups of workers"
    assert_clean(private, spec, quiet, whole=False)


def test_more_workers_than_the_cluster_has_room_for(private: PrivateStack, spec: RunSpec):
    many = spec.model_copy(update={"workers": 50})
    with pytest.raises(
        SpecError,
        match=r"50 workers were asked for, of 1 CPU each, but the nodes of the Ray cluster, .* have room for \d+",
    ):
        for _ in attach_or_submit("train", many).follow():
            pass
