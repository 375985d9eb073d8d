"""Leases on the real object store."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from genmodels.errors import UnavailableError
from genmodels.settings import Settings
from genmodels.storage.objects import store
from genmodels.tracking.lease import lease


def test_one_holder_at_a_time(s3: Settings, monkeypatch: pytest.MonkeyPatch):
    inside, most = [0], [0]
    guard = threading.Lock()

    def work(_: int) -> None:
        with lease("test/one"):
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.005)
            with guard:
                inside[0] -= 1

    monkeypatch.setattr("genmodels.tracking.lease.POLL_SECONDS", 0.005)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert most == [1]
    assert len(list(store().list("locks/test/one/"))) == 40


def test_a_holder_that_died_is_succeeded_when_its_time_is_over(s3: Settings):
    dead = lease("test/dead", seconds=1.0)
    dead.__enter__()
    with (
        pytest.raises(UnavailableError, match="Somebody else holds test/dead"),
        lease("test/dead", patience_seconds=0.3),
    ):
        pass
    with lease("test/dead", patience_seconds=10):
        pass


def test_a_holder_may_renew_its_time_until_another_took_over(s3: Settings):
    with lease("test/renewed", seconds=2.0) as renew:
        time.sleep(1.5)
        renew()
        time.sleep(1.0)
        with pytest.raises(UnavailableError, match="holds"), lease("test/renewed", patience_seconds=0.2):
            pass
        with lease("test/renewed", patience_seconds=10):
            pass
        with pytest.raises(UnavailableError, match="Somebody else took over test/renewed"):
            renew()
    with lease("test/renewed", patience_seconds=1.0):
        pass
