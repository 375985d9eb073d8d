"""How the files of each published data set become examples. Each raises DataError for files that are not what is
published under their names."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from genmodels.data import sprites
from genmodels.data.archives import open_archive
from genmodels.data.examples import (
    Examples,
    Files,
    files_of_archive,
    laid_out,
    named_by,
    of_arrays,
    read_idx,
    read_npz,
    with_held_out,
)
from genmodels.data.images import decoded
from genmodels.errors import DataError

PHOTO_SIDE, PHOTO_TILE = 64, 80
DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
DIGITS = tuple("0123456789")
POINTS = {"train": 100_000, "test": 10_000}
RING = tuple(f"{degrees} degrees" for degrees in range(0, 360, 45))
GRID = tuple(f"{x} right, {y} up" for y in range(-4, 5, 2) for x in range(-4, 5, 2))
STACKS = {"train": 50_000, "test": 26_000}  # 26 for each number, as usual where modes are counted
NUMBERS = tuple(f"{number:03}" for number in range(1_000))
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def digits(files: Mapping[str, Path]) -> Examples:
    """Rows of 64 values of 0 to 16 and the class, as scikit-learn carries them."""
    rows = np.loadtxt(_sklearn_file("data/digits.csv.gz"), delimiter=",")
    images = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return of_arrays({"train": (images, rows[:, -1])}, DIGITS)


def stacked_digits(files: Mapping[str, Path]) -> Examples:
    """Three of scikit-learn's digits, each drawn by itself, as the channels of an image, and the number that they are,
    the hundreds first. Stacks for training are of training digits only, those held out of held-out digits."""
    singles = with_held_out(digits(files))
    tables = {}
    for table, count in STACKS.items():
        found = [(single.content, single.label) for single in singles.read() if single.table == table]
        images, labels = (np.stack(column) for column in zip(*found, strict=True))
        rows = np.random.default_rng(0).integers(len(found), size=(count, 3))
        tables[table] = images[rows].transpose(0, 2, 3, 1), labels[rows] @ (100, 10, 1)
    return of_arrays(tables, NUMBERS)


def photos(files: Mapping[str, Path]) -> Examples:
    """Seeded square crops of two photographs. Each is cut into tiles, of which the more varied half is kept: sky or
    shadow alone has no contrast, and its colour does not pass an instance norm. Every fourth in order of contrast is
    held out, so that training and held-out crops share no pixel and are yet of the same things."""
    tables = {}
    for domain, name in (("a", "china.jpg"), ("b", "flower.jpg")):
        photo = decoded(_sklearn_file(f"images/{name}").read_bytes())
        places = PHOTO_TILE * np.array(list(np.ndindex(photo.height // PHOTO_TILE, photo.width // PHOTO_TILE)))
        tiles = [photo.crop((left, top, left + PHOTO_TILE, top + PHOTO_TILE)) for top, left in places.tolist()]
        tiles = sorted(tiles, key=lambda tile: np.asarray(tile).std(), reverse=True)[: len(tiles) // 2]
        held_out = tiles[2::4]
        del tiles[2::4]
        generator = np.random.default_rng(ord(domain))
        tables[f"train_{domain}"] = _crops(tiles, 400, generator), None
        tables[f"test_{domain}"] = _crops(held_out, 64, generator), None
    return of_arrays(tables)


def drawn_sprites(files: Mapping[str, Path]) -> Examples:
    """The shape, whose values have no order, is the class."""
    images, factors = sprites.sprites()
    return of_arrays({"train": (images, factors.pop("shape"))}, sprites.SHAPES, factors)


def dsprites(files: Mapping[str, Path]) -> Examples:
    """All combinations of the factors. As in `sprites`, the shape is the class."""
    images, values = read_npz(files[DSPRITES], ["imgs", "latents_classes"], DSPRITES)
    if images.ndim != 3 or values.shape != (len(images), len(sprites.SIZES)) or images.max(initial=0) > 1:
        raise DataError(
            f"{DSPRITES} holds images {images.shape} and factors {values.shape}, where black-and-white images "
            f"(N, H, W) and {len(sprites.SIZES)} factors of each are expected; fetch it again."
        )
    factors = dict(zip(sprites.SIZES, values.T, strict=True))
    return of_arrays({"train": (images * np.uint8(255), factors.pop("shape"))}, sprites.SHAPES, factors)


def gaussians_on_a_ring(files: Mapping[str, Path]) -> Examples:
    """Eight on a ring of radius 1, of deviation 0.01."""
    angles = np.linspace(0, 2 * np.pi, len(RING), endpoint=False)
    return _mixture(np.stack((np.cos(angles), np.sin(angles)), axis=1), 0.01, RING)


def gaussians_on_a_grid(files: Mapping[str, Path]) -> Examples:
    """25 on a grid from -4 to 4, of deviation 0.05."""
    side = np.arange(-4, 5, 2)
    return _mixture(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), 0.05, GRID)


def _mixture(centres: np.ndarray, deviation: float, class_names: Sequence[str]) -> Examples:
    """Points of equally likely Gaussians, always the same, as images of one pixel with two channels; the largest
    coordinate of a centre becomes 0.8, so that points lie in [-1, 1] and tanh reaches them."""
    generator, scale = np.random.default_rng(0), 0.8 / centres.max()
    tables = {}
    for table, count in POINTS.items():
        labels = generator.integers(len(centres), size=count)
        points = scale * (centres[labels] + deviation * generator.normal(size=(count, 2)))
        tables[table] = points.astype(np.float32).reshape(count, 1, 1, 2), labels
    return of_arrays(tables, class_names)


def _sklearn_file(name: str) -> Path:
    """A data file of scikit-learn's, found without importing it, which takes seconds."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets" / name


def _crops(tiles: Sequence[Image.Image], count: int, generator: np.random.Generator) -> np.ndarray:
    crops = []
    for index in range(count):
        side = int(generator.integers(PHOTO_SIDE, PHOTO_TILE, endpoint=True))
        left, top = (int(room) for room in generator.integers(0, PHOTO_TILE - side, 2, endpoint=True))
        box, tile = (left, top, left + side, top + side), tiles[index % len(tiles)]
        crops.append(np.asarray(tile.resize((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.BICUBIC, box=box)))
    return np.stack(crops)


def idx(class_names: Sequence[str]) -> Callable[[Mapping[str, Path]], Examples]:
    """A reader of MNIST's four idx files."""

    def read(files: Mapping[str, Path]) -> Examples:
        tables = {}
        for table, (image_file, label_file) in {"train": IDX_FILES[:2], "test": IDX_FILES[2:]}.items():
            images, labels = read_idx(files[image_file], image_file), read_idx(files[label_file], label_file)
            if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
                raise DataError(f"{image_file} and {label_file} do not fit: shapes {images.shape} and {labels.shape}.")
            if labels.size and labels.max() >= len(class_names):
                raise DataError(f"{label_file} has a label {labels.max()}; there are {len(class_names)} classes.")
            tables[table] = images, labels
        return of_arrays(tables, class_names)

    return read


def cifar10(files: Mapping[str, Path]) -> Examples:
    """The binary version: records of one label byte and 3 × 32 × 32 bytes, channels first."""
    archive = open_archive(files["cifar-10-binary.tar.gz"], "cifar10/cifar-10-binary.tar.gz")
    batches: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for name, data in archive.read([n for n in archive.names if n.endswith(".bin")]):
        if not data or len(data) % 3073:
            raise DataError(f"{name} of cifar10 has {len(data):,} bytes, no multiple of 3,073; fetch it again.")
        records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
        batches["test" if "test" in name else "train"].append(records)
    if not all(batches.values()):
        raise DataError("cifar-10-binary.tar.gz lacks its training or its test batches; fetch it again.")
    tables = {}
    for table, parts in batches.items():
        records = np.concatenate(parts)
        tables[table] = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]
    return of_arrays(tables, CIFAR10)


def two_domains(name: str) -> Callable[[Mapping[str, Path]], Examples]:
    """A reader of NAME.zip with folders trainA, trainB, testA and testB (Zhu et al. 2017)."""
    return lambda files: laid_out(files_of_archive(files[f"{name}.zip"], f"{name}/{name}.zip"))


def utkface(files: Mapping[str, Path]) -> Examples:
    """Names are <age>_<sex>_<group>_<time>; three of the public set's lack a part and have no label."""

    def sex(name: str) -> int | None:
        parts = name.split("_")
        return int(parts[1]) if len(parts) == 4 and parts[1] in {"0", "1"} else None

    return named_by(files_of_archive(files["UTKFace.tar.gz"], "utkface/UTKFace.tar.gz"), sex, ("male", "female"))


def celeba(files: Mapping[str, Path]) -> Examples:
    """The archive of aligned and cropped faces."""
    return laid_out(files_of_archive(files["img_align_celeba.zip"], "celeba/img_align_celeba.zip"))


def celeba_hq(files: Mapping[str, Path]) -> Examples:
    """The faces of CelebAMask-HQ, whose masks are left alone."""
    inside = "CelebA-HQ-img/"
    masks_too = files_of_archive(files["CelebAMask-HQ.zip"], "celeba_hq/CelebAMask-HQ.zip")
    return named_by(
        Files(masks_too.title, [n for n in masks_too.names if n.startswith(inside)], masks_too.read), lambda _: None, ()
    )
