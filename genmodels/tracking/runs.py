"""The MLflow run of a spec: one for each run key, with tags, parameters, data, metrics and pictures."""

import io
import json
import logging
import math
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_when_event_set, wait_exponential_jitter

from genmodels.data.archives import check_name
from genmodels.data.manifest import manifest_key
from genmodels.errors import GenmodelsError, SpecError, UnavailableError
from genmodels.settings import settings
from genmodels.spec import Record, RunSpec
from genmodels.storage.objects import store
from genmodels.tracking.journal import Entry, Journal
from genmodels.tracking.rest import EntityExists, MissingEntity, TrackingServer
from genmodels.tracking.system import system_metrics

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

MAX_METRICS, MAX_PARAMETERS, MAX_PARAMETER_LENGTH = 1000, 100, 6000  # what MLflow takes in one batch, one value
METRIC_NAME = re.compile(r"(?!images/)[\w\-. /:]{1,250}", re.ASCII)
IMAGE_NAME = re.compile(r"[\w\-. /]{1,100}", re.ASCII)
IMAGE_FILE = re.compile(r"(images/[^+]+)\+step\+(\d+)\+timestamp\+\d+\+[^+]+\.png")
THUMBNAIL_PIXELS = 1024
DELIVERY_SECONDS = 5.0
SYSTEM_SECONDS = 10.0

log = logging.getLogger(__name__)


class RunRecord(Record):
    """Which MLflow run is the one of this run key; lies at runs/<run_key>/mlflow.json."""

    run_id: str


def open_run(
    spec: RunSpec, *, tags: Mapping[str, str] | None = None, parameters: Mapping[str, int] | None = None
) -> str:
    """The id of the one MLflow run of this spec's run key, made if there is none, and RUNNING from now on.

    `tags` are added to what the spec says: the addresses of the flow run and the Ray job. `parameters` are the
    parameter counts by network. Raises UnavailableError if MLflow or the object store is away.
    """
    server = TrackingServer()
    name = f"{spec.model}-{spec.dataset_name}-{spec.run_key[:8]}"
    identity = ("run_key", spec.run_key)
    run_id = the_one_run(_record_key(spec), name, identity, experiment=spec.dataset_name, server=server)
    server.post("runs/update", run_id=run_id, status="RUNNING")
    set_tags(run_id, {**_tags(spec), **(tags or {}), "mlflow.note.content": _description(spec, tags or {})}, server)
    _log_parameters(run_id, spec, parameters or {}, server)
    _log_dataset(run_id, spec, server)
    return run_id


def find_run(spec: RunSpec, server: TrackingServer | None = None) -> str | None:
    """The id of the spec's MLflow run, or None. A run that somebody deleted in MLflow is restored, since it is
    what the weights in the object store came from."""
    return _recorded_run(_record_key(spec), server or TrackingServer())


def the_one_run(
    record_key: str, name: str, identity: tuple[str, str], *, experiment: str, server: TrackingServer
) -> str:
    """The id of the one run whose record lies under that key of the object store, made if there is none.

    MLflow can make a run only under an id that is new, so two callers at once make two. The object store decides
    between them, by a conditional put of the record: whoever writes it first has the run, and the loser deletes its
    own. A run whose maker died before the put is found by `identity`, the tag that no other run has, and used.
    """
    if run_id := _recorded_run(record_key, server):
        return run_id
    experiment_id, (tag, value) = _experiment(experiment, server), identity
    orphans = server.post(
        "runs/search",
        experiment_ids=[experiment_id],
        filter=f"tags.{tag} = '{value}'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    if not (runs := orphans.get("runs")):
        tags = [{"key": tag, "value": value}]
        message = {"experiment_id": experiment_id, "run_name": name, "start_time": _milliseconds(), "tags": tags}
        runs = [server.post("runs/create", **message)["run"]]
    run_id = runs[0]["info"]["run_id"]
    if store().put_record(record_key, RunRecord(run_id=run_id), if_absent=True):
        return run_id
    winner = store().get_record(record_key, RunRecord)
    if winner is None or winner.run_id == run_id:
        return run_id
    server.post("runs/delete", run_id=run_id)
    return winner.run_id


def _recorded_run(record_key: str, server: TrackingServer) -> str | None:
    record = store().get_record(record_key, RunRecord)
    if record is None:
        return None
    try:
        info = server.get("runs/get", run_id=record.run_id)["run"]["info"]
    except MissingEntity:  # another MLflow server, or its database was lost
        store().delete([record_key])
        return None
    if info["lifecycle_stage"] == "deleted":
        server.post("runs/restore", run_id=record.run_id)
    return record.run_id


def run_page(run_id: str) -> str:
    """The address of a run's page in MLflow, among the pages for training and not among those for chatbots."""
    server = TrackingServer()
    experiment = server.get("runs/get", run_id=run_id)["run"]["info"]["experiment_id"]
    return f"{settings().mlflow_pages}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


def set_status(run_id: str, status: RunStatus, server: TrackingServer | None = None) -> None:
    """Say how a run stands; anything but RUNNING ends it now."""
    end = {} if status == "RUNNING" else {"end_time": _milliseconds()}
    (server or TrackingServer()).post("runs/update", run_id=run_id, status=status, **end)


def set_tags(run_id: str, tags: Mapping[str, str], server: TrackingServer | None = None) -> None:
    """Add tags to a run, or replace their values."""
    entries = [{"key": key, "value": value} for key, value in tags.items()]
    for first in range(0, len(entries), MAX_PARAMETERS):
        (server or TrackingServer()).post("runs/log-batch", run_id=run_id, tags=entries[first : first + MAX_PARAMETERS])


def log_metrics(run_id: str, values: Mapping[str, float], server: TrackingServer) -> None:
    """Log of these finite values the ones that the run does not have as its last ones already."""
    known = server.get("runs/get", run_id=run_id)["run"]["data"].get("metrics", [])
    last = {metric["key"]: metric["value"] for metric in known}
    now = _milliseconds()
    new = [Entry(now, 0, key, value) for key, value in values.items() if last.get(key) != value]
    for first in range(0, len(new), MAX_METRICS):
        server.post("runs/log-batch", run_id=run_id, metrics=list(map(_metric, new[first : first + MAX_METRICS])))


def _record_key(spec: RunSpec) -> str:
    return f"runs/{spec.run_key}/mlflow.json"


def _experiment(name: str, server: TrackingServer) -> str:
    try:
        kind = {"key": "mlflow.experimentKind", "value": "custom_model_development"}  # else the pages are for chatbots
        return server.post("experiments/create", name=name, tags=[kind])["experiment_id"]
    except EntityExists:
        experiment = server.get("experiments/get-by-name", experiment_name=name)["experiment"]
    if experiment["lifecycle_stage"] == "deleted":
        server.post("experiments/restore", experiment_id=experiment["experiment_id"])
    return experiment["experiment_id"]


def _tags(spec: RunSpec) -> dict[str, str]:
    from genmodels.models import MODELS

    tags = {
        "model": spec.model,
        "density": MODELS[spec.model].density.value,
        "preset": spec.preset,
        "dataset": spec.dataset,
        "dataset_digest": str(spec.dataset_digest),
        "seed": str(spec.seed),
        "workers": str(spec.workers),
        "run_key": spec.run_key,
        "code_version": spec.code_version,
        "mlflow.source.type": "PROJECT",
        "mlflow.source.name": "genmodels",
    }
    if commit := _commit():
        tags |= {"commit": commit, "mlflow.source.git.commit": commit.removesuffix("-dirty")}
    return tags


def _description(spec: RunSpec, tags: Mapping[str, str]) -> str:
    """What the run's page says at its top: what is being trained, and the way to the flow run and the Ray job."""
    links = [f"[{name}]({address})" for name, address in tags.items() if address.startswith("http")]
    return " · ".join([f"{spec.model} on `{spec.dataset}`, preset `{spec.preset}`", *links])


@cache
def _commit() -> str | None:
    """The commit these sources are at, with `-dirty` behind it if they differ; None where they are not a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy inside some other checkout is not
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _log_parameters(run_id: str, spec: RunSpec, parameters: Mapping[str, int], server: TrackingServer) -> None:
    """A value that was logged stays (MLflow refuses another one): a resumed run keeps what it was started with."""
    values = {
        **_flat(spec.config),
        **_flat(spec.training.model_dump(), "training."),
        "seed": str(spec.seed),
        "workers": str(spec.workers),
        **{f"parameters.{network}": str(count) for network, count in parameters.items()},
    }
    known = {entry["key"] for entry in server.get("runs/get", run_id=run_id)["run"]["data"].get("params", [])}
    new = [{"key": key, "value": value} for key, value in values.items() if key not in known]
    for first in range(0, len(new), MAX_PARAMETERS):
        server.post("runs/log-batch", run_id=run_id, params=new[first : first + MAX_PARAMETERS])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as text under dotted names; raises SpecError for text that MLflow would cut off."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    for key, text in flat.items():
        if len(text) > MAX_PARAMETER_LENGTH:
            raise SpecError(
                f"The value of {key} has {len(text)} characters; MLflow keeps at most {MAX_PARAMETER_LENGTH}."
            )
    return flat


def _log_dataset(run_id: str, spec: RunSpec, server: TrackingServer) -> None:
    digest = str(spec.dataset_digest)
    manifest = store().uri(manifest_key(spec.dataset_name, digest))
    server.post(
        "runs/log-inputs",
        run_id=run_id,
        datasets=[
            {
                "tags": [{"key": "mlflow.data.context", "value": "training"}],
                "dataset": {
                    "name": spec.dataset_name,
                    "digest": digest[:36],  # MLflow takes no more; the whole one is a tag of the run
                    "source_type": "s3",
                    "source": json.dumps({"uri": manifest}),
                },
            }
        ],
    )


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


def queue_folder(spec: RunSpec) -> Path:
    """Where the spec's metrics wait on this machine until MLflow takes them."""
    return settings().cache / "mlflow" / spec.run_key


def queue_prefix(spec: RunSpec) -> str:
    """Where in the object store they wait for another machine, when this one has no more time for MLflow."""
    return f"runs/{spec.run_key}/queue"


class MetricsQueue:
    """Metrics and pictures on their way to MLflow, with *images shown* as their step.

    What is logged is in a file of the folder before the call returns, and a thread opens the run and delivers it:
    while the server is away training goes on, and what a killed process leaves the folder's next queue delivers. A
    key's steps only grow. What is not beyond the last step that the server holds, such as the stretch between a
    checkpoint and the death of the process that a resumed training goes through again, is not sent a second time; a
    batch whose answer was lost is sent again as it was, and MLflow keeps equal values (key, time, step, value) once.
    What is left when it closes waits under `prefix` of the object store, if there is one, for the next queue on
    whatever machine.
    """

    def __init__(self, open_run: Callable[[], str], folder: Path, *, prefix: str = "", sample_system: bool = True):
        self.folder, self._prefix = folder, prefix
        self.run_id: str | None = None  # until MLflow has answered
        self._open_run = open_run
        self._journal = Journal(self.folder / "queue.jsonl")
        self._run: dict[str, Any] = {}
        self._last_step: dict[str, int] = {}  # by key, of what the server holds
        self._next_sample = 0.0 if sample_system else math.inf
        self._status: RunStatus = "RUNNING"
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._take_over()
        self._thread = threading.Thread(target=self._work, name="metrics-queue", daemon=True)
        self._thread.start()

    def log(self, values: Mapping[str, float], images_shown: int) -> None:
        """Queue the values of one step; does not wait for the server."""
        now = _milliseconds()
        for key in values:
            if not METRIC_NAME.fullmatch(key):
                raise ValueError(f"{key!r} cannot be a metric's name; it takes letters, digits, space and _ - . / :")
        self._append([Entry(now, images_shown, key, float(value)) for key, value in values.items()])

    def image(self, key: str, image: bytes | np.ndarray, images_shown: int) -> None:
        """Queue a picture: the bytes of a PNG file, or a uint8 array (H, W), (H, W, 1) or (H, W, 3)."""
        if not IMAGE_NAME.fullmatch(key):
            raise ValueError(f"{key!r} cannot be a picture's name; it takes letters, digits, space and _ - . /")
        name = f"{uuid.uuid4().hex}.png"
        try:
            if isinstance(image, np.ndarray):
                Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image).save(self.folder / name)
            else:
                (self.folder / name).write_bytes(image)
        except OSError as error:
            (self.folder / name).unlink(missing_ok=True)
            log.warning("A picture is lost: %s", error)
            return
        self._append([Entry(_milliseconds(), images_shown, f"images/{key.replace('/', '~')}", file=name)])

    def close(self, status: RunStatus = "FINISHED", timeout_seconds: float = 60.0) -> None:
        """Deliver what is left, then end the run; what the server does not take in time is left to the next queue."""
        self._status = status
        self._closing.set()
        self._thread.join(timeout_seconds)
        self._given_up.set()
        if self._thread.is_alive() or not self._journal.is_empty():
            log.warning("MLflow did not take all metrics; the rest waits in %s.", self._leave())
        else:
            self._journal.close()

    def _leave(self) -> str:
        """Where the rest waits: in the object store, for any machine, or else here."""
        entries, _ = self._journal.first(sys.maxsize)
        try:
            if self._prefix:
                for entry in entries:
                    if entry.file:
                        store().upload(self.folder / entry.file, f"{self._prefix}/{entry.file}")
                lines = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
                store().put(f"{self._prefix}/{_milliseconds()}.jsonl", lines)
                return store().uri(self._prefix)
        except (GenmodelsError, OSError) as error:
            log.warning("Only this machine has them: %s", error)
        return str(self.folder)

    def _take_over(self) -> None:
        """What another queue left. Who dies before it is deleted takes it over twice, and sends it once."""
        try:
            left = [info.key for info in store().list(f"{self._prefix}/")] if self._prefix else []
            for key in left:
                if key.endswith(".jsonl"):
                    entries = [Entry(*json.loads(line)) for line in store().get(key).splitlines()]
                    for entry in entries:
                        if entry.file:
                            check_name(entry.file, store().uri(key))
                            store().download(f"{self._prefix}/{entry.file}", self.folder / entry.file)
                    self._journal.append(entries)
            store().delete(left)
        except (GenmodelsError, OSError) as error:
            log.warning("Metrics stay in %s: %s", store().uri(self._prefix), error)

    def _append(self, entries: list[Entry]) -> None:
        try:
            self._journal.append(entries)
        except OSError as error:  # a full disk is no reason to stop training
            log.warning("Metrics are lost: %s", error)

    def _work(self) -> None:
        retrying = Retrying(
            retry=retry_if_exception_type(UnavailableError),
            wait=wait_exponential_jitter(multiplier=0.5, max=15),
            sleep=self._sleep,
            stop=stop_when_event_set(self._given_up),
            before_sleep=_log_retry,
            reraise=True,
        )
        server = TrackingServer(retrying)
        try:
            system_metrics()  # the processors' share is counted from a thread's first call
            self.run_id = retrying(self._open_run)
            self._look_up_run(server)
            while True:
                last = self._closing.is_set()
                self._deliver(server)
                if last and self._journal.is_empty():
                    break
                self._closing.wait(DELIVERY_SECONDS)
            set_status(self.run_id, self._status, server)
        except UnavailableError:
            pass  # given up; `close` has said so
        except Exception as error:  # else a thread's end is seen by nobody
            unforeseen = not isinstance(error, GenmodelsError)
            log.warning("Metrics stay in %s: %s", self.folder, error, exc_info=unforeseen)

    def _sleep(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            self._given_up.wait(min(seconds, 0.2))

    def _look_up_run(self, server: TrackingServer) -> None:
        run = server.get("runs/get", run_id=self.run_id)["run"]
        self._run = run["info"]
        for metric in run["data"].get("metrics", []):
            self._last_step[metric["key"]] = int(metric["step"])
        listing = server.get("artifacts/list", run_id=self.run_id, path="images")
        for file in listing.get("files", []):
            if match := IMAGE_FILE.fullmatch(file["path"]):
                self._last_step[match[1]] = max(int(match[2]), self._last_step.get(match[1], -1))

    def _deliver(self, server: TrackingServer) -> None:
        self._sample_system()
        entries, mark = self._journal.first(MAX_METRICS)
        last_step, new = dict(self._last_step), []
        for entry in entries:
            if entry.step > last_step.get(entry.key, -1):
                last_step[entry.key] = entry.step
                new.append(entry)
        metrics = [_metric(entry) for entry in new if not entry.file]
        if metrics:
            server.post("runs/log-batch", run_id=self.run_id, metrics=metrics)
        for entry in new:
            if entry.file:
                self._deliver_image(entry, self.folder / entry.file, server)
        self._last_step = last_step
        self._journal.drop(mark)
        for entry in entries:
            if entry.file:
                (self.folder / entry.file).unlink(missing_ok=True)

    def _deliver_image(self, entry: Entry, path: Path, server: TrackingServer) -> None:
        """Under the names by which MLflow's pages find a picture's steps; the name is a function of the entry, so
        that a picture that is sent twice is there once."""
        unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{self._run['run_id']} {entry}")
        name = f"{entry.key}+step+{entry.step}+timestamp+{entry.time}+{unique}"
        folder = self._run["artifact_uri"]
        server.put_artifact(folder, f"{name}.png", path.read_bytes())
        server.put_artifact(folder, f"{name}+compressed.webp", _thumbnail(path))
        if not any(key.startswith("images/") for key in self._last_step):
            server.post("runs/set-tag", run_id=self.run_id, key="mlflow.loggedImages", value="True")

    def _sample_system(self) -> None:
        """System metrics have no images shown; their step is the run's age in seconds."""
        now = time.time()
        if now < self._next_sample:
            return
        self._next_sample = now + SYSTEM_SECONDS
        age = int(now - self._run["start_time"] / 1000)
        self.log(system_metrics(), max(age, 0))


def _log_retry(state: RetryCallState) -> None:
    log.info("%s Trying again in %.0f s.", state.outcome and state.outcome.exception(), state.upcoming_sleep)


def _metric(entry: Entry) -> dict[str, Any]:
    """Protobuf's JSON has words for what JSON has no numbers for."""
    words = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    value = words.get(str(entry.value), entry.value)
    return {"key": entry.key, "value": value, "timestamp": entry.time, "step": entry.step}


def _thumbnail(path: Path) -> bytes:
    """The WebP picture that MLflow's charts show, never larger than it is: so it is as large as a chart over the whole
    window. The pixels of small pictures become squares."""
    with Image.open(path) as image:
        largest = max(image.size)
        scale = THUMBNAIL_PIXELS // largest if largest <= THUMBNAIL_PIXELS else THUMBNAIL_PIXELS / largest
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
        file = io.BytesIO()
        thumbnail = image.convert("RGB").resize(size, resample)
        thumbnail.save(file, "WEBP", quality=90, method=2)  # in half the time of the usual 4
    return file.getvalue()
