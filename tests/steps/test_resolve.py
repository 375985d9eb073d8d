"""What a person typed is refused in one sentence that says what to do, or becomes a whole spec."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import genmodels
from genmodels.errors import SpecError
from genmodels.models import MODELS
from genmodels.spec import GuardsSpec
from genmodels.steps.resolve import resolve, sources

COLOR = ['training.augmentations=["color"]']
RELATIVISTIC = ["adversarial_loss=relativistic_average", "training.accumulation=2"]
ADAPTIVE = [*COLOR, "training.augmentation_target=0.6"]


def test_a_spec_is_whole_and_its_key_waits_for_the_data():
    spec = resolve("progressive_gan", "digits", "demo", ["fade_images=500", "training.precision=bf16"], seed=3)
    assert spec.config["resolution"] == 8, "the data set's own"
    assert spec.config["fade_images"] == 500
    assert spec.training.precision == "bf16"
    with pytest.raises(SpecError, match="prepare"):
        _ = spec.run_key
    assert len(spec.with_dataset("d" * 64).run_key) == 64


def test_dots_lead_into_groups_of_settings():
    spec = resolve(
        "gan", "digits", overrides=["training.guards.mode_collapse.action=warn", "training.guards.warm_up=0"]
    )
    guards = spec.training.guards
    assert (guards.mode_collapse.action, guards.warm_up) == ("warn", 0.0)
    assert guards.mode_collapse.threshold == GuardsSpec().mode_collapse.threshold


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"workers": 2}, True),
        ({"overrides": ["training.log_seconds=9"]}, True),
        ({"seed": 1}, False),
        ({"overrides": ["learning_rate=0.002"]}, False),
        ({"overrides": ["training.precision=bf16"]}, False),
        ({"overrides": ["training.guards.oscillation.threshold=3"]}, True),  # it only warns
        ({"overrides": ["training.guards.mode_collapse.threshold=3"]}, False),
        ({"overrides": ["training.guards.divergence.action=warn"]}, False),
        ({"overrides": ["training.balanced_classes=true"]}, False),
        ({"model": "vae", "overrides": ["evaluation.iwae_samples=9"]}, True),
        ({"overrides": ['training.augmentations=["color"]']}, False),
    ],
)
def test_the_run_key_changes_with_what_changes_the_weights(change: dict[str, object], same: bool):
    what = {"model": change.get("model", "progressive_gan"), "dataset": "digits"}
    plain = resolve(**what).with_dataset("d" * 64)  # type: ignore[arg-type]
    changed = resolve(**what | change).with_dataset("d" * 64)  # type: ignore[arg-type]
    assert plain != changed
    assert (plain.run_key == changed.run_key) is same


def test_a_model_of_another_version_is_one_whose_imports_changed():
    """What the walk over the sources finds is what Python loads for the model alone."""
    loads = """
import importlib, json, sys, types
loaded = {}
for name in sys.argv[2:]:
    for module in [module for module in sys.modules if module.startswith("genmodels.")]:
        del sys.modules[module]
    package = types.ModuleType("genmodels.models")  # without its __init__, which loads all models
    package.__path__ = [sys.argv[1]]
    sys.modules["genmodels.models"] = package
    importlib.import_module(f"genmodels.models.{name}")
    loaded[name] = [vars(module).get("__file__") for module in sys.modules.values()]
print(json.dumps(loaded))
"""
    folder = Path(genmodels.__file__).parent
    answer = subprocess.check_output([sys.executable, "-c", loads, folder / "models", *MODELS], text=True)
    makes_models = [folder / "models", folder / "nn", folder]
    for name, files in json.loads(answer).items():
        loaded = {Path(file) for file in files if file and Path(file).parent in makes_models}
        loaded -= {path for path in loaded if path.name in {"__init__.py", "errors.py", "spec.py"}}
        assert sources(f"genmodels.models.{name}") == loaded


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (("progresive_gan", "digits"), "Unknown model 'progresive_gan'; did you mean progressive_gan"),
        (("progressive_gan", "digit"), "Unknown data ?set 'digit'; did you mean digits"),
        (("progressive_gan", "digits", "dmeo"), "Unknown preset of progressive_gan 'dmeo'; did you mean demo"),
        (("progressive_gan", "digits", "demo", ["resoluton=8"]), "'resoluton'; did you mean resolution"),
        (("progressive_gan", "digits", "demo", ["training.precisoin=1"]), "'precisoin'; did you mean precision"),
        (("gan", "digits", "demo", ["training.guards.mode_colapse.looks=1"]), "mean guards.mode_collapse.looks"),
        (("progressive_gan", "digits", "demo", ["training.seed.x=1"]), "Unknown setting of training 'seed.x'"),
        (("vae", "digits", "demo", ["evaluation.iwae_sample=9"]), "'iwae_sample'; did you mean iwae_samples"),
        (("vae", "digits", "demo", ["evaluation.iwae_samples=0"]), "setting of evaluation 'iwae_samples' cannot be 0"),
        (("vae", "digits", "demo", ["iwae_samples=9"]), "Unknown setting of vae 'iwae_samples'"),
        (("pixelcnn", "digits", "demo", ["evaluation.iwae_samples=9"]), "bound, and pixelcnn is none; leave it out"),
        (("gan", "digits", "demo", ["training.augmentation_target=0.6"]), "nothing to steer; name some training.augm"),
        (("gan", "digits", "demo", ['training.augmentations=["colour"]']), "'augmentations.0' cannot be 'colour'"),
        (("vae", "digits", "demo", COLOR), "needs a discriminator that sees images, which this model has not"),
        (("gan", "digits", "demo", [*ADAPTIVE, "adversarial_loss=wgan_gp"]), "that decides, which wgan_gp has not"),
        (("gan", "digits", "demo", RELATIVISTIC), "relativistic_average compares with the mean over a whole batch"),
        (("adversarial_autoencoder", "digits", "demo", RELATIVISTIC), "training.accumulation cuts up"),
        (("gan", "digits", "demo", ["augmentations=[]"]), "Unknown setting of gan 'augmentations'"),
        (("cyclegan", "photos", "demo", ["training.balanced_classes=true"]), "balanced_classes needs labels"),
        (("progressive_gan", "digits", "demo", ["resolution=9"]), "'resolution' cannot be 9: 9 is not a power of two"),
        (("progressive_gan", "digits", "demo", ["learning_rate=-1"]), "'learning_rate' cannot be -1"),
        (("vae", "digits", "demo", ["learning_rate=Infinity"]), "'learning_rate' cannot be inf: .* a finite number"),
        (("vae", "digits", "demo", ["learning_rate=1e999"]), "'learning_rate' cannot be inf: .* a finite number"),
        (("gan", "digits", "demo", ["training.gradient_clip=Infinity"]), "'gradient_clip' cannot be inf"),
        (("gan", "digits", "demo", ["training.guards.warm_up=NaN"]), "'guards.warm_up' cannot be nan"),
        (("gan", "digits", "demo", ["training.guards.divergence.threshold=1e999"]), "'guards.divergence.threshold' c"),
        (("vae", "digits", "demo", ["evaluation.iwae_samples=Infinity"]), "'iwae_samples' cannot be inf"),
        (("biggan", "cifar10", "paper", []), "biggan's preset paper is of other data; for cifar10 take preset cifar10"),
        (("progressive_gan", "digits", "demo", ["learning_rate"]), "key=value, not 'learning_rate'"),
        (("progressive_gan", "digits", "demo", ["batch_images=32"], 0, 3), "batch of 32 .* take a multiple of 3"),
        (("gan", "digits", "demo", ["training.min_workers=2"], 0, 4), "batch of 100 .* take a multiple of 3"),
        (("gan", "digits", "demo", ["training.min_workers=3"], 0, 2), "'min_workers' cannot be 3: the run has 2"),
        (("progressive_gan", "digits", "demo", [], -1), "'seed' cannot be -1"),
        (("progressive_gan", "digits", "demo", [], 0, 0), "'workers' cannot be 0"),
        (("progressive_gan", "photos"), "one set of images, but photos is two unpaired domains"),
        (("cyclegan", "digits"), "two unpaired domains, but digits is one set of images"),
        (("pixelcnn", "gaussians_8"), "pixelcnn learns from images, but gaussians_8 is points; take a model of both"),
        (("dcgan", "gaussians_25", "demo", ["resolution=8"]), "dcgan learns from images"),
        (("gan", "gaussians_8"), "gaussians_8 is points, and preset demo is for images; take points"),
        (("gan", "digits", "points"), "Preset points is for points, and digits is images; leave it out"),
        (("gan", "gaussians_8", "points", COLOR), "needs a discriminator that sees images, which this model has not"),
        (("gan", "gaussians_8", "points", ["consistency_weight=1"]), "points have no pixels to shift; leave it at 0"),
        (("progressive_gan", "folder:/nowhere"), "no folder '/nowhere'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(asked: tuple[object, ...], sentence: str):
    with pytest.raises(SpecError, match=sentence):
        resolve(*asked)  # type: ignore[arg-type]
