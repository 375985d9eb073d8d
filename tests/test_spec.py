"""The numbers that a report derives from others."""

import math

import pytest

from genmodels.spec import Metric


@pytest.mark.parametrize(
    ("better", "value", "floor", "untrained", "closed"),
    [
        ("lower", 20.0, 10.0, 110.0, 0.9),
        ("lower", 110.0, 10.0, 110.0, 0.0),
        ("lower", 5.0, 10.0, 110.0, 1.05),
        ("higher", 0.75, 1.0, 0.5, 0.5),
        ("lower", 0.3, 0.2, 0.1, None),  # the untrained model is not worse than real data
        ("lower", 0.3, 0.2, 0.2, None),
        ("lower", 0.3, None, 0.2, None),
    ],
)
def test_gap_closed(better: str, value: float, floor: float | None, untrained: float, closed: float | None):
    metric = Metric(name="m", value=value, low=value, high=value, floor=floor, untrained=untrained, better=better)
    assert metric.gap_closed == (closed if closed is None else pytest.approx(closed))


@pytest.mark.parametrize(
    ("known", "shown"),
    [
        ({"floor": 0.012, "untrained": 0.412}, ("0.012", "0.412", "75.0%")),
        ({"floor": 0.012}, ("0.012", "–", "–")),
        ({"floor": 0.012, "untrained": math.inf}, ("0.012", "inf", "–")),
        ({}, ("–", "–", "–")),
    ],
)
def test_a_table_has_dashes_for_what_is_not_known(known: dict[str, float], shown: tuple[str, ...]):
    metric = Metric(name="fid", value=0.112, low=0.1000049, high=0.123, **known)
    assert tuple(metric.cells.values()) == ("0.112", "0.1 to 0.123", *shown)
