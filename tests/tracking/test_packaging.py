"""Exported models: equal to the model, free of pickle, and refused if somebody made them otherwise."""

import io
import json
import math
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm, truncnorm
from torch import Tensor, nn

from genmodels.errors import SpecError
from genmodels.evaluation.classifier import Classifier
from genmodels.models import MODELS, build
from genmodels.models.base import DataInfo, Encodes, GenerativeModel, scaled
from genmodels.spec import RunSpec
from genmodels.tracking import packaging
from genmodels.tracking.exported_model import ExportedModel, UnsafeProgram, _truncated, load_program

CPU = torch.device("cpu")


def exported(folder: Path, name: str, channels: int, **config: Any) -> tuple[GenerativeModel, ExportedModel]:
    config = MODELS[name].Config.preset("demo", **config).model_dump(mode="json")
    spec = RunSpec(model=name, dataset="digits", config=config, code_version="0", dataset_digest="0" * 64)
    model = build(name, config, DataInfo(channels=channels, classes=10), seed=1).eval()
    packaging.export(model, spec, channels=channels, classes=10, folder=folder)
    return model, ExportedModel().open(folder)


def as_uint8(images: Tensor) -> np.ndarray:
    return images.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("progressive_gan", {}),
        ("gan", {}),
        ("dcgan", {}),
        ("infogan", {}),
        ("flow", {"steps": 2}),
        ("pixelcnn", {"layers": 2}),
        ("pixelrnn", {"resolution": 4, "layers": 1}),
        ("pixelrnn", {"resolution": 4, "layers": 2, "recurrence": "row_lstm"}),
        ("vqvae2", {"resolution": 4, "prior_layers": 2}),
    ],
)
def test_an_image_is_the_one_that_the_model_draws_with_its_seed(tmp_path: Path, name: str, config: dict[str, Any]):
    model, export = exported(tmp_path, name, channels=1, **config)
    for seed in (0, 7, 2**40):
        own = as_uint8(model.sample(1, generator=torch.Generator().manual_seed(seed)))
        np.testing.assert_allclose(export.sample([seed]).astype(int), own, atol=1)  # a rounding at most
    many = export.sample(list(range(40)))
    assert many.shape == (40, *own.shape[1:])
    assert many.dtype == np.uint8
    assert np.array_equal(export.sample([33, 7, 33]), many[[33, 7, 33]])


def test_points_are_those_that_the_model_draws_and_are_not_rounded(tmp_path: Path):
    model, export = exported(tmp_path, "gan", channels=2, resolution=1)
    own = model.sample(1, generator=torch.Generator().manual_seed(7))  # type: ignore[operator]
    drawn = export.predict(None, {"seed": [3, 7]})
    assert (drawn.shape, drawn.dtype) == ((2, 1, 1, 2), np.float32)
    np.testing.assert_allclose(drawn[1].ravel(), own.detach().numpy().ravel(), atol=1e-6)
    signature, _ = packaging._signature(export.facts)
    assert [(spec.type, spec.shape) for spec in signature.outputs.inputs] == [(np.float32, (-1, 1, 1, 2))]


def test_labels_choose_the_class_and_are_drawn_where_none_are_given(tmp_path: Path):
    model, export = exported(tmp_path, "progressive_gan", channels=3, conditional=True)
    own = as_uint8(model.sample(1, labels=torch.tensor([4]), generator=torch.Generator().manual_seed(9)))
    np.testing.assert_allclose(export.sample([9], [4]).astype(int), own, atol=1)
    drawn = as_uint8(model.sample(1, generator=torch.Generator().manual_seed(9)))
    np.testing.assert_allclose(export.sample([9]).astype(int), drawn, atol=1)
    with pytest.raises(ValueError, match="from 0 to 9"):
        export.sample([9], [10])


@pytest.mark.parametrize("limit", [0.01, 0.5, 2.0, 7.0])
def test_truncated_draws_are_those_of_a_truncated_normal_in_the_order_of_the_draws(limit: float):
    """By scipy's distribution function, which makes of such draws uniform numbers, as it does of those of a normal."""
    model = drawing({"kind": "randn", "shape": [20_000]}, {"kind": "rand", "shape": [3]}, classes=5)
    normal, uniform, label = model.draws(4)
    truncated, same_uniform, same_label = model.draws(4, truncation=limit)
    assert truncated.dtype == normal.dtype
    assert truncated.abs().max() <= limit * (1 + 1e-6)
    assert (truncated[0, normal[0].argsort()].diff() >= 0).all()  # two that were hardly apart may be one in float32
    assert torch.equal(same_uniform, uniform) and torch.equal(same_label, label)  # nothing more was drawn
    quantiles = truncnorm.cdf(truncated.double().numpy(), -limit, limit)
    np.testing.assert_allclose(quantiles, norm.cdf(normal.double().numpy()), atol=1e-6)
    assert kstest(quantiles[0], "uniform").pvalue > 0.01


@pytest.mark.parametrize("limit", [8.5, math.inf])
def test_a_truncation_beyond_all_draws_changes_no_bit(limit: float):
    model = drawing({"kind": "randn", "shape": [20_000]})
    assert torch.equal(model.draws(4, truncation=limit)[0], model.draws(4)[0])


def test_numbers_where_the_error_function_is_one_stay_finite():
    far = torch.tensor([-40.0, -9.0, 9.0, 40.0])
    assert _truncated(far, 2.0).tolist() == [-2.0, -2.0, 2.0, 2.0]
    assert _truncated(far.double(), 8.0).abs().max() <= 8.0


def test_truncated_images_are_those_of_truncated_latents(tmp_path: Path):
    """A GAN's image of a seed, of its latent after scipy's own map between the quantiles of the two distributions."""
    model, export = exported(tmp_path, "gan", channels=1)
    latent = torch.randn(1, model.config.latent, generator=torch.Generator().manual_seed(9))  # type: ignore[attr-defined]
    within = truncnorm.ppf(norm.cdf(latent.double().numpy()), -0.5, 0.5)
    own = as_uint8(model.decode(torch.from_numpy(within).float()))  # type: ignore[operator]
    np.testing.assert_allclose(export.predict(None, {"seed": [9]}, {"truncation": 0.5}).astype(int), own, atol=1)
    assert not np.array_equal(export.sample([9]), own)
    assert np.array_equal(export.predict(None, {"seed": [9]}, {"truncation": None}), export.sample([9]))


def test_cold_images_are_those_of_smaller_latents(tmp_path: Path):
    model, export = exported(tmp_path, "flow", channels=1)
    generator = torch.Generator().manual_seed(9)
    latent = model.prior(1, generator=generator)  # type: ignore[operator]
    own = as_uint8(model.decode(0.5 * latent))  # type: ignore[operator]
    step = 255 // 16 + 1  # between the levels that samples are rounded to
    assert abs(export.predict(None, {"seed": [9]}, {"temperature": 0.5}).astype(int) - own).max() <= step
    assert np.array_equal(*export.sample([9, 10], temperature=0.0)), "all are the image of the code 0"
    assert not np.array_equal(*export.sample([9, 10], temperature=0.5))


def test_a_temperature_scales_what_a_truncation_leaves_and_no_uniform_number():
    model = drawing({"kind": "randn", "shape": [2_000]}, {"kind": "rand", "shape": [3]}, classes=5)
    truncated, uniform, label = model.draws(4, truncation=2.0)
    cold, same_uniform, same_label = model.draws(4, truncation=2.0, temperature=0.25)
    assert torch.equal(cold, 0.25 * truncated)
    assert torch.equal(same_uniform, uniform) and torch.equal(same_label, label)


@pytest.mark.parametrize("temperature", [-0.1, math.inf, math.nan])
def test_a_temperature_that_is_no_deviation_is_refused(temperature: float):
    with pytest.raises(ValueError, match="finite and not below 0, not"):
        drawing({"kind": "randn", "shape": [2]}).sample([0], temperature=temperature)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_truncation_that_leaves_nothing_is_refused(limit: float):
    with pytest.raises(ValueError, match=r"largest \|z\| and above 0, not"):
        drawing({"kind": "randn", "shape": [2]}).sample([0], truncation=limit)


@pytest.mark.parametrize("given", [{"truncation": 1.0}, {"temperature": 0.5}], ids=str)
def test_a_model_without_normal_draws_refuses_what_changes_them_and_says_why(given: dict[str, float]):
    model = drawing({"kind": "rand", "shape": [2]})
    with pytest.raises(ValueError, match="draws no standard normal numbers, only uniform ones"):
        model.predict(None, {"seed": [0]}, given)


def drawing(*draws: dict[str, Any], classes: int = 0) -> ExportedModel:
    """A model of which it is known only what it draws."""
    model = ExportedModel()
    model.facts = {"kind": "samples", "draws": list(draws), "classes": classes}
    return model


def test_translations_are_the_models(tmp_path: Path):
    model, export = exported(tmp_path, "cyclegan", channels=3, generator_channels=8, residual_blocks=1)
    images = np.random.default_rng(0).integers(0, 256, (19, 32, 32, 3), np.uint8)
    own = scaled(torch.from_numpy(images).permute(0, 3, 1, 2))
    for target in ("a", "b"):
        np.testing.assert_allclose(
            export.translate(images, target).astype(int), as_uint8(model.translate(own, target)), atol=1
        )
    with pytest.raises(ValueError, match="translates to a, b"):
        export.translate(images, "c")


@pytest.mark.parametrize("prior", ["gaussian", "uniform", "mixture_of_gaussians", "swiss_roll"])
def test_every_prior_is_drawn_as_the_model_draws_it(tmp_path: Path, prior: str):
    conditional = prior in ("mixture_of_gaussians", "swiss_roll")
    settings = {"resolution": 8, "prior": prior, "conditional": conditional}
    model, export = exported(tmp_path, "adversarial_autoencoder", channels=1, **settings)
    own = as_uint8(model.sample(1, generator=torch.Generator().manual_seed(9)).detach())
    np.testing.assert_allclose(export.sample([9]).astype(int), own, atol=1)


def test_a_model_with_a_prior_also_gives_codes(tmp_path: Path):
    model, export = exported(tmp_path, "vae", channels=1, resolution=8)
    own = as_uint8(model.sample(1, generator=torch.Generator().manual_seed(9)).detach())
    np.testing.assert_allclose(export.sample([9]).astype(int), own, atol=1)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    assert isinstance(model, Encodes)
    codes = model.encode(scaled(torch.from_numpy(images).permute(0, 3, 1, 2))).detach()
    np.testing.assert_allclose(export.encode(images), codes.numpy(), atol=1e-5)


@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
def test_codes_and_reconstructions_are_the_models(tmp_path: Path, architecture: str):
    model, export = exported(tmp_path, "autoencoder", channels=1, resolution=8, architecture=architecture)
    assert isinstance(model, Encodes)
    images = np.random.default_rng(0).integers(0, 256, (19, 8, 8, 1), np.uint8)
    codes = model.encode(scaled(torch.from_numpy(images).permute(0, 3, 1, 2))).detach()
    np.testing.assert_allclose(export.encode(images), codes.numpy(), atol=1e-5)
    np.testing.assert_allclose(export.decode(codes.numpy()).astype(int), as_uint8(model.decode(codes).detach()), atol=1)
    assert np.array_equal(export.predict(None, images), export.decode(export.encode(images)))


def test_a_classifier_gives_its_logits(tmp_path: Path):
    model = Classifier(1, 10, 8).eval()
    packaging.export_classifier(model, resolution=8, channels=1, classes=10, folder=tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    with torch.no_grad():
        own = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(ExportedModel().open(tmp_path).predict(None, images), own.numpy(), atol=1e-5)


def test_only_what_sampling_needs_is_exported(tmp_path: Path):
    model, _ = exported(tmp_path, "progressive_gan", channels=1)
    program = load_program(tmp_path / "sample.pt2", CPU)
    sizes = {tuple(tensor.shape) for tensor in program.state_dict().values()}
    assert (64, 64 + 1, 3, 3) not in sizes  # the discriminator's first convolution behind the minibatch deviation
    assert sum(p.numel() for p in program.state_dict().values()) <= sum(p.numel() for p in model.generator.parameters())


def test_no_record_is_a_pickle_and_no_path_of_this_machine_is_in_it(tmp_path: Path):
    exported(tmp_path, "progressive_gan", channels=1)
    with zipfile.ZipFile(tmp_path / "sample.pt2") as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert str(Path(packaging.__file__).parent).encode() not in content
            if "/weight_" not in name:
                with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError)):
                    pickle.loads(content)


def test_a_model_that_draws_otherwise_is_refused_with_its_function(tmp_path: Path):
    class Shuffles(nn.Module):
        def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
            return torch.randperm(n, generator=generator)

    with pytest.raises(SpecError, match=r"torch\.randperm"):
        packaging._draws(Shuffles(), conditional=False)


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.path), "w")


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of the archive with some of its records changed."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    copy = path.with_name("hostile.pt2")
    with zipfile.ZipFile(copy, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return copy


def graph_changed(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(records: dict[str, bytes]) -> None:
        name = next(name for name in records if name.endswith("models/model.json"))
        program = json.loads(records[name])
        change(program)
        records[name] = json.dumps(program).encode()

    return apply


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    packaging.export_classifier(nn.Flatten(), resolution=2, channels=1, classes=4, folder=folder)
    return folder / "logits.pt2"


def hostile_archives(canary: Path) -> dict[str, Callable[[dict[str, bytes]], None]]:
    """Ways to make torch.export.load, or the program it gives, create the canary."""
    checkpoint = io.BytesIO()
    torch.save(Canary(canary), checkpoint)
    code = f"open({str(canary)!r}, 'w')"

    def size(program: dict[str, Any]) -> None:
        for value in program["graph_module"]["graph"]["tensor_values"].values():
            value["sizes"][0] = {"as_expr": {"expr_str": code, "hint": None}}

    def example_inputs(records: dict[str, bytes]) -> None:
        records[next(name for name in records if name.endswith("sample_inputs/model.pt"))] = checkpoint.getvalue()

    def pickled_constant(records: dict[str, bytes]) -> None:
        name = next(name for name in records if name.endswith("model_constants_config.json"))
        payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        records[name] = json.dumps({"config": {"constant": payload}}).encode()
        records[name.replace("model_constants_config.json", "opaque_obj_0")] = pickle.dumps(Canary(canary))

    def legacy_weights(records: dict[str, bytes]) -> None:
        name = next(name for name in records if name.endswith("model_weights_config.json"))
        records[name.replace("model_weights_config.json", "model.pt")] = checkpoint.getvalue()

    def function_of_torch(program: dict[str, Any]) -> None:
        node = program["graph_module"]["graph"]["nodes"][0]
        node["target"] = "torch.hub.os.system"
        node["inputs"] = [{"name": "command", "arg": {"as_string": f"touch {canary}"}, "kind": 1}]

    def file_operator(program: dict[str, Any]) -> None:
        node = program["graph_module"]["graph"]["nodes"][0]
        node["target"] = "torch.ops.aten.from_file.default"
        node["inputs"] = [
            {"name": "filename", "arg": {"as_string": str(canary)}, "kind": 1},
            {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
            {"name": "size", "arg": {"as_int": 4}, "kind": 1},
        ]

    def loops_graph(name: str, target: str) -> Callable[[dict[str, Any]], None]:
        def change(program: dict[str, Any]) -> None:
            node = program["graph_module"]["graph"]["nodes"][0]
            inner = {"nodes": [{"target": target, "inputs": [], "outputs": [], "metadata": {}}], "inputs": []}
            node["target"] = "torch.ops.higher_order.while_loop"
            node["inputs"] = [{"name": "", "arg": {"as_graph": {"name": name, "graph": inner}}, "kind": 1}]

        return change

    def guard(program: dict[str, Any]) -> None:
        program["guards_code"] = [code]

    def compiled_code(records: dict[str, bytes]) -> None:
        prefix = next(iter(records)).split("/")[0]
        records[f"{prefix}/data/aotinductor/model/model.so"] = b"\x7fELF"

    return {
        "a size": graph_changed(size),
        "example inputs": example_inputs,
        "a pickled constant": pickled_constant,
        "legacy weights": legacy_weights,
        "a function of torch": graph_changed(function_of_torch),
        "an operator on files": graph_changed(file_operator),
        "a guard": graph_changed(guard),
        "the name of a loop's graph": graph_changed(loops_graph(f'x"), {code}, ("', "torch.ops.aten.neg.default")),
        "a function in a loop": graph_changed(loops_graph("while_loop_body_graph_0", "torch.hub.os.getcwd")),
        "compiled code": compiled_code,
    }


@pytest.mark.parametrize("way", hostile_archives(Path()))
def test_a_hostile_program_is_refused_before_anything_of_it_runs(program: Path, tmp_path: Path, way: str):
    canary = tmp_path / "canary"
    with pytest.raises(UnsafeProgram, match=r"hostile\.pt2"):
        load_program(rewritten(program, hostile_archives(canary)[way]), CPU)
    assert not canary.exists()


@pytest.mark.parametrize("way", ["a size", "example inputs", "a pickled constant", "legacy weights"])
def test_the_same_programs_do_run_code_in_torch(program: Path, tmp_path: Path, way: str):
    """Else the test before would show nothing."""
    canary = tmp_path / "canary"
    with suppress(Exception):  # what it says about the file afterwards does not matter
        torch.export.load(rewritten(program, hostile_archives(canary)[way]))
    assert canary.exists()


def test_an_unchanged_copy_is_accepted(program: Path):
    images = torch.arange(64.0).view(16, 1, 2, 2)
    assert torch.equal(load_program(rewritten(program, lambda records: None), CPU)(images), images.flatten(1))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", pickle.dumps("weights"), b"{}"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "sample.pt2"
    path.write_bytes(content)
    with pytest.raises(UnsafeProgram, match="not an exported program"):
        load_program(path, CPU)
