"""Local files: whole or not there, used by one process at a time, and full disks that say so."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genmodels.errors import FULL_DISK, AccessError


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk into an AccessError that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise AccessError(f"The disk of {folder} is full; free some space or set GENMODELS_CACHE_DIR.") from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` if the block succeeds; raises AccessError on a full disk."""
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        os.close(handle)
        try:
            yield Path(name)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that is gone after the block; raises AccessError on a full disk."""
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(dir=path.parent, prefix=".new-")
        try:
            yield Path(name)
        finally:
            shutil.rmtree(name, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file among the processes of this node; it is free again when its holder ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
