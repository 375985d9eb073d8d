"""What steps cost, on the real object store."""

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from genmodels.spec import RunSpec
from genmodels.steps.costs import Cost, StepCost, costs_of, costs_since, metered, total, totals
from genmodels.steps.resolve import resolve
from genmodels.storage.objects import TRANSFER, ObjectStore


@pytest.fixture
def spec() -> RunSpec:
    return resolve("progressive_gan", "digits").with_dataset("0" * 64)


def cost(model: str, seconds: float, memory: int, energy: float | None = None) -> StepCost:
    return StepCost(
        step="train",
        model=model,
        dataset="digits",
        run_key="0",
        started_by="retrain",
        device="cpu" if energy is None else "a GPU",
        began=datetime.now(UTC),
        device_seconds=seconds,
        energy_joules=energy,
        bytes_sent=10,
        bytes_received=1,
        peak_memory_bytes=memory,
        peak_device_memory_bytes=None if energy is None else 2 * memory,
    )


def test_time_energy_and_bytes_add_up_and_of_memory_the_peak_counts():
    costs = [cost("vae", 1.5, 5), cost("vae", 2.0, 7, energy=3.0), cost("gan", 4.0, 6)]
    vae = Cost(
        device_seconds=3.5,
        energy_joules=3.0,
        bytes_sent=20,
        bytes_received=2,
        peak_memory_bytes=7,
        peak_device_memory_bytes=14,
    )
    gan = total([costs[2]])
    assert gan and gan.energy_joules is None, "what nobody measured is not nought"
    assert totals(costs, by="model") == {"gan": gan, "vae": vae}
    assert total([]) is None


def test_bytes_of_objects_are_counted_as_they_go(bucket: ObjectStore, tmp_path: Path):
    def moved() -> tuple[int, int]:
        sent, received = bucket.traffic.sent - before[0], bucket.traffic.received - before[1]
        before[:] = bucket.traffic.sent, bucket.traffic.received
        return sent, received

    before = [bucket.traffic.sent, bucket.traffic.received]
    bucket.put("key", b"x" * 1000)
    assert moved() == (1000, 0)
    bucket.get("key")
    assert moved() == (0, 1000)
    assert bucket.exists("key")
    assert moved() == (0, 0), "a HEAD tells a length and sends nothing"
    large = tmp_path / "large"
    large.write_bytes(bytes(TRANSFER.multipart_threshold + 5))
    bucket.upload(large, "large")
    sent, _ = moved()
    assert 0 <= sent - large.stat().st_size < 2000, "the parts, and the list of them"
    bucket.download("large", tmp_path / "again")
    assert moved()[1] == large.stat().st_size


def test_a_step_is_metered_once_per_process_and_attempt(bucket: ObjectStore, spec: RunSpec):
    for _ in range(2):
        with metered("register", spec, started_by="watch-dataset, nightly"):
            bucket.put("key", b"x" * 1000)
            bucket.get("key")
            time.sleep(0.05)
    [first, second] = costs_since(timedelta(hours=1))
    assert first.started_by == second.started_by == "watch-dataset, nightly"
    assert first.bytes_received == second.bytes_received == 1000
    assert min(first.device_seconds, second.device_seconds) > 0.05
    assert first.peak_memory_bytes > 2**20
    assert costs_of("register", spec) == total([first, second])
    assert costs_of("train", spec) is None
    assert costs_since(timedelta(0)) == []


def test_an_attempt_that_was_killed_is_counted(bucket: ObjectStore, spec: RunSpec):
    program = (
        "import sys, time; from genmodels.spec import RunSpec; from genmodels.steps import costs;"
        "costs.RENEWAL_SECONDS = 0.05; spec = RunSpec.model_validate_json(sys.stdin.read());"
        "costs.metered('register', spec, 'by hand').__enter__(); time.sleep(300)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, text=True)
    assert process.stdin
    process.stdin.write(spec.model_dump_json())
    process.stdin.close()
    while (known := costs_of("register", spec)) is None:
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    after = costs_of("register", spec)
    assert after
    assert after.device_seconds >= known.device_seconds > 0
