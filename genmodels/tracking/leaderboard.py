"""A comparison for people: a page that stands alone, markdown, and a run in MLflow."""

import base64
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from genmodels.errors import AccessError
from genmodels.settings import settings
from genmodels.spec import Metric, digest
from genmodels.storage.objects import MissingObject, store
from genmodels.tracking.chart import chart
from genmodels.tracking.comparison import Column, Comparison, Contender, Leaderboard, best_first
from genmodels.tracking.lease import lease
from genmodels.tracking.protocol import AXES, Axis
from genmodels.tracking.rest import TrackingServer
from genmodels.tracking.runs import MetricsQueue, log_metrics, run_page, set_tags, the_one_run

HEADER = ["", "model", "density"]
PICTURES_IN_A_ROW = 4
COST = ["parameters", "training", "images/s"]
MAX_NOTE_LENGTH = 8000
NOT_OF_MLFLOW = re.compile(r"[^\w\-. /]", re.ASCII)  # what no name of a metric or a picture may hold
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#!|~&])")


def page(comparison: Comparison) -> str:
    """One HTML file that needs no other and asks for none: pictures, styles and the script for sorting are in it."""
    script = _template("leaderboard.js").render()
    return _template("leaderboard.html").render(
        comparison=comparison,
        axes=AXES,
        made=datetime.now(UTC),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def save(page: str, path: Path) -> None:
    """Write the page; AccessError if that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise AccessError(
            f"The page {path} cannot be written: {error}; take another path, such as out.html."
        ) from error


def markdown(comparison: Comparison, pictures: Mapping[str, str] = {}, axes: Sequence[Axis] = AXES) -> str:
    """A table of all models at a glance, and one of each axis; with the addresses of pictures, by label, if given."""
    parts: list[str] = []
    for board in comparison.leaderboards:
        parts += [f"**{escaped(board.why_apart)}**"] if board.why_apart else []
        parts.append(_table(*glance(board)))
        shown = [contender.label for contender in board.contenders if contender.label in pictures]
        for first in range(0, len(shown), PICTURES_IN_A_ROW):
            row = shown[first : first + PICTURES_IN_A_ROW]
            images = [f"![{escaped(label)}]({pictures[label]})" for label in row]
            parts.append(_rows([list(map(escaped, row)), ["---"] * len(row), images]))
        for axis in axes:
            if columns := board.of_axis(axis):
                parts += [f"### {axis.capitalize()}", _table(*_axis_table(board, columns))]
    if comparison.left_out:
        parts += ["### Left out", *(f"- {escaped(f'{name}: {why}')}" for name, why in comparison.left_out.items())]
    return "\n\n".join(parts) + "\n"


def note(comparison: Comparison) -> str:
    """The same at a glance alone, which MLflow's pages show above a run; it keeps no more than so many characters."""
    text = markdown(comparison, axes=())
    return text if len(text) <= MAX_NOTE_LENGTH else text[:MAX_NOTE_LENGTH].rpartition("\n")[0]


def log(comparison: Comparison) -> str:
    """Keep the comparison as a run of the data set's experiment, one for each set of versions; returns its page.

    Its metrics are AXIS/METRIC/MODEL.VERSION, its pictures are the models' sample grids, its files the page and the
    comparison as JSON. Logged again, it says what is new: a metric whose value has not changed gets no second point.
    """
    key = digest(sorted(f"{contender.name}/{contender.version}" for contender in comparison.contenders))
    with lease(f"comparison/{key}"):  # two at once would give every metric a second point
        return run_page(_logged(comparison, key, TrackingServer()))


def _logged(comparison: Comparison, key: str, server: TrackingServer) -> str:
    name = f"compare-{comparison.dataset}-{key[:8]}"
    record, identity = f"comparisons/{key}.json", ("comparison", key)
    run_id = the_one_run(record, name, identity, experiment=comparison.dataset, server=server)
    log_metrics(run_id, _numbers(comparison), server)
    tags = {"dataset": comparison.dataset, "mlflow.source.name": "genmodels"}
    set_tags(run_id, {**tags, "mlflow.note.content": note(comparison)}, server)
    folder = server.get("runs/get", run_id=run_id)["run"]["info"]["artifact_uri"]
    server.put_artifact(folder, "leaderboard.html", page(comparison).encode())
    server.put_artifact(folder, "comparison.json", comparison.model_dump_json(indent=2).encode())
    queue = MetricsQueue(lambda: run_id, settings().cache / "mlflow" / key, sample_system=False)
    for contender in comparison.contenders:
        if png := picture(contender):
            queue.image(f"samples/{_metric_part(contender)}", png, 0)
    queue.close()
    return run_id


def glance(board: Leaderboard) -> tuple[list[str], list[list[str]]]:
    """The header and a row for each model: its place, the first metric of each axis, what it cost."""
    header = [*HEADER, *(column.name for column in board.headlines), *COST]
    rows = [
        [
            place(board.headlines[0], contender),
            " ".join(
                filter(None, [contender.label, "(champion)" * ("champion" in contender.aliases), contender.set_apart])
            ),
            contender.density,
            *(_score(column, contender) for column in board.headlines),
            amount(sum(contender.parameters.values()) or None),
            duration(contender.seconds),
            number(contender.images_per_second),
        ]
        for contender in board.contenders
    ]
    return header, rows


def _axis_table(board: Leaderboard, columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    """What each metric of an axis is of each model, of real data and of an untrained model."""
    header = ["metric", "", "model", "value", "95 % interval", "untrained", "gap closed"]
    rows: list[list[str]] = []
    for column in columns:
        judged = [contender for contender in board.contenders if column.name in contender.metrics]
        judged.sort(key=lambda contender: best_first(contender.metrics[column.name]))
        for contender in judged:
            metric = contender.metrics[column.name]
            gap = "" if metric.gap_closed is None else f"{metric.gap_closed:.1%}"
            interval = f"{number(metric.low)} to {number(metric.high)}"
            value = f"{number(metric.value)}{remark(metric)}"
            row = [place(column, contender), contender.label, value, interval, number(metric.untrained)]
            rows.append([column.name if contender is judged[0] else "", *row, gap])
        references = {"real data": column.floor, **column.baselines}
        rows += [["", "", what, number(value), "", "", ""] for what, value in references.items() if value is not None]
    return header, rows


def place(column: Column, contender: Contender) -> str:
    """1, or =1 where others share it; nothing where there is none to compare with, or no finite number."""
    if contender.label not in column.places or len(column.places) == 1:
        return ""
    return f"{'=' if column.is_tied(contender.label) else ''}{column.places[contender.label]}"


def remark(metric: Metric) -> str:
    """What must be known to read a value, to stand behind it: that a likelihood is exact, or a lower bound."""
    return f" ({metric.note})" if metric.note else ""


def number(value: float | None) -> str:
    """Four digits; a dash for what is not there."""
    return "–" if value is None else f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


def amount(value: float | None) -> str:
    """12, 34.5 k or 6.78 M."""
    if value is None:
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """12 s, 34 min or 5.6 h."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def picture(contender: Contender) -> bytes | None:
    """The PNG of its last sample grid."""
    try:
        return store().read(contender.picture) if contender.picture else None
    except MissingObject:
        return None


def data_uri(contender: Contender) -> str | None:
    """The same as an address that holds the picture itself."""
    png = picture(contender)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}" if png else None


def track(metric: Metric) -> dict[str, float] | None:
    """Where value and interval lie, in percent of the way from the untrained model to real data, if there is one."""

    def of(value: float) -> float | None:
        gap = metric.model_copy(update={"value": value}).gap_closed
        return None if gap is None or not math.isfinite(gap) else 100 * min(max(gap, 0.0), 1.0)

    ends = sorted(x for x in (of(metric.low), of(metric.high)) if x is not None)
    value = of(metric.value)
    return None if value is None or len(ends) < 2 else {"value": value, "low": ends[0], "high": ends[1]}


def _score(column: Column, contender: Contender) -> str:
    metric = contender.metrics.get(column.name)
    if metric is None:
        return "–"
    interval = f"[{number(metric.low)}, {number(metric.high)}]"
    return f"{number(metric.value)} {interval} {place(column, contender)}".rstrip() + remark(metric)


def _numbers(comparison: Comparison) -> dict[str, float]:
    """Of every model its metrics, its places and its cost, under names as MLflow takes them."""
    numbers: dict[str, float | None] = {}
    for board in comparison.leaderboards:
        for contender in board.contenders:
            who = _metric_part(contender)
            for column in board.columns:
                if metric := contender.metrics.get(column.name):
                    numbers[f"{column.axis}/{metric.name}/{who}"] = metric.value
                    numbers[f"place/{metric.name}/{who}"] = column.places.get(contender.label)
            numbers[f"cost/parameters/{who}"] = sum(contender.parameters.values()) or None
            numbers[f"cost/training_seconds/{who}"] = contender.seconds
            numbers[f"cost/images_per_second/{who}"] = contender.images_per_second
    return {
        NOT_OF_MLFLOW.sub("_", key): value
        for key, value in numbers.items()
        if value is not None and math.isfinite(value)
    }


def _metric_part(contender: Contender) -> str:
    return NOT_OF_MLFLOW.sub("_", f"{contender.model}.{contender.version}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return _rows([list(map(escaped, header)), ["---"] * len(header), *(list(map(escaped, row)) for row in rows)])


def _rows(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def escaped(text: str) -> str:
    """The text as markdown that shows it, on one line."""
    return MARKDOWN.sub(r"\\\1", " ".join(text.split()))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("genmodels.tracking"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    functions: list[Callable[..., Any]] = [number, amount, duration, place, track, data_uri, chart]
    environment.globals |= {function.__name__: function for function in functions}
    return environment


def _template(name: str) -> Any:
    return _environment().get_template(name)
