"""Fetching public files: resumed, repeated, verified, and kept by their content at raw/<sha256> in the object store.

`GENMODELS_MIRROR` takes the place of every public address: file F of data set D is then MIRROR/D/F, with hyphens for
the underscores of D. If MIRROR/SHA256SUMS exists (lines of `sha256sum`, paths relative to MIRROR), its sums take
the place of the catalogue's. MIRROR may be an http(s):// address or file:///folder.
"""

import hashlib
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
from pydantic import Field
from tenacity import (
    RetryCallState,
    Retrying,
    retry,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)
from urllib3.exceptions import HTTPError

from genmodels.errors import AccessError, DataError, UnavailableError
from genmodels.settings import settings
from genmodels.spec import Record, digest
from genmodels.storage.cache import keep, make_room
from genmodels.storage.files import disk_errors, locked
from genmodels.storage.objects import store

CONNECT_SECONDS, READ_SECONDS = 10, 60
CHUNK_BYTES = 1 << 20
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.25, 30.0
PATIENCE = 6  # tries in a row that bring not one byte
log = logging.getLogger(__name__)

BytesDone = Callable[[int, int], None]
"""Told the bytes there are so far, and in all (0 where the server does not say)."""


class RemoteFile(Record):
    """A public file; `urls` are tried in turn."""

    name: str
    urls: tuple[str, ...] = ()
    sha256: str | None = None
    """As published; without one the first download pins it."""


class LocatedFile(Record):
    """A file with the addresses and the sum that hold under the present settings."""

    name: str
    title: str = Field(description="for messages: data set/file")
    urls: tuple[str, ...]
    sha256: str | None


class Pin(Record):
    """What a file was when it was first downloaded, where its source publishes no checksum."""

    url: str
    sha256: str


def locate(dataset: str, files: tuple[RemoteFile, ...], how_to_get: str) -> list[LocatedFile]:
    """Where the files of a data set are to be had and which sums they must have.

    `how_to_get` is the sentence for a source without a public address; raises DataError with it if there is no mirror.
    """
    mirror = (settings().mirror or "").rstrip("/")
    sums = _mirror_sums(mirror) if mirror else {}
    located = []
    for file in files:
        path = f"{dataset.replace('_', '-')}/{file.name}"
        urls = (f"{mirror}/{path}",) if mirror else file.urls
        if not urls:
            raise DataError(how_to_get)
        sha256 = sums.get(path, file.sha256) or _pinned(urls)
        located.append(LocatedFile(name=file.name, title=f"{dataset}/{file.name}", urls=urls, sha256=sha256))
    return located


def fetch(file: LocatedFile, progress: BytesDone = lambda done, total: None) -> tuple[Path, str]:
    """The verified file on this node, and its SHA-256: from the node's cache, the object store, or its address.

    Raises:
        UnavailableError: no address answers.
        DataError: the file is not at its address, or is not what its checksum says.
        AccessError: the address asks for credentials, or the disk is full.
    """
    raw = settings().cache / "raw"
    if file.sha256:
        keep(raw / file.sha256)
    if file.sha256 and (raw / file.sha256).is_file():
        return raw / file.sha256, file.sha256
    if file.sha256 and (there := next(store().list(f"raw/{file.sha256}"), None)):
        make_room(there.size)
        store().download(f"raw/{file.sha256}", raw / file.sha256, sha256=file.sha256)
        return raw / file.sha256, file.sha256
    part = raw / f".partial-{digest([file.urls, file.sha256])}"
    with disk_errors(raw), locked(part.with_suffix(".lock")):
        if file.sha256 and (raw / file.sha256).is_file():  # whoever held the lock has fetched it
            return raw / file.sha256, file.sha256
        url, sha256 = _from_any_address(file, part, progress)
        store().upload(part, f"raw/{sha256}")
        if file.sha256 is None:
            log.warning("%s has no published checksum; pinned SHA-256 %s from now on.", file.title, sha256)
            store().put_record(_pin_key(file.urls), Pin(url=url, sha256=sha256), if_absent=True)
        keep(raw / sha256)
        os.replace(part, raw / sha256)
    return raw / sha256, sha256


def _from_any_address(file: LocatedFile, part: Path, progress: BytesDone) -> tuple[str, str]:
    failures: list[UnavailableError | DataError] = []
    for url in file.urls:
        try:
            return url, _verified(file, url, part, progress)
        except (UnavailableError, DataError) as error:
            failures.append(error)
    raise failures[-1]


def _verified(file: LocatedFile, url: str, part: Path, progress: BytesDone) -> str:
    """Downloads to `part` and returns the SHA-256, which is `file.sha256` if there is one."""
    if file.sha256 is None:  # what lies there from an earlier try cannot be checked
        part.unlink(missing_ok=True)
    resumed = part.exists()
    Download(file.title, url, part, progress).run()
    with open(part, "rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if file.sha256 in {None, found}:
        return found
    part.unlink()
    if resumed:  # by a part of something else; once more from the start
        return _verified(file, url, part, progress)
    raise DataError(
        f"{file.title} from {url} has SHA-256 {found}, expected {file.sha256}: the source has changed or was tampered "
        "with; nothing was kept."
    )


class Download:
    """One file from one address into `part`, continued where it stops as long as every few tries bring some bytes."""

    def __init__(self, title: str, url: str, part: Path, progress: BytesDone):
        self.title, self.url, self.part, self.progress = title, url, part, progress
        self._idle_tries = 0
        self._version: str | None = None  # the ETag of what lies in `part`

    def run(self) -> None:
        """Returns when all of the file is there."""
        if urlsplit(self.url).scheme == "file":
            self._copy(Path(unquote(urlsplit(self.url).path)))
            return
        repeat = Retrying(
            retry=retry_if_exception_type(UnavailableError),
            stop=lambda state: self._idle_tries >= PATIENCE,
            wait=lambda state: _delay(self._idle_tries),
            before_sleep=self._tell,
            reraise=True,
        )
        repeat(self._continue)

    def _continue(self) -> None:
        before = self._size()
        self._idle_tries += 1
        try:
            with requests.get(
                self.url, headers=self._range(before), stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)
            ) as answer:
                self._receive(answer, before)
        except (requests.RequestException, HTTPError) as error:
            raise UnavailableError(
                f"{self.title}: {self.url} does not answer ({_reason(error)}); try again later."
            ) from error
        finally:
            if self._size() > before:
                self._idle_tries = 0

    def _range(self, start: int) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if self._version:
                headers["If-Range"] = self._version
        return headers

    def _receive(self, answer: requests.Response, start: int) -> None:
        if answer.status_code == 416:  # what lies there is as long as the file, or longer
            if answer.headers.get("Content-Range") == f"bytes */{start}":
                return
            self.part.unlink()
            raise UnavailableError(f"{self.title}: {self.url} changed while it was read; try again.")
        self._check_status(answer)
        continued = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        done = start if continued else 0
        total = done + int(answer.headers.get("Content-Length") or 0)
        self._check_space(total - done)
        etag = answer.headers.get("ETag", "")
        self._version = None if etag.startswith("W/") else etag or None
        with open(self.part, "ab" if continued else "wb") as file:
            # Unlike iter_content, read1 hands over what came before the line broke.
            while chunk := answer.raw.read1(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                self.progress(done, total)
        if done < total:
            raise UnavailableError(f"{self.title}: {self.url} broke off at {done:,} of {total:,} bytes; try again.")

    def _check_status(self, answer: requests.Response) -> None:
        status = f"{answer.status_code} {answer.reason}"
        if answer.status_code in {401, 403}:
            raise AccessError(f"{self.title}: {self.url} refuses the download ({status}).")
        if answer.status_code in {408, 425, 429} or answer.status_code >= 500:
            raise UnavailableError(f"{self.title}: {self.url} answers {status}; try again later.")
        if answer.status_code >= 400:
            raise DataError(f"{self.title} is not at {self.url} ({status}); check the address or GENMODELS_MIRROR.")

    def _check_space(self, needed: int) -> None:
        make_room(needed)
        free = shutil.disk_usage(self.part.parent).free
        if needed > free:
            raise AccessError(
                f"{self.title} needs {needed:,} bytes, but {self.part.parent} has {free:,} left; free some space or "
                "set GENMODELS_CACHE_DIR."
            )

    def _copy(self, source: Path) -> None:
        if not source.is_file():
            raise DataError(f"{self.title} is not at {self.url}; check GENMODELS_MIRROR.")
        self._check_space(source.stat().st_size)
        shutil.copyfile(source, self.part)
        self.progress(self._size(), self._size())

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("%s Continuing at %s bytes.", error, f"{self._size():,}")


def _mirror_sums(mirror: str) -> dict[str, str]:
    address = f"{mirror}/SHA256SUMS"
    if urlsplit(mirror).scheme == "file":
        path = Path(unquote(urlsplit(address).path))
        text = path.read_text() if path.is_file() else ""
    else:
        text = _get_text(address)
    sums = {}
    for line in text.splitlines():
        sha256, _, name = line.strip().partition(" ")
        if len(sha256) == 64:
            sums[name.lstrip(" *").removeprefix("./")] = sha256.lower()
    return sums


@retry(
    retry=retry_if_exception_type(UnavailableError),
    stop=stop_after_attempt(3),
    wait=wait_random_exponential(0.25, max=5),
    reraise=True,
)
def _get_text(address: str) -> str:
    """The text at an address, empty if there is none."""
    try:
        answer = requests.get(address, timeout=(CONNECT_SECONDS, READ_SECONDS))
    except requests.RequestException as error:
        raise UnavailableError(
            f"The mirror does not answer at {address} ({_reason(error)}); check GENMODELS_MIRROR."
        ) from error
    if answer.status_code in {403, 404}:
        return ""
    if not answer.ok:
        raise UnavailableError(
            f"The mirror answers {answer.status_code} {answer.reason} at {address}; try again later."
        )
    return answer.text


def _pinned(urls: tuple[str, ...]) -> str | None:
    pin = store().get_record(_pin_key(urls), Pin)
    return pin.sha256 if pin else None


def _pin_key(urls: tuple[str, ...]) -> str:
    return f"raw/pins/{digest(urls)}.json"


def _delay(idle_tries: int) -> float:
    return min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**idle_tries) * random.uniform(0.5, 1.0)


def _reason(error: Exception) -> str:
    return type(error).__name__
