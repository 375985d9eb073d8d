"""How a run goes, in the terminal that started it."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from flows.artifacts import Every, described
from genmodels.spec import Progress


class Display:
    """A line per step with a bar; where the output is not a terminal, a line of text every so often."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bars = Bars(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<9}"),
            BarColumn(24),
            TextColumn("{task.fields[text]}"),
            console=self.console,
        )
        self._rows: dict[str, TaskID] = {}
        self._line_due = Every(10)

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bars.stop()

    def show(self, step: str, progress: Progress | None) -> None:
        """The step goes on."""
        text = described(progress) if progress else "starting"
        if self.console.is_terminal:
            row = self._row(step)
            if progress:
                self._bars.update(row, completed=progress.done, total=progress.total, text=text)
        elif self._line_due():
            self.console.print(f"{step}: {text}", soft_wrap=True)

    def finished(self, step: str, text: str) -> None:
        """The step is done."""
        if self.console.is_terminal:
            self._bars.update(self._row(step), completed=1, total=1, text=text)
        else:
            self.console.print(f"{step}: {text}", soft_wrap=True)

    def _row(self, step: str) -> TaskID:
        if step not in self._rows:
            self._rows[step] = self._bars.add_task(step, total=None, text="starting")
        return self._rows[step]
