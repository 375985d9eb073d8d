"""Settings of one test: its own node cache, its own bucket, its own mirror."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from genmodels.settings import Settings, settings
from genmodels.storage.objects import ObjectStore, store


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets GENMODELS_* for this test, beginning with a node cache of its own."""

    def set_variables(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"GENMODELS_{name.upper()}", value)
        settings.cache_clear()
        store.cache_clear()

    set_variables(cache_dir=str(tmp_path / "cache"))
    yield set_variables
    monkeypatch.undo()
    settings.cache_clear()
    store.cache_clear()


@pytest.fixture
def bucket(s3: Settings, configure: Callable[..., None]) -> Iterator[ObjectStore]:
    """An empty bucket, which the settings point at."""
    name = f"test-{uuid4().hex[:12]}"
    ObjectStore(s3).client.create_bucket(Bucket=name)
    configure(bucket=name)
    yield store()
    store().delete([entry.key for entry in store().list("")])
    store().client.delete_bucket(Bucket=name)
