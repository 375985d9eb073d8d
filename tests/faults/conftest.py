"""A stack of these tests' own, with a faulty line before each of its servers: what they kill nobody else misses."""

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from private_stack import PrivateStack, forget, small, trained

from genmodels.spec import RunSpec, TrainReport


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """After all others, and beside those of the session's stack: both mostly wait."""
    ours = [item for item in items if "running" in getattr(item, "fixturenames", ())]
    for item in ours:
        item.add_marker(pytest.mark.xdist_group("faults"))
    yield
    items.sort(key=ours.__contains__)


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
