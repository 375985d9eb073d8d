"""Shards from images: the same bytes for any number of processes, and clear ends where the data will not do."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genmodels.data import preprocess as module
from genmodels.data import readers
from genmodels.data.catalogue import find
from genmodels.data.examples import of_arrays, with_held_out
from genmodels.data.manifest import Manifest
from genmodels.data.preprocess import Preprocessed, preprocess
from genmodels.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """150 images of two classes, of many sizes, no two alike."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    for i in range(150):
        path = folder / ("cats", "dogs")[i % 2] / f"{i:03d}.{'png' if i % 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = generator.integers(16, 40, 2)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return folder


def run(folder: Path, out: Path, resolution: int = 16, processes: int = 1, dataset: str | None = None) -> Preprocessed:
    out.mkdir(parents=True, exist_ok=True)
    entry = find(dataset or f"folder:{folder}")
    with entry.examples(lambda done, total: None) as examples:
        return preprocess(entry, examples, out, name="set", resolution=resolution, processes=processes)


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the few images of these tests were worth a pool of processes."""
    monkeypatch.setattr(module, "FEW_EXAMPLES", 100)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.npy")}


def column(manifest: Manifest, folder: Path, table: str, name: str) -> np.ndarray:
    return np.concatenate([np.load(folder / shard.file) for shard in manifest.tables[table].columns[name].shards])


def test_one_process_and_two_write_the_same_bytes(images: Path, tmp_path: Path):
    one, two = run(images, tmp_path / "one"), run(images, tmp_path / "two", processes=2)
    assert one.manifest == two.manifest
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert one.manifest.digest == one.manifest.content_digest()


def test_points_keep_every_bit_and_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "POINTS", {"train": 300, "test": 100})
    once, again = (run(tmp_path, tmp_path / name, 1, dataset="gaussians_25").manifest for name in ("once", "again"))
    assert once == again
    assert once.has_points
    columns = once.tables["train"].columns
    assert (columns["image@1"].dtype, columns["image@1"].shape) == ("<f4", (2, 1, 1))
    with find("gaussians_25").examples(lambda done, total: None) as examples:
        points = [example for example in examples.read() if example.table == "test"]
    assert (column(once, tmp_path / "once", "test", "image@1").ravel() == np.ravel([p.content for p in points])).all()
    assert column(once, tmp_path / "once", "test", "label").tolist() == [point.label for point in points]


def test_points_have_one_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "POINTS", {"train": 300, "test": 100})
    with pytest.raises(DataError, match="the shortest side 1; take `--set resolution=1`"):
        run(tmp_path, tmp_path / "out", 8, dataset="gaussians_8")


def test_rows_are_the_images_in_the_order_of_their_names(images: Path, tmp_path: Path):
    """Against Pillow alone, image by image."""
    manifest = run(images, tmp_path / "out").manifest
    assert manifest.rows == {"train": 135, "test": 15}
    assert (manifest.classes, manifest.class_names) == (2, ["cats", "dogs"])
    rows = {"train": 0, "test": 0}
    with find(f"folder:{images}").examples(lambda done, total: None) as examples:
        for example in examples.read():
            image = Image.open(images / example.name).convert("RGB")
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.crop((left, top, left + side, top + side)).resize((16, 16), Image.Resampling.BICUBIC)
            row = rows[example.table]
            found = column(manifest, tmp_path / "out", example.table, "image@16")[row]
            assert np.abs(found.transpose(1, 2, 0).astype(int) - np.asarray(square).astype(int)).max() <= 1
            assert column(manifest, tmp_path / "out", example.table, "label")[row] == example.label
            rows[example.table] += 1
    assert rows == manifest.rows


def test_shards_are_bounded_and_read_as_one(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = run(images, tmp_path / "whole").manifest
    monkeypatch.setattr(module, "SHARD_BYTES", 10 * 3 * 16 * 16)
    parts = run(images, tmp_path / "parts").manifest
    columns = parts.tables["train"].columns
    assert [shard.rows for shard in columns["image@16"].shards] == [10] * 13 + [5]
    assert [shard.rows for shard in columns["image@4"].shards] == [135]
    for name in columns:
        assert (
            column(parts, tmp_path / "parts", "train", name) == column(whole, tmp_path / "whole", "train", name)
        ).all()


def test_a_few_bad_images_are_set_aside_and_counted(images: Path, tmp_path: Path):
    for name in ("cats/000.jpg", "cats/002.png", "dogs/001.png"):
        (images / name).write_bytes(b"")
    (images / "dogs/003.jpg").write_bytes((images / "dogs/003.jpg").read_bytes()[:-200])
    done = run(images, tmp_path / "out", processes=2)
    assert done.manifest.set_aside == {"empty": 3, "truncated": 1}
    assert sum(done.manifest.rows.values()) == 146
    assert done.images_per_second * done.seconds == pytest.approx(150)


def test_too_many_bad_images_end_it_with_their_reasons_and_names(images: Path, tmp_path: Path):
    for path in sorted(images.glob("cats/*"))[:20]:
        path.write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"150 images of folder:.* not an image \(such as 'cats/000.jpg'\).* at most 10%"
    ):
        run(images, tmp_path / "out")


def test_images_smaller_than_the_resolution_end_it_with_the_resolution_that_would_do(images: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"smaller than the resolution .* 64×64, .* take `--set resolution=16` or less"):
        run(images, tmp_path / "out", resolution=64)


def test_a_class_of_which_nothing_is_left(images: Path, tmp_path: Path):
    for path in sorted(images.glob("cats/*"))[7:]:
        path.unlink()
    for path in images.glob("cats/*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"The class 'cats' of folder:.* has no usable images to train on"):
        run(images, tmp_path / "out")


def test_a_domain_of_which_nothing_is_left(tmp_path: Path):
    for folder, count in {"trainA": 30, "trainB": 2}.items():
        (tmp_path / "in" / folder).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "in" / folder / f"{i}.png")
    (tmp_path / "in/trainB/0.png").write_bytes(b"broken")
    (tmp_path / "in/trainB/1.png").write_bytes(b"broken too")
    with pytest.raises(DataError, match="no usable images for 'test_b'"):
        run(tmp_path / "in", tmp_path / "out", resolution=8)


def test_a_table_without_images_is_named(tmp_path: Path):
    images = np.arange(4, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    examples = of_arrays({"train": (images, None), "test": (images[:0], None)})
    with pytest.raises(DataError, match="digits has no usable images for 'test'; add some"):
        preprocess(find("digits"), examples, tmp_path, name="set", resolution=8)


def test_a_folder_of_copies_is_split(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for i in range(20):
        Image.new("RGB", (8, 8), (255 * (i == 7), 0, 0)).save(tmp_path / "in" / f"{i}.png")
    assert run(tmp_path / "in", tmp_path / "out", resolution=8).manifest.rows == {"train": 19, "test": 1}


def test_images_without_a_label_in_a_labelled_set_are_set_aside(tmp_path: Path):
    entry = find("digits")
    with entry.examples(lambda done, total: None) as examples:
        whole = examples.read

        def some_unlabelled():
            return (e._replace(label=None) if i % 100 == 0 else e for i, e in enumerate(whole()))

        unlabelled = with_held_out(examples.__class__(**{**vars(examples), "read": some_unlabelled}))
        done = preprocess(entry, unlabelled, tmp_path, name="set", resolution=8)
    assert done.manifest.set_aside == {module.NO_LABEL: 18}


def test_factors_become_columns_that_stay_with_their_images(tmp_path: Path):
    """Every image is as bright as its factors say, and a tenth of them is held out."""
    values = {"tens": np.arange(60) // 10, "ones": np.arange(60) % 10}
    images = (10 * values["tens"] + values["ones"]).astype(np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    examples = with_held_out(of_arrays({"train": (images, values["tens"] % 2)}, ("even", "odd"), values))
    manifest = preprocess(find("digits"), examples, tmp_path, name="set", resolution=8).manifest
    assert manifest.name == "set"
    assert manifest.factors == ["ones", "tens"]
    assert manifest.rows == {"train": 54, "test": 6}
    for table in manifest.tables:
        tens, ones, label, image = (
            column(manifest, tmp_path, table, name) for name in ("factor@tens", "factor@ones", "label", "image@8")
        )
        assert (10 * tens + ones == image[:, 0, 0, 0]).all()
        assert (label == tens % 2).all()
