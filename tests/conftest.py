"""Fixtures that tests share: one real stack for the whole session, started by genmodels' own `up` in a temporary home.

Tests that need no server run first, while the stack comes up beside them.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from genmodels.settings import Settings, settings
from genmodels.stack.local import LocalStack
from genmodels.stack.ports import USUAL_PORTS
from genmodels.stack.services import SERVICES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from genmodels.storage.objects import ObjectStore

FIXTURES = {
    "s3": ["s3"],
    "tracking": ["s3", "mlflow"],
    "stack": [*SERVICES],
}  # which services each starts, fewest first
DATA = Path(os.environ.get("GENMODELS_TEST_DATA", Path(__file__).parents[2] / "shared/data"))
CHROMIUM = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
STACK_STARTING: Future[object] | None = None


def pytest_configure(config: pytest.Config) -> None:
    """A home of the session's own, before any test module reads a setting."""
    ours = {"GENMODELS_TEST_DATA", "GENMODELS_SOAK_SECONDS"}
    for name in [name for name in os.environ if name.startswith("GENMODELS_") and name not in ours]:
        del os.environ[name]
    USUAL_PORTS.update(dict.fromkeys(USUAL_PORTS))  # a developer's own stack is not to be met on them
    os.environ["GENMODELS_HOME"] = tempfile.mkdtemp(prefix="gm-")
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # one session for each core
    LocalStack().configure()
    os.environ |= settings().client_environment()  # Prefect and Ray read theirs when they are imported


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests without servers first, those with the whole stack last. Tests of the same servers are one session's."""
    items.sort(key=lambda item: len(services_of(item)))
    for item in items:
        if services := services_of(item):
            item.add_marker(pytest.mark.xdist_group("-".join(services)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the servers that the chosen tests need, beside the tests that need none; of several sessions none knows
    yet which tests will be its own."""
    global STACK_STARTING
    needed = max(map(services_of, session.items), key=len, default=[])
    if needed and not session.config.option.collectonly and "PYTEST_XDIST_WORKER" not in os.environ:
        STACK_STARTING = ThreadPoolExecutor(1).submit(LocalStack().up, needed)


def pytest_unconfigure() -> None:
    """Take the session's home away, servers and all."""
    if STACK_STARTING is not None:
        STACK_STARTING.exception()
    LocalStack().down()
    shutil.rmtree(os.environ["GENMODELS_HOME"], ignore_errors=True)


def services_of(item: pytest.Item) -> list[str]:
    used = getattr(item, "fixturenames", ())
    return max((names for fixture, names in FIXTURES.items() if fixture in used), key=len, default=[])


@pytest.fixture(scope="session")
def s3() -> Settings:
    """A running SeaweedFS; the settings point at it."""
    return started(FIXTURES["s3"])


@pytest.fixture(scope="session")
def tracking() -> Settings:
    """SeaweedFS and MLflow; the settings and the clients' environment point at them."""
    return started(FIXTURES["tracking"])


@pytest.fixture(scope="session")
def stack() -> Settings:
    """The whole running stack; the settings and the clients' environment point at it."""
    return started(FIXTURES["stack"])


@pytest.fixture
def unchanging_settings() -> None:
    """No stack is coming up beside the test: when it is there, the settings are read anew."""
    if STACK_STARTING is not None:
        STACK_STARTING.exception()


def started(names: list[str] | tuple[str, ...]) -> Settings:
    """Wait for the services and point this process at them."""
    from genmodels.storage.objects import store

    LocalStack().up(names)
    store.cache_clear()
    os.environ |= settings().client_environment()
    return settings()


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets GENMODELS_* for one test, beginning with a node cache of its own."""
    from genmodels.storage.objects import store

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


@pytest.fixture(scope="session")
def spare_bucket(s3: Settings) -> str:
    """Name of a bucket beside the stack's own."""
    from genmodels.storage.objects import ObjectStore

    ObjectStore(s3).client.create_bucket(Bucket="spare")
    return "spare"


@pytest.fixture
def bucket(spare_bucket: str, configure: Callable[..., None]) -> "Iterator[ObjectStore]":
    """A bucket that the settings of one test point at, empty before and after."""
    from genmodels.storage.objects import store

    configure(bucket=spare_bucket)
    yield store()
    configure(bucket=spare_bucket)  # whatever the test configured
    store().delete([entry.key for entry in store().list("")])


@pytest.fixture(scope="session")
def data_mirror() -> Iterator[str]:
    """Address of a real HTTP server over the real data sets, in the place of their public addresses."""
    if not DATA.is_dir():
        pytest.skip(f"the real data sets are not at {DATA}; point GENMODELS_TEST_DATA at them")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeRequestHandler, directory=str(DATA)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class RangeRequestHandler(SimpleHTTPRequestHandler):
    """Serves files, and parts of files as `Range: bytes=START-` asks for them (RFC 9110, 14.2)."""

    def send_head(self):
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if match is None or not path.is_file():
            return super().send_head()
        start, size = int(match[1]), path.stat().st_size
        if start >= size:
            self.send_error(416)
            return None
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        file = path.open("rb")
        file.seek(start)
        return file

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing between the tests."""


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A headless Chromium; of one module, because until it closes an event loop runs, and Prefect would hand out
    coroutines in the place of results."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("the browser tests need Debian's chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*CHROMIUM.split(), "--no-first-run"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser") -> "Iterator[Page]":
    """A page of it."""
    from playwright.sync_api import expect

    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    yield page
    page.close()
