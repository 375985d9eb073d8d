"""Ray on several hosts: network namespaces of this machine, with addresses, loopbacks and disks of their own."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from private_stack import IMAGES, PATIENCE, PrivateStack, ended, mlflow_runs, small, wait_for_images
from waiting import wait_for

from genmodels.settings import settings
from genmodels.stack.services import services
from genmodels.steps.jobs import attach_or_submit
from genmodels.tracking.rest import TrackingServer

NETWORK, BRIDGE, GCS_PORT = "10.213.77", "gmbridge", 6379
HOSTS = {"head": f"{NETWORK}.2", "first": f"{NETWORK}.3", "second": f"{NETWORK}.4"}
NOTICED = {  # that a host is gone, within some 20 seconds in the place of a minute
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
STARTED_ON = re.compile(r"ip=([\d.]+), pid=\d+\) world_rank=(\d+)")


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def remove_network() -> None:
    for host in HOSTS:
        pids = subprocess.run(["ip", "netns", "pids", f"gm-{host}"], capture_output=True, text=True, check=False)
        for pid in pids.stdout.split():
            subprocess.run(["kill", "-KILL", pid], check=False, stderr=subprocess.DEVNULL)
        for what in ("netns", "link"):
            subprocess.run(["ip", what, "delete", f"gm-{host}"], check=False, capture_output=True)
    subprocess.run(["ip", "link", "delete", BRIDGE], check=False, capture_output=True)


@pytest.fixture
def network() -> Iterator[None]:
    """A switch with the hosts on it; this machine is there as well."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the command ip (Debian: iproute2)")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    remove_network()
    try:
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for host, address in HOSTS.items():
            run("ip", "netns", "add", f"gm-{host}")
            run("ip", "link", "add", f"gm-{host}", "type", "veth", "peer", "name", "eth0", "netns", f"gm-{host}")
            run("ip", "link", "set", f"gm-{host}", "master", BRIDGE, "up")
            run("ip", "-n", f"gm-{host}", "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", f"gm-{host}", "link", "set", "eth0", "up")
            run("ip", "-n", f"gm-{host}", "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        remove_network()
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    yield
    remove_network()


@pytest.fixture
def start(
    private: PrivateStack, network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., None]]:
    """Starts Ray on a host: on the head, which has no processors, or with one. The settings point at it."""
    stack = private.local.read()
    assert stack
    s3, mlflow = (FaultProxy(line.target, host=f"{NETWORK}.1") for line in (private.s3, private.mlflow))
    monkeypatch.setenv("GENMODELS_S3_ENDPOINT", s3.url)
    monkeypatch.setenv("GENMODELS_MLFLOW_URL", mlflow.url)
    monkeypatch.setenv("GENMODELS_RAY_ADDRESS", f"http://{HOSTS['head']}:8265")
    for name, value in NOTICED.items():
        monkeypatch.setenv(name, value)
    private.forget_settings()
    ray = services(private.home, stack.model_copy(update={"ray_address": settings().ray_address}))["ray"]
    processes: list[subprocess.Popen[bytes]] = []

    def start(host: str, *options: str) -> None:
        """`ip netns exec` gives the host a view of the mounts of its own as well."""
        disks = "mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && mount -t tmpfs tmpfs /dev/shm"
        role = [f"--address={HOSTS['head']}:{GCS_PORT}", "--num-cpus=1"]
        if host == "head":
            role = ["--head", f"--port={GCS_PORT}", "--num-cpus=0", "--include-dashboard=true"]
            role += [f"--dashboard-host={HOSTS[host]}", "--dashboard-port=8265"]
        command = ["ray", "start", "--block", "--disable-usage-stats", f"--node-ip-address={HOSTS[host]}", *role]
        environment = {
            **os.environ,
            **ray.environment,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # which keeps the local stack's head to itself
            "GENMODELS_CACHE_DIR": "/tmp/ray/cache",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        inside = ["ip", "netns", "exec", f"gm-{host}", "sh", "-c", f'{disks} && exec "$@"', "sh"]
        log = tmp_path / f"{host}.log"
        with log.open("wb") as file:
            processes.append(
                subprocess.Popen(
                    [*inside, *command, "--object-store-memory=100000000", *options],
                    env=environment,
                    stdout=file,
                    stderr=file,
                )
            )
        if host == "head":
            try:
                wait_for(ray.answers, PATIENCE)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{log.read_text(errors='replace')[-2000:]}") from error

    yield start
    for process in processes:
        process.kill()
    s3.close()
    mlflow.close()
    monkeypatch.undo()
    private.forget_settings()


@pytest.mark.timeout(900)
def test_a_host_is_cut_off_in_mid_run_and_the_training_ends_on_the_other(
    private: PrivateStack, start: Callable[..., None]
):
    for host in HOSTS:
        start(host)
    spec = small("digits", "training.min_workers=1", "training.silence_seconds=15", seed=3)
    job = attach_or_submit("train", spec)
    wait_for_images(spec, IMAGES // 10)
    addresses = {int(rank): address for address, rank in STARTED_ON.findall(job.cluster.log(job.id))}
    assert sorted(addresses.values()) == [HOSTS["first"], HOSTS["second"]]

    lost = next(host for host, address in HOSTS.items() if address == addresses[1])
    run("ip", "link", "set", f"gm-{lost}", "down")
    report = ended(job)
    assert report.images_shown == IMAGES
    assert report.restarts == 1
    again = STARTED_ON.findall(job.cluster.log(job.id))
    assert again[-1] == (addresses[0], "0"), "the last group is the first worker alone"

    [mlflow_run] = mlflow_runs(spec)
    history = TrackingServer().get(
        "metrics/get-history", run_id=mlflow_run["info"]["run_id"], metric_key="train/workers", max_results=25_000
    )["metrics"]
    sizes = [entry["value"] for entry in history]
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {2.0, 1.0}


@pytest.mark.timeout(900)
def test_machines_come_when_training_asks_for_them(
    private: PrivateStack, start: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Ray's own autoscaler; its machines are pods on Kubernetes, and here those that Ray pretends in its own tests."""
    head = {"resources": {"CPU": 0}, "max_workers": 0, "node_config": {}}
    worker = {"resources": {"CPU": 1, "object_store_memory": 100_000_000}, "max_workers": 2, "node_config": {}}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    autoscaling = {
        "cluster_name": "grows",
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"{HOSTS['head']}:{GCS_PORT}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": head, "worker": worker},
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{f"{name}_commands": [] for name in commands},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
    }
    (tmp_path / "autoscaling.json").write_text(json.dumps(autoscaling))
    monkeypatch.setenv("RAY_FAKE_CLUSTER", "1")
    monkeypatch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
    monkeypatch.setenv("GENMODELS_WORKER_RESOURCES", '{"CPU": 1}')
    start("head", f"--autoscaling-config={tmp_path / 'autoscaling.json'}")

    job = attach_or_submit("train", small("digits", seed=4))
    assert ended(job).images_shown == IMAGES
    log = job.cluster.log(job.id)
    assert "of the 2 CPU that it needs 0 are free" in log
    assert {rank for _, rank in STARTED_ON.findall(log)} == {"0", "1"}
