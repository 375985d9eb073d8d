"""From what a person typed to a spec; all that can be refused before work starts is refused here."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

import genmodels
from genmodels.data.catalogue import find
from genmodels.errors import SpecError, unknown
from genmodels.models import MODELS
from genmodels.spec import RunSpec, TrainingSpec

M = TypeVar("M", bound=BaseModel)
MAKES_THE_WEIGHTS = ("data/*.py", "models/*.py", "nn/*.py", "training/*.py", "losses.py")


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
        overrides: `key=value` of the model's config, or `training.key=value` of the engine's.
        seed, workers: of the run.

    Raises:
        SpecError: for an unknown name (with the nearest ones) or a value that cannot be.
    """
    if model not in MODELS:
        raise unknown("model", model, MODELS)
    entry, config_class = find(dataset), MODELS[model].Config
    if preset not in config_class.presets:
        raise unknown(f"preset of {model}", preset, config_class.presets)
    config, training = _parsed(overrides)
    if entry.unpaired != MODELS[model].unpaired:
        wanted, given = ("two unpaired domains", "one set of images")[:: 1 if MODELS[model].unpaired else -1]
        raise SpecError(f"{model} learns from {wanted}, but {dataset} is {given}; `genmodels datasets` lists the kinds.")
    values = {**config_class.presets[preset], "resolution": entry.resolution, **config}
    try:
        return RunSpec(
            model=model,
            dataset=dataset,
            preset=preset,
            config=_checked(config_class, values, f"setting of {model}").model_dump(mode="json"),
            training=_checked(TrainingSpec, training, "setting of training"),
            seed=seed,
            workers=workers,
            code_version=code_version(),
        )
    except ValidationError as error:
        raise _sentence(error, "value") from None


@cache
def code_version() -> str:
    """Digest of the sources that make the weights: data path, models, losses and engine."""
    root = Path(genmodels.__file__).parent
    content = hashlib.sha256()
    for path in sorted(path for pattern in MAKES_THE_WEIGHTS for path in root.glob(pattern)):
        content.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return content.hexdigest()[:16]


def _parsed(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The overrides of the config, and those of training."""
    config: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise SpecError(f"--set takes key=value, not {override!r}; for example --set resolution=32.")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if key.startswith("training."):
            training[key.removeprefix("training.")] = value
        else:
            config[key] = value
    return config, training


def _checked(kind: type[M], values: Mapping[str, Any], what: str) -> M:
    for key in values:
        if key not in kind.model_fields:
            raise unknown(what, key, kind.model_fields)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _sentence(error, what) from None


def _sentence(error: ValidationError, what: str) -> SpecError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if not key:
        return SpecError(first["msg"].removeprefix("Value error, "))
    problem = first["msg"][0].lower() + first["msg"][1:]
    return SpecError(f"The {what} {key!r} cannot be {first['input']!r}: {problem}.")
