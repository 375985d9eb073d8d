"""Where things are: endpoints, bucket, credentials, folders. From `GENMODELS_*` variables, else from what `up` wrote.

Moving from a laptop to a cluster is a matter of these values; no other module reads these variables.
"""

import os
from collections.abc import Mapping
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, Json, PositiveInt, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from genmodels.errors import SpecError, first_problem


class Home(BaseSettings):
    """The folder of all local state; read first, because the other settings may lie in it."""

    model_config = SettingsConfigDict(env_prefix="GENMODELS_")
    home: Path = Path(".genmodels")

    @property
    def stack_file(self) -> Path:
        """What `genmodels up` wrote about the local stack; mode 0600, it holds the credentials."""
        return self.home / "stack.json"


class Settings(BaseSettings):
    """Addresses and credentials of the stack a command talks to."""

    model_config = SettingsConfigDict(env_prefix="GENMODELS_", extra="ignore")

    home: Path = Field(default_factory=lambda: Home().home.absolute())
    bucket: str = "genmodels"
    s3_endpoint: str = "http://127.0.0.1:8333"
    s3_region: str = "us-east-1"
    s3_access_key: SecretStr = SecretStr("")
    s3_secret_key: SecretStr = SecretStr("")
    mlflow_url: str = "http://127.0.0.1:5000"
    mlflow_pages_url: str = Field(default="", description="where browsers find MLflow; unset: at mlflow_url")
    mlflow_username: str = "admin"
    mlflow_password: SecretStr = SecretStr("")
    prefect_api_url: str = "http://127.0.0.1:4200/api"
    prefect_auth_string: SecretStr = Field(default=SecretStr(""), description="user:password of Prefect's server")
    ray_address: str = Field(default="http://127.0.0.1:8265", description="the Ray dashboard, which also takes jobs")
    ray_pages_url: str = Field(default="", description="where browsers find the Ray dashboard; unset: at ray_address")
    ray_token_path: Path | None = None
    worker_resources: Annotated[Json[dict[Literal["CPU", "GPU"], PositiveInt]], NoDecode] = Field(
        default={},
        validate_default=False,
        description="what a training worker asks Ray for, as JSON, where machines come when they are asked for; "
        "else it has a GPU, or its share of the CPUs, of those that are there",
    )
    database_url: SecretStr = Field(
        default=SecretStr(""),
        description="postgresql://USER:PASSWORD@HOST:PORT; the stack takes its databases `prefect` and `mlflow`",
    )
    alert_block: str = Field(
        default="",
        pattern=r"^([a-z0-9-]+/.+)?$",
        description="TYPE/NAME of a block of Prefect that alerts are sent by, such as slack-webhook/ops",
    )
    alert_minutes: float = Field(default=15.0, ge=1 / 6, description="without progress of a step, until an alert")
    bind: IPv4Address = Field(
        default=IPv4Address("127.0.0.1"),
        description="where the pages of `up` are; beyond this machine with logins",
    )
    mirror: str | None = Field(
        default=None, description="base address in the place of every public data address; its login is in ~/.netrc"
    )
    cache_dir: Path | None = Field(default=None, description="node-local copies of shards; default HOME/cache")
    cache_gib: float | None = Field(
        default=None,
        gt=0,
        description="limit of those copies, beside that of the disk; ones that a process reads stay even beyond it",
    )

    @field_validator("mirror")
    @classmethod
    def _without_login(cls, mirror: str | None) -> str | None:
        if mirror and "@" in urlsplit(mirror).netloc:
            raise ValueError("put the login of an address into ~/.netrc, for addresses are told in messages and logs")
        return mirror

    @property
    def cache(self) -> Path:
        """Folder of node-local copies of shards."""
        return self.cache_dir or self.home / "cache"

    @property
    def mlflow_pages(self) -> str:
        """Base address of MLflow's pages, for people."""
        return (self.mlflow_pages_url or self.mlflow_url).rstrip("/")

    @property
    def ray_pages(self) -> str:
        """Base address of Ray's pages, for people."""
        return (self.ray_pages_url or self.ray_address).rstrip("/")

    def client_environment(self) -> dict[str, str]:
        """What the clients of Prefect, Ray and MLflow read from the environment, for this process and its children."""
        environment = {
            "GENMODELS_HOME": str(self.home),
            "PREFECT_API_URL": self.prefect_api_url,
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "RAY_USAGE_STATS_ENABLED": "0",
            "DO_NOT_TRACK": "1",
            **without_proxy_for_loopback(os.environ),
        }
        if auth_string := self.prefect_auth_string.get_secret_value():
            environment["PREFECT_API_AUTH_STRING"] = auth_string
        if password := self.mlflow_password.get_secret_value():
            environment |= {"MLFLOW_TRACKING_USERNAME": self.mlflow_username, "MLFLOW_TRACKING_PASSWORD": password}
        if self.ray_token_path is not None:
            environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.ray_token_path)}
        return environment

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        stack = JsonConfigSettingsSource(settings_cls, json_file=Home().stack_file)
        return init_settings, env_settings, stack


def without_proxy_for_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY in both spellings, with the loopback names added: through a proxy they would mean the proxy itself."""
    names = {name for spelling in ("NO_PROXY", "no_proxy") for name in environment.get(spelling, "").split(",") if name}
    value = ",".join(sorted(names | {"127.0.0.1", "localhost", "::1"}))
    return {"NO_PROXY": value, "no_proxy": value}


@cache
def settings() -> Settings:
    """The settings of this process, read once. Raises SpecError, without their values, if they cannot be."""
    try:
        return Settings()
    except ValidationError as error:
        key, problem = first_problem(error)
        name = key.partition(".")[0]
        raise SpecError(f"The setting {name} cannot be what GENMODELS_{name.upper()} says: {problem}.") from None
    except ValueError as error:
        raise SpecError(f"{Home().stack_file} is not JSON: {error}; move it away and run `genmodels up`.") from None
