"""Models from the registry, with this project and without it."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_run import finished_run
from PIL import Image

from genmodels.errors import DataError, SpecError
from genmodels.evaluation.classifier import Classifier
from genmodels.evaluation.pictures import grid
from genmodels.pictures import translated
from genmodels.settings import Settings, settings
from genmodels.steps.register import register
from genmodels.storage.objects import store
from genmodels.tracking.promotion import promote
from genmodels.tracking.registry import Registry, load, register_extractor, sample, translator

PREDICT = """
import sys

def refuse_pickles(event, arguments):
    if event == "pickle.find_class":
        raise RuntimeError(f"{arguments} is being unpickled")

sys.addaudithook(refuse_pickles)
import mlflow, numpy as np, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
np.save(sys.argv[3], eval(sys.argv[2]))
"""


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment of its own that has mlflow and torch, and not this project: a folder that is
    added through a .pth file has none of its own .pth files read, and one of them is our editable install."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "installed.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "bin/python"
    refused = subprocess.run([python, "-I", "-c", "import genmodels"], cwd=folder, capture_output=True, text=True)
    assert "No module named 'genmodels'" in refused.stderr
    return python


def predicted_by(python: Path, uri: str, call: str, folder: Path) -> np.ndarray:
    """What `call` gives in that Python, which unpickles nothing."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "MLFLOW_TRACKING_URI": settings().mlflow_url}
    environment |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "NO_PROXY": "127.0.0.1"}
    subprocess.run(
        [python, "-I", "-c", PREDICT, uri, call, str(folder / "images.npy")],
        cwd=folder,
        env=environment,
        check=True,
        timeout=300,
    )
    return np.load(folder / "images.npy", allow_pickle=False)


def test_the_champion_is_sampled_in_one_line_without_this_project(
    without_champion: str, elsewhere: Path, tmp_path: Path
):
    spec = finished_run("progressive_gan", "digits", "conditional=true", seed=200)
    report = register(spec)
    promote(spec)
    uri = f"models:/{without_champion}@champion"
    by_class, drawn, near = (
        'model.predict({"seed": [3, 1, 3], "label": [0, 1, 0]})',
        'model.predict(pd.DataFrame({"seed": range(20)}))',
        'model.predict({"seed": [3, 1]}, params={"truncation": 0.5, "temperature": 0.7})',
    )
    images = predicted_by(elsewhere, uri, f"np.concatenate([{by_class}, {drawn}, {near}])", tmp_path)
    assert images.shape == (25, 8, 8, 1)
    assert images.dtype == np.uint8
    assert np.array_equal(images[0], images[2])
    assert not np.array_equal(images[0], images[1])
    own = load(report.model_uri)
    assert np.array_equal(images[:3], own.sample([3, 1, 3], [0, 1, 0]))
    assert np.array_equal(images[3:23], own.sample(list(range(20))))
    assert np.array_equal(images[23:], own.sample([3, 1], truncation=0.5, temperature=0.7))


def test_a_translator_is_called_with_images_and_a_domain(tracking: Settings, elsewhere: Path, tmp_path: Path):
    report = register(finished_run("cyclegan", "photos", "resolution=16", "generator_channels=8", seed=201))
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    call = 'model.predict(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8), params={"to": "a"})'
    there = predicted_by(elsewhere, report.model_uri, call, tmp_path)
    own = translator(report.model_uri, "a")
    assert np.array_equal(there, own.translate(images, "a"))
    assert not np.array_equal(there, own.translate(images, "b"))
    with pytest.raises(SpecError, match="cannot sample"):
        sample(report.model_uri, 1)

    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, image in zip(("one", "three", "two"), images, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    by_name = translated(report.model_uri, folder, "a")
    assert list(by_name) == ["one", "three", "two"]
    assert np.array_equal(there, np.stack(list(by_name.values())))
    Image.fromarray(images[0]).save(folder / "one.bmp")
    by_name = translated(report.model_uri, folder, "a")
    assert list(by_name) == ["one.bmp", "one.png", "three.png", "two.png"], "two share a stem"
    assert np.array_equal(there[[0, 0, 1, 2]], np.stack(list(by_name.values())))
    (folder / "zero.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"zero\.png cannot be used"):
        translated(report.model_uri, folder, "a")
    with pytest.raises(SpecError, match="Unknown domain 'nowhere'"):  # before any image is read
        translated(report.model_uri, folder, "nowhere")


def test_samples_depend_on_the_seed_alone(tracking: Settings):
    uri = register(finished_run(seed=202)).model_uri
    few, many = sample(uri, 3, seed=5), sample(uri, 9, seed=5)
    assert np.array_equal(few, many[:3])
    assert not np.array_equal(many, sample(uri, 9, seed=6))
    assert np.array_equal(many, sample(uri, 9, seed=5, truncation=9.0))
    assert not np.array_equal(many, sample(uri, 9, seed=5, truncation=0.5))
    with pytest.raises(SpecError, match="above 0, not -1"):
        sample(uri, 1, truncation=-1.0)
    with pytest.raises(SpecError, match="knows no classes"):
        sample(uri, 1, labels=[1])
    with pytest.raises(SpecError, match="cannot translate"):
        translator(uri, "b")


def test_the_command_draws_the_classes_that_it_is_told_in_turn(tracking: Settings, tmp_path: Path):
    uri = register(finished_run("conditional_gan", "digits", seed=205)).model_uri
    command = [sys.executable, "-m", "genmodels", "sample", uri, "-n", "9", "--seed", "5"]
    wanted = ["--label", "3", "--label", "7", "--out", str(tmp_path / "grid.png")]
    subprocess.run([*command, *wanted], check=True, capture_output=True)
    with Image.open(tmp_path / "grid.png") as picture:
        drawn = np.asarray(picture)
    assert np.array_equal(drawn, grid(sample(uri, 9, seed=5, labels=[3, 7, 3, 7, 3, 7, 3, 7, 3]), columns=3)[..., 0])
    refused = subprocess.run([*command, "--label", "10"], check=False, capture_output=True, text=True)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "from 0 to 9" in refused.stderr


def test_what_defines_no_distribution_is_registered_but_not_sampled(
    tracking: Settings, elsewhere: Path, tmp_path: Path
):
    report = register(finished_run("autoencoder", "digits", seed=204))
    call = "model.predict(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8))"
    reconstructed = predicted_by(elsewhere, report.model_uri, call, tmp_path)
    model, images = load(report.model_uri), np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    assert np.array_equal(reconstructed, model.decode(model.encode(images)))
    with pytest.raises(SpecError, match=r"cannot sample: .* defines no distribution"):
        sample(report.model_uri, 1)
    with pytest.raises(SpecError, match="cannot translate"):
        translator(report.model_uri, "b")


def test_unknown_addresses_are_answered_with_what_there_is(tracking: Settings):
    report = register(finished_run(seed=203))
    for uri, sentence in {
        "models:/progresive_gan.digits/1": "did you mean progressive_gan.digits",
        f"models:/{report.name}@chalenger": "did you mean challenger",
        f"models:/{report.name}/9999": "Unknown version of progressive_gan.digits '9999'",
        "progressive_gan.digits": "expected models:/NAME/VERSION",
    }.items():
        with pytest.raises(SpecError, match=sentence):
            sample(uri, 1)


def test_files_that_are_not_the_registered_ones_are_refused(tracking: Settings, tmp_path: Path):
    """One byte changed, or a pickle in the program's place: nothing of it is opened."""
    report = register(finished_run(seed=204))
    registry = Registry()
    version = registry.find(report.model_uri)
    [key] = [
        entry.key for entry in store().list("mlflow/") if version.model_id in entry.key and entry.key.endswith(".pt2")
    ]
    program = store().get(key)
    canary = tmp_path / "canary"
    hostile = f"cbuiltins\nopen\n(V{canary}\nVw\ntR.".encode()  # creates the canary when it is unpickled
    for data in (program[:-1] + bytes([program[-1] ^ 1]), hostile):
        store().put(key, data)
        with pytest.raises(DataError, match="is not the file that was registered"):
            registry.fetch(version, tmp_path / "fetched")
    assert not canary.exists()
    store().put(key, program)
    assert sorted(path.name for path in registry.fetch(version, tmp_path / "fetched").iterdir()) == [
        "model.json",
        "sample.pt2",
    ]


def test_an_extractor_is_registered_once(tracking: Settings):
    torch.manual_seed(0)
    classifier = Classifier(1, 10, 8).eval()
    facts = {"dataset": "numerals", "dataset_digest": "0" * 64, "resolution": 8, "channels": 1, "classes": 10}
    first = register_extractor(classifier, **facts, accuracy=0.97)
    assert register_extractor(classifier, **facts, accuracy=0.97).version == first.version
    version = Registry().find("models:/classifier.numerals/1")
    assert version.tags["accuracy"] == "0.9700"
    assert json.loads(Registry().model_tags(version)["export"])["kind"] == "classifies"
