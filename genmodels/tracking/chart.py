"""Quality against cost as a drawing: where the marks, the ticks and the labels of a leaderboard's chart are."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from genmodels.tracking.comparison import Column, Contender, Leaderboard

WIDTH, HEIGHT = 760, 400  # pixels, as all that follows
LEFT, RIGHT, TOP, BOTTOM = 70, WIDTH - 150, 30, HEIGHT - 56
LABEL_HEIGHT = 17

Scale = Callable[[float], float]
Ticks = list[tuple[float, float]]  # where, of what value


class Point(NamedTuple):
    """A model."""

    contender: Contender
    x: float
    y: float
    low: float
    high: float
    label_y: float


class Chart(NamedTuple):
    """The first metric of a leaderboard, with its intervals, over the logarithm of the training time."""

    column: Column
    points: list[Point]
    x_ticks: Ticks  # in seconds
    y_ticks: Ticks
    floor: float | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    bottom: int = BOTTOM


def chart(board: Leaderboard) -> Chart | None:
    """None unless two models at least have both numbers."""
    if not board.headlines:
        return None
    column = board.headlines[0]
    shown = [
        (contender, contender.metrics[column.name], contender.seconds)
        for contender in board.contenders
        if contender.label in column.places and contender.seconds
    ]
    if len(shown) < 2:
        return None
    floor = [] if column.floor is None else [column.floor]
    y, y_ticks = _linear([*floor, *(value for _, metric, _ in shown for value in (metric.low, metric.high))])
    x, x_ticks = _logarithmic([seconds for *_, seconds in shown])
    points = [
        Point(contender, x(seconds), y(metric.value), y(metric.low), y(metric.high), label_y=y(metric.value))
        for contender, metric, seconds in shown
    ]
    return Chart(column, _labels_apart(points), x_ticks, y_ticks, y(floor[0]) if floor else None)


def _linear(values: Sequence[float]) -> tuple[Scale, Ticks]:
    """From the bottom to the top, with three to six ticks at multiples of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * each for each in (1, 2, 5, 10) if span / (power * each) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)

    def position(value: float) -> float:
        return BOTTOM + (value / step - first) / max(last - first, 1) * (TOP - BOTTOM)

    return position, [(position(each * step), each * step) for each in range(first, last + 1)]


def _logarithmic(values: Sequence[float]) -> tuple[Scale, Ticks]:
    """From left to right, with ticks where people who count seconds, minutes and hours would set them."""
    marks = [unit * each for unit in (1, 60, 3600) for each in (1, 2, 5, 10, 20, 30)] + [100 * 3600, 300 * 3600]
    low = max((mark for mark in marks if mark <= min(values)), default=min(values))
    high = min((mark for mark in marks if mark > max(values)), default=2 * max(values))

    def position(value: float) -> float:
        return LEFT + math.log(value / low) / math.log(high / low) * (RIGHT - LEFT)

    ticks = [mark for mark in marks if low <= mark <= high]
    return position, [(position(mark), mark) for mark in ticks[:: math.ceil(len(ticks) / 8)]]


def _labels_apart(points: Sequence[Point]) -> list[Point]:
    """The same with labels of which none lies on another or on a mark: from the top, each goes down as far as it
    must."""
    placed: list[Point] = []
    for point in sorted(points, key=lambda point: point.y):
        labels = [other.label_y for other in placed if abs(other.x - point.x) < WIDTH - RIGHT]
        marks = [other.y for other in points if 0 < other.x - point.x < WIDTH - RIGHT]
        label_y = point.y
        for taken in sorted(labels + marks):
            if abs(taken - label_y) < LABEL_HEIGHT:
                label_y = taken + LABEL_HEIGHT
        placed.append(point._replace(label_y=label_y))
    return placed
