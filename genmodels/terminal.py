"""What people see: tables and numbers on standard output, everything that moves on standard error."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from genmodels.errors import GenmodelsError
from genmodels.spec import Progress, Record, RunSpec
from genmodels.stack import State

console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 400)
errors = Console(stderr=True)
QUIET_SECONDS = 15.0


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner while something of unknown length goes on; the value says what exactly."""
    with errors.status(what) as status:
        yield lambda message: status.update(f"{what}: {message}")


@contextmanager
def starting() -> Iterator[Callable[[str, State, float], None]]:
    """Shows which services are up."""
    with Bars(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=errors) as bars:
        rows: dict[str, TaskID] = {}

        def show(name: str, state: State, seconds: float) -> None:
            if state == "starting":
                rows[name] = bars.add_task(f"{name:8} starting", total=1)
            else:
                bars.update(rows[name], description=f"{name:8} {state}", completed=1)
                if not errors.is_terminal:
                    errors.print(f"{name} {state} after {seconds:.1f} s")

        yield show


@contextmanager
def following() -> Iterator[Callable[[Progress], None]]:
    """Shows each stage of each step as a bar with its rate, losses and remaining time; in a log, as a line now and
    then."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
    with Bars(*columns, console=errors) as bars:
        rows: dict[tuple[str, str], TaskID] = {}
        printed = dict[tuple[str, str], float]()

        def show(progress: Progress) -> None:
            row = progress.step, progress.stage
            name = f"{progress.step} {progress.stage}".strip()
            if row not in rows:
                rows[row] = bars.add_task(name, total=progress.total, detail="")
            bars.update(rows[row], total=progress.total, completed=progress.done, detail=detail(progress))
            if not errors.is_terminal and time.monotonic() - printed.get(row, -QUIET_SECONDS) >= QUIET_SECONDS:
                printed[row] = time.monotonic()
                errors.print(f"{name}: {detail(progress)}")

        yield show


def detail(progress: Progress) -> str:
    """The numbers of a progress in one line."""
    parts = [f"{progress.done:,} of {progress.total:,} {progress.unit}"]
    if progress.per_second:
        parts.append(f"{progress.per_second:,.0f}/s")
    if progress.eta_seconds is not None:
        parts.append(f"{progress.eta_seconds / 60:.1f} min left")
    parts += [f"{name} {value:.3g}" for name, value in progress.values.items()]
    return ", ".join([*parts, *filter(None, [progress.message])])


@contextmanager
def watching(step: str, spec: RunSpec) -> Iterator[None]:
    """Shows the progress that a step in this process leaves in the object store."""
    from genmodels.steps.reports import read_progress

    done = Event()
    before = _quietly(lambda: read_progress(step, spec))

    def watch(show: Callable[[Progress], None]) -> None:
        while not done.wait(1.0):
            progress = _quietly(lambda: read_progress(step, spec))
            if progress is not None and progress != before:
                show(progress)

    with following() as show:
        watcher = Thread(target=watch, args=[show], daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _quietly(read: Callable[[], Progress | None]) -> Progress | None:
    try:
        return read()
    except GenmodelsError:  # the step meets the same trouble and tells of it
        return None


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table; in a file or a pipe as wide as it needs to be."""
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_report(report: Record) -> None:
    """A report, one line for each of its fields."""
    fields = report.model_dump().items()
    print_table(["", ""], [[name.replace("_", " "), in_words(value)] for name, value in fields])


def in_words(value: Any) -> str:
    """A JSON value for people, on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {in_words(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return str(value)
