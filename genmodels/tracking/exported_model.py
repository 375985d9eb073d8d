"""A registered model as MLflow runs it: with mlflow, torch and numpy, without genmodels and without any pickle.

MLflow keeps a copy of this file beside the exported programs and runs it for `mlflow.pyfunc.load_model`; so it
imports nothing of this project. `torch.export.load` alone would not do for a file that somebody may have changed:
it unpickles some of an archive's records, evaluates the symbolic sizes of its graph as Python, and calls whatever
function of torch the graph names. `load_program` reads the records itself, refuses all but plain tensors and a
graph of ATen operators and loops on tensors of fixed sizes, and hands a clean archive on.
"""

import io
import json
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from torch import Tensor
from torch.export.passes import move_to_device_pass

RECORDS = re.compile(
    r"archive/(data/(weights/(weight_\d+|model_weights_config\.json)|constants/(tensor_\d+|model_constants_config\.json)"
    r"|sample_inputs/model\.pt)|models/model\.json|archive_format|archive_version|byteorder|\.data/(version|serialization_id))"
)
OPERATOR = re.compile(r"torch\.ops\.(aten\.\w+\.\w+|higher_order\.while_loop)")
SUBGRAPH = re.compile(r"while_loop_(cond|body)_graph_\d+")
ARGUMENTS = {
    *("as_tensor", "as_tensors", "as_optional_tensor", "as_optional_tensors", "as_none", "as_string"),
    *("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_scalar_type"),
    *("as_memory_format", "as_layout", "as_device", "as_graph"),
}
WORDS = {
    *("reflect", "replicate", "circular", "constant", "floor", "trunc"),
    *("tanh", "none", "sum", "mean", "same", "valid"),
}
TREES = {"builtins.tuple", "builtins.list", "builtins.dict", None}
MAX_GRAPH_BYTES = 64 << 20


class UnsafeProgram(Exception):
    """The file is not an exported program of plain tensors and ATen operators; nothing of it was run."""


def load_program(path: Path, device: torch.device) -> torch.nn.Module:
    """The program of a `.pt2` file; raises UnsafeProgram before anything in it could run."""
    program = torch.export.load(_checked_archive(path))
    return (program if device.type == "cpu" else move_to_device_pass(program, device)).module()


def _checked_archive(path: Path) -> io.BytesIO:
    """A new archive of the file's records: what is checked here is what torch reads, whatever else the file holds."""
    clean = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(clean, "w") as target:
            if len(set(source.namelist())) < len(source.namelist()):
                raise UnsafeProgram(f"{path.name} holds a record twice.")
            # torch names the folder of its records after the file; here it is always `archive`.
            records = {re.sub(r"^[^/]+/", "archive/", info.filename): info for info in source.infolist()}
            for name, info in records.items():
                if not RECORDS.fullmatch(name) or info.compress_type != zipfile.ZIP_STORED:
                    raise UnsafeProgram(f"{path.name} holds {info.filename!r}, which no exported model of ours does.")
                if name.endswith((".json", ".pt")) and info.file_size > MAX_GRAPH_BYTES:
                    raise UnsafeProgram(f"{path.name}: {name} is larger than {MAX_GRAPH_BYTES} bytes.")
                content = source.read(info)
                if name.endswith(".pt") and content:
                    raise UnsafeProgram(f"{path.name} holds example inputs, which are a pickle.")
                if name.endswith("_config.json"):
                    _check_payloads(path.name, json.loads(content))
                elif name.endswith("model.json"):
                    _check_graph(path.name, json.loads(content))
                target.writestr(name, content)
    except (
        zipfile.BadZipFile,
        json.JSONDecodeError,
        UnicodeDecodeError,
        RecursionError,
        KeyError,
        AttributeError,
    ) as error:
        raise UnsafeProgram(f"{path.name} is not an exported program: {error}") from error
    clean.seek(0)
    return clean


def _check_payloads(file: str, payloads: dict[str, Any]) -> None:
    for name, payload in payloads["config"].items():
        if payload["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
            raise UnsafeProgram(f"{file}: {name} is not a plain tensor.")


def _check_graph(file: str, program: dict[str, Any]) -> None:
    module = program["graph_module"]
    if program["guards_code"] or module.get("treespec_namedtuple_fields"):
        raise UnsafeProgram(f"{file}: the graph carries code.")
    for key, value in _walk(program):
        if key == "target" and isinstance(value, str) and not OPERATOR.fullmatch(value):
            raise UnsafeProgram(f"{file}: {value!r} is not an ATen operator.")
        if key == "expr_str":
            raise UnsafeProgram(f"{file}: {value!r} is a size to be evaluated; the sizes of our programs are fixed.")
        if key == "as_string" and value not in WORDS:
            raise UnsafeProgram(f"{file}: {value!r} is not an option of an operator.")
        if key == "arg" and not set(value) - {"name"} <= ARGUMENTS:
            raise UnsafeProgram(f"{file}: an operator takes {', '.join(value)}.")
        if key == "as_graph" and not SUBGRAPH.fullmatch(value["name"]):  # type: ignore[index]
            raise UnsafeProgram(f"{file}: the graph of a loop may not have such a name.")
        if key == "custom_obj_values" and value:
            raise UnsafeProgram(f"{file}: the graph holds objects that are not tensors.")
        if key == "metadata" and value:
            raise UnsafeProgram(f"{file}: the graph has metadata.")
        if key in {"in_spec", "out_spec"}:
            types = [entry for name, entry in _walk(json.loads(value)) if name == "type"]
            if not TREES.issuperset(types):
                raise UnsafeProgram(f"{file}: the program takes or gives {types}.")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys of all objects within a JSON value, with their values."""
    if isinstance(value, dict):
        yield from value.items()
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from _walk(entry)


class ExportedModel(PythonModel):
    """Images are uint8, (N, H, W, C), and points float32 in [-1, 1], (N, 1, 1, 2). A model that samples takes a column
    `seed` (and `label`, where it knows classes) and the parameters `truncation`, the largest |z| of the standard normal
    numbers that it draws, and `temperature`, their standard deviation; one that translates takes images and the
    parameter `to`, one of its domains; one that reconstructs gives images back from their codes, as every model with
    codes does by `encode` and `decode`; one that classifies gives logits."""

    _skip_type_hint_validation = True  # else MLflow warns of a `predict` without type hints at every load

    def load_context(self, context: Any) -> None:
        """Called by MLflow with the folder of the exported programs."""
        self.open(Path(context.artifacts["export"]))

    def open(self, folder: Path) -> "ExportedModel":
        """Read the programs of a folder that `genmodels.tracking.packaging.export` wrote."""
        self.facts = json.loads((folder / "model.json").read_text())
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.programs = {
            target: load_program(folder / file, self.device) for target, file in self.facts["programs"].items()
        }
        return self

    def predict(self, context, model_input, params=None):  # type: ignore[override]
        """One image for each row of the input, the same for the same row whatever the others are."""
        if self.facts["kind"] == "translates":
            return self.translate(np.asarray(model_input), (params or {}).get("to") or self.facts["domains"][-1])
        if self.facts["kind"] == "reconstructs":
            return self.decode(self.encode(np.asarray(model_input)))
        if self.facts["kind"] == "classifies":
            return self._run(self.programs["logits"], [_scaled(np.asarray(model_input))]).numpy()
        seeds = [int(seed) for seed in model_input["seed"]]
        labels = [int(label) for label in model_input["label"]] if "label" in model_input else None
        given = {name: value for name, value in (params or {}).items() if value is not None}
        return self.sample(seeds, labels, **given)

    def sample(
        self,
        seeds: list[int],
        labels: list[int] | None = None,
        truncation: float | None = None,
        temperature: float = 1.0,
    ) -> np.ndarray:
        """The images of these seeds; labels are drawn by the seed where none are given. With a truncation the standard
        normal numbers lie within it, and images are nearer to the average one (Brock et al. 2019, section 3.1); with a
        temperature below 1 they are all that much smaller (Kingma & Dhariwal 2018, section 6)."""
        classes = self.facts["classes"]
        if labels is not None and not (len(labels) == len(seeds) and all(0 <= label < classes for label in labels)):
            raise ValueError(f"Expected a label for each of the {len(seeds)} seeds, from 0 to {classes - 1}.")
        check_latents(truncation, temperature)
        changed = truncation is not None or temperature != 1
        if changed and all(entry["kind"] != "randn" for entry in self.facts["draws"]):
            raise ValueError(
                "This model draws no standard normal numbers, only uniform ones, which have no tails to cut off; leave "
                "truncation and temperature out."
            )
        return self.of_draws(
            [
                self.draws(seed, labels[row] if labels else None, truncation, temperature)
                for row, seed in enumerate(seeds)
            ]
        )

    def of_draws(self, rows: list[list[Tensor]]) -> np.ndarray:
        """The images of these rows of random numbers, which are those of seeds or lie between them."""
        return _images(self._run(self.programs["sample"], [torch.cat(column) for column in zip(*rows, strict=True)]))

    def translate(self, images: np.ndarray, target: str) -> np.ndarray:
        """The images, uint8 (N, H, W, C), as if of the domain `target`."""
        if target not in self.programs:
            raise ValueError(f"There is no domain {target!r}; this model translates to {', '.join(self.programs)}.")
        return _images(self._run(self.programs[target], [_scaled(images)]))

    def encode(self, images: np.ndarray) -> np.ndarray:
        """The codes of images, uint8 (N, H, W, C): float32 (N, D)."""
        return self._run(self._coder("encode"), [_scaled(images)]).numpy()

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The images, uint8 (N, H, W, C), of codes, float32 (N, D)."""
        return _images(self._run(self._coder("decode"), [torch.from_numpy(codes)]))

    def _coder(self, name: str) -> torch.nn.Module:
        if name not in self.programs:
            raise ValueError("This model has no codes of images.")
        return self.programs[name]

    def draws(
        self, seed: int, label: int | None = None, truncation: float | None = None, temperature: float = 1.0
    ) -> list[Tensor]:
        """What the model itself draws, in the same order, for one image with a generator of this seed; and the label,
        if it knows classes. Truncation and temperature draw nothing more."""
        generator = torch.Generator().manual_seed(seed)
        row = []
        for entry in self.facts["draws"]:
            if entry["kind"] == "randn":
                normal = torch.randn(1, *entry["shape"], generator=generator)
                row.append(temperature * (normal if truncation is None else _truncated(normal, truncation)))
            else:
                row.append(torch.rand(1, *entry["shape"], generator=generator))
        if self.facts["classes"]:
            drawn = torch.randint(self.facts["classes"], (1,), generator=generator)
            row.append(drawn if label is None else torch.tensor([label]))
        return row

    @torch.inference_mode()
    def _run(self, program: torch.nn.Module, inputs: list[Tensor]) -> Tensor:
        size, count = self.facts["batch"], len(inputs[0])
        filled = [torch.cat((each, each.new_zeros(-count % size, *each.shape[1:]))) for each in inputs]
        batches = zip(*(each.to(self.device).split(size) for each in filled), strict=True)
        return torch.cat([program(*batch).cpu() for batch in batches])[:count]


def check_latents(truncation: float | None, temperature: float) -> None:
    """Raises ValueError if no standard normal number could lie within the truncation or have that deviation."""
    if truncation is not None and not truncation > 0:
        raise ValueError(f"The truncation is the largest |z| and above 0, not {truncation}.")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"The temperature is a standard deviation, finite and not below 0, not {temperature}.")


def _truncated(normal: Tensor, limit: float) -> Tensor:
    """Standard normal numbers as standard normal ones given that |z| <= limit, each at the quantile that it had. To
    draw again what lies outside gives the same distribution, but a seed another image."""
    inside = math.erf(limit / math.sqrt(2))
    if inside == 1:  # in float64, whose inverse would be no identity either
        return normal
    truncated = math.sqrt(2) * torch.erfinv(inside * torch.erf(normal.double() / math.sqrt(2)))
    return truncated.clamp(-limit, limit).to(normal.dtype)


def _scaled(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) -> (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def _images(values: Tensor) -> np.ndarray:
    """The way back; points, which are images of one pixel, stay as they are."""
    if values.shape[-1] > 1:
        values = values.add(1.0).mul(127.5).round().clamp(0, 255).byte()
    return values.permute(0, 2, 3, 1).numpy()


set_model(ExportedModel())
