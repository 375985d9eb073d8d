"""The numbers that a report derives from others."""

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
