"""The entries, and what their readers make of files in their sources' own formats."""

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from genmodels.data import readers
from genmodels.data.catalogue import CATALOGUE, find
from genmodels.data.entries import CatalogueEntry
from genmodels.data.examples import Example
from genmodels.data.readers import IDX_FILES
from genmodels.errors import DataError, SpecError


def nothing(done: int, total: int) -> None:
    """No progress."""


def examples_of(dataset: str) -> list[Example]:
    with find(dataset).examples(nothing) as examples:
        read = list(examples.read())
    assert len(read) == examples.count
    assert {e.table for e in read} == examples.tables
    return read


def jpeg(side: int = 16, grey: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (grey, grey, grey)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def mirror(bucket, configure, tmp_path: Path) -> Path:
    """A folder that is the mirror of this test."""
    configure(mirror=f"file://{tmp_path}/mirror")
    return tmp_path / "mirror"


def put(mirror: Path, path: str, content: bytes) -> None:
    (mirror / path).parent.mkdir(parents=True, exist_ok=True)
    (mirror / path).write_bytes(content)


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda e: e.name)
def test_every_entry_says_what_a_person_must_know(entry: CatalogueEntry):
    assert CATALOGUE[entry.name] is entry
    assert entry.title
    assert entry.licence
    assert entry.resolution & (entry.resolution - 1) == 0
    assert entry.channels in ({2} if entry.kind == "points" else {1, 3})
    for file in entry.files:
        assert file.urls or "no address to download from" in entry.how_to_get
        assert all(url.startswith("http") and url.endswith(f"/{file.name}") for url in file.urls)
        assert file.sha256 is None or (len(file.sha256) == 64 and int(file.sha256, 16))


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(SpecError, match="Unknown data set 'fashon_mnist'; did you mean fashion_mnist"):
        find("fashon_mnist")
    with pytest.raises(SpecError, match="no folder '/nowhere/at/all'"):
        find("folder:/nowhere/at/all")
    with pytest.raises(SpecError, match="expected s3://bucket/key"):
        find("s3://")


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    digits = load_digits()
    read = examples_of("digits")
    assert (np.stack([e.content for e in read]) == np.rint(digits.images * 255 / 16)).all()  # type: ignore[union-attr]
    assert [e.label for e in read] == digits.target.tolist()  # type: ignore[union-attr]
    assert sum(e.table == "test" for e in read) == CATALOGUE["digits"].counts["test"]


def test_stacked_digits_are_three_digits_of_one_table_and_their_number():
    singles = {e.content.tobytes(): e for e in examples_of("digits")}  # type: ignore[union-attr]
    stacks = examples_of("stacked_digits")
    for stack in stacks:
        found = [singles[np.ascontiguousarray(channel).tobytes()] for channel in np.moveaxis(stack.content, 2, 0)]  # type: ignore[arg-type]
        assert [digit.table for digit in found] == [stack.table] * 3
        assert f"{stack.label:03}" == "".join(str(digit.label) for digit in found)
    for table, count in CATALOGUE["stacked_digits"].counts.items():
        labels = [stack.label for stack in stacks if stack.table == table]
        assert len(labels) == count
        assert set(labels) == set(range(1_000))


def test_training_and_held_out_crops_of_the_photographs_share_no_pixel(monkeypatch: pytest.MonkeyPatch):
    """In the place of each photograph a picture whose green has 40 contrasts and whose red says to which part a tile
    belongs: 0 is trained with, 2 is held out, and 1, of the duller half, is neither."""
    ranks = np.random.default_rng(0).permutation(40).reshape(5, 8)
    part = np.where(ranks < 20, np.where(ranks % 4 == 2, 2, 0), 1)
    green = np.zeros((400, 640))
    green[::2] = (240 - 5 * ranks).repeat(40, 0).repeat(80, 1)
    picture = np.zeros((427, 640, 3), np.uint8)
    picture[:400, :, 0], picture[:400, :, 1] = part.repeat(80, 0).repeat(80, 1), green
    monkeypatch.setattr(readers, "decoded", lambda data: Image.fromarray(picture))
    for example in examples_of("photos"):
        assert isinstance(example.content, np.ndarray)
        red = example.content[..., 0]
        assert red.min() == red.max() == (0 if example.table.startswith("train") else 2)


@pytest.mark.parametrize(("name", "deviation"), [("gaussians_8", 0.8 * 0.01), ("gaussians_25", 0.8 * 0.05 / 4)])
def test_points_are_of_as_many_gaussians_as_there_are_classes(name: str, deviation: float):
    """Within five standard errors, of 100,000 / K points in each and of 200,000 coordinates in all."""
    points = [point for point in examples_of(name) if point.table == "train"]
    drawn, labels = (np.stack([getattr(point, what) for point in points]) for what in ("content", "label"))
    assert drawn.shape == (100_000, 1, 1, 2)
    assert drawn.dtype == np.float32
    assert abs(drawn).max() < 1
    classes = CATALOGUE[name].class_names
    centres = np.stack([drawn[labels == label].mean(axis=0).ravel() for label in range(len(classes))])
    error = 5 * deviation / (100_000 / len(classes)) ** 0.5
    for centre, where in zip(centres, classes, strict=True):
        if name == "gaussians_8":
            angle = np.deg2rad(int(where.split()[0]))
            expected = 0.8 * np.cos(angle), 0.8 * np.sin(angle)
        else:
            expected = 0.2 * int(where.split()[0]), 0.2 * int(where.split()[2])
        assert centre == pytest.approx(expected, abs=error)
    assert (drawn.squeeze() - centres[labels]).std() == pytest.approx(deviation, rel=0.01)


@pytest.mark.parametrize("name", ["photos", "stacked_digits", "gaussians_25"])
def test_what_is_made_of_something_else_is_always_the_same(name: str):
    for a, b in zip(examples_of(name), examples_of(name), strict=True):
        assert (a.name, a.label) == (b.name, b.label)
        assert (a.content == b.content).all()  # type: ignore[union-attr]


def test_photographs_are_two_domains_of_the_published_counts():
    once = examples_of("photos")
    counts = {table: sum(e.table == table for e in once) for table in CATALOGUE["photos"].counts}
    assert counts == CATALOGUE["photos"].counts


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def test_dsprites(mirror: Path):
    """As published: images of 0 and 1, factors as columns, and pickled facts beside them, which are left alone."""
    images = np.random.default_rng(0).integers(0, 2, (30, 64, 64), dtype=np.uint8)
    values = np.stack([np.arange(30) % size for size in (1, 3, 6, 40, 32, 32)], axis=1)
    facts = np.array({"title": "dSprites"}, dtype=object)
    put(mirror, f"dsprites/{readers.DSPRITES}", npz(metadata=facts, imgs=images, latents_classes=values))
    found = examples_of("dsprites")
    assert {example.table for example in found} == {"train", "test"}
    by_content = {image.tobytes(): row for row, image in enumerate(images * 255)}
    for example in found:
        assert isinstance(example.content, np.ndarray)
        row = by_content[example.content.tobytes()]
        assert example.label == row % 3
        assert example.factors == {"colour": 0, "scale": row % 6, "orientation": row, "x": row, "y": row}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"PK nothing", "cannot be read as arrays imgs, latents_classes"),
        (npz(imgs=np.zeros((2, 4, 4), np.uint8)), "no item named 'latents_classes.npy'"),
        (npz(imgs=np.array([{}]), latents_classes=np.zeros((1, 6), int)), "imgs.npy is no array of whole numbers"),
        (npz(imgs=np.full((2, 4, 4), 7, np.uint8), latents_classes=np.zeros((2, 6), int)), "black-and-white images"),
        (npz(imgs=np.zeros((2, 4, 4), np.uint8), latents_classes=np.zeros((3, 6), int)), r"factors \(3, 6\), where"),
    ],
)
def test_dsprites_that_are_none(mirror: Path, content: bytes, complaint: str):
    put(mirror, f"dsprites/{readers.DSPRITES}", content)
    with pytest.raises(DataError, match=complaint):
        examples_of("dsprites")


def idx(array: np.ndarray) -> bytes:
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def test_mnist(mirror: Path):
    images, labels = np.full((3, 28, 28), 9), np.array([7, 0, 9])
    contents = [idx(images), idx(labels), idx(images[:1]), idx(labels[:1])]
    for name, content in zip(IDX_FILES, contents, strict=True):
        put(mirror, f"mnist/{name}", content)
    sums(mirror)
    read = examples_of("mnist")
    assert [(e.table, e.label) for e in read] == [("train", 7), ("train", 0), ("train", 9), ("test", 7)]
    image = read[0].content
    assert isinstance(image, np.ndarray)
    assert image.shape == (28, 28)
    assert (image == 9).all()


def test_labels_that_do_not_fit_their_images(mirror: Path):
    for name, array in zip(
        IDX_FILES, [np.zeros((3, 28, 28)), np.zeros(2), np.zeros((1, 28, 28)), np.zeros(1)], strict=True
    ):
        put(mirror, f"mnist/{name}", idx(array))
    sums(mirror)
    with pytest.raises(DataError, match=r"train-images.* and train-labels.* do not fit"):
        examples_of("mnist")


def test_cifar10(mirror: Path):
    """Records of one label and a red, a green and a blue plane."""
    record = bytes([6]) + bytes([1]) * 1024 + bytes([2]) * 1024 + bytes([3]) * 1024
    put(mirror, "cifar10/cifar-10-binary.tar.gz", b"")
    with tarfile.open(mirror / "cifar10/cifar-10-binary.tar.gz", "w:gz") as file:
        for name, count in {"data_batch_1.bin": 2, "test_batch.bin": 1, "batches.meta.txt": 0}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = count * len(record)
            file.addfile(info, io.BytesIO(record * count))
    sums(mirror)
    read = examples_of("cifar10")
    assert [(e.table, e.label) for e in read] == [("train", 6), ("train", 6), ("test", 6)]
    assert isinstance(read[0].content, np.ndarray)
    assert read[0].content.shape == (32, 32, 3)
    assert read[0].content[5, 5].tolist() == [1, 2, 3]
    assert CATALOGUE["cifar10"].class_names[6] == "frog"


def zipped(mirror: Path, path: str, members: dict[str, bytes]) -> None:
    put(mirror, path, b"")
    with zipfile.ZipFile(mirror / path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)


@pytest.mark.parametrize("name", [entry.name for entry in CATALOGUE.values() if entry.unpaired and entry.files])
def test_sets_of_two_domains(mirror: Path, name: str):
    folders = {
        f"{name}/{folder}/1.jpg": jpeg(grey=i) for i, folder in enumerate(("trainA", "trainB", "testA", "testB"))
    }
    zipped(mirror, f"{name.replace('_', '-')}/{name}.zip", folders)
    sums(mirror)
    assert {e.table for e in examples_of(name)} == {"train_a", "train_b", "test_a", "test_b"}


def test_utkface_is_labelled_by_sex(mirror: Path):
    names = {f"UTKFace/{age}_{age % 2}_0_2017{age}.jpg.chip.jpg": jpeg(grey=age) for age in range(20, 40)}
    put(mirror, "utkface/UTKFace.tar.gz", b"")
    with tarfile.open(mirror / "utkface/UTKFace.tar.gz", "w:gz") as file:
        for name, data in {**names, "UTKFace/61_1_20170109142408075.jpg.chip.jpg": jpeg(grey=200)}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    read = examples_of("utkface")
    assert {(e.label, int(e.name[:2]) % 2) for e in read if e.label is not None} == {(0, 0), (1, 1)}
    assert [e.name for e in read if e.label is None] == ["61_1_20170109142408075.jpg.chip.jpg"]
    assert sum(e.table == "test" for e in read) == 2


def test_celeba_as_its_public_archive_is_made(mirror: Path, data_mirror: str):
    """The real first images of the set, under their real names."""
    with urlopen(f"{data_mirror}/celeba-sample/img_align_celeba.zip") as archive:
        put(mirror, "celeba/img_align_celeba.zip", archive.read())
    sums(mirror)
    read = examples_of("celeba")
    assert sorted(e.name for e in read)[0] == "000001.jpg"
    assert len(read) == 32
    assert {Image.open(io.BytesIO(e.content)).size for e in read if isinstance(e.content, bytes)} == {(178, 218)}


def test_celeba_hq_leaves_the_masks(mirror: Path):
    members = {f"CelebAMask-HQ/CelebA-HQ-img/{i}.jpg": jpeg(grey=i) for i in range(5)}
    members |= {"CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/00000_skin.png": b"a mask", "CelebAMask-HQ/README.txt": b""}
    zipped(mirror, "celeba-hq/CelebAMask-HQ.zip", members)
    assert [e.name for e in examples_of("celeba_hq")] == [f"CelebA-HQ-img/{i}.jpg" for i in range(5)]


@pytest.mark.parametrize("name", ["utkface", "celeba", "celeba_hq", "cityscapes"])
def test_sets_to_be_fetched_by_hand_say_from_where_and_to_where(bucket, name: str):
    with pytest.raises(DataError, match=f"{name} has no address .* https://.* GENMODELS_MIRROR/.* or .*folder:PATH"):
        examples_of(name)


def test_a_folder_and_a_prefix_of_the_same_images_are_the_same_examples(bucket, tmp_path: Path):
    for i in range(20):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(grey=10 * i))
        bucket.upload(path, f"some/{path.relative_to(tmp_path)}")
    bucket.put("some/images/a/.hidden.jpg", b"hidden")
    folder, prefix = f"folder:{tmp_path}/images", bucket.uri("some/images")
    assert examples_of(folder) == examples_of(prefix)
    assert find(folder).class_names == find(prefix).class_names == ("a", "b")
    assert not list((tmp_path / "cache/sources").iterdir())


def test_a_prefix_with_nothing_below_it(bucket):
    with pytest.raises(DataError, match="nothing-here holds no images"):
        find(bucket.uri("nothing-here"))


def test_a_key_that_leads_outside_is_refused(bucket, tmp_path: Path):
    bucket.put("some/C:evil.jpg", b"x")  # SeaweedFS itself refuses two dots
    with pytest.raises(DataError, match="leads outside its folder"):
        find(bucket.uri("some"))


def sums(mirror: Path) -> None:
    """The mirror's own sums."""
    files = [path for path in mirror.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(mirror)}\n" for path in files]
    (mirror / "SHA256SUMS").write_text("".join(lines))
