"""Which scores can be put beside each other: what their protocols, and the names of their metrics, say of that."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from genmodels.spec import EvaluationReport

Axis = Literal["generation", "representation", "density"]
AXES: tuple[Axis, ...] = ("generation", "representation", "density")
AXIS_OF: dict[Axis, re.Pattern[str]] = {  # whatever else is measured is of what a model makes
    "density": re.compile(r"bits_per_dim|nats|iwae|elbo"),
    "representation": re.compile(
        r"reconstruction|linear_probe|nearest_neighbour_accuracy|prior_mmd|perceptual_path|active_units|cluster_accuracy"
        r"|mig|dci|sap|factor_?vae|disentanglement|completeness|informativeness|modularity"
    ),
}
OF_THE_MODEL = re.compile(r"task|density\..*")  # entries of a protocol that say what a model can do


def axis_of(metric: str) -> Axis:
    """What a metric is a measure of, by its name."""
    for axis, pattern in AXIS_OF.items():
        if pattern.match(metric):
            return axis
    return "generation"


def contradictions(ours: EvaluationReport, theirs: EvaluationReport) -> list[str]:
    """The entries of both protocols that differ. What only one of them has belongs to a metric that the other lacks,
    and so does a yes or no: whether a model has a prior, say, or knows classes."""
    one, other = conditions(ours), conditions(theirs)
    return sorted(key for key in one.keys() & other.keys() if one[key] != other[key])


def incomparable(ours: EvaluationReport, theirs: EvaluationReport) -> list[str]:
    """Why one primary metric says nothing beside the other: it is another one, or the protocols contradict each other;
    if it is a likelihood also in its settings, such as the number of levels."""
    if ours.primary != theirs.primary:
        return ["primary metric"]
    differences = contradictions(ours, theirs)
    if axis_of(ours.primary) == "density" and ours.protocol.get("density") != theirs.protocol.get("density"):
        differences.append("kind of likelihood")
    return differences


def conditions(report: EvaluationReport) -> dict[str, Any]:
    """What a protocol says that is not of the model."""
    flat = leaves(report.protocol)
    return {key: value for key, value in flat.items() if not OF_THE_MODEL.match(key) and not isinstance(value, bool)}


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values flat, under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
