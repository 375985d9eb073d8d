"""A trained model as files that run without this project: exported programs, weights, and what they are."""

import hashlib
import io
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from genmodels.errors import GenmodelsError, SpecError, UnavailableError
from genmodels.models.base import Encodes, GenerativeModel, Samples, Translates
from genmodels.settings import settings
from genmodels.spec import RunSpec, is_points
from genmodels.tracking import exported_model
from genmodels.tracking.exported_model import load_program

DRAWS: dict[Any, str] = {torch.randn: "randn", torch.rand: "rand"}
TRACING = threading.RLock()  # while torch traces or reads a program, no other thread may, nor build a module


def export(model: GenerativeModel, spec: RunSpec, *, channels: int, classes: int, folder: Path) -> dict[str, Any]:
    """Write the model's programs, `weights.safetensors`, `spec.json` and `model.json` into the folder; gives the last.

    `channels` and `classes` are the data set's. A program takes batches of one size, chosen by the resolution: it is
    what makes an image the same whatever it is asked for together with, and lets models choose an algorithm by the
    batch's size. `ExportedModel` cuts and fills up what it is given.
    """
    resolution = model.stages[-1].resolution
    batch = _batch_images(resolution)
    facts: dict[str, Any] = {"resolution": resolution, "channels": channels, "batch": batch}
    images = torch.zeros(batch, channels, resolution, resolution)
    programs: dict[str, ExportedProgram] = {}
    if isinstance(model, Encodes):
        with torch.no_grad():
            codes = model.encode(images)
        programs["encode"] = _exported(model, model.encode, [images])
        programs["decode"] = _exported(model, model.decode, [codes])
        facts |= {"kind": "reconstructs", "codes": codes.shape[1]}
    if isinstance(model, Samples):
        conditional = any("label" in stage.inputs for stage in model.stages)
        draws = _draws(model, conditional)
        programs["sample"] = _exported_sample(model, batch, draws, conditional)
        facts |= {"kind": "samples", "draws": draws, "classes": classes if conditional else 0}
    elif isinstance(model, Translates):
        to = {target: partial(model.translate, target=target) for target in model.domains}
        programs |= {target: _exported(model, translate, [images]) for target, translate in to.items()}
        facts |= {"kind": "translates", "domains": list(model.domains)}
    if not programs:
        raise SpecError(f"{spec.model} neither samples, translates nor encodes, so there is nothing to register of it.")
    facts = _write(model, programs, facts, folder)
    (folder / "spec.json").write_text(spec.model_dump_json(indent=1))
    return facts


def export_classifier(
    model: nn.Module, *, resolution: int, channels: int, classes: int, folder: Path
) -> dict[str, Any]:
    """The same for a classifier: images in [-1, 1] -> logits."""
    batch = _batch_images(resolution)
    program = _exported(model, model, [torch.zeros(batch, channels, resolution, resolution)])
    facts = {"kind": "classifies", "resolution": resolution, "channels": channels, "batch": batch, "classes": classes}
    return _write(model, {"logits": program}, facts, folder)


def log(
    folder: Path,
    facts: dict[str, Any],
    *,
    name: str,
    experiment: str,
    tags: Mapping[str, str],
    run_id: str | None = None,
) -> str:
    """Log an exported folder as an MLflow model, of that run if there is one; returns the model's id. MLflow runs a
    copy of `exported_model.py`, which looks for the folder by the name `export`. What was exported, with the SHA-256 of
    each program, is the model's tag `export`."""
    with mlflow_client() as mlflow:
        mlflow.set_experiment(experiment)
        signature, example = _signature(facts)
        info = mlflow.models.Model.log(
            artifact_path=None,
            name=name,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=exported_model.__file__,
            artifacts={"export": str(folder)},
            signature=signature,
            input_example=example,
            pip_requirements=[f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.partition('+')[0]}"],
            metadata=facts,
            model_type=facts["kind"],
            tags={**tags, "export": json.dumps(facts)},
        )
    return info.model_id


@contextmanager
def mlflow_client() -> Iterator[Any]:
    """The `mlflow` module, imported when it is needed and pointed at the settings' server, with our errors."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its own 7 take four minutes
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    import mlflow.pyfunc

    # It warns that there is no pip in the environment, and the like.
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(settings().mlflow_url)
    try:
        yield mlflow
    except mlflow.MlflowException as error:
        passing = error.get_http_status_code() >= 500
        raise (UnavailableError if passing else GenmodelsError)(
            f"MLflow at {settings().mlflow_url}: {error}"
        ) from error


def _signature(facts: dict[str, Any]) -> tuple[Any, Any]:
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    size, channels = facts["resolution"], facts["channels"]
    dtype = np.dtype(np.float32 if is_points(size) else np.uint8)
    images = Schema([TensorSpec(dtype, (-1, size, size, channels))])
    ramp = np.linspace(0, 255, size * size * channels).astype(np.uint8).reshape(1, size, size, channels)
    if facts["kind"] == "samples":
        labels = [ColSpec("long", "label", required=False)] if facts["classes"] else []
        example = pd.DataFrame({"seed": [0, 1]} | ({"label": [0, 1]} if labels else {}))
        params = ParamSchema([ParamSpec("truncation", "double", None), ParamSpec("temperature", "double", 1.0)])
        return ModelSignature(Schema([ColSpec("long", "seed"), *labels]), images, params), example
    if facts["kind"] == "reconstructs":
        return ModelSignature(images, images), ramp
    if facts["kind"] == "translates":
        to = facts["domains"][-1]
        return ModelSignature(images, images, ParamSchema([ParamSpec("to", "string", to)])), (ramp, {"to": to})
    return ModelSignature(images, Schema([TensorSpec(np.dtype(np.float32), (-1, facts["classes"]))])), ramp


class Replay(TorchFunctionMode):
    """Takes note of the random numbers a model draws; or hands it given ones in their place."""

    def __init__(self, given: Iterable[Tensor] | None = None):
        super().__init__()
        self.given = None if given is None else list(given)
        self.draws: list[dict[str, Any]] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled and self.given is not None:
            return None  # gradients are off while torch traces, and it loses the loops beside a note of that
        if (kwargs or {}).get("generator") is None:
            return func(*args, **(kwargs or {}))
        if func not in DRAWS:
            name = getattr(func, "__name__", func)
            raise SpecError(
                f"The model's `sample` draws by torch.{name}; only torch.randn and torch.rand can be exported."
            )
        if self.given is not None:
            return self.given.pop(0)
        value = func(*args, **(kwargs or {}))
        self.draws.append({"kind": DRAWS[func], "shape": list(value.shape[1:])})
        return value


class Function(nn.Module):
    """A function that uses a module, as a module itself, which is what torch exports."""

    def __init__(self, module: nn.Module, function: Callable[..., Tensor]):
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def _draws(model: Samples, conditional: bool) -> list[dict[str, Any]]:
    """The kind and shape of the random numbers that the model draws for an image, in order."""
    with Replay() as replay:
        labels = torch.zeros(2, dtype=torch.int64) if conditional else None
        model.sample(2, labels=labels, generator=torch.Generator())
    return replay.draws


def _batch_images(resolution: int) -> int:
    return max(1, min(16, (1 << 14) // resolution**2))


def _exported_sample(
    model: GenerativeModel, batch: int, draws: list[dict[str, Any]], conditional: bool
) -> ExportedProgram:
    """A model's `sample` as a function of the random numbers that it draws, and of labels if it takes them. So one seed
    gives the image that the model itself gives for it, and no model needs a second way to sample."""
    assert isinstance(model, Samples)

    def sample(*inputs: Tensor) -> Tensor:
        with Replay(inputs):
            labels = inputs[-1] if conditional else None
            return model.sample(batch, labels=labels, generator=torch.Generator())

    labels = [torch.zeros(batch, dtype=torch.int64)] if conditional else []
    return _exported(model, sample, [*(torch.zeros(batch, *draw["shape"]) for draw in draws), *labels])


def _write(
    model: nn.Module, programs: Mapping[str, ExportedProgram], facts: dict[str, Any], folder: Path
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    facts["programs"] = {target: f"{target}.pt2" for target in programs}
    for target, program in programs.items():
        _save(program, folder / f"{target}.pt2")
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    facts["files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.pt2"))}
    (folder / "model.json").write_text(json.dumps(facts, indent=1))
    return facts


def _exported(model: nn.Module, function: Callable[..., Tensor], inputs: list[Tensor]) -> ExportedProgram:
    with TRACING, torch.no_grad():
        program = torch.export.export(Function(model, function), tuple(inputs))
    _drop_unused(program)
    return program


def _drop_unused(program: ExportedProgram) -> None:
    """Without the weights that the program does not use (discriminators), without the example inputs (torch would
    pickle them), and without the traces of our source files that every node carries; also without guards, since torch
    runs their text as Python."""
    graph, signature = program.graph, program.graph_signature
    idle = {node.name for node in graph.nodes if node.op == "placeholder" and not node.users}
    targets = {spec.arg.name: spec.target for spec in signature.input_specs if spec.target}
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    for node in list(graph.nodes):
        if node.name in idle and node.name in targets:
            graph.erase_node(node)
            program.state_dict.pop(targets[node.name], None)
    signature.input_specs[:] = [spec for spec in signature.input_specs if not (spec.arg.name in idle and spec.target)]
    program.graph_module.recompile()
    program.example_inputs = None
    program._guards_code.clear()  # that all inputs have as many rows; the operators find that out by themselves


def _save(program: ExportedProgram, path: Path) -> None:
    """Save, and read it back as those will who load it: what they would refuse is refused here."""
    archive = io.BytesIO()
    torch.export.save(program, archive)
    path.write_bytes(archive.getvalue())
    load_program(path, torch.device("cpu"))
