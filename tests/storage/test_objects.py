"""Objects on a real SeaweedFS: whole or not there, and every failure a sentence."""

import hashlib
import http.client
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar
from uuid import uuid4

import pytest
from pydantic import SecretStr

from genmodels.errors import AccessError, DataError, GenmodelsError, SpecError, UnavailableError
from genmodels.settings import Settings
from genmodels.spec import Progress
from genmodels.storage.objects import TRANSFER, MissingObject, ObjectStore

PART = TRANSFER.multipart_threshold

OPERATIONS: dict[str, Callable[[ObjectStore, Path], object]] = {
    "get": lambda s, f: s.get("some/key"),
    "put": lambda s, f: s.put("some/key", b"x"),
    "put if absent": lambda s, f: s.put("some/key", b"x", if_absent=True),
    "upload": lambda s, f: s.upload(f, "some/key"),
    "download": lambda s, f: s.download("some/key", f.parent / "new"),
    "exists": lambda s, f: s.exists("some/key"),
    "list": lambda s, f: list(s.list("some/")),
    "delete": lambda s, f: s.delete(["some/key"]),
}


@pytest.fixture
def objects(s3: Settings) -> ObjectStore:
    return ObjectStore(s3)


@pytest.fixture
def key() -> str:
    return f"test/{uuid4().hex}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1])
def test_bytes_come_back_as_they_went_on_both_sides_of_the_multipart_size(
    objects: ObjectStore, key: str, tmp_path: Path, size: int
):
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    (tmp_path / "out").write_bytes(data)
    objects.upload(tmp_path / "out", key)
    objects.download(key, tmp_path / "folder/in")
    assert (tmp_path / "folder/in").read_bytes() == objects.get(key) == objects.read(objects.uri(key)) == data
    assert objects.client.head_object(Bucket=objects.bucket, Key=key)["Metadata"]["sha256"] == (
        hashlib.sha256(data).hexdigest()
    )
    objects.delete([key])


def test_of_many_who_put_if_absent_one_wins_and_its_bytes_stay(objects: ObjectStore, key: str):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: objects.put(key, b"%d" % i, if_absent=True), range(8)))
    assert sum(won) == 1
    assert objects.get(key) == b"%d" % won.index(True)
    assert objects.put(key, b"later")
    assert objects.get(key) == b"later"


def test_what_is_not_there(objects: ObjectStore, key: str, tmp_path: Path):
    assert not objects.exists(key)
    assert objects.get_record(key, Progress) is None
    with pytest.raises(MissingObject, match=key):
        objects.get(key)
    with pytest.raises(MissingObject, match=key):
        objects.download(key, tmp_path / "in")
    assert list(tmp_path.iterdir()) == []


def test_records_listing_and_deletion(objects: ObjectStore, key: str):
    progress = Progress(step="train", done=3, total=7)
    assert objects.put_record(f"{key}/b", progress)
    assert not objects.put_record(f"{key}/b", progress.model_copy(update={"done": 4}), if_absent=True)
    assert objects.get_record(f"{key}/b", Progress) == progress
    objects.put(f"{key}/a", b"12")
    objects.put(f"{key}x", b"not below the prefix")
    first, second = objects.list(f"{key}/")
    assert (first.key, first.size, second.key) == (f"{key}/a", 2, f"{key}/b")
    objects.delete([f"{key}/a", f"{key}/b", f"{key}/never was"])
    assert list(objects.list(f"{key}/")) == []


def test_damaged_bytes_are_noticed(objects: ObjectStore, key: str, tmp_path: Path):
    promised = hashlib.sha256(b"whole").hexdigest()
    objects.client.put_object(Bucket=objects.bucket, Key=key, Body=b"other", Metadata={"sha256": promised})
    found = hashlib.sha256(b"other").hexdigest()
    for read in (lambda: objects.get(key), lambda: objects.download(key, tmp_path / "in")):
        with pytest.raises(DataError, match=f"{found}, expected {promised}"):
            read()
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_none():
    with pytest.raises(SpecError, match="expected s3://bucket/key"):
        ObjectStore(Settings()).read("http://elsewhere/key")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("wrong", ["s3_access_key", "s3_secret_key"])
def test_wrong_credentials(s3: Settings, file: Path, operation: str, wrong: str):
    store = ObjectStore(s3.model_copy(update={wrong: SecretStr("not-the-right-one")}))
    with pytest.raises(AccessError, match=r"refused the credentials.*GENMODELS_S3_ACCESS_KEY") as caught:
        OPERATIONS[operation](store, file)
    assert "not-the-right-one" not in str(caught.value)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_bucket_that_does_not_exist(s3: Settings, file: Path, operation: str):
    store = ObjectStore(s3.model_copy(update={"bucket": "nobody-made-this"}))
    with pytest.raises(AccessError, match=r"no bucket 'nobody-made-this'.*create it with `genmodels up`"):
        OPERATIONS[operation](store, file)


@pytest.mark.parametrize("operation", ["get", "upload", "list"])
def test_a_server_that_is_not_there(file: Path, operation: str):
    nobody = Settings(s3_endpoint="http://127.0.0.1:9", s3_access_key=SecretStr("a"), s3_secret_key=SecretStr("b"))
    with pytest.raises(UnavailableError, match=r"http://127.0.0.1:9 does not answer; start it with `genmodels up`"):
        OPERATIONS[operation](ObjectStore(nobody), file)


class FaultProxy(BaseHTTPRequestHandler):
    """Passes requests on to the real server, but does to each first what `faults` says next."""

    protocol_version = "HTTP/1.1"
    target: ClassVar[str]
    faults: ClassVar[list[str]]

    def pass_on(self) -> None:
        fault = self.faults.pop(0) if self.faults else "none"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault == "reset":
            self.close_connection = True
            return
        if fault == "unavailable":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection(self.target)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                self.send_header(name, value)
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing between the tests."""


@pytest.fixture
def faulty(s3: Settings) -> Iterator[tuple[ObjectStore, list[str]]]:
    """A store behind a faulty line, and the list of faults to come."""
    FaultProxy.target, FaultProxy.faults = s3.s3_endpoint.removeprefix("http://"), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FaultProxy)
    Thread(target=server.serve_forever, daemon=True).start()
    yield (
        ObjectStore(s3.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{server.server_port}"})),
        FaultProxy.faults,
    )
    server.shutdown()


@pytest.mark.parametrize("fault", ["unavailable", "reset"])
def test_passing_faults_are_not_noticed(faulty: tuple[ObjectStore, list[str]], key: str, tmp_path: Path, fault: str):
    store, faults = faulty
    faults.extend([fault] * 3)
    assert store.put(key, b"content" * 1000)
    faults.extend([fault] * 3)
    assert store.get(key) == b"content" * 1000
    faults.extend([fault] * 3)
    store.download(key, tmp_path / "in")
    assert (tmp_path / "in").read_bytes() == b"content" * 1000
    assert faults == []


def test_an_answer_that_breaks_off_is_asked_for_again(faulty: tuple[ObjectStore, list[str]], key: str):
    store, faults = faulty
    store.put(key, b"content" * 1000)
    faults.extend(["cut"] * 3)
    assert store.get(key) == b"content" * 1000
    assert faults == []


def test_faults_that_do_not_pass_become_an_error_that_may(faulty: tuple[ObjectStore, list[str]], key: str):
    store, faults = faulty
    faults.extend(["unavailable"] * 100)
    with pytest.raises(GenmodelsError, match="failed on s3://") as caught:
        store.get(key)
    assert caught.value.transient
