"""The local stack: SeaweedFS (S3), MLflow, Prefect and a Ray head under supervisord, on the loopback interface.

With GENMODELS_BIND the pages of MLflow, Prefect and Ray are on another one, and only with a login to each. All other
ports stay, those of SeaweedFS among them: the one by which it is administered has no login.
Everything lies under one folder, `GENMODELS_HOME`: data, logs, the supervisor's configuration and `stack.json`, which
tells every other command the addresses and credentials. Files with secrets have mode 0600, and no secret is on a
command line.
"""

import configparser
import fcntl
import io
import json
import os
import random
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from importlib.util import find_spec
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal, cast
from xmlrpc.client import Fault, ServerProxy

import psutil
from pydantic import BaseModel, Field

from genmodels.errors import AccessError, SpecError, UnavailableError
from genmodels.settings import Home, Settings, settings, without_proxy_for_loopback
from genmodels.spec import digest

HOST = "127.0.0.1"
USUAL_PORTS: dict[str, int | None] = {"s3": 8333, "mlflow": 5000, "prefect": 4200, "ray": 8265}
INNER_PORTS = ["s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc"]
INNER_PORTS += [f"ray.{part}" for part in ("gcs", "client", "node", "objects", "agent", "agent.grpc", "env", "metrics")]
OWNER = "GENMODELS_STACK"  # in the environment of all processes of a stack: the home they belong to
SERVICES = ("s3", "mlflow", "prefect", "ray")
OBJECT_STORE_BYTES = 256 * 2**20  # samples travel through S3 and memory-mapped files, not through Ray
START_SECONDS = 300.0
STOP_SECONDS = 15

State = Literal["stopped", "starting", "running", "failed"]
OnChange = Callable[[str, State, float], None]
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Stack(BaseModel):
    """What `stack.json` holds: values for `Settings`, and what the next `up` needs to find the same ports."""

    bucket: str
    s3_access_key: str = Field(repr=False)
    s3_secret_key: str = Field(repr=False)
    s3_endpoint: str = ""
    mlflow_url: str = ""
    mlflow_username: str = "admin"
    mlflow_password: str = Field(default="", repr=False)
    mlflow_flask_key: str = Field(default="", repr=False)
    prefect_api_url: str = ""
    prefect_auth_string: str = Field(default="", repr=False)
    ray_address: str = ""
    ray_token_path: Path
    database_url: str = Field(default="", repr=False)
    bind: IPv4Address = IPv4Address(HOST)
    ports: dict[str, int] = {}

    def on_ports(self, ports: dict[str, int]) -> "Stack":
        """The same with these ports in its addresses."""
        host = HOST if self.bind.is_unspecified else str(self.bind)
        addresses = {
            "s3_endpoint": f"http://{HOST}:{ports['s3']}",
            "mlflow_url": f"http://{host}:{ports['mlflow']}",
            "prefect_api_url": f"http://{host}:{ports['prefect']}/api",
            "ray_address": f"http://{host}:{ports['ray']}",
        }
        return self.model_copy(update={"ports": ports, **addresses})

    def check_logins(self) -> None:
        """Raises SpecError if servers would be reachable from other machines, and some of them without a login."""
        if self.bind.is_loopback:
            return
        missing = {
            "GENMODELS_PREFECT_AUTH_STRING=USER:PASSWORD": self.prefect_auth_string,
            "GENMODELS_MLFLOW_PASSWORD=PASSWORD": self.mlflow_password,
        }
        if unset := " and ".join(name for name, value in missing.items() if not value):
            raise SpecError(
                f"On {self.bind} the servers could be reached from other machines without a login; set {unset}, or "
                "leave GENMODELS_BIND at 127.0.0.1."
            )

    def databases(self, home: Path) -> dict[str, str]:
        """Where MLflow and Prefect keep what they know: SQLite under `home`, or PostgreSQL if the settings name it."""
        if not self.database_url:
            return {"mlflow": f"sqlite:///{home / 'mlflow/mlflow.db'}"}  # Prefect's own choice is SQLite in its home
        server = self.database_url.rstrip("/")
        return {
            "mlflow": f"{server.replace('postgresql://', 'postgresql+psycopg://', 1)}/mlflow",
            "prefect": f"{server.replace('postgresql://', 'postgresql+asyncpg://', 1)}/prefect",
        }


@dataclass(frozen=True)
class Service:
    """One program of the stack."""

    name: str
    title: str
    address: str
    health: str
    command: list[str]
    environment: dict[str, str]
    headers: dict[str, str] = field(default_factory=dict)
    stop_signal: str = "TERM"
    stop_group: bool = True

    def answers(self) -> bool:
        """Whether it serves requests now."""
        try:
            with DIRECT.open(urllib.request.Request(self.health, headers=self.headers), timeout=5) as response:
                return response.status == 200
        except OSError:  # refused, timed out, or an HTTP error
            return False


@dataclass(frozen=True)
class ServiceStatus:
    """One line of `genmodels status`."""

    name: str
    title: str
    address: str
    state: State
    log: str


def services(home: Path, stack: Stack) -> dict[str, Service]:
    """The four programs, by name."""
    port = {name: str(number) for name, number in stack.ports.items()}
    tools = Path(sys.executable).parent
    databases = stack.databases(home)
    return {
        "s3": Service(
            name="s3",
            title="SeaweedFS (S3)",
            address=stack.s3_endpoint,
            health=f"{stack.s3_endpoint}/healthz",
            command=[
                str(tools / "weed"),
                "-logtostderr=true",
                "server",
                f"-dir={home / 's3'}",
                f"-ip={HOST}",
                f"-ip.bind={HOST}",
                "-master.peers=none",  # one master needs no election, which would take 5 s
                "-master.telemetry=false",
                "-master.volumeSizeLimitMB=256",
                "-volume.max=0",
                "-filer.disableHttp",
                f"-filer.localSocket={home / 'run/filer.sock'}",
                "-s3",
                f"-s3.config={home / 's3.json'}",
                f"-s3.localSocket={home / 'run/s3.sock'}",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-s3.autoCreateBucket=false",  # a mistyped bucket is an error, not a new bucket
                *(f"-{part}.port={port[part]}" for part in ("master", "volume", "filer", "s3")),
                *(f"-{part}.port.grpc={port[f'{part}.grpc']}" for part in ("master", "volume", "filer", "s3")),
            ],
            environment={},
            stop_signal="KILL",  # on SIGTERM its parts wait for each other, often for ever; what it took is written
        ),
        "mlflow": Service(
            name="mlflow",
            title="MLflow",
            address=stack.mlflow_url,
            health=f"{stack.mlflow_url}/health",
            command=[
                *(str(tools / "mlflow"), "server", "--host", str(stack.bind), "--port", port["mlflow"]),
                *("--workers", "1", "--artifacts-destination", f"s3://{stack.bucket}/mlflow"),
                *(("--app-name", "basic-auth") if stack.mlflow_password else ()),
            ],
            environment={
                "MLFLOW_BACKEND_STORE_URI": databases["mlflow"],  # may hold a password: not for a command line
                "MLFLOW_S3_ENDPOINT_URL": stack.s3_endpoint,
                "AWS_ACCESS_KEY_ID": stack.s3_access_key,
                "AWS_SECRET_ACCESS_KEY": stack.s3_secret_key,
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_MODEL_CATALOG_URI": "",
            }
            | (mlflow_login(home, stack) if stack.mlflow_password else {}),
        ),
        "prefect": Service(
            name="prefect",
            title="Prefect",
            address=stack.prefect_api_url.removesuffix("/api"),
            health=f"{stack.prefect_api_url}/health",
            command=[str(tools / "prefect"), "server", "start", "--host", str(stack.bind), "--port", port["prefect"]],
            environment={
                "PREFECT_HOME": str(home / "prefect"),
                "PREFECT_API_URL": stack.prefect_api_url,
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
                "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
                "DO_NOT_TRACK": "1",
            }
            | ({"PREFECT_SERVER_DATABASE_CONNECTION_URL": databases["prefect"]} if "prefect" in databases else {})
            | ({"PREFECT_UI_API_URL": "/api"} if stack.bind.is_unspecified else {})
            | (prefect_login(stack) if stack.prefect_auth_string else {}),
        ),
        "ray": Service(
            name="ray",
            title="Ray",
            stop_group=False,
            address=stack.ray_address,
            health=f"{stack.ray_address}/api/jobs/",
            headers={"Authorization": f"Bearer {stack.ray_token_path.read_text()}"},
            command=[
                *(str(tools / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--log-color=false"),
                "--include-dashboard=true",  # without it a head whose dashboard failed would stay, and take no jobs
                *(f"--node-ip-address={HOST}", f"--temp-dir={home / 'ray'}"),
                *(f"--dashboard-host={stack.bind}", f"--dashboard-port={port['ray']}", f"--port={port['ray.gcs']}"),
                f"--ray-client-server-port={port['ray.client']}",
                f"--node-manager-port={port['ray.node']}",
                f"--object-manager-port={port['ray.objects']}",
                f"--dashboard-agent-listen-port={port['ray.agent']}",
                f"--dashboard-agent-grpc-port={port['ray.agent.grpc']}",
                f"--runtime-env-agent-port={port['ray.env']}",
                f"--metrics-export-port={port['ray.metrics']}",
                f"--object-store-memory={OBJECT_STORE_BYTES}",
            ],
            environment={
                "GENMODELS_HOME": str(home),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(stack.ray_token_path),
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps the head on the loopback interface, on Linux too
                "RAY_USAGE_STATS_ENABLED": "0",
                "MALLOC_ARENA_MAX": "1",  # see `keep_freed_memory`
                "RAY_JOB_STOP_SIGNAL": "SIGINT",  # Ray Train saves and stops on SIGINT, and only then
                "RAY_JOB_STOP_WAIT_TIME_S": "10",  # a cancelled run is over within 15 s, heeded or not
            },
        ),
    }


def mlflow_login(home: Path, stack: Stack) -> dict[str, str]:
    """What has MLflow ask for a name and a password; who has none may do nothing."""
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(home / "mlflow/auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": stack.mlflow_username,
        "MLFLOW_AUTH_ADMIN_PASSWORD": stack.mlflow_password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": stack.mlflow_flask_key,
    }


def prefect_login(stack: Stack) -> dict[str, str]:
    """What has Prefect ask for a name and a password, and its own parts give them."""
    return {
        "PREFECT_SERVER_API_AUTH_STRING": stack.prefect_auth_string,
        "PREFECT_API_AUTH_STRING": stack.prefect_auth_string,
    }


class LocalStack:
    """The stack whose state lies in `home`, by default `GENMODELS_HOME`."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = (home or Home().home).absolute()
        self.file = self.home / "stack.json"

    def up(self, names: Sequence[str] = SERVICES, on_change: OnChange = lambda name, state, seconds: None) -> Stack:
        """Start what does not run yet and wait until each of `names` answers.

        `on_change(name, state, seconds)` hears of every service that begins and that answers.
        Raises UnavailableError, with the end of its log, for a service that does not come up.
        """
        with self._locked():
            supervisor = self._supervisor()
            if supervisor is None:
                sweep(self.home)  # what a killed supervisor left would hold the ports and the data
                self.configure()
                self._launch()
                supervisor = self._supervisor(wait_seconds=20)
            stack = self.read()
            if supervisor is None or stack is None:
                log = self.home / "logs/supervisord.log"
                raise UnavailableError(f"The supervisor of the stack did not start; its log is {log}.")
            for name in names:
                with suppress(Fault):  # it runs already
                    supervisor.supervisor.startProcess(name, False)
                on_change(name, "starting", 0.0)
        try:
            self._wait(supervisor, stack, names, on_change)
        except (OSError, HTTPException) as error:
            raise UnavailableError("The stack was stopped while it started; start it again.") from error
        if "s3" in names:
            from genmodels.storage.objects import ObjectStore

            ObjectStore(Settings(**stack.model_dump())).create_bucket()
        settings.cache_clear()
        return stack

    def configure(self) -> None:
        """Choose keys, once, and ports that are free now, and write all files that the programs read."""
        stack = self.read() or Stack(
            bucket=Settings().bucket,
            s3_access_key=secrets.token_hex(10),
            s3_secret_key=secrets.token_hex(20),
            ray_token_path=self.home / "ray.token",
        )
        wanted = Settings()
        changes = {
            "database_url": wanted.database_url.get_secret_value(),
            "bind": wanted.bind,
            "mlflow_username": wanted.mlflow_username,
            "mlflow_password": wanted.mlflow_password.get_secret_value(),
            "mlflow_flask_key": stack.mlflow_flask_key or secrets.token_hex(32),
            "prefect_auth_string": wanted.prefect_auth_string.get_secret_value(),
        }
        login_changed = changes["mlflow_password"] != stack.mlflow_password
        stack = stack.model_copy(update=changes)
        stack.check_logins()
        for folder in ("", "run", "logs", "s3", "mlflow", "prefect", "ray"):
            (self.home / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        stack = stack.on_ports(choose_ports(stack.ports))
        if stack.mlflow_password:
            self._write_mlflow_users(anew=login_changed)
        if not stack.ray_token_path.exists():
            write_secret(stack.ray_token_path, secrets.token_hex(32))
        supervisord = supervisor_configuration(self.short_home, services(self.short_home, stack))
        write_secret(self.home / "s3.json", json.dumps(s3_identities(stack)))
        write_secret(self.home / "supervisord.conf", supervisord)
        write_secret(self.file, stack.model_dump_json(indent=2))

    def _write_mlflow_users(self, *, anew: bool) -> None:
        """Where MLflow keeps its users. It takes the administrator's password only into a new file."""
        if find_spec("flask_wtf") is None:
            raise SpecError("MLflow's login needs a package that is missing: pip install 'genmodels[servers]'.")
        folder = self.short_home / "mlflow"
        if anew:
            (folder / "users.db").unlink(missing_ok=True)
        users = f"sqlite:///{folder / 'users.db'}".replace("%", "%%")
        write_secret(
            folder / "auth.ini",
            f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {users}\n",
        )

    def down(self) -> bool:
        """Stop what `up` started, with all its children, and keep the data; False if nothing ran."""
        if not self.home.exists():
            return False
        with self._locked():
            supervisor = self._supervisor()
            if supervisor is not None:
                process = psutil.Process(supervisor.supervisor.getPID())
                family = [process, *process.children(recursive=True)]
                supervisor.supervisor.shutdown()
                psutil.wait_procs([process], timeout=3 * STOP_SECONDS)
                kill(psutil.wait_procs(family, timeout=3)[1])  # Ray's workers notice the end of their raylet by then
            swept = sweep(self.home)
            if (stack := self.read()) is not None:
                for port in stack.ports.values():  # weed puts sockets where no option can move them, and leaves them
                    for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                        left.unlink(missing_ok=True)
            if self.short_home != self.home:
                self.short_home.unlink()
        return supervisor is not None or swept > 0

    def status(self) -> list[ServiceStatus]:
        """What each service is doing, asked of the supervisor and of the service itself."""
        stack = self.read()
        if stack is None:
            return []
        supervisor = self._supervisor()
        processes = {p["name"]: p for p in supervisor.supervisor.getAllProcessInfo()} if supervisor else {}
        return [
            ServiceStatus(
                name=service.name,
                title=service.title,
                address=service.address,
                state=state_of(processes.get(service.name), service),
                log=str(self.log(service.name)),
            )
            for service in services(self.short_home, stack).values()
        ]

    def log(self, name: str) -> Path:
        """The log file of a service."""
        return self.home / "logs" / f"{name}.log"

    def read(self) -> Stack | None:
        """What the last `up` wrote; None before the first."""
        return Stack.model_validate_json(self.file.read_bytes()) if self.file.exists() else None

    @property
    def short_home(self) -> Path:
        """A path of the home that leaves room for the names of sockets, which may have 107 bytes in all.

        Ray puts 63 bytes behind its folder. A longer home is reached through a link in the temporary folder.
        """
        if len(bytes(self.home)) <= 38:
            return self.home
        link = Path(tempfile.gettempdir()) / f"genmodels-{os.getuid()}-{digest(str(self.home))[:8]}"
        with suppress(FileExistsError):
            link.symlink_to(self.home)
        if link.lstat().st_uid != os.getuid() or link.readlink() != self.home:
            raise AccessError(
                f"{link} belongs to somebody else; set GENMODELS_HOME to a path of at most 38 characters."
            )
        return link

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time starts and stops."""
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise AccessError(f"The home {self.home} cannot be made: {error.strerror}; set GENMODELS_HOME.") from error
        with open(self.home / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _launch(self) -> None:
        """Start supervisord in the background; every process below it carries the home it belongs to."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        environment = {**os.environ, **without_proxy_for_loopback(os.environ), "PATH": path, OWNER: str(self.home)}
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.home / "supervisord.conf")]
        subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL)

    def _supervisor(self, wait_seconds: float = 0.0) -> Any:
        """The running supervisor's XML-RPC interface, or None."""
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{self.short_home}/run/supervisor.sock")
        proxy = cast(Any, ServerProxy("http://localhost", transport))
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                proxy.supervisor.getState()
                return proxy
            except (OSError, HTTPException):
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.05)

    def _wait(self, supervisor: Any, stack: Stack, names: Sequence[str], on_change: OnChange) -> None:
        """Return when all of the services answer."""
        began = time.monotonic()
        known = services(self.short_home, stack)
        pending = {name: known[name] for name in names}
        while pending:
            for name, service in list(pending.items()):
                seconds = time.monotonic() - began
                info = supervisor.supervisor.getProcessInfo(name)
                if info["statename"] == "FATAL" or seconds > START_SECONDS:
                    on_change(name, "failed", seconds)
                    end = "".join(self.log(name).read_text(errors="replace").splitlines(keepends=True)[-5:])
                    raise UnavailableError(
                        f"{service.title} did not come up in {seconds:.0f} s; {self.log(name)} ends:\n{end}"
                    )
                # The port must be its own: another program that took it meanwhile would answer, too.
                if info["pid"] and service.answers() and listens(info["pid"], stack.ports[name]):
                    on_change(name, "running", seconds)
                    del pending[name]
            time.sleep(0.2)


def state_of(process: dict[str, Any] | None, service: Service) -> State:
    """A service's state from what its supervisor and it itself say."""
    if process is None or process["statename"] in {"STOPPED", "STOPPING"}:
        return "stopped"
    if process["statename"] in {"FATAL", "EXITED", "UNKNOWN"}:
        return "failed"
    return "running" if service.answers() else "starting"


def listens(pid: int, port: int) -> bool:
    """Whether this process or one below it listens on the port."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in member.net_connections("tcp")):
                    return True
    return False


def choose_ports(before: dict[str, int]) -> dict[str, int]:
    """The ports of the last time where they are free, else the usual ones, else any free ones."""
    ports: dict[str, int] = {}
    for name in (*USUAL_PORTS, *INNER_PORTS):
        candidates = [port for port in (before.get(name), USUAL_PORTS.get(name)) if port]
        # Below the ephemeral range, so that no outgoing connection takes a port between here and the service's start.
        candidates += random.SystemRandom().sample(range(20_000, 32_000), 100)
        ports[name] = next(port for port in candidates if port not in ports.values() and is_free(port))
    return ports


def is_free(port: int) -> bool:
    """Whether a server could listen on this port on every interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def s3_identities(stack: Stack) -> dict[str, Any]:
    """SeaweedFS' identity file: one user who may do all."""
    keys = {"accessKey": stack.s3_access_key, "secretKey": stack.s3_secret_key}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "genmodels", "credentials": [keys], "actions": actions}]}


def supervisor_configuration(home: Path, programs: dict[str, Service]) -> str:
    """The text of supervisord.conf; it holds credentials in the programs' environments."""
    config = configparser.RawConfigParser()
    run = home / "run"
    config["supervisord"] = {
        "directory": quote(home),
        "logfile": quote(home / "logs/supervisord.log"),
        "logfile_maxbytes": "5MB",
        "logfile_backups": "2",
        "pidfile": quote(run / "supervisord.pid"),
        "umask": "077",
    }
    config["unix_http_server"] = {"file": quote(run / "supervisor.sock"), "chmod": "0600"}
    factory = "supervisor.rpcinterface:make_main_rpcinterface"
    config["rpcinterface:supervisor"] = {"supervisor.rpcinterface_factory": factory}
    for service in programs.values():
        config[f"program:{service.name}"] = {
            "command": quote(shlex.join(service.command)),
            "environment": quote(",".join(assignment(*entry) for entry in service.environment.items())),
            "autostart": "false",
            "autorestart": "true",
            "startsecs": "10",  # one that dies sooner, three times in a row, has failed
            "startretries": "2",
            "stopsignal": service.stop_signal,
            "stopwaitsecs": str(STOP_SECONDS),
            "stopasgroup": str(service.stop_group).lower(),
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": quote(home / f"logs/{service.name}.log"),
            "stdout_logfile_maxbytes": "10MB",
            "stdout_logfile_backups": "3",
        }
    text = io.StringIO()
    config.write(text)
    return text.getvalue()


def assignment(name: str, value: str) -> str:
    """An entry of supervisor's `environment`, in which nothing can be escaped."""
    if value != value.strip("'\"") or set(value) & set('"\r\n'):
        raise SpecError(
            f"{name} has a quotation mark or a line break that supervisor cannot pass on; take another one."
        )
    return f'{name}="{value}"'


def quote(value: str | Path) -> str:
    """Supervisor expands %(name)s in its configuration."""
    return str(value).replace("%", "%%")


def write_secret(path: Path, text: str) -> None:
    """Write the file whole or not at all, readable by its owner only."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)


def sweep(home: Path) -> int:
    """Kill what is left of the stack in `home`, wherever its parents went; returns how many processes those were."""
    left = list(processes_of(home))
    kill(left)
    return len(left)


def kill(processes: list[psutil.Process]) -> None:
    """Kill the processes and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=STOP_SECONDS)


def processes_of(home: Path) -> Iterator[psutil.Process]:
    """All processes that the stack in `home` started, by what they have in their environment."""
    this = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid not in this and process.environ().get(OWNER) == str(home):
                yield process
