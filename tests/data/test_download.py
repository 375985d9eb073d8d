"""Downloads over a real HTTP server that breaks off, forgets ranges, changes its files or lies."""

import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from genmodels.data import download
from genmodels.data.download import LocatedFile, RemoteFile, fetch, locate
from genmodels.errors import AccessError, DataError, UnavailableError
from genmodels.settings import settings
from genmodels.storage.objects import ObjectStore

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MANUAL = "get it by hand."


class Source:
    """A web server's state: what it serves and how it fails."""

    def __init__(self) -> None:
        self.files = {"/set/file": CONTENT}
        self.ranges = True
        self.cut_after: int | None = None  # bytes of body, for every answer
        self.statuses: list[int] = []  # of the next answers
        self.after_answer: Callable[[], None] = lambda: None
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0
        self.url = ""

    @property
    def base(self) -> str:
        return self.url.removesuffix("/set/file")


@pytest.fixture
def source() -> Iterator[Source]:
    state = Source()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers.get("Range")))
            content = state.files.get(self.path)
            status = 404 if content is None else state.statuses.pop(0) if state.statuses else 200
            if status != 200 or content is None:
                self.send_error(status)
                return
            etag = f'"{hashlib.md5(content).hexdigest()}"'
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(match[1]) if match and state.ranges and self.headers.get("If-Range", etag) == etag else 0
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:] if state.cut_after is None else content[start : start + state.cut_after]
            self.wfile.write(body)
            state.sent += len(body)
            state.after_answer()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing between the tests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/set/file"
    Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays that grow from a hundredth of their length."""
    monkeypatch.setattr(download, "FIRST_DELAY_SECONDS", 0.0025)


def file(source: Source, sha256: str | None = SHA256) -> LocatedFile:
    return LocatedFile(name="file", title="set/file", urls=(source.url,), sha256=sha256)


def raw_files() -> list[str]:
    """What a reader of the node's cache sees under raw."""
    return [path.name for path in (settings().cache / "raw").glob("[!.]*")]


def test_a_file_is_kept_by_its_content_and_fetched_once(bucket: ObjectStore, source: Source, tmp_path: Path, configure):
    path, sha256 = fetch(file(source))
    assert (path.name, sha256, path.read_bytes()) == (SHA256, SHA256, CONTENT)
    assert bucket.get(f"raw/{SHA256}") == CONTENT
    fetch(file(source))
    configure(cache_dir=str(tmp_path / "another node"))
    assert fetch(file(source))[0].read_bytes() == CONTENT
    assert len(source.requests) == 1


def test_a_line_that_breaks_off_again_and_again_is_continued_where_it_broke(bucket: ObjectStore, source: Source):
    source.cut_after = 20_000
    told: list[tuple[int, int]] = []
    path, _ = fetch(file(source), lambda done, total: told.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert source.sent == len(CONTENT), "no byte was sent twice"
    assert [r for _, r in source.requests] == [None, *(f"bytes={n}-" for n in range(20_000, 300_000, 20_000))]
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_process_that_was_killed_is_continued_by_the_next(bucket: ObjectStore, source: Source):
    source.cut_after = 20_000
    source.after_answer = lambda: source.statuses.extend([503] * 50)
    with pytest.raises(UnavailableError, match="answers 503"):
        fetch(file(source))
    assert raw_files() == []
    source.cut_after, source.after_answer = None, lambda: None
    source.statuses.clear()
    assert fetch(file(source))[0].read_bytes() == CONTENT
    assert source.sent == len(CONTENT)


def test_a_server_without_ranges_is_read_from_the_start(bucket: ObjectStore, source: Source):
    source.ranges, source.cut_after = False, 200_000
    source.after_answer = lambda: setattr(source, "cut_after", None)
    assert fetch(file(source))[0].read_bytes() == CONTENT
    assert source.sent == 200_000 + len(CONTENT)


def test_a_file_that_changes_between_two_tries_is_read_from_the_start(bucket: ObjectStore, source: Source):
    """Half of the old and half of the new would be neither."""
    new = CONTENT[::-1]

    def change() -> None:
        source.files["/set/file"], source.cut_after = new, None

    source.cut_after, source.after_answer = 200_000, change
    assert fetch(file(source, None))[0].read_bytes() == new


def test_leftovers_of_something_else_do_no_harm(bucket: ObjectStore, source: Source):
    source.cut_after = 20_000
    source.after_answer = lambda: source.statuses.extend([503] * 50)
    with pytest.raises(UnavailableError):
        fetch(file(source))
    (part,) = (path for path in (settings().cache / "raw").glob(".partial-*") if path.suffix != ".lock")
    part.write_bytes(bytes(50_000))
    source.cut_after, source.after_answer = None, lambda: None
    source.statuses.clear()
    assert fetch(file(source))[0].read_bytes() == CONTENT


def test_busy_servers_are_asked_again(bucket: ObjectStore, source: Source):
    source.statuses = [503, 429, 500]
    assert fetch(file(source))[1] == SHA256


def test_a_wrong_checksum_closes_the_door_and_names_both(bucket: ObjectStore, source: Source):
    wanted = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(DataError, match=f"{SHA256}, expected {wanted}"):
        fetch(file(source, wanted))
    assert raw_files() == []
    assert list(bucket.list("raw/")) == []


def test_without_a_published_checksum_the_first_download_pins_it(
    bucket: ObjectStore, source: Source, tmp_path, configure
):
    files = (RemoteFile(name="file", urls=(source.url,)),)
    (first,) = locate("set", files, MANUAL)
    assert first.sha256 is None
    fetch(first)
    (second,) = locate("set", files, MANUAL)
    assert second.sha256 == SHA256
    source.files["/set/file"] = b"changed"
    configure(cache_dir=str(tmp_path / "another node"))
    bucket.delete([f"raw/{SHA256}"])
    with pytest.raises(DataError, match=f"{hashlib.sha256(b'changed').hexdigest()}, expected {SHA256}"):
        fetch(second)


def test_the_second_address_is_tried_when_the_first_has_nothing(bucket: ObjectStore, source: Source):
    both = file(source).model_copy(update={"urls": (f"{source.base}/nothing", source.url)})
    assert fetch(both)[1] == SHA256


def test_what_is_nowhere(bucket: ObjectStore, source: Source):
    source.files.clear()
    with pytest.raises(DataError, match=r"set/file is not at http.*/set/file \(404 Not Found\)"):
        fetch(file(source))
    assert len(source.requests) == 1


def test_what_is_forbidden(bucket: ObjectStore, source: Source):
    source.statuses = [403]
    with pytest.raises(AccessError, match="refuses the download"):
        fetch(file(source))


def test_who_does_not_answer(bucket: ObjectStore):
    nobody = LocatedFile(name="file", title="set/file", urls=("http://127.0.0.1:9/file",), sha256=SHA256)
    with pytest.raises(UnavailableError, match=r"http://127.0.0.1:9/file does not answer"):
        fetch(nobody)


def test_a_disk_too_small_is_noticed_before_the_first_byte(bucket: ObjectStore, source: Source, monkeypatch):
    usage = download.shutil.disk_usage("/")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(AccessError, match=r"needs 300,000 bytes, but .* has 1,000 left"):
        fetch(file(source))
    assert raw_files() == []


def test_two_who_want_the_same_fetch_it_once(bucket: ObjectStore, source: Source):
    source.cut_after = 100_000
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: fetch(file(source))[0], range(2)))
    assert paths[0] == paths[1]
    assert source.sent == len(CONTENT)


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_mirror_takes_the_place_of_every_address_and_its_sums_of_the_catalogue(
    bucket: ObjectStore, source: Source, configure, tmp_path: Path, scheme: str
):
    source.files = {"/m/my-set/file": CONTENT, "/m/SHA256SUMS": f"{SHA256}  my-set/file\n".encode()}
    for path, content in source.files.items():
        (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path[1:]).write_bytes(content)
    configure(mirror=f"{source.base}/m/" if scheme == "http" else f"file://{tmp_path}/m")
    public = RemoteFile(name="file", urls=("http://127.0.0.1:9/file",), sha256="0" * 64)
    (found,) = locate("my_set", (public,), MANUAL)
    assert found.sha256 == SHA256
    assert found.urls[0].endswith("/m/my-set/file")
    assert fetch(found)[0].read_bytes() == CONTENT


def test_a_mirror_without_sums_is_held_to_those_of_the_catalogue(bucket: ObjectStore, source: Source, configure):
    configure(mirror=source.base)
    (found,) = locate("set", (RemoteFile(name="file", sha256="0" * 64),), MANUAL)
    with pytest.raises(DataError, match=f"expected {'0' * 64}"):
        fetch(found)


def test_a_source_to_be_fetched_by_hand_says_how(bucket: ObjectStore):
    with pytest.raises(DataError, match=re.escape(MANUAL)):
        locate("set", (RemoteFile(name="file"),), MANUAL)
