"""The local stack on a real PostgreSQL server, chosen by one setting."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genmodels.stack.local import LocalStack
from genmodels.stack.services import DIRECT

pytest.importorskip("psycopg", reason="MLflow talks to PostgreSQL by psycopg, of the extra `servers`")
TOOLS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
PASSWORD = "do%not-show me"
QUOTED = "do%25not-show%20me"


@pytest.fixture(scope="module")
def postgresql() -> Iterator[int]:
    """The port of a server with the databases `prefect` and `mlflow`. It will not run as root."""
    if TOOLS is None:
        pytest.skip("there is no PostgreSQL here; it is Debian's package postgresql")
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if user:
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    options = ["--username=admin", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
    subprocess.run(
        [TOOLS / "initdb", "-D", folder / "data", *options], user=user, check=True, stdout=subprocess.DEVNULL
    )
    where = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    control = [TOOLS / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log"]
    subprocess.run([*control, "-o", where, "start"], user=user, check=True, stdout=subprocess.DEVNULL)
    for name in ("prefect", "mlflow"):
        asked(port, "postgres", f"CREATE DATABASE {name}")
    yield port
    subprocess.run([*control, "-m", "immediate", "stop"], user=user, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder)


def asked(port: int, database: str, query: str) -> list[str]:
    """The rows of a query's answer."""
    assert TOOLS
    command = [TOOLS / "psql", "-At", "-h", "127.0.0.1", "-p", str(port), "-U", "admin", "-d", database, "-c", query]
    environment = {**os.environ, "PGPASSWORD": PASSWORD}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()


def post(url: str, **message: object) -> None:
    request = urllib.request.Request(url, json.dumps(message).encode(), {"Content-Type": "application/json"})
    DIRECT.open(request, timeout=60).close()


def test_prefect_and_mlflow_keep_what_they_know_in_postgresql(
    postgresql: int, tmp_path: Path, configure: Callable[..., None]
):
    configure(database_url=f"postgresql://admin:{QUOTED}@127.0.0.1:{postgresql}")
    own = LocalStack(tmp_path)
    try:
        stack = own.up(["s3", "mlflow", "prefect"])
        post(f"{stack.mlflow_url}/api/2.0/mlflow/experiments/create", name="in PostgreSQL")
        post(f"{stack.prefect_api_url}/flows/", name="in PostgreSQL, too")
        lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    finally:
        own.down()
    assert asked(postgresql, "mlflow", "SELECT name FROM experiments ORDER BY 1") == ["Default", "in PostgreSQL"]
    assert asked(postgresql, "prefect", "SELECT name FROM flow") == ["in PostgreSQL, too"]
    assert not list(tmp_path.rglob("*.db"))
    assert QUOTED not in lines
    assert all(QUOTED not in log.read_text(errors="replace") for log in (tmp_path / "logs").iterdir())
