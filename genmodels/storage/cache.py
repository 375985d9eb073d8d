"""This node's copies of objects: removed when room is needed, never while a process reads them."""

import fcntl
import logging
import math
import os
import shutil
from pathlib import Path
from typing import IO

from genmodels.settings import settings
from genmodels.storage.files import disk_errors

COPIES = ("datasets/*", "raw/*", "models/*/*")

log = logging.getLogger(__name__)
_kept: dict[Path, IO[str]] = {}


def keep(copy: Path) -> None:
    """Nobody on this node removes the copy, a file or a folder, as long as this process lives.

    To be called before one looks whether the copy is there. Raises AccessError on a full disk.
    """
    if copy in _kept:
        return
    lock = _lock(copy)
    with disk_errors(copy.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        _kept[copy] = open(lock, "w")  # noqa: SIM115 - the lock is held as long as the file is open
    fcntl.flock(_kept[copy], fcntl.LOCK_SH)
    os.utime(lock)


def make_room(needed: int) -> None:
    """Removes copies that nobody keeps, those used longest ago first, until so many bytes more find room: on the disk
    of the cache, and below `GENMODELS_CACHE_GIB`. It may not come to that."""
    cache = settings().cache
    cache.mkdir(parents=True, exist_ok=True)
    sizes = {copy: _size(copy) for pattern in COPIES for copy in cache.glob(pattern) if copy.name[0] != "."}
    most = (settings().cache_gib or math.inf) * 2**30
    excess = needed - min(most - sum(sizes.values()), shutil.disk_usage(cache).free)
    for copy in sorted(sizes, key=_last_use):
        if excess <= 0:
            return
        if _removed(copy):
            log.info("Removed %s from this node's cache: room for what is needed now.", copy)
            excess -= sizes[copy]


def _removed(copy: Path) -> bool:
    with open(_lock(copy), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if copy.is_dir():
            shutil.rmtree(copy)
        else:
            copy.unlink(missing_ok=True)
    return True


def _lock(copy: Path) -> Path:
    """Beside the copy, and never removed: whoever waits for it would hold a file that nobody else finds."""
    return copy.with_name(f".{copy.name}.lock")


def _last_use(copy: Path) -> float:
    lock = _lock(copy)
    return (lock if lock.exists() else copy).stat().st_mtime


def _size(copy: Path) -> int:
    files = copy.rglob("*") if copy.is_dir() else [copy]
    return sum(file.lstat().st_size for file in files if file.is_file())
