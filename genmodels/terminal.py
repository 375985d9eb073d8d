"""What people see: tables and numbers on standard output, everything that moves on standard error."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from genmodels.errors import GenmodelsError
from genmodels.spec import Progress, Record, RunSpec

if TYPE_CHECKING:
    from flows.retrain import Outcome
    from genmodels.stack.local import State
    from genmodels.steps.costs import Cost
    from genmodels.tracking.comparison import Comparison

console = Console(soft_wrap=True, markup=False, width=None if sys.stdout.isatty() else 400)
errors = Console(stderr=True)
LINE_SECONDS = 10.0  # between lines of text where there is no terminal


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner while something of unknown length goes on; the value says what exactly."""
    with errors.status(what) as status:
        yield lambda message: status.update(f"{what}: {message}")


@contextmanager
def starting() -> Iterator[Callable[[str, "State", float], None]]:
    """Shows which services are up."""
    with Bars(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=errors) as bars:
        rows: dict[str, TaskID] = {}

        def show(name: str, state: "State", seconds: float) -> None:
            if state == "starting":
                rows[name] = bars.add_task(f"{name:8} starting", total=1)
            else:
                bars.update(rows[name], description=f"{name:8} {state}", completed=1)
                if not errors.is_terminal:
                    errors.print(f"{name} {state} after {seconds:.1f} s")

        yield show


class StepDisplay:
    """How the steps of a run go: a line each with a bar; without a terminal, a line of text now and then."""

    def __init__(self) -> None:
        self.console = errors
        self.outcome: Record | None = None
        self._bars = Bars(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<9}"),
            BarColumn(24),
            TextColumn("{task.fields[text]}"),
            console=errors,
        )
        self._rows: dict[str, TaskID] = {}
        self._printed, self._line = -LINE_SECONDS, ("", "")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, step: str, progress: Progress | None) -> None:
        """The step goes on."""
        text = described(progress) if progress else "starting"
        if errors.is_terminal:
            row = self._row(step)
            if progress:
                self._bars.update(row, completed=progress.done, total=progress.total, text=text)
        elif time.monotonic() - self._printed >= LINE_SECONDS and self._line != (step, text):
            self._printed, self._line = time.monotonic(), (step, text)
            errors.print(f"{step}: {text}", soft_wrap=True)

    def finished(self, step: str, text: str) -> None:
        """The step is done."""
        if errors.is_terminal:
            self._bars.update(self._row(step), completed=1, total=1, text=text)
        else:
            errors.print(f"{step}: {text}", soft_wrap=True)

    def _row(self, step: str) -> TaskID:
        if step not in self._rows:
            self._rows[step] = self._bars.add_task(step, total=None, text="starting")
        return self._rows[step]


def described(progress: Progress) -> str:
    """A progress in one line: stage, amount, rate, time left and losses."""
    parts = [progress.stage, f"{progress.done:,} of {progress.total:,} {progress.unit}"]
    if progress.per_second:
        parts.append(f"{progress.per_second:,.1f} {progress.unit}/s")
    if progress.eta_seconds is not None:
        parts.append(f"{timedelta(seconds=round(progress.eta_seconds))} left")
    parts += [f"{name} {value:.4g}" for name, value in progress.values.items()]
    return " · ".join(part for part in [*parts, progress.message] if part)


@contextmanager
def watching(step: str, spec: RunSpec) -> Iterator[None]:
    """Shows the progress that a step in this process leaves in the object store."""
    from genmodels.steps.reports import read_progress

    done = Event()
    began = datetime.now(UTC)

    def watch(display: StepDisplay) -> None:
        while not done.wait(1.0):
            with suppress(GenmodelsError):  # the step meets the same trouble and tells of it
                progress = read_progress(step, spec)
                display.show(step, progress if progress and progress.time > began else None)

    with StepDisplay() as display:
        watcher = Thread(target=watch, args=[display], daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
        display.finished(step, f"{(datetime.now(UTC) - began).total_seconds():.1f} s")


def print_outcome(outcome: "Outcome", pictures: Sequence[Path]) -> None:
    """What a retraining came to."""
    columns = ["metric", "value", "interval", "floor", "untrained", "gap closed"]
    rows = []
    for name, metric in outcome.metrics.items():
        value, low, high, floor, untrained, gap = (
            "" if metric.get(key) is None else f"{metric[key]:.4g}"
            for key in ("value", "low", "high", "floor", "untrained", "gap_closed")
        )
        rows.append([name, value, f"{low} to {high}", floor, untrained, gap])
    print_table(columns, rows)
    console.print(
        f"{outcome.model_uri} is registered as {' and '.join(outcome.aliases) or 'a version'}: {outcome.promotion}"
    )
    lines = {**outcome.addresses, **{path.stem: str(path) for path in pictures}}
    print_table(["", ""], [[name, address] for name, address in lines.items()])


def print_comparison(comparison: "Comparison") -> None:
    """The leaderboards of a data set."""
    from genmodels.tracking.leaderboard import glance

    for board in comparison.leaderboards:
        if board.why_apart:
            console.print(board.why_apart)
        print_table(*glance(board))
    for name, why in comparison.left_out.items():
        console.print(f"{name} is left out. {why}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table; in a file or a pipe as wide as it needs to be."""
    table = Table(*columns, box=None, header_style="bold", pad_edge=False, show_header=any(columns))
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_costs(title: str, costs: Mapping[str, "Cost"]) -> None:
    """Costs by name, a row each."""
    columns = [title, "device time", "energy", "sent", "received", "peak memory", "peak device memory"]
    print_table(columns, [[name, *cost_cells(cost)] for name, cost in costs.items()])


def cost_cells(cost: "Cost") -> list[str]:
    """Device time, energy, bytes sent and received, peak memory and that of devices, for people."""
    return [
        str(timedelta(seconds=round(cost.device_seconds))),
        "" if cost.energy_joules is None else f"{cost.energy_joules / 3.6e6:.3f} kWh",
        *(f"{moved / 1e6:,.1f} MB" for moved in (cost.bytes_sent, cost.bytes_received)),
        f"{cost.peak_memory_bytes / 2**20:,.0f} MiB",
        "" if cost.peak_device_memory_bytes is None else f"{cost.peak_device_memory_bytes / 2**20:,.0f} MiB",
    ]


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
        return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return str(value)
