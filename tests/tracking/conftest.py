import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from mlflow_process import MlflowProcess

from genmodels.settings import Settings, settings
from genmodels.tracking.registry import Registry
from genmodels.tracking.rest import EntityExists, TrackingServer


@pytest.fixture(scope="session")
def mlflow_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowProcess]:
    process = MlflowProcess(tmp_path_factory.mktemp("mlflow"))
    process.start()
    yield process
    process.kill()


@pytest.fixture
def bare_run(mlflow_process: MlflowProcess, unchanging_settings: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of the server that may be killed, which is also the server of the settings."""
    monkeypatch.setattr(settings(), "mlflow_url", mlflow_process.url)
    answer = TrackingServer().post("runs/create", experiment_id="0", start_time=time.time_ns() // 1_000_000)
    return answer["run"]["info"]["run_id"]


@pytest.fixture
def without_champion(tracking: Settings) -> str:
    """The name of a registered model that has no champion yet."""
    name = "progressive_gan.digits"
    with suppress(EntityExists):
        TrackingServer().post("registered-models/create", name=name)
    for alias in ("champion", "previous"):
        if Registry().aliased(name, alias):
            TrackingServer().send("DELETE", "mlflow/registered-models/alias", json={"name": name, "alias": alias})
    return name
