"""A stack of these tests' own, with a faulty line before each of its servers: what they kill nobody else misses."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_stack import PrivateStack, forget, small, trained

from genmodels.spec import RunSpec, TrainReport


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """After all others: until then the machine is the session's stack's."""
    items.sort(key=lambda item: Path(__file__).parent in item.path.parents)


@pytest.fixture(scope="package")
def running() -> Iterator[PrivateStack]:
    """The whole stack; the settings of this process and of the stack's jobs point at the lines before it."""
    environment = dict(os.environ)
    private = PrivateStack(Path(tempfile.mkdtemp(prefix="gm-faults-")))
    try:
        private.up()
        yield private
    finally:
        private.close()
        os.environ.clear()
        os.environ.update(environment)
        private.forget_settings()
        shutil.rmtree(private.home, ignore_errors=True)


@pytest.fixture
def private(running: PrivateStack) -> Iterator[PrivateStack]:
    """The stack; no test leaves a fault, or a flow, to the next."""
    yield running
    running.calm()


@pytest.fixture(scope="package")
def spec(running: PrivateStack) -> RunSpec:
    """A training of seconds."""
    return small(seed=1)


@pytest.fixture(scope="package")
def quiet(spec: RunSpec) -> TrainReport:
    """The report of that training without faults, of which nothing else is left."""
    report = trained(spec)
    forget(spec)
    return report
