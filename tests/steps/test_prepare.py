"""The prepare step on real data from a local mirror, and what happens when things change or vanish in between."""

import io
import logging
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from genmodels.data.manifest import open_dataset
from genmodels.errors import DataError, SpecError
from genmodels.settings import settings
from genmodels.spec import PrepareReport, RunSpec
from genmodels.steps.prepare import prepare, prepared
from genmodels.steps.reports import load_report, read_progress
from genmodels.storage.objects import ObjectStore


def spec(dataset: str, resolution: int) -> RunSpec:
    return RunSpec.model_validate(
        {"model": "any", "dataset": dataset, "config": {"resolution": resolution}, "code_version": "any"}
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(30):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"images/{i}.png")
    return tmp_path / "images"


def test_fashion_mnist(bucket: ObjectStore, configure: Callable[..., None], data_mirror: str):
    """Counts, class balance and the mean of 0.2860 that is published for the 28×28 images."""
    configure(mirror=data_mirror)
    report = prepare(spec("fashion_mnist", 32))
    manifest, dataset = open_dataset("fashion_mnist", report.dataset_digest)
    assert report.rows == {"train": 60_000, "test": 10_000}
    assert (manifest.classes, manifest.channels, manifest.class_names[9]) == (10, 1, "ankle boot")
    train = dataset.table("train")
    every = np.arange(60_000)
    assert np.bincount(train.read("label", every)).tolist() == [6000] * 10
    mean = train.read("image@32", every).mean() / 255 * 32 * 32 / (28 * 28)
    assert mean == pytest.approx(0.2860, abs=5e-5)
    assert read_progress("prepare", spec("fashion_mnist", 32)).done == 70_000  # type: ignore[union-attr]


def test_utkface(bucket: ObjectStore, configure: Callable[..., None], data_mirror: str):
    configure(mirror=data_mirror)
    report = prepare(spec("utkface", 16))
    _, dataset = open_dataset("utkface", report.dataset_digest)
    assert report.rows == {"train": 1800, "test": 200}
    assert report.set_aside == {}
    assert set(dataset.table("train").columns) == {"image@16", "image@8", "image@4", "label"}


def test_what_a_pin_tells_apart_is_found_without_a_download(
    bucket: ObjectStore, configure: Callable[..., None], tmp_path: Path
):
    wanted = spec("celeba_hq", 8)
    assert prepared(wanted) is None, "to be got by hand"
    (tmp_path / "celeba-hq").mkdir()
    with ZipFile(tmp_path / "celeba-hq/CelebAMask-HQ.zip", "w") as archive:
        for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)):
            picture = io.BytesIO()
            Image.fromarray(pixels).save(picture, "PNG")
            archive.writestr(f"CelebAMask-HQ/CelebA-HQ-img/{i}.jpg", picture.getvalue())
    configure(mirror=tmp_path.as_uri())
    assert prepared(wanted) is None, "never downloaded"
    report = prepare(wanted)
    assert prepared(wanted) == report


def test_cityscapes(bucket: ObjectStore, configure: Callable[..., None], data_mirror: str):
    """A is the label map, whose commonest colour is the road's 128 64 128; B is the photograph."""
    configure(mirror=data_mirror)
    report = prepare(spec("cityscapes", 8))
    _, dataset = open_dataset("cityscapes", report.dataset_digest)
    assert report.rows == {"train_a": 500, "train_b": 500, "test_a": 100, "test_b": 100}
    road = [
        np.median(dataset.table("train", domain).read("image@8", np.arange(500))[:, :, 6, 3], axis=0) for domain in "ab"
    ]
    assert np.abs(road[0] - [128, 64, 128]).max() < 16
    assert np.ptp(road[1]) < 32, "asphalt is grey"


def test_what_is_prepared_is_found_again(bucket: ObjectStore, caplog: pytest.LogCaptureFixture):
    first = prepare(spec("digits", 8))
    with caplog.at_level(logging.INFO):
        assert prepare(spec("digits", 8)) == first
    assert "digits is prepared already" in caplog.text
    assert load_report("prepare", spec("digits", 8), PrepareReport) == first
    assert prepare(spec("digits", 4)).dataset_digest != first.dataset_digest


def test_what_was_prepared_and_is_gone_is_prepared_again_and_the_log_says_why(
    bucket: ObjectStore, caplog: pytest.LogCaptureFixture
):
    first = prepare(spec("digits", 8))
    for lost in ("manifest.json", "train/label-00000.npy"):
        bucket.delete([f"datasets/digits/{first.dataset_digest}/{lost}"])
        assert prepare(spec("digits", 8)).dataset_digest == first.dataset_digest
        assert f"{lost} is gone" in caplog.text
        assert bucket.exists(f"datasets/digits/{first.dataset_digest}/{lost}")


def test_a_changed_folder_is_other_data(bucket: ObjectStore, images: Path):
    wanted = spec(f"folder:{images}", 8)
    before = prepare(wanted)
    assert before.rows == {"train": 27, "test": 3}
    (images / "0.png").unlink()
    after = prepare(wanted)
    assert after.dataset_digest != before.dataset_digest
    assert sum(after.rows.values()) == 29


def test_the_same_images_in_a_folder_and_in_a_bucket_have_the_same_digest(bucket: ObjectStore, images: Path):
    for path in images.iterdir():
        bucket.upload(path, f"my/{path.name}")
    folder, prefix = prepare(spec(f"folder:{images}", 8)), prepare(spec(bucket.uri("my"), 8))
    assert folder.dataset_digest == prefix.dataset_digest
    assert folder.manifest_uri != prefix.manifest_uri


def prepare_elsewhere(dataset: str, cache: str, barrier: object, answers: object) -> None:
    os.environ["GENMODELS_CACHE_DIR"] = cache
    barrier.wait()  # type: ignore[attr-defined]
    answers.put(prepare(spec(dataset, 8)).dataset_digest)  # type: ignore[attr-defined]


def test_two_who_prepare_the_same_at_once_do_each_other_no_harm(bucket: ObjectStore, images: Path, tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    nodes = [
        context.Process(target=prepare_elsewhere, args=(f"folder:{images}", str(tmp_path / name), barrier, answers))
        for name in ("one", "two")
    ]
    for node in nodes:
        node.start()
    digests = [answers.get(timeout=120) for _ in nodes]
    for node in nodes:
        node.join()
    assert digests[0] == digests[1]
    name = spec(f"folder:{images}", 8).dataset_name
    assert open_dataset(name, digests[0])[1].table("train").rows == 27
    assert len([entry for entry in bucket.list("datasets/") if entry.key.endswith("manifest.json")]) == 1


def test_a_failure_leaves_nothing_half_written(bucket: ObjectStore, images: Path):
    for path in list(images.iterdir())[:10]:
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be used"):
        prepare(spec(f"folder:{images}", 8))
    assert list(bucket.list("datasets/")) == []
    assert not [path for path in (settings().cache / "datasets").rglob("*") if path.is_file()]


def test_a_resolution_below_the_pyramids_end():
    with pytest.raises(SpecError, match="resolution=2 is too small"):
        prepare(spec("digits", 2))
