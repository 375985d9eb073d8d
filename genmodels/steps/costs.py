"""What steps cost: time on devices, energy, bytes to and from the object store, memory.

Each process of a step keeps a record of its own and renews it while it works, so that an attempt that was killed is
counted like any other, up to its last renewal. What the driver of a device does not tell is left out.
"""

import logging
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from pydantic import Field

from genmodels.errors import GenmodelsError
from genmodels.spec import Record, RunSpec
from genmodels.steps.reports import folder
from genmodels.storage.objects import store
from genmodels.tracking.rest import TrackingServer
from genmodels.tracking.runs import find_run, log_metrics

log = logging.getLogger(__name__)
RENEWAL_SECONDS = 30.0
ON_DEVICES = {"train", "evaluate"}


class Cost(Record):
    """What something cost."""

    device_seconds: float = Field(description="of GPUs held; of processes where there is no GPU")
    energy_joules: float | None = Field(description="of the GPUs, where their driver counts it")
    bytes_sent: int = Field(description="to the object store")
    bytes_received: int = Field(description="from the object store")
    peak_memory_bytes: int = Field(description="of the process that took most")
    peak_device_memory_bytes: int | None = Field(description="of the GPU on which most was taken")


class StepCost(Cost):
    """What one process of a step cost until now."""

    step: str
    model: str
    dataset: str
    run_key: str | None = Field(description="none for data, which many runs share")
    started_by: str = Field(description="the deployment, and its schedule if that started it")
    device: str
    began: datetime


@contextmanager
def metered(step: str, spec: RunSpec, started_by: str) -> Iterator[None]:
    """Keeps a record of what this process costs from here on; `started_by` is that of the job."""
    key = f"{_prefix(step, spec)}{step}-{uuid4().hex}.json"
    began, clock, traffic = datetime.now(UTC), time.monotonic(), store().traffic
    sent, received = traffic.sent, traffic.received
    device, energy, device_memory = _device(step)

    def cost() -> StepCost:
        return StepCost(
            step=step,
            model=spec.model,
            dataset=spec.dataset,
            run_key=None if step == "prepare" else spec.run_key,
            started_by=started_by,
            device=device,
            began=began,
            device_seconds=time.monotonic() - clock,
            energy_joules=energy(),
            bytes_sent=traffic.sent - sent,
            bytes_received=traffic.received - received,
            peak_memory_bytes=_peak_memory(),
            peak_device_memory_bytes=device_memory(),
        )

    def keep() -> None:
        with suppress(GenmodelsError):  # the step meets the same trouble, and accounts are no reason to stop it
            store().put_record(key, cost())

    def renew() -> None:
        while not done.wait(RENEWAL_SECONDS):
            keep()

    done = Event()
    thread = Thread(target=renew, name="costs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        keep()


def costs_of(step: str, spec: RunSpec) -> Cost | None:
    """What a step has cost, over all its processes and attempts; None if nothing is known."""
    return total(_read(entry.key for entry in store().list(_prefix(step, spec)) if f"/costs/{step}-" in entry.key))


def costs_since(since: timedelta) -> list[StepCost]:
    """The records of all processes that worked since then."""
    after = datetime.now(UTC) - since
    entries = (entry for prefix in ("prepared/", "runs/") for entry in store().list(prefix))
    return _read(entry.key for entry in entries if "/costs/" in entry.key and entry.modified >= after)


def total(costs: Iterable[Cost]) -> Cost | None:
    """The sum of costs, and of memory the peak; None of none."""
    costs = list(costs)
    if not costs:
        return None
    energies = [cost.energy_joules for cost in costs if cost.energy_joules is not None]
    device_memory = [cost.peak_device_memory_bytes for cost in costs if cost.peak_device_memory_bytes is not None]
    return Cost(
        device_seconds=sum(cost.device_seconds for cost in costs),
        energy_joules=sum(energies) if energies else None,
        bytes_sent=sum(cost.bytes_sent for cost in costs),
        bytes_received=sum(cost.bytes_received for cost in costs),
        peak_memory_bytes=max(cost.peak_memory_bytes for cost in costs),
        peak_device_memory_bytes=max(device_memory, default=None),
    )


def totals(costs: Iterable[StepCost], by: str) -> dict[str, Cost]:
    """The sums over what a field of the records says, such as `model`."""
    groups: dict[str, list[StepCost]] = defaultdict(list)
    for cost in costs:
        groups[getattr(cost, by)].append(cost)
    return {name: summed for name, group in sorted(groups.items()) if (summed := total(group))}


def tell_mlflow(step: str, spec: RunSpec) -> None:
    """Log what a step has cost to the spec's run, if it has one; of no consequence if that cannot be."""
    try:
        cost, run_id = costs_of(step, spec), find_run(spec)
        if cost is None or run_id is None:
            return
        values = {f"cost/{step}/{name}": value for name, value in cost.model_dump().items() if value is not None}
        log_metrics(run_id, values, TrackingServer())
    except GenmodelsError as error:
        log.warning("The cost of %s is not in MLflow: %s", step, error)


def _prefix(step: str, spec: RunSpec) -> str:
    return f"{folder(step, spec)}/costs/"


def _read(keys: Iterable[str]) -> list[StepCost]:
    with ThreadPoolExecutor(16) as pool:
        return [cost for cost in pool.map(lambda key: store().get_record(key, StepCost), keys) if cost]


def _peak_memory() -> int:
    """Of this process or the largest that it started and that is gone, in bytes."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024


def _device(step: str) -> tuple[str, Callable[[], float | None], Callable[[], int | None]]:
    """What the step computes on, how much energy that took since now, and how much of its memory was taken."""
    if step in ON_DEVICES:
        import torch

        if torch.cuda.is_available():
            properties: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
            return properties.name, _energy_meter(f"GPU-{properties.uuid}"), torch.cuda.max_memory_allocated
    return "cpu", lambda: None, lambda: None


def _energy_meter(uuid: str) -> Callable[[], float | None]:
    """Joules since now, as the GPU's driver counts them; None where it does not, or NVML is not installed."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports]

        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        start = pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except Exception:  # whatever a driver or its absence comes up with
        return lambda: None
    return lambda: (pynvml.nvmlDeviceGetTotalEnergyConsumption(device) - start) / 1000
