"""Where things are: endpoints, bucket, credentials, folders. From `GENMODELS_*` variables, else from what `up` wrote.

Moving from a laptop to a cluster is a matter of these values; no other module reads the environment.
"""

from functools import cache
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, JsonConfigSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict


class Home(BaseSettings):
    """The folder of all local state; read first, because the other settings may lie in it."""

    model_config = SettingsConfigDict(env_prefix="GENMODELS_")
    home: Path = Path(".genmodels")


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
    prefect_api_url: str = "http://127.0.0.1:4200/api"
    ray_address: str = Field("http://127.0.0.1:8265", description="the Ray dashboard, which also takes jobs")
    ray_token_path: Path | None = None
    mirror: str | None = Field(None, description="base address in the place of every public data address")
    cache_dir: Path | None = Field(None, description="node-local copies of shards; default HOME/cache")

    @property
    def stack_file(self) -> Path:
        """What `genmodels up` wrote about the local stack; mode 0600, it holds the credentials."""
        return self.home / "stack.json"

    @property
    def cache(self) -> Path:
        """Folder of node-local copies of shards."""
        return self.cache_dir or self.home / "cache"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        stack = JsonConfigSettingsSource(settings_cls, json_file=Home().home / "stack.json")
        return init_settings, env_settings, stack


@cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
