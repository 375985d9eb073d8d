"""Data-parallel workers on Ray: the one place of the engine that knows Ray.

Checkpoints do not go through `ray.train.report`, which is a barrier that is drained every two seconds; the engine
keeps its own. Ray places the workers, forms the process group, and starts the group again when one is lost.
"""

import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import psutil
import pyarrow.fs
import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.exceptions import TrainingFailedError

from genmodels.errors import SpecError, UnavailableError
from genmodels.settings import Settings
from genmodels.spec import TrainingSpec

GROUP_RESTARTS = 5
PLACEMENT_SECONDS = 7 * 24 * 3600  # as long as what holds the cluster may take
RESIZE_SECONDS = 60.0

log = logging.getLogger(__name__)


def run_workers(
    work: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    workers: int,
    training: TrainingSpec,
    settings: Settings,
) -> None:
    """Runs `work(config)` in `workers` processes of one torch process group, gloo on CPUs and NCCL on GPUs.

    A worker that raises, dies or falls silent takes the group down; it is started again, and `work` continues from its
    checkpoint: with all workers, or with as many as there is room for, if the settings of training allow fewer.

    Raises:
        SpecError: if the cluster is smaller than what is asked for.
        UnavailableError: if the group was lost more often than is reasonable.
    """
    elastic = (training.min_workers or workers) < workers
    # Ray counts the places before it waits for them, and not again.
    patience = RESIZE_SECONDS if elastic else PLACEMENT_SECONDS
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(patience))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")  # until it sees that the workers have ended
    # One process more to start, which would warn workers of their end; theirs may come at any moment without a warning.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    ray.init(log_to_driver=True, logging_level=logging.WARNING)
    trainer = _Trainer(
        work,
        train_loop_config=config,
        torch_config=_BetweenHosts(timeout_s=math.ceil(training.silence_seconds)),
        scaling_config=_scaling(workers, training, settings),
        run_config=RunConfig(
            name=config["name"],
            storage_path=f"{settings.bucket}/{config['folder']}/ray",
            storage_filesystem=_filesystem(settings),
            failure_config=FailureConfig(max_failures=GROUP_RESTARTS, controller_failure_limit=2),
        ),
    )
    try:
        trainer.fit()
    except (TrainingFailedError, RayError) as error:  # the latter if the workers' controller is gone
        reason = " ".join(str(error).split())[:500]  # its first line alone may be no more than a heading
        raise UnavailableError(f"The training workers could not be kept running: {reason}") from error


class _Trainer(TorchTrainer):
    """Without two processes that would start beside the workers, each of which imports all of Ray Train: one deals out
    Ray's own data sets, and one frees the places of a controller that dies while its job lives on
    (ray-project/ray#58515), as none does here."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        idle = DatasetsCallback, PlacementGroupCleanerCallback
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, idle)]


class _BetweenHosts(TorchConfig):
    """Torch's process group over the addresses by which Ray's nodes know each other."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _OverNodeAddresses


class _OverNodeAddresses(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_use_interface_of_node)
        super().on_start(worker_group, backend_config)


def _use_interface_of_node() -> None:
    """Without being told gloo takes the address of the host's name, which on many hosts is the loopback's."""
    address = ray.util.get_node_ip_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if address in (entry.address for entry in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _scaling(workers: int, training: TrainingSpec, settings: Settings) -> ScalingConfig:
    """What the workers ask of Ray; says so if that is not free now."""
    at_least = training.min_workers or workers
    each = settings.worker_resources or _share(workers, training)
    if training.cpus_per_worker and "GPU" not in each:
        each = each | {"CPU": training.cpus_per_worker}
    free = ray.available_resources()
    for kind, count in each.items():
        if free.get(kind, 0) < at_least * count:
            needed = f"of the {at_least * count} {kind} that it needs {int(free.get(kind, 0))} are free"
            log.warning("The training waits for room on the cluster: %s.", needed)
    return ScalingConfig(
        num_workers=(at_least, workers) if at_least < workers else workers,
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        use_gpu="GPU" in each,
        resources_per_worker=each,
    )


def _share(workers: int, training: TrainingSpec) -> dict[str, int]:
    """One GPU a worker where there are enough, else so many CPUs that all workers find room."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    at_least = training.min_workers or workers
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus >= at_least:
        return {"GPU": 1}
    if gpus:
        log.warning("It trains on CPUs: of %d workers each needs a GPU, and the cluster has %d.", at_least, gpus)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    each = training.cpus_per_worker or largest_share(cpus, workers)
    room = sum(count // each for count in cpus)
    if room < at_least:
        raise SpecError(
            f"{at_least} workers were asked for, of {each} CPU each, but the nodes of the Ray cluster, with {cpus}, "
            f"have room for {room}; take fewer, or set GENMODELS_WORKER_RESOURCES if machines come when asked for."
        )
    return {"CPU": each}


def largest_share(cpus: Sequence[int], workers: int) -> int:
    """The most CPUs that each of the workers can have if none lies across two nodes, which have `cpus`; at least 1."""
    shares = (share for share in range(1, max(cpus, default=0) + 1) if sum(n // share for n in cpus) >= workers)
    return max(shares, default=1)


def _filesystem(settings: Settings) -> pyarrow.fs.S3FileSystem:
    endpoint = urlsplit(settings.s3_endpoint)
    return pyarrow.fs.S3FileSystem(
        access_key=settings.s3_access_key.get_secret_value() or None,
        secret_key=settings.s3_secret_key.get_secret_value() or None,
        region=settings.s3_region,
        scheme=endpoint.scheme,
        endpoint_override=endpoint.netloc,
    )
