"""A queue in a file: what is appended survives the process, whatever end it meets."""

import errno
import json
import os
import threading
from itertools import islice
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One value, or one picture, on its way."""

    time: int  # milliseconds since 1970
    step: int
    key: str
    value: float = 0.0
    file: str | None = None  # name of the picture's PNG file, beside the journal


class Journal:
    """First in, first out, one JSON line each. One thread may append while another reads."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by `close`
        self._lock = threading.Lock()
        self._taken = 0  # bytes
        self._drop_half_line()

    def append(self, entries: list[Entry]) -> None:
        """Add the entries, in one write; OSError if the disk is full, and then none of them."""
        lines = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
        with self._lock:
            before = os.fstat(self._file.fileno()).st_size
            if self._file.write(lines) < len(lines):  # a disk that is nearly full takes a part, and says nothing
                self._file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def first(self, count: int) -> tuple[list[Entry], int]:
        """The oldest entries, at most `count`, and the mark up to which `drop` drops them."""
        with self._lock, open(self.path, "rb") as file:
            file.seek(self._taken)
            lines = list(islice(file, count))
        return [Entry(*json.loads(line)) for line in lines], self._taken + sum(map(len, lines))

    def drop(self, mark: int) -> None:
        """Forget the entries before the mark; the file is emptied when none is left."""
        with self._lock:
            self._taken = mark
            if mark == os.fstat(self._file.fileno()).st_size:
                self._file.truncate(0)
                self._taken = 0

    def is_empty(self) -> bool:
        """Whether all that was appended was dropped."""
        with self._lock:
            return self._taken == os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """No more is appended."""
        with self._lock:
            self._file.close()

    def _drop_half_line(self) -> None:
        """A process that died in the middle of a write, or a full disk, leaves a line without its end."""
        self._file.seek(0)
        whole = sum(len(line) for line in self._file if line.endswith(b"\n"))
        self._file.truncate(whole)
