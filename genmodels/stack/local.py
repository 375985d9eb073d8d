"""Starting, stopping and asking after the stack in one folder."""

import fcntl
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast
from xmlrpc.client import Fault, ServerProxy

import psutil

from genmodels.errors import AccessError, SpecError, UnavailableError
from genmodels.settings import Home, Settings, settings, without_proxy_for_loopback
from genmodels.spec import digest
from genmodels.stack.ports import choose_ports
from genmodels.stack.services import SERVICES, Service, Stack, s3_identities, services
from genmodels.stack.supervisor import OWNER, STOP_SECONDS, kill, listens, supervisor_configuration, sweep

START_SECONDS = 300.0

State = Literal["stopped", "starting", "running", "failed"]
OnChange = Callable[[str, State, float], None]


@dataclass(frozen=True)
class ServiceStatus:
    """One line of `genmodels status`."""

    name: str
    title: str
    address: str
    state: State
    log: str


class LocalStack:
    """The stack whose state lies in `home`, by default `GENMODELS_HOME`."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = (home or Home().home).absolute()
        self.file = Home(home=self.home).stack_file

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


def write_secret(path: Path, text: str) -> None:
    """Write the file whole or not at all, readable by its owner only."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)
