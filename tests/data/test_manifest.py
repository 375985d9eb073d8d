"""Data sets in the object store: whole or not there, fetched once, and never other than their digest says."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genmodels.data.manifest import Column, Manifest, Shard, Table, cache_folder, open_dataset, publish, whats_missing
from genmodels.errors import DataError
from genmodels.storage.cache import make_room
from genmodels.storage.objects import ObjectStore


def made(folder: Path, name: str = "set") -> Manifest:
    """Ten rows of two columns, the images in two shards."""
    images = np.arange(10 * 3 * 4 * 4, dtype=np.uint8).reshape(10, 3, 4, 4)
    arrays: dict[str, np.ndarray] = {"train/image@4-00000.npy": images[:6], "train/image@4-00001.npy": images[6:]}
    arrays["train/label-00000.npy"] = np.arange(10)
    shards = {}
    for file, array in arrays.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / file, array)
        data = (folder / file).read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        shards[file] = Shard(file=file, rows=len(array), bytes=len(data), sha256=sha256)
    image_shards = [shard for file, shard in shards.items() if "image" in file]
    columns = {
        "image@4": Column(dtype="|u1", shape=(3, 4, 4), shards=image_shards),
        "label": Column(dtype="<i8", shape=(), shards=[shards["train/label-00000.npy"]]),
    }
    manifest = Manifest(
        name=name,
        digest="",
        resolution=4,
        channels=3,
        classes=10,
        class_names=list("0123456789"),
        licence="none",
        tables={"train": Table(rows=10, columns=columns)},
        set_aside={},
    )
    return manifest.model_copy(update={"digest": manifest.content_digest()})


def test_what_is_published_can_be_opened_on_any_node(bucket: ObjectStore, tmp_path: Path):
    manifest = made(tmp_path / "made")
    publish(manifest, tmp_path / "made")
    opened, dataset = open_dataset("set", manifest.digest)
    assert opened == manifest
    table = dataset.table("train")
    assert isinstance(table.columns["image@4"][0], np.memmap)
    assert table.read("label", np.array([9, 0, 6])).tolist() == [9, 0, 6]
    assert table.read("image@4", np.array([6]))[0, 0, 0, 0] == 6 * 48 % 256


def test_a_second_opening_needs_no_shard_from_the_store(bucket: ObjectStore, tmp_path: Path):
    manifest = made(tmp_path / "made")
    publish(manifest, tmp_path / "made")
    open_dataset("set", manifest.digest)
    bucket.delete([f"datasets/set/{manifest.digest}/{shard.file}" for shard in manifest.shards()])
    assert open_dataset("set", manifest.digest)[1].table("train").rows == 10


def test_the_name_is_not_part_of_the_digest_but_the_content_is(tmp_path: Path):
    manifest = made(tmp_path / "made")
    assert made(tmp_path / "again", name="other").digest == manifest.digest
    assert manifest.model_copy(update={"class_names": list("9876543210")}).content_digest() != manifest.digest


def test_without_a_manifest_there_is_no_data_set(bucket: ObjectStore, tmp_path: Path):
    manifest = made(tmp_path / "made")
    publish(manifest, tmp_path / "made")
    assert whats_missing("set", manifest.digest) is None
    bucket.delete([manifest.key])
    assert "manifest.json is gone" in str(whats_missing("set", manifest.digest))
    with pytest.raises(DataError, match=r"There is no data set s3://.*run `genmodels prepare`"):
        open_dataset("set", manifest.digest)


def test_a_lost_shard_is_noticed_and_published_again(bucket: ObjectStore, tmp_path: Path):
    manifest = made(tmp_path / "made")
    publish(manifest, tmp_path / "made")
    bucket.delete([f"datasets/set/{manifest.digest}/train/label-00000.npy"])
    assert "train/label-00000.npy is gone" in str(whats_missing("set", manifest.digest))
    publish(manifest, tmp_path / "made")
    assert whats_missing("set", manifest.digest) is None


def test_a_damaged_shard_is_refused_and_leaves_nothing(bucket: ObjectStore, tmp_path: Path):
    manifest = made(tmp_path / "made")
    publish(manifest, tmp_path / "made")
    key = f"datasets/set/{manifest.digest}/train/label-00000.npy"
    bucket.put(key, bucket.get(key)[:-1] + b"\7")
    with pytest.raises(DataError, match=r"label-00000.npy is damaged"):
        open_dataset("set", manifest.digest)
    assert not (cache_folder(manifest.digest) / "train/label-00000.npy").exists()


def test_a_changed_manifest_is_refused(bucket: ObjectStore, tmp_path: Path):
    manifest = made(tmp_path / "made")
    publish(manifest, tmp_path / "made")
    bucket.put_record(manifest.key, manifest.model_copy(update={"resolution": 8}))
    with pytest.raises(DataError, match="was changed after it was written"):
        open_dataset("set", manifest.digest)


@pytest.mark.parametrize("elsewhere", ["../../outside.npy", "/outside.npy"])
def test_a_shard_that_would_lie_elsewhere_is_refused_before_any_is_fetched(
    bucket: ObjectStore, tmp_path: Path, elsewhere: str
):
    """In a manifest whose digest is that of its content, as anyone can make one."""
    manifest = made(tmp_path / "made")
    manifest.tables["train"].columns["label"].shards[0] = Shard(file=elsewhere, rows=10, bytes=5, sha256="0" * 64)
    manifest = manifest.model_copy(update={"digest": manifest.content_digest()})
    bucket.put_record(manifest.key, manifest)
    with pytest.raises(DataError, match=f"holds '{elsewhere}', which leads outside its folder"):
        open_dataset("set", manifest.digest)
    assert not cache_folder(manifest.digest).exists()


def test_a_copy_that_had_to_go_is_fetched_again_and_then_stays(
    bucket: ObjectStore, configure: Callable[..., None], tmp_path: Path
):
    manifest = made(tmp_path / "made")
    publish(manifest, tmp_path / "made")
    another = f"from genmodels.data.manifest import open_dataset\nopen_dataset('set', {manifest.digest!r})"
    subprocess.run([sys.executable, "-c", another], check=True)
    make_room(2**60)
    assert not cache_folder(manifest.digest).exists()
    _, dataset = open_dataset("set", manifest.digest)
    make_room(2**60)
    assert (cache_folder(manifest.digest) / "train/label-00000.npy").exists()
    assert dataset.table("train").rows == 10
