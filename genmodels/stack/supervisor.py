"""supervisord's configuration, and the processes that it has started."""

import configparser
import io
import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from genmodels.errors import SpecError
from genmodels.stack.services import Service

OWNER = "GENMODELS_STACK"  # in the environment of all processes of a stack: the home they belong to
STOP_SECONDS = 15


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


def listens(pid: int, port: int) -> bool:
    """Whether this process or one below it listens on the port."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in member.net_connections("tcp")):
                    return True
    return False


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
