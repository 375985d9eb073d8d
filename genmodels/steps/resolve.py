"""From what a person typed to a spec; all that can be refused before work starts is refused here."""

import dis
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

import genmodels
from genmodels.data.catalogue import find
from genmodels.errors import SpecError, first_problem, unknown
from genmodels.models import MODELS
from genmodels.models.base import DataInfo, ModelConfig
from genmodels.spec import EvaluationSpec, RunSpec, TrainingSpec, is_points
from genmodels.training.engine import check_batch

M = TypeVar("M", bound=BaseModel)
MAKES_ALL_WEIGHTS = ("data/dataset.py", "data/loader.py", "training/*.py")
MAKES_A_MODEL = ("models/*.py", "nn/*.py", "losses.py")


def resolve(
    model: str,
    dataset: str,
    preset: str = "demo",
    overrides: Sequence[str] = (),
    seed: int = 0,
    workers: int = 1,
) -> RunSpec:
    """The spec of a run.

    Args:
        model, dataset, preset: names from the catalogues; a data set may also be folder:PATH or s3://bucket/prefix.
        overrides: `key=value` of the model's config, `training.key=value` of the engine's settings, in which `key` may
            lead into a group: `training.guards.mode_collapse.action=warn`, or `evaluation.key=value`.
        seed, workers: of the run.

    Raises:
        SpecError: for an unknown name (with the nearest ones), a value that cannot be, or things that do not fit.
    """
    if model not in MODELS:
        raise unknown("model", model, MODELS)
    entry = find(dataset)
    if entry.unpaired != MODELS[model].unpaired:
        kinds = {True: "two unpaired domains", False: "one set of images"}
        raise SpecError(
            f"{model} learns from {kinds[MODELS[model].unpaired]}, but {dataset} is {kinds[entry.unpaired]}; "
            "`genmodels datasets` lists the kinds."
        )
    if entry.kind == "points" and not MODELS[model].Config.learns_points:
        raise SpecError(f"{model} learns from images, but {dataset} is points; take a model of both, such as gan.")
    config, training, evaluation = configured(model, preset, overrides, resolution=entry.resolution)
    if preset == "paper" and entry.name in MODELS[model].Config.presets:
        raise SpecError(f"{model}'s preset paper is of other data; for {dataset} take preset {entry.name}.")
    of_points = {name for name, given in MODELS[model].Config.presets.items() if is_points(given.get("resolution", 0))}
    if entry.kind == "points" and preset not in of_points:
        raise SpecError(f"{dataset} is points, and preset {preset} is for images; take {' or '.join(of_points)}.")
    if entry.kind != "points" and preset in of_points:
        raise SpecError(f"Preset {preset} is for points, and {dataset} is images; leave it out or take another.")
    if training.balanced_classes and not entry.classes:
        raise SpecError(f"training.balanced_classes needs labels, and {dataset} has none; leave it out.")
    if evaluation.iwae_samples != EvaluationSpec().iwae_samples and not hasattr(MODELS[model], "importance_bound"):
        raise SpecError(
            f"evaluation.iwae_samples is for models whose likelihood importance samples bound, and {model} is none; "
            "leave it out."
        )
    config.check(training)
    try:
        spec = RunSpec(
            model=model,
            dataset=entry.name,
            preset=preset,
            config=config.model_dump(mode="json"),
            training=training,
            evaluation=evaluation,
            seed=seed,
            workers=workers,
            code_version=code_version(model),
        )
    except ValidationError as error:
        raise _sentence(error, "value") from None
    fewest = training.min_workers or workers
    if fewest > workers:
        raise SpecError(f"The setting of training 'min_workers' cannot be {fewest}: the run has {workers} workers.")
    for stage in config.stages(DataInfo(entry.channels, entry.classes)):
        for size in range(fewest, workers + 1):
            check_batch(stage, size, training.accumulation)
    return spec


def configured(
    model: str, preset: str, overrides: Sequence[str], **defaults: Any
) -> tuple[ModelConfig, TrainingSpec, EvaluationSpec]:
    """The config of a model and the settings of engine and evaluation: overrides over defaults over the preset.

    Raises SpecError for an unknown model, preset or key, and for a value that cannot be.
    """
    if model not in MODELS:
        raise unknown("model", model, MODELS)
    kind = MODELS[model].Config
    if preset not in kind.presets:
        raise unknown(f"preset of {model}", preset, kind.presets)
    given = _parsed(overrides)
    config = _checked(kind, {**kind.presets[preset], **defaults, **given["config"]}, f"setting of {model}")
    return config, _settings(TrainingSpec, "training", given), _settings(EvaluationSpec, "evaluation", given)


@cache
def code_version(model: str) -> str:
    """Digest of the sources that make a model's weights: data path, engine, its own file and what that imports."""
    root = Path(genmodels.__file__).parent
    paths = {path for pattern in MAKES_ALL_WEIGHTS for path in root.glob(pattern)} | sources(MODELS[model].__module__)
    content = hashlib.sha256()
    for path in sorted(paths):
        content.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return content.hexdigest()[:16]


@cache
def sources(module: str) -> set[Path]:
    """The file of a module, and those of all that it imports, by any number of steps, of models, nn and losses."""
    root = Path(genmodels.__file__).parent
    modules = {
        f"genmodels.{'.'.join(path.relative_to(root).with_suffix('').parts)}": path
        for pattern in MAKES_A_MODEL
        for path in root.glob(pattern)
    }
    path = modules[module]
    names = set(_imported(compile(path.read_bytes(), path, "exec")))
    return {path}.union(*(sources(name) for name in modules.keys() & names))


def _imported(code: CodeType) -> Iterator[str]:
    """The modules that code imports, and as of modules what it imports from them.

    Not read off a tree of `ast`: Python 3.11 fails where another thread makes one too (python/cpython#106905), and
    Prefect does.
    """
    module = ""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            module = instruction.argval
            yield module
        elif instruction.opname == "IMPORT_FROM":
            yield f"{module}.{instruction.argval}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imported(constant)


def _parsed(overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The overrides of the config, of training and of the evaluation, under these names."""
    parsed: dict[str, dict[str, Any]] = {"config": {}, "training": {}, "evaluation": {}}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise SpecError(f"--set takes key=value, not {override!r}; for example --set resolution=32.")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        what, dot, name = key.partition(".")
        if dot and what in {"training", "evaluation"}:
            parsed[what][name] = value
        else:
            parsed["config"][key] = value
    return parsed


def _settings(kind: type[M], what: str, overrides: Mapping[str, Mapping[str, Any]]) -> M:
    """Those of `what` with some replaced; dots lead into groups of them, as in guards.mode_collapse.action."""
    values = kind().model_dump()
    for key, value in overrides[what].items():
        *groups, name = key.split(".")
        inside: Any = values
        for group in groups:
            inside = inside.get(group) if isinstance(inside, dict) else None
        if not isinstance(inside, dict) or name not in inside:
            raise unknown(f"setting of {what}", key, _dotted(values))
        inside[name] = value
    return _checked(kind, values, f"setting of {what}")


def _dotted(values: Mapping[str, Any]) -> list[str]:
    """The names of all settings, those inside groups with dots."""
    inside = {key: _dotted(value) for key, value in values.items() if isinstance(value, dict)}
    return [*values, *(f"{key}.{name}" for key, names in inside.items() for name in names)]


def _checked(kind: type[M], values: Mapping[str, Any], what: str) -> M:
    for key in values:
        if key not in kind.model_fields:
            raise unknown(what, key, kind.model_fields)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _sentence(error, what) from None


def _sentence(error: ValidationError, what: str) -> SpecError:
    key, problem = first_problem(error)
    if not key:
        return SpecError(problem)
    return SpecError(f"The {what} {key!r} cannot be {error.errors()[0]['input']!r}: {problem[0].lower()}{problem[1:]}.")
