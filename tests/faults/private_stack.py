"""The stack that the tests of faults run on, what they do to it, and what must hold afterwards."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from fault_proxy import FaultProxy
from waiting import wait_for

from genmodels.errors import GenmodelsError
from genmodels.settings import settings
from genmodels.spec import RunSpec, TrainReport
from genmodels.stack.local import LocalStack
from genmodels.steps.jobs import Job, RayJobs, attach_or_submit
from genmodels.steps.prepare import prepare
from genmodels.steps.prune import prune
from genmodels.steps.reports import folder, load_report, read_progress
from genmodels.steps.resolve import resolve
from genmodels.storage.objects import store
from genmodels.tracking.registry import Registry
from genmodels.tracking.rest import TrackingServer
from genmodels.training.engine import NORM

LONG = [
    pytest.mark.skipif("GENMODELS_SOAK_SECONDS" not in os.environ, reason="takes minutes; runs with `make soak`"),
    pytest.mark.timeout(1800),
]
PATIENCE = 800  # seconds for what may have to wait until a server is back
ALL = -1  # days: also what was written a moment ago
IMAGES, BATCH, GRIDS = 160_000, 400, 20
SMALL = [f"images={IMAGES}", f"batch_images={BATCH}", "training.checkpoint_seconds=1", "training.log_seconds=0.5"]
SMALL += ["training.guards.mode_collapse.action=off"]  # so that all of it is trained, however it looks
RANKED = re.compile(r"pid=(\d+)\) world_rank=(\d+)")
KEPT = re.compile(  # what a run leaves for good; all else in the bucket is a data set, or prune's to find
    r"(locks|prepared|evaluations|extractors|raw/pins)/.*|runs/([0-9a-f]{64}/)?"
    r"|runs/[0-9a-f]{64}/(spec|mlflow|best|good|train|evaluate|register|costs/[a-z]+-[0-9a-f]{32})\.json"
    r"|runs/[0-9a-f]{64}/(train|evaluate|register)\.progress\.json"
    r"|runs/[0-9a-f]{64}/weights\.safetensors|runs/[0-9a-f]{64}/(samples|pictures)/.*"
)


class PrivateStack:
    """The local stack in `home`, reached through the lines `s3`, `mlflow` and `prefect`, by settings alone."""

    def __init__(self, home: Path):
        self.home, self.local = home, LocalStack(home)
        self.s3, self.mlflow, self.prefect = FaultProxy(), FaultProxy(), FaultProxy()
        self.flows: list[subprocess.Popen[str]] = []
        os.environ |= {
            "GENMODELS_HOME": str(home),
            "GENMODELS_S3_ENDPOINT": f"http://{self.s3.netloc}",
            "GENMODELS_MLFLOW_URL": f"http://{self.mlflow.netloc}",
            "GENMODELS_PREFECT_API_URL": f"http://{self.prefect.netloc}/api",
        }

    @property
    def lines(self) -> tuple[FaultProxy, FaultProxy, FaultProxy]:
        return self.s3, self.mlflow, self.prefect

    def up(self) -> None:
        stack = self.local.up()
        for line, address in zip(self.lines, (stack.s3_endpoint, stack.mlflow_url, stack.prefect_api_url), strict=True):
            line.target = address
        self.forget_settings()
        os.environ |= settings().client_environment()

    def calm(self) -> None:
        """No faults, no flows and no jobs."""
        for flow in self.flows:
            flow.kill()
        self.flows.clear()
        for line in self.lines:
            line.mend()
        self.up()
        for job in running_jobs():
            RayJobs().stop(job)

    def close(self) -> None:
        self.local.down()
        for line in self.lines:
            line.close()

    def flow(self, spec: RunSpec) -> subprocess.Popen[str]:
        """`genmodels retrain` of a `SMALL` spec, in a process of its own."""
        overrides = [*SMALL, f"resolution={spec.config['resolution']}"]
        command = [sys.executable, "-m", "genmodels", "retrain", spec.model, "--dataset", spec.dataset, "--json"]
        command += ["--seed", str(spec.seed), "--workers", str(spec.workers)]
        command += [part for override in overrides for part in ("--set", override)]
        self.flows.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return self.flows[-1]

    def kill(self, name: str) -> None:
        """SIGKILL for a server and what it started; its supervisor starts it again."""
        process = next(p for p in self.local._supervisor().supervisor.getAllProcessInfo() if p["name"] == name)
        with suppress(psutil.NoSuchProcess):
            server = psutil.Process(process["pid"])
            for member in [*server.children(recursive=True), server]:
                member.kill()

    def processes(self, chosen: Callable[[list[str]], bool]) -> Iterable[psutil.Process]:
        """The processes of this stack's jobs with such a command line."""
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("GENMODELS_HOME") == str(self.home) and chosen(process.cmdline()):
                    yield process

    @staticmethod
    def forget_settings() -> None:
        settings.cache_clear()
        store.cache_clear()


def small(dataset: str = "digits", *overrides: str, seed: int, workers: int = 2) -> RunSpec:
    """The spec of a training of seconds, on data that are prepared."""
    asked = resolve("gan", dataset, "demo", [*SMALL, *overrides], seed=seed, workers=workers)
    return asked.with_dataset(prepare(asked).dataset_digest)


def trained(spec: RunSpec) -> TrainReport:
    """The report of the training that is under way, or of a new one."""
    return ended(attach_or_submit("train", spec))


def ended(job: Job) -> TrainReport:
    for _ in job.follow():
        pass
    report = load_report("train", job.spec, TrainReport)
    assert report
    return report


def forget(spec: RunSpec) -> None:
    """As if the run had never been."""
    store().delete([info.key for info in store().list(f"{folder('train', spec)}/")])
    for run in mlflow_runs(spec):
        TrackingServer().post("runs/delete", run_id=run["info"]["run_id"])


def wait_for_images(spec: RunSpec, images: int, since: float = 0.0) -> None:
    """Until training has shown so many, as it has said after that time (in seconds since the epoch)."""

    def shown() -> bool:
        with suppress(GenmodelsError):
            progress = read_progress("train", spec)
            return progress is not None and progress.done >= images and progress.time.timestamp() > since
        return False

    wait_for(shown, PATIENCE)


def ranks(job: Job) -> dict[int, int]:
    """Process ids of the last group of workers that a training started, by rank."""
    found = RANKED.findall(job.cluster.log(job.id))
    return {int(rank): int(pid) for pid, rank in found}


def running_jobs() -> list[str]:
    cluster = RayJobs()
    jobs = cluster.session.get(f"{cluster.url}/api/jobs/", timeout=30).json()
    return [job["submission_id"] for job in jobs if job["submission_id"] and job["status"] in {"PENDING", "RUNNING"}]


def mlflow_runs(spec: RunSpec) -> list[dict[str, Any]]:
    """All runs of the spec's run key that MLflow has not been told to forget."""
    server = TrackingServer()
    experiments = server.get("experiments/search", max_results=1000).get("experiments", [])
    answer = server.post(
        "runs/search",
        experiment_ids=[experiment["experiment_id"] for experiment in experiments],
        filter=f"tags.run_key = '{spec.run_key}'",
        max_results=100,
    )
    return answer.get("runs", [])


def assert_clean(private: PrivateStack, spec: RunSpec, quiet: TrainReport | None = None, *, whole: bool = True) -> None:
    """One training's worth of work, and nothing of it twice, lost, left running or lying about.

    Args:
        quiet: the report of the same training without faults; its weights are these, bit for bit.
        whole: the flow ended, and not only the training: one version, which the gate has judged, and a champion.
    """
    report = load_report("train", spec, TrainReport)
    assert report
    assert report.images_shown == IMAGES
    assert report.updates == dict.fromkeys(report.updates, IMAGES // BATCH)
    assert quiet is None or report.weights_digest == quiet.weights_digest
    _assert_all_metrics_once(spec)
    if whole:
        registry, name = Registry(), f"{spec.model}.{spec.dataset_name}"
        [version] = registry.versions(name, spec.run_key)
        verdict = version.tags["gate.verdict"]
        assert verdict in {"promoted", "refused"}
        # The first of its name is refused only if it has collapsed, as a small GAN may on one kind of processor.
        assert registry.aliased(name, "champion") or "collapsed" in version.tags["gate.reason"], version.tags
    wait_for(lambda: not running_jobs(), PATIENCE)
    wait_for(lambda: not [*private.processes(lambda command: "RayTrainWorker" in " ".join(command[:1]))], 60)
    _assert_nothing_lies_about()


def _assert_all_metrics_once(spec: RunSpec) -> None:
    """The one run has every step's value of every curve once, and every picture's; training writes a picture whenever
    another twentieth of the images has been shown."""
    [run] = mlflow_runs(spec)
    assert run["info"]["status"] == "FINISHED"
    server, run_id = TrackingServer(), run["info"]["run_id"]
    curves = [m["key"] for m in run["data"]["metrics"] if m["key"].startswith(("loss/", "train/", NORM))]
    assert curves
    for key in curves:
        history = server.get("metrics/get-history", run_id=run_id, metric_key=key, max_results=25_000)["metrics"]
        steps = [int(entry["step"]) for entry in history]
        assert steps == sorted(set(steps)), f"a step of {key} is there twice"
        if not key.startswith(NORM):  # which is of every fifth update, and so need not be of the last one
            assert steps[-1] == IMAGES
    files = server.get("artifacts/list", run_id=run_id, path="images")["files"]
    pictures = sorted(int(f["path"].split("+")[2]) for f in files if re.search(r"/samples\+.*\.png$", f["path"]))
    assert pictures == list(range(0, IMAGES + 1, IMAGES // GRIDS))


def _assert_nothing_lies_about() -> None:
    """Every object is a run's own, of a whole data set or a whole model, or else found by `prune`."""
    found = prune(older_than_days=ALL)
    pruned = {key for keys in found.objects.values() for key in keys}
    keys = [entry.key for entry in store().list("")]
    data_sets = [key.removesuffix("manifest.json") for key in keys if re.fullmatch(r"datasets/.*/manifest\.json", key)]
    server = TrackingServer()
    experiments = server.get("experiments/search", max_results=1000).get("experiments", [])
    ids = [experiment["experiment_id"] for experiment in experiments]
    runs = server.post("runs/search", experiment_ids=ids, max_results=1000, run_view_type="ALL").get("runs", [])
    models = server.post("logged-models/search", experiment_ids=ids, max_results=50).get("models", [])
    known = [f"mlflow/{run['info']['experiment_id']}/{run['info']['run_id']}/" for run in runs]
    known += [f"mlflow/{model['info']['experiment_id']}/models/{model['info']['model_id']}/" for model in models]
    orphans = [
        key
        for key in keys
        if key not in pruned and not KEPT.fullmatch(key) and not key.startswith((*data_sets, *known))
    ]
    contents = {key: store().get(key)[:500] for key in orphans}
    assert not orphans, f"neither a run's own nor found by prune: {contents}"


def prefect(path: str, **query: Any) -> Any:
    """Prefect's answer: to a filter if there is a query."""
    url = f"{settings().prefect_api_url}/{path}"
    answer = requests.post(url, json=query, timeout=60) if query else requests.get(url, timeout=60)
    answer.raise_for_status()
    return answer.json()
