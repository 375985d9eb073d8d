"""Steps as Ray jobs: submit one, find it again, follow it, stop it.

A job may go on to the steps that come after its own: a process that has loaded torch and MLflow once, and a place on
the cluster, serve them all, and each of its steps is followed by itself.

Through the job server's REST API rather than Ray's own client, which sets no time limit on a request and
imports all of Ray into whoever only watches.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import requests
from pydantic import BaseModel
from requests.adapters import HTTPAdapter
from urllib3.util import Retry
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from genmodels.errors import AccessError, GenmodelsError, UnavailableError
from genmodels.settings import settings
from genmodels.spec import Progress, RunSpec
from genmodels.steps.reports import clear_failure, error_of, folder, is_done, read_failure, read_progress
from genmodels.storage.objects import store

RUNNING = {"PENDING", "RUNNING"}
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.3, 3.0
GOING_ON = ("train", "evaluate", "register")  # a job of one of these may go on to those behind it
HEADING = "=== {} ==="  # above what a step prints
CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # where Ray tells a job's process what it was submitted with
STARTED_BY, BY_HAND = "started_by", "by hand"

HEADING_LINE = re.compile(HEADING.format(r"\w+"))
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
RAY_PREFIX = re.compile(r"\((?:\w+ )?pid=\d+(?:, ip=[\d.]+)?\) ")
RAY_NOISE = re.compile(  # Ray's own account of itself
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+(?:INFO|DEBUG) \w+\.py:\d+ -- "
    r"|Running entrypoint for job "
    r"|(?:\(\w+ pid=\d+\) )?"
    r"(?:\[[\d-]+ [\d:,]+ \w \d+ \d+\] \w+\.cc|Requesting resources: |Attempting to start training worker group"
    r"|Started training worker group|- \(ip=|Setting up process group)"
)


class JobInfo(BaseModel):
    """What the job server says of a job."""

    status: str
    message: str | None = None
    driver_exit_code: int | None = None
    metadata: dict[str, str] | None = None

    def does(self, step: str) -> bool:
        """Whether it runs, and the step is among those that it was started for."""
        return self.status in RUNNING and step in (self.metadata or {}).get("steps", "").split()


@dataclass(frozen=True)
class Update:
    """What is new about a job: its last progress, if it has one, and the log lines since the update before."""

    progress: Progress | None
    lines: list[str]


class RayJobs:
    """The job server of a Ray cluster. Not safe to share between threads."""

    def __init__(self) -> None:
        self.url = settings().ray_address.rstrip("/")
        self.session = requests.Session()
        # All requests may be repeated: a job's id admits one job, and ending a job twice is no error. A head that has
        # just started answers 500 when it has waited ten seconds for its own agent.
        again = [500, 502, 503, 504]
        retry = Retry(total=3, backoff_factor=0.2, status_forcelist=again, allowed_methods=None, raise_on_status=False)
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=retry))
        if path := settings().ray_token_path:
            try:
                token = path.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise AccessError(
                    f"The Ray cluster's token cannot be read from the file {path}; check GENMODELS_RAY_TOKEN_PATH."
                ) from error
            self.session.headers["Authorization"] = f"Bearer {token}"

    def info(self, job_id: str) -> JobInfo | None:
        """How a job stands; None if the cluster has none of that id."""
        answer = self._send("GET", job_id)
        return None if answer.status_code == 404 else JobInfo.model_validate(answer.json())

    def submit(
        self,
        job_id: str,
        entrypoint: str,
        metadata: Mapping[str, str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a job, unless there is one of that id: of two submitters at once one starts it, both have it."""
        message: dict[str, Any] = {"submission_id": job_id, "entrypoint": entrypoint, "metadata": dict(metadata)}
        if environment:
            message["runtime_env"] = {"env_vars": dict(environment)}
        try:
            self._send("POST", "", json=message)
        except GenmodelsError:
            if self.info(job_id) is None:  # else it exists, be it by another submitter or because an answer was lost
                raise

    def stop(self, job_id: str) -> None:
        """Ask a job to end; one that has ended, or never was, is no error."""
        self._send("POST", f"{job_id}/stop")

    def log(self, job_id: str) -> str:
        """All that the job has printed; empty if the cluster does not know it."""
        answer = self._send("GET", f"{job_id}/logs")
        return "" if answer.status_code == 404 else answer.json()["logs"]

    def tail(self, job_id: str) -> ClientConnection:
        """A connection on which the job's log arrives, from its first line on."""
        return connect(
            f"{self.url.replace('http', 'ws', 1)}/api/jobs/{job_id}/logs/tail",
            additional_headers={"Authorization": str(self.session.headers.get("Authorization", ""))},
            compression=None,  # Ray's dashboard passes the offer on to its agent, then drops what comes back
            ping_interval=None,  # a busy dashboard answers late; what is missed is read when the job has ended
            open_timeout=5,
            close_timeout=1,
        )

    def _send(self, method: str, path: str, **arguments: object) -> requests.Response:
        try:
            answer = self.session.request(method, f"{self.url}/api/jobs/{path}", timeout=(5, 30), **arguments)  # pyright: ignore[reportArgumentType]
        except requests.RequestException as error:
            raise UnavailableError(
                f"The Ray cluster at {self.url} does not answer; start it with `genmodels up` "
                "or set GENMODELS_RAY_ADDRESS."
            ) from error
        if answer.status_code in {401, 403}:
            raise AccessError(f"The Ray cluster at {self.url} refused the token; check GENMODELS_RAY_TOKEN_PATH.")
        if answer.status_code >= 500:
            raise UnavailableError(f"The Ray cluster at {self.url} failed on a job: {_last_line(answer.text)}")
        if not answer.ok and answer.status_code != 404:
            raise GenmodelsError(f"The Ray cluster at {self.url} refused a job: {_last_line(answer.text)}")
        return answer


class Job:
    """One attempt at a step of a spec, or at this one and those behind it. Its id follows from these, so that whoever
    comes later finds it.

    Args:
        first: the step that the job begins with, if `step`, which is looked at, is a later one.
    """

    def __init__(self, step: str, spec: RunSpec, attempt: int, cluster: RayJobs, *, first: str | None = None):
        self.step, self.spec, self.attempt, self.cluster = step, spec, attempt, cluster
        self.first = first or step
        subject = spec.dataset_name if step == "prepare" else f"{spec.model}-{spec.dataset_name}"
        key = folder(step, spec).rpartition("/")[2]
        self.id = f"{self.first}-{subject[:60]}-{key[:12]}-{attempt}"

    @property
    def url(self) -> str:
        """The job's page in Ray's dashboard."""
        return f"{settings().ray_pages}/#/jobs/{self.id}"

    def info(self) -> JobInfo | None:
        """How the job stands; None if the cluster does not know it."""
        return self.cluster.info(self.id)

    def submit(self, links: Mapping[str, str], started_by: str, then: Sequence[str] = ()) -> None:
        """Start the job, which goes on to the steps of `then`, unless somebody else just did."""
        spec_key = f"{folder(self.step, self.spec)}/spec.json"
        store().put_record(spec_key, self.spec)
        for step in (self.step, *then):
            clear_failure(step, self.spec)
        steps = " ".join((self.step, *then))
        identity = {"steps": steps, "model": self.spec.model, "dataset": self.spec.dataset}
        if self.step != "prepare":
            identity["run_key"] = self.spec.run_key
        mirror = settings().mirror if self.step == "prepare" else None  # the cluster may have been started without it
        self.cluster.submit(
            self.id,
            entrypoint=f"python -m genmodels job {store().uri(spec_key)} {steps}",
            metadata={**identity, **links, STARTED_BY: started_by, "ray_job": self.url},
            environment={"GENMODELS_MIRROR": mirror} if mirror else None,
        )

    def follow(self, *, until_report: bool = False, patience_seconds: float = 300.0) -> Iterator[Update]:
        """Updates until the job has succeeded; or, `until_report`, until its step has left its report, seconds before
        Ray has taken down all that belongs to the job. Three in a second at first, and one in three seconds as time
        goes on, since each takes the processors from the job where they are the same.

        A cluster or an object store that is away for less than `patience_seconds` is waited for. Raises the step's
        own error if it failed, UnavailableError if the job was lost or somebody stopped it.
        """
        tail = _LogTail(self)
        began = answered = time.monotonic()
        info: JobInfo | None = None
        while not (until_report and self._has_left_report()):
            lines: list[str] = []
            try:
                info = self.info()
            except UnavailableError:
                if time.monotonic() - answered > patience_seconds:
                    raise
            else:
                if info is None:
                    raise UnavailableError(
                        f"The Ray cluster at {self.cluster.url} was restarted and lost job {self.id}."
                    )
                if info.status not in RUNNING:
                    break
                answered = time.monotonic()
                # Only now, when the job is known: Ray logs the headers, token and all, of a tail it cannot open.
                lines = tail.lines()
            yield Update(self._progress(), lines)
            age = time.monotonic() - began
            time.sleep(min(max(age / 30, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS))
        yield Update(self._progress(), tail.close())
        if info and info.status not in {*RUNNING, "SUCCEEDED"}:
            raise self._error(info)

    def stop(self, *, timeout_seconds: float = 15.0) -> None:
        """End the job and wait until its processes are gone."""
        self.cluster.stop(self.id)
        deadline = time.monotonic() + timeout_seconds
        while (info := self.info()) and info.status in RUNNING and time.monotonic() < deadline:
            time.sleep(0.25)

    def _has_left_report(self) -> bool:
        try:
            return is_done(self.step, self.spec)
        except GenmodelsError:
            return False

    def _progress(self) -> Progress | None:
        try:
            return read_progress(self.step, self.spec)
        except GenmodelsError:  # the step meets the same trouble, and its error is the one to tell
            return None

    def _error(self, info: JobInfo) -> GenmodelsError:
        if info.status == "STOPPED":
            # Whoever is cancelled stops the job of all that follow it.
            return UnavailableError(f"Ray job {self.id} was stopped, by another run that shared it or by hand.")
        code = info.driver_exit_code
        if code is None or code < 0 or code > 128:  # its node, its supervisor or a signal ended it
            why = f"was killed by signal {abs(code) % 128}" if code else f"was lost: {_first_line(info.message)}"
            return UnavailableError(f"Ray job {self.id} {why}.".replace("..", "."))
        failure = read_failure(self.step, self.spec)
        if failure and failure.exit_code == code:
            return failure.error()
        return error_of(code)(
            f"Ray job {self.id} ended with exit code {code}: {_last_line(info.message)} (log: {self.url})."
        )


def attach_or_submit(
    step: str,
    spec: RunSpec,
    *,
    going_on: bool = False,
    links: Mapping[str, str] | None = None,
    started_by: str = BY_HAND,
    again: bool = False,
) -> Job:
    """The job of this step: the one that is running, else the one that has left its report, else a new one.

    Args:
        going_on: a new one goes on to the steps behind this one.
        links: addresses that the job's processes find in `this_job()`, such as that of the flow run.
        started_by: a deployment, and its schedule if it has one; the job's processes find it in `started_by()`.
        again: a new one also if one has left its report.
    """
    job = latest_job(step, spec)
    info = job.info() if job else None
    done = not again and info is not None and info.status == "SUCCEEDED" and is_done(step, spec)
    if job and info and (info.status in RUNNING or done):
        return job
    if not again and (under_way := job_under_way(step, spec)):
        return under_way
    job = Job(step, spec, job.attempt + 1 if job else 1, job.cluster if job else RayJobs())
    behind = GOING_ON[GOING_ON.index(step) + 1 :] if going_on and step in GOING_ON else ()
    job.submit(links or {}, started_by, behind)
    return job


def job_under_way(step: str, spec: RunSpec) -> Job | None:
    """The running job that does a step, be it after others."""
    firsts = GOING_ON[GOING_ON.index(step) :: -1] if step in GOING_ON else [step]
    for first in firsts:
        job = latest_job(first, spec)
        info = job.info() if job else None
        if job and info and info.does(step):
            return Job(step, spec, job.attempt, job.cluster, first=first)
    return None


def latest_job(step: str, spec: RunSpec) -> Job | None:
    """The last attempt that began with a step that the cluster knows of."""
    cluster, found = RayJobs(), None
    for attempt in count(1):
        job = Job(step, spec, attempt, cluster)
        if job.info() is None:
            break
        found = job
    return found


def this_job() -> dict[str, str]:
    """Addresses that belong to the Ray job of this process, by name: its own page as `ray_job`, and the `links` that it
    was submitted with; nothing outside a job."""
    return {name: value for name, value in _metadata().items() if value.startswith("http")}


def started_by() -> str:
    """What had this process's Ray job started, as its submitter said: a deployment, and its schedule if it has one."""
    return _metadata().get(STARTED_BY, BY_HAND)


def _metadata() -> dict[str, str]:
    return json.loads(os.environ.get(CONFIG_VARIABLE, "{}")).get("metadata", {})


class _LogTail:
    """The lines of a job's step, each once, however often the connection breaks, and without Ray's noise."""

    def __init__(self, job: Job):
        self._cluster, self._job_id, self._heading = job.cluster, job.id, HEADING.format(job.step)
        self._in_step = job.step == job.first  # or else it is yet to come
        self._connection: ClientConnection | None = None
        self._received = self._skip = 0  # characters: of the whole log, and of those that come a second time
        self._half_line = ""

    def lines(self) -> list[str]:
        """The lines that have come since the last call."""
        lines: list[str] = []
        try:
            if self._connection is None:
                self._connection, self._skip = self._cluster.tail(self._job_id), self._received
            connection = self._connection
            while True:
                text = str(connection.recv(timeout=0))
                new, self._skip = text[self._skip :], max(0, self._skip - len(text))
                self._received += len(new)
                *whole, self._half_line = (self._half_line + new).split("\n")
                lines += whole
        except TimeoutError:
            pass
        except (ConnectionClosed, WebSocketException, OSError):
            self._connection = None
        return self._of_step(lines)

    def close(self) -> list[str]:
        """The lines that are left when the job has ended, at once: the connection would close seconds later."""
        if self._connection:
            self._connection.close()
        try:
            text = self._half_line + self._cluster.log(self._job_id)[self._received :]
        except UnavailableError:
            text = self._half_line
        return self._of_step(text.split("\n"))

    def _of_step(self, lines: list[str]) -> list[str]:
        shown = []
        for line in _readable(lines):
            if HEADING_LINE.fullmatch(line):
                self._in_step = line == self._heading
            elif self._in_step:
                shown.append(line)
        return shown


def _readable(lines: list[str]) -> list[str]:
    plain = (ANSI.sub("", line).rstrip() for line in lines)
    return [RAY_PREFIX.sub("", line, count=1) for line in plain if line and not RAY_NOISE.match(line)]


def _first_line(text: str | None) -> str:
    return next(iter((text or "").strip().splitlines()), "no reason given")


def _last_line(text: str | None) -> str:
    return next(reversed(_readable((text or "").splitlines())), "no reason given")
