"""One holder at a time of a named thing, by conditional puts in the object store."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from genmodels.errors import UnavailableError
from genmodels.spec import Record
from genmodels.storage.objects import store

POLL_SECONDS = 0.2


class Holding(Record):
    """The content of locks/<name>/<number>."""

    until: float
    released: bool = False


@contextmanager
def lease(name: str, *, seconds: float = 60.0, patience_seconds: float = 120.0) -> Iterator[Callable[[], None]]:
    """Hold `name` for at most that long; raises UnavailableError if others keep it longer than the patience.

    What it gives begins the time anew, or raises UnavailableError if it was over and another holds `name` by now. To be
    called before what must not be done beside another, however long the way to it was.

    Holders are numbered. Whoever finds the last one gone, because it said so or its time is over, writes the next
    number, and a conditional put lets only one do so. No number is ever taken away: else one who looked long ago could
    write it again. A holder that died delays the next by `seconds`; clocks may differ by much less than that.
    """
    number = _acquire(name, seconds, patience_seconds)

    def renew() -> None:
        nonlocal number
        if not _take(name, number + 1, seconds):
            raise UnavailableError(
                f"Somebody else took over {name}, since this took more than {seconds:.0f} seconds; try again later."
            )
        number += 1

    try:
        yield renew
    finally:
        store().put_record(_key(name, number), Holding(until=0.0, released=True))


def _acquire(name: str, seconds: float, patience_seconds: float) -> int:
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        held = sorted(entry.key for entry in store().list(f"locks/{name}/"))
        last = store().get_record(held[-1], Holding) if held else None
        if not held or (last and (last.released or last.until < time.time())):
            number = int(held[-1].rsplit("/", 1)[1]) + 1 if held else 0
            if _take(name, number, seconds):
                return number
        time.sleep(POLL_SECONDS)
    raise UnavailableError(f"Somebody else holds {name} for more than {patience_seconds:.0f} seconds; try again later.")


def _take(name: str, number: int, seconds: float) -> bool:
    return store().put_record(_key(name, number), Holding(until=time.time() + seconds), if_absent=True)


def _key(name: str, number: int) -> str:
    return f"locks/{name}/{number:012d}"
