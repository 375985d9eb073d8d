"""The registered models of one data set beside each other: what the registry knows of them, and their places."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, ValidationError

from genmodels.errors import SpecError, unknown
from genmodels.settings import settings
from genmodels.spec import EvaluationReport, Metric, Record, RunSpec, TrainReport, name_of_dataset
from genmodels.storage.objects import store
from genmodels.tracking.promotion import evaluation_of, gain_and_noise
from genmodels.tracking.protocol import AXES, Axis, axis_of, conditions, contradictions, leaves
from genmodels.tracking.registry import ModelVersion, Registry
from genmodels.tracking.rest import MissingEntity

BASELINE = re.compile(r"(\w+?)_(?:of_(independent_pixels|pixels)|(untranslated))")  # scores that take no model


class Contender(Record):
    """One registered version: what it is, what it scored, what it cost."""

    name: str = Field(description="of the registered model: progressive_gan.digits")
    version: int
    aliases: list[str]
    model: str
    preset: str
    seed: int
    settings: dict[str, str] = Field(
        default_factory=dict, description="those of its config that others of the same model have otherwise"
    )
    density: str = Field(description="its class in the taxonomy of Goodfellow (NIPS 2016 tutorial, figure 9)")
    metrics: dict[str, Metric] = Field(description="by column")
    not_judged: dict[str, str] = Field(description="why an axis, an extractor or MS-SSIM was not used, by name")
    parameters: dict[str, int] = Field(description="by network; empty where MLflow was not told")
    workers: int
    seconds: float | None = Field(None, description="of training; None where its report is gone")
    images_shown: int | None = None
    images_per_second: float | None = None
    shows: Literal["samples", "translations", "reconstructions"]
    picture: str | None = Field(description="address of its last sample grid")
    page: str = Field(description="its address in MLflow")

    @property
    def label(self) -> str:
        """Its name where the data set is known: `progressive_gan v3`."""
        return f"{self.model} v{self.version}"

    @property
    def set_apart(self) -> str:
        """Its settings, for people: `adversarial_loss=hinge`."""
        return ", ".join(f"{key}={value}" for key, value in self.settings.items())


Entry = tuple[Contender, EvaluationReport]  # with how it was judged


class Column(Record):
    """One metric of several models that were judged alike."""

    name: str = Field(description="the metric's; of a likelihood with what else must be equal to compare it")
    axis: Axis
    better: Literal["lower", "higher"]
    floor: float | None = Field(description="the same measure of real data, or of perfect codes")
    baselines: dict[str, float] = Field(description="the same measure where no model is needed, by what took its place")
    places: dict[str, int] = Field(description="by label: 1 + how many are better beyond the noise; equal where tied")

    def is_tied(self, label: str) -> bool:
        """Whether another model has the same place."""
        return list(self.places.values()).count(self.places[label]) > 1


class Leaderboard(Record):
    """Models that were judged alike, in the order of the first metric of each axis in turn."""

    why_apart: str = Field("", description="why they cannot be compared with those of the first leaderboard")
    protocol: dict[str, Any] = Field(description="how all of them were judged")
    columns: list[Column] = Field(description="by axis, first those that the most models were judged by")
    contenders: list[Contender]

    def of_axis(self, axis: Axis) -> list[Column]:
        """The metrics of an axis."""
        return [column for column in self.columns if column.axis == axis]

    def not_judged(self, axis: Axis) -> dict[str, str]:
        """Why models have nothing on an axis, by label."""
        return {each.label: each.not_judged[axis] for each in self.contenders if axis in each.not_judged}

    @property
    def headlines(self) -> list[Column]:
        """The first metric of each axis."""
        return [columns[0] for axis in AXES if (columns := self.of_axis(axis))]


class Comparison(Record):
    """All that can be said of a data set's registered models beside each other."""

    dataset: str
    leaderboards: list[Leaderboard]
    left_out: dict[str, str] = Field(description="versions that cannot be compared with any, and why")

    @property
    def contenders(self) -> list[Contender]:
        """Those of all leaderboards."""
        return [contender for board in self.leaderboards for contender in board.contenders]


def compare(dataset: str, *, every_version: bool = False) -> Comparison:
    """The registered models of a data set beside each other, from what was measured when they were evaluated.

    Of each registered model the champion takes part, or its newest version where it has none; with `every_version` all
    do. Models that were not judged alike (other data, another extractor, another number of images) come into
    leaderboards of their own.

    Args:
        dataset: a name from the catalogue, folder:PATH or s3://bucket/prefix, as it was given to `retrain`.

    Raises:
        SpecError: if no model of that data set is registered.
    """
    registry, dataset = Registry(), name_of_dataset(dataset)
    models = [version for version in registry.versions() if version.model != "classifier"]
    versions = [version for version in models if version.dataset == dataset]
    if not versions:
        raise unknown("data set with registered models", dataset, sorted({version.dataset for version in models}))
    entered: list[Entry] = []
    left_out: dict[str, str] = {}
    aliases = {name: registry.aliases(name) for name in {version.name for version in versions}}
    for version in versions if every_version else _chosen(versions, aliases):
        called = [alias for alias, number in aliases[version.name].items() if number == str(version.version)]
        try:
            entered.append(_contender(version, sorted(called), registry))
        except SpecError as error:
            left_out[f"{version.name} version {version.version}"] = str(error)
    groups = _judged_alike(_with_own_settings(entered))
    boards = [_leaderboard(group, "" if group is groups[0] else _why_apart(group, groups[0])) for group in groups]
    return Comparison(dataset=dataset, leaderboards=boards, left_out=left_out)


def places(metrics: Mapping[str, Metric]) -> dict[str, int]:
    """1 + how many are better beyond the noise, for each metric that is finite, by name.

    To be better beyond the noise is transitive, so whoever is behind another has the higher number, and of those with
    the same number none is better beyond the noise: they are tied.
    """

    def better(one: Metric, other: Metric) -> bool:
        gain, noise = gain_and_noise(one, other)
        return gain > noise

    finite = {name: metric for name, metric in metrics.items() if metric.is_finite}
    return {name: 1 + sum(better(other, metric) for other in finite.values()) for name, metric in finite.items()}


def best_first(metric: Metric | None) -> float:
    """A key that sorts the best first, and last what was not judged or is not finite."""
    if metric is None or not metric.is_finite:
        return math.inf
    return -metric.value if metric.better == "higher" else metric.value


def _chosen(versions: Sequence[ModelVersion], aliases: Mapping[str, Mapping[str, str]]) -> list[ModelVersion]:
    """Of each registered model the champion, or the newest version."""
    newest = {version.name: str(version.version) for version in versions}  # the newest one of a name comes last
    chosen = {name: aliases[name].get("champion", number) for name, number in newest.items()}
    return [version for version in versions if chosen[version.name] == str(version.version)]


def _contender(version: ModelVersion, aliases: list[str], registry: Registry) -> Entry:
    """Raises SpecError if the version is none of genmodels', or what it scored is gone."""
    report = evaluation_of(version, registry)
    if report is None:
        raise SpecError("It has no evaluation that can be read; evaluate it again, or register it by `genmodels`.")
    try:
        run = registry.server.get("runs/get", run_id=version.run_id)["run"]["data"] if version.run_id else {}
    except MissingEntity:
        raise SpecError("Its run is gone from MLflow, and with it what the model is; register it again.") from None
    facts = {entry["key"]: entry["value"] for entry in (*run.get("params", []), *run.get("tags", []))}
    kind = json.loads(registry.model_tags(version).get("export", "{}")).get("kind", "samples")
    trained = store().get_record(f"runs/{report.run_key}/train.json", TrainReport)
    spec = store().get_record(f"runs/{report.run_key}/spec.json", RunSpec)
    grids = [info.key for info in store().list(f"runs/{report.run_key}/samples/")]
    values: dict[str, Any] = {
        "name": version.name,
        "version": version.version,
        "aliases": aliases,
        "model": version.model,
        **{key: facts.get(key) for key in ("preset", "seed", "workers", "density")},
        "settings": {key: str(value) for key, value in leaves(spec.config).items()} if spec else {},
        "metrics": _by_column(report),
        "not_judged": report.not_offered,
        "parameters": {
            key.removeprefix("parameters."): value for key, value in facts.items() if key.startswith("parameters.")
        },
        **(trained.model_dump(include={"seconds", "images_shown", "images_per_second"}) if trained else {}),
        "shows": {"translates": "translations", "reconstructs": "reconstructions"}.get(kind, "samples"),
        "picture": store().uri(grids[-1]) if grids else None,
        "page": f"{settings().mlflow_pages}/#/models/{quote(version.name)}/versions/{version.version}",
    }
    try:
        return Contender.model_validate(values), report
    except ValidationError:
        raise SpecError("Its run was not made by `genmodels`, which would have said what the model is.") from None


def _with_own_settings(entered: Sequence[Entry]) -> list[Entry]:
    """The same, and of each one's settings only those in which versions of its model differ."""
    values: dict[tuple[str, str], set[str]] = {}
    for contender, _ in entered:
        for key, value in contender.settings.items():
            values.setdefault((contender.model, key), set()).add(value)

    def own(contender: Contender) -> dict[str, str]:
        return {k: v for k, v in contender.settings.items() if len(values[contender.model, k]) > 1}

    return [(contender.model_copy(update={"settings": own(contender)}), report) for contender, report in entered]


def _by_column(report: EvaluationReport) -> dict[str, Metric]:
    """The model's metrics; a likelihood's note need not say the levels that its column says."""
    own = [metric for metric in report.metrics if not BASELINE.fullmatch(metric.name)]
    levels = _levels(report)
    return {
        _column_of(metric.name, report): metric.model_copy(update={"note": metric.note.removesuffix(levels)})
        for metric in own
    }


def _column_of(name: str, report: EvaluationReport) -> str:
    """A likelihood of 2 levels is none of 256, and one that was told the label is none that was not, so these settings
    stand in the name of a likelihood's column."""
    if axis_of(name) != "density":
        return name
    told = report.protocol.get("density", {}).get("given") == "label"
    return f"{name}{_levels(report)}{', given the label' if told else ''}"


def _levels(report: EvaluationReport) -> str:
    settings = report.protocol.get("density", {})
    return f", {settings['levels']} levels" if "levels" in settings else ""


def _judged_alike(entered: Sequence[Entry]) -> list[list[Entry]]:
    """Groups within which no two protocols contradict each other, the largest first."""
    groups: list[list[Entry]] = []
    for contender, report in entered:
        for group in groups:
            if not any(contradictions(report, other) for _, other in group):
                group.append((contender, report))
                break
        else:
            groups.append([(contender, report)])
    return sorted(groups, key=len, reverse=True)


def _why_apart(group: Sequence[Entry], first: Sequence[Entry]) -> str:
    contradicted = {what for _, ours in group for _, theirs in first for what in contradictions(ours, theirs)}
    digests = [str(report.protocol.get("dataset_digest"))[:8] for _, report in (group[0], first[0])]
    if "dataset_digest" in contradicted:
        return (
            f"Judged on other data: their digest is {digests[0]}, not {digests[1]}, so no number can be compared with "
            "those above; train on the same data to compare."
        )
    return (
        f"Judged otherwise ({', '.join(sorted(contradicted))}), so no number can be compared with those above; the "
        "flow `evaluate-again` judges all of them alike."
    )


def _leaderboard(entered: Sequence[Entry], why_apart: str) -> Leaderboard:
    baselines: dict[str, dict[str, float]] = {}
    for _, report in entered:
        for metric in report.metrics:
            if match := BASELINE.fullmatch(metric.name):
                what = (match[2] or match[3]).replace("_", " ")
                baselines.setdefault(_column_of(match[1], report), {}).setdefault(what, metric.value)
    by_column: dict[str, dict[str, Metric]] = {}
    for contender, _ in entered:
        for column, metric in contender.metrics.items():
            by_column.setdefault(column, {})[contender.label] = metric
    columns = [_column(name, metrics, baselines) for name, metrics in by_column.items()]
    columns.sort(key=lambda column: (AXES.index(column.axis), -len(column.places)))
    board = Leaderboard(
        why_apart=why_apart,
        protocol={key: value for _, report in entered for key, value in conditions(report).items()},
        columns=columns,
        contenders=[contender for contender, _ in entered],
    )
    ordered = sorted(board.contenders, key=lambda contender: _by_headlines(contender, board.headlines))
    return board.model_copy(update={"contenders": ordered})


def _column(name: str, metrics: Mapping[str, Metric], baselines: Mapping[str, dict[str, float]]) -> Column:
    any_metric = next(iter(metrics.values()))
    return Column(
        name=name,
        axis=axis_of(any_metric.name),
        better=any_metric.better,
        floor=next((metric.floor for metric in metrics.values() if metric.floor is not None), None),
        baselines=baselines.get(name, {}),
        places=places(metrics),
    )


def _by_headlines(contender: Contender, headlines: Sequence[Column]) -> tuple[Any, ...]:
    """By the first metric of each axis in turn."""
    return (*(best_first(contender.metrics.get(column.name)) for column in headlines), contender.label)
