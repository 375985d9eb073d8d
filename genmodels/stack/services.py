"""The four programs of the stack: what each is started with, and what tells them and their clients of each other."""

import sys
import urllib.request
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from genmodels.errors import SpecError

HOST = "127.0.0.1"
SERVICES = ("s3", "mlflow", "prefect", "ray")
OBJECT_STORE_BYTES = 256 * 2**20  # samples travel through S3 and memory-mapped files, not through Ray
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
                "-master.resumeState=false",  # volumes tell what they hold; to resume, its timers run at 1 ms for ever
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
            command=[
                *(sys.executable, "-m", "prefect" if "prefect" in databases else "genmodels.stack.prefect_on_sqlite"),
                *("server", "start", "--host", str(stack.bind), "--port", port["prefect"]),
            ],
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
                "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # who asked for no GPU sees none, and so computes on the CPU
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


def s3_identities(stack: Stack) -> dict[str, Any]:
    """SeaweedFS' identity file: one user who may do all."""
    keys = {"accessKey": stack.s3_access_key, "secretKey": stack.s3_secret_key}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "genmodels", "credentials": [keys], "actions": actions}]}
