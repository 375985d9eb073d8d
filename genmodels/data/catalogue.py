"""The data sets that can be asked for by name, and the two that every user has: folder:PATH and s3://bucket/prefix."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genmodels.data import sprites
from genmodels.data.archives import check_name, open_archive
from genmodels.data.download import BytesDone, RemoteFile, fetch, locate
from genmodels.data.examples import (
    Examples,
    Files,
    files_of_archive,
    files_of_folder,
    laid_out,
    layout,
    named_by,
    of_arrays,
    read_idx,
    read_npz,
    with_held_out,
)
from genmodels.data.images import decoded
from genmodels.errors import DataError, SpecError, unknown
from genmodels.settings import settings
from genmodels.storage.files import new_folder
from genmodels.storage.objects import ObjectStore, split_uri

TRANSFERS = 16
PHOTO_SIDE, PHOTO_TILE = 64, 106
DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """A data set: where it comes from, what may be done with it, and how its files become examples.

    `resolution` is the one to take unless another is asked for; `counts` are the published ones, by table.
    """

    name: str
    title: str
    licence: str
    resolution: int
    channels: int
    read: Callable[[Mapping[str, Path]], Examples]
    unpaired: bool = False
    class_names: tuple[str, ...] = ()
    files: tuple[RemoteFile, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    how_to_get: str = ""

    @property
    def classes(self) -> int:
        """Classes of its labels; 0 if it has none."""
        return len(self.class_names)

    @property
    def kind(self) -> str:
        """images, or unpaired for two domains of images."""
        return "unpaired" if self.unpaired else "images"

    def identity(self, progress: BytesDone) -> Any:
        """What tells one state of the source from another, as JSON; raises as `fetch` does."""
        located = locate(self.name, self.files, self.how_to_get)
        return [[file.name, file.sha256 or fetch(file, progress)[1]] for file in located]

    @contextmanager
    def examples(self, progress: BytesDone) -> Iterator[Examples]:
        """The examples, training and held-out; raises DataError if they are not what they should be."""
        located = locate(self.name, self.files, self.how_to_get)
        yield with_held_out(self.read({file.name: fetch(file, progress)[0] for file in located}))


@dataclass(frozen=True, kw_only=True)
class FolderEntry(CatalogueEntry):
    """Images in a folder of this machine."""

    path: Path

    def identity(self, progress: BytesDone) -> Any:
        """Names, sizes and times of the files."""
        names = sorted(name for name in files_of_folder(self.path).names if not name.endswith("/"))
        states = [(self.path / name).stat() for name in names]
        return [[name, s.st_size, s.st_mtime_ns] for name, s in zip(names, states, strict=True)]


@dataclass(frozen=True, kw_only=True)
class BucketEntry(CatalogueEntry):
    """Images under a prefix of a bucket; they are copied to this node while they are read."""

    bucket: ObjectStore
    prefix: str

    def identity(self, progress: BytesDone) -> Any:
        """Names, sizes and times of the objects."""
        return [[name, size, modified] for name, size, modified in _objects(self.bucket, self.prefix)]

    @contextmanager
    def examples(self, progress: BytesDone) -> Iterator[Examples]:
        """The examples, training and held-out; raises DataError if they are not what they should be."""
        objects = _objects(self.bucket, self.prefix)
        total = sum(size for _, size, _ in objects)
        with new_folder(settings().cache / "sources" / "copy") as folder:
            with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="source") as copies:
                done = 0
                sizes = copies.map(lambda o: self._copy(o[0], o[1], folder), objects)
                for size in sizes:
                    progress(done := done + size, total)
            yield with_held_out(laid_out(files_of_folder(folder)._replace(title=self.name)))

    def _copy(self, name: str, size: int, folder: Path) -> int:
        self.bucket.download(self.prefix + name, folder / name)
        return size


def find(dataset: str) -> CatalogueEntry:
    """The entry of a name, of folder:PATH, or of s3://bucket/prefix.

    Raises:
        SpecError: for an unknown name or a folder that is not there.
        DataError: for a folder or prefix that holds no images or an unfit layout.
    """
    if dataset.startswith("folder:"):
        return _folder(dataset.removeprefix("folder:"))
    if dataset.startswith("s3://"):
        return _bucket(dataset)
    if dataset not in CATALOGUE:
        raise unknown("data set", dataset, [*CATALOGUE, "folder:PATH", "s3://BUCKET/PREFIX"])
    return CATALOGUE[dataset]


def _folder(text: str) -> FolderEntry:
    path = Path(text).expanduser()
    if not text or not path.is_dir():
        raise SpecError(f"There is no folder {text!r} on this machine; give the path of one that holds images.")
    files = files_of_folder(path.resolve())
    found = layout(files.title, files.names)
    return FolderEntry(
        name=files.title,
        title=f"images of {path}",
        licence="unknown (your own files)",
        resolution=64,
        channels=3,
        read=lambda _: laid_out(files_of_folder(path.resolve())),
        unpaired=found.unpaired,
        class_names=found.class_names,
        path=path.resolve(),
    )


def _bucket(uri: str) -> BucketEntry:
    bucket, prefix = split_uri(uri)
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    objects = ObjectStore(settings().model_copy(update={"bucket": bucket}))
    found = layout(uri, [name for name, _, _ in _objects(objects, prefix)])
    return BucketEntry(
        name=uri,
        title=f"images of {uri}",
        licence="unknown (your own files)",
        resolution=64,
        channels=3,
        read=lambda _: of_arrays({}),
        unpaired=found.unpaired,
        class_names=found.class_names,
        bucket=objects,
        prefix=prefix,
    )


def _objects(bucket: ObjectStore, prefix: str) -> list[tuple[str, int, str]]:
    """Name below the prefix, size and time of each object, hidden ones apart."""
    objects = []
    for entry in bucket.list(prefix):
        name = entry.key.removeprefix(prefix)
        if name and not name.endswith("/") and not any(part.startswith(".") for part in name.split("/")):
            check_name(name, bucket.uri(prefix))
            objects.append((name, entry.size, entry.modified.isoformat()))
    return objects


def _digits(files: Mapping[str, Path]) -> Examples:
    rows = np.loadtxt(_sklearn_file("data/digits.csv.gz"), delimiter=",")
    images = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return of_arrays({"train": (images, rows[:, -1])}, _DIGITS)


def _photos(files: Mapping[str, Path]) -> Examples:
    """Seeded square crops of two photographs. Each is cut into tiles, of which every fourth in a chequered pattern is
    held out, so that training and held-out crops share no pixel and are yet of the same things."""
    tables = {}
    for domain, name in (("a", "china.jpg"), ("b", "flower.jpg")):
        photo = decoded(_sklearn_file(f"images/{name}").read_bytes())
        tiles: dict[bool, list[Image.Image]] = {False: [], True: []}
        for row, column in np.ndindex(photo.height // PHOTO_TILE, photo.width // PHOTO_TILE):
            left, top = column * PHOTO_TILE, row * PHOTO_TILE
            tile = photo.crop((left, top, left + PHOTO_TILE, top + PHOTO_TILE))
            tiles[(column + 2 * row) % 4 == 0].append(tile)
        generator = np.random.default_rng(ord(domain))
        tables[f"train_{domain}"] = _crops(tiles[False], 400, generator), None
        tables[f"test_{domain}"] = _crops(tiles[True], 64, generator), None
    return of_arrays(tables)


def _sprites(files: Mapping[str, Path]) -> Examples:
    """The shape, whose values have no order, is the class."""
    images, factors = sprites.sprites()
    return of_arrays({"train": (images, factors.pop("shape"))}, sprites.SHAPES, factors)


def _dsprites(files: Mapping[str, Path]) -> Examples:
    """All combinations of the factors. As in `sprites`, the shape is the class."""
    images, values = read_npz(files[DSPRITES], ["imgs", "latents_classes"], DSPRITES)
    if images.ndim != 3 or values.shape != (len(images), len(sprites.SIZES)) or images.max(initial=0) > 1:
        raise DataError(
            f"{DSPRITES} holds images {images.shape} and factors {values.shape}, where black-and-white images "
            f"(N, H, W) and {len(sprites.SIZES)} factors of each are expected; fetch it again."
        )
    factors = dict(zip(sprites.SIZES, values.T, strict=True))
    return of_arrays({"train": (images * np.uint8(255), factors.pop("shape"))}, sprites.SHAPES, factors)


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


def _idx(class_names: Sequence[str]) -> Callable[[Mapping[str, Path]], Examples]:
    def read(files: Mapping[str, Path]) -> Examples:
        tables = {}
        for table, (image_file, label_file) in {"train": IDX_FILES[:2], "test": IDX_FILES[2:]}.items():
            images, labels = read_idx(files[image_file], image_file), read_idx(files[label_file], label_file)
            if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
                raise DataError(f"{image_file} and {label_file} do not fit: shapes {images.shape} and {labels.shape}.")
            if labels.size and labels.max() >= len(class_names):
                raise DataError(f"{label_file} has a label {labels.max()}; there are {len(class_names)} classes.")
            tables[table] = np.pad(images, ((0, 0), (2, 2), (2, 2))), labels
        return of_arrays(tables, class_names)

    return read


def _cifar10(files: Mapping[str, Path]) -> Examples:
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
    return of_arrays(tables, _CIFAR10)


def _cyclegan(name: str) -> Callable[[Mapping[str, Path]], Examples]:
    return lambda files: laid_out(files_of_archive(files[f"{name}.zip"], f"{name}/{name}.zip"))


def _utkface(files: Mapping[str, Path]) -> Examples:
    """Names are <age>_<sex>_<group>_<time>; three of the public set's lack a part and have no label."""

    def sex(name: str) -> int | None:
        parts = name.split("_")
        return int(parts[1]) if len(parts) == 4 and parts[1] in {"0", "1"} else None

    return named_by(files_of_archive(files["UTKFace.tar.gz"], "utkface/UTKFace.tar.gz"), sex, ("male", "female"))


def _celeba(files: Mapping[str, Path]) -> Examples:
    return laid_out(files_of_archive(files["img_align_celeba.zip"], "celeba/img_align_celeba.zip"))


def _celeba_hq(files: Mapping[str, Path]) -> Examples:
    inside = "CelebA-HQ-img/"
    masks_too = files_of_archive(files["CelebAMask-HQ.zip"], "celeba_hq/CelebAMask-HQ.zip")
    return named_by(
        Files(masks_too.title, [n for n in masks_too.names if n.startswith(inside)], masks_too.read), lambda _: None, ()
    )


def _two_domains(
    name: str, title: str, counts: tuple[int, ...], sha256: str | None, licence: str = "not stated; research use"
) -> CatalogueEntry:
    """A set of Zhu et al. 2017; `counts` of trainA, trainB, testA, testB."""
    bases = (
        "https://people.eecs.berkeley.edu/~taesung_park/CycleGAN/datasets",
        "http://efrosgans.eecs.berkeley.edu/cyclegan/datasets",
    )
    return CatalogueEntry(
        name=name,
        title=title,
        licence=licence,
        resolution=128,
        channels=3,
        read=_cyclegan(name),
        unpaired=True,
        files=(RemoteFile(name=f"{name}.zip", urls=tuple(f"{base}/{name}.zip" for base in bases), sha256=sha256),),
        counts=dict(zip(("train_a", "train_b", "test_a", "test_b"), counts, strict=False)),
    )


def _idx_files(bases: Sequence[str], sums: Sequence[str]) -> tuple[RemoteFile, ...]:
    return tuple(
        RemoteFile(name=name, urls=tuple(f"{base}/{name}" for base in bases), sha256=sha256)
        for name, sha256 in zip(IDX_FILES, sums, strict=True)
    )


def _by_hand(name: str, file: str, source: str) -> str:
    return (
        f"{name} has no address to download from: {source}; put it at GENMODELS_MIRROR/{name.replace('_', '-')}/{file} "
        "(file:///FOLDER is a mirror too), or unpack it and use folder:PATH."
    )


_DIGITS = tuple("0123456789")
_FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

CATALOGUE: dict[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            name="digits",
            title="handwritten digits, 8×8, from scikit-learn (UCI optical recognition, Alpaydin & Kaynak 1998)",
            licence="CC BY 4.0",
            resolution=8,
            channels=1,
            read=_digits,
            class_names=_DIGITS,
            counts={"train": 1617, "test": 180},
        ),
        CatalogueEntry(
            name="photos",
            title="crops of scikit-learn's two photographs: a temple (a) and a flower (b)",
            licence="CC BY 2.0",
            resolution=32,
            channels=3,
            read=_photos,
            unpaired=True,
            counts={"train_a": 400, "train_b": 400, "test_a": 64, "test_b": 64},
        ),
        CatalogueEntry(
            name="sprites",
            title="shapes of six known factors, drawn here as dSprites are (Matthey et al. 2017)",
            licence="CC0 1.0",
            resolution=sprites.SIDE,
            channels=1,
            read=_sprites,
            class_names=sprites.SHAPES,
            counts={"train": 18_000, "test": 2_000},
        ),
        CatalogueEntry(
            name="dsprites",
            title="dSprites, shapes of six known factors, all combinations (Matthey et al. 2017)",
            licence="Apache 2.0",
            resolution=sprites.SIDE,
            channels=1,
            read=_dsprites,
            class_names=sprites.SHAPES,
            files=(
                RemoteFile(
                    name=DSPRITES,
                    urls=(f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{DSPRITES}",),
                ),
            ),
            counts={"all": 737_280},
        ),
        CatalogueEntry(
            name="mnist",
            title="MNIST handwritten digits, 28×28 padded to 32×32 (LeCun et al. 1998)",
            licence="CC BY-SA 3.0",
            resolution=32,
            channels=1,
            read=_idx(_DIGITS),
            class_names=_DIGITS,
            files=_idx_files(
                (
                    "https://ossci-datasets.s3.amazonaws.com/mnist",
                    "https://storage.googleapis.com/cvdf-datasets/mnist",
                ),
                (
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                ),
            ),
            counts={"train": 60_000, "test": 10_000},
        ),
        CatalogueEntry(
            name="fashion_mnist",
            title="Fashion-MNIST, 28×28 padded to 32×32 (Xiao et al. 2017)",
            licence="MIT",
            resolution=32,
            channels=1,
            read=_idx(_FASHION),
            class_names=_FASHION,
            files=_idx_files(
                (
                    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
                    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
                ),
                (
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                ),
            ),
            counts={"train": 60_000, "test": 10_000},
        ),
        CatalogueEntry(
            name="cifar10",
            title="CIFAR-10, 32×32 colour images of ten classes (Krizhevsky 2009)",
            licence="not stated; research use",
            resolution=32,
            channels=3,
            read=_cifar10,
            class_names=_CIFAR10,
            files=(
                RemoteFile(
                    name="cifar-10-binary.tar.gz",
                    urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
                    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                ),
            ),
            counts={"train": 50_000, "test": 10_000},
        ),
        _two_domains(
            "horse2zebra",
            "horses (a) and zebras (b)",
            (1067, 1334, 120, 140),
            "a74d9d392eecca9966b51287a76ca126af473d9de4f3e8fc0e9cda08fa1730a1",
        ),
        _two_domains(
            "apple2orange",
            "apples (a) and oranges (b)",
            (995, 1019, 266, 248),
            "845a191e9af8926408ea597001cd03a452e3300a1f44a79fe329b3d59f6e3eb8",
        ),
        _two_domains(
            "summer2winter_yosemite",
            "Yosemite in summer (a) and in winter (b)",
            (1231, 962, 309, 238),
            "167fe1726807a9d22bd106b4a6c0bd7953b688af924ac1bf967439c4961e49f9",
        ),
        _two_domains(
            "monet2photo",
            "paintings by Monet (a) and photographs of landscapes (b)",
            (1072, 6287, 121, 751),
            "88f91b00fc228f97c9411fbf1880ec1d119c98f1722e4cfcfaa2fb35fac05b04",
        ),
        _two_domains(
            "cezanne2photo",
            "paintings by Cézanne (a) and photographs of landscapes (b)",
            (525, 6287, 58, 751),
            "3a6c10ca21f9485862f1cbd707744b9dc258954a04631271d23a3605eeb63cff",
        ),
        _two_domains(
            "ukiyoe2photo",
            "ukiyo-e prints (a) and photographs of landscapes (b)",
            (562, 6287, 263, 751),
            "02a2a2fb5ecf425ca1bf86aca7304377da64a2a1d3b86df54eb65e4068bf3b08",
        ),
        _two_domains(
            "vangogh2photo",
            "paintings by Van Gogh (a) and photographs of landscapes (b)",
            (400, 6287, 400, 751),
            "362c3473e70be0944bda08d49d660eafdc2854df55d697835b8186d1d79caaff",
        ),
        _two_domains(
            "maps",
            "aerial photographs (a) and maps (b) of the same places",
            (1096, 1096, 1098, 1098),
            "639534f69dbf9f36bef8d6292a7698006361221f83f0285d7c9ca78afe6e8a9e",
        ),
        _two_domains(
            "facades",
            "facades (a) and their label maps (b)",
            (400, 400, 106, 106),
            "9a31ebf3a31b9b5cd195dd5bf62e9308e00cb94604d1019e3889ac84248695c0",
        ),
        _two_domains(
            "iphone2dslr_flower",
            "flowers by telephone (a) and by reflex camera (b)",
            (1812, 3325, 569, 480),
            "8fcb5e374d631b107e1d961b8c4cd0a186aa2a4ff3e279923f4c426128de7113",
        ),
        _two_domains("ae_photos", "photographs, for artistic enhancement", (), None),
        CatalogueEntry(
            name="cityscapes",
            title="street scenes: label maps (a) and photographs (b), in CycleGAN's form (Cordts et al. 2016)",
            licence="Cityscapes licence: non-commercial, no redistribution",
            resolution=128,
            channels=3,
            read=_cyclegan("cityscapes"),
            unpaired=True,
            files=(RemoteFile(name="cityscapes.zip"),),
            counts={"train_a": 2975, "train_b": 2975, "test_a": 500, "test_b": 500},
            how_to_get=_by_hand(
                "cityscapes",
                "cityscapes.zip",
                "get gtFine and leftImg8bit from https://www.cityscapes-dataset.com and pack colour label maps as "
                "trainA and testA, photographs as trainB and testB into cityscapes.zip",
            ),
        ),
        CatalogueEntry(
            name="utkface",
            title="UTKFace, aligned and cropped faces with sex (Zhang et al. 2017)",
            licence="non-commercial research only",
            resolution=64,
            channels=3,
            read=_utkface,
            class_names=("male", "female"),
            files=(RemoteFile(name="UTKFace.tar.gz"),),
            counts={"all": 23_708},
            how_to_get=_by_hand(
                "utkface",
                "UTKFace.tar.gz",
                "get UTKFace.tar.gz (aligned and cropped faces) by way of https://susanqq.github.io/UTKFace",
            ),
        ),
        CatalogueEntry(
            name="celeba",
            title="CelebA, aligned and cropped faces (Liu et al. 2015)",
            licence="non-commercial research only, no redistribution",
            resolution=64,
            channels=3,
            read=_celeba,
            files=(
                RemoteFile(
                    name="img_align_celeba.zip",
                    sha256="46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74",
                ),
            ),
            counts={"all": 202_599},
            how_to_get=_by_hand(
                "celeba",
                "img_align_celeba.zip",
                "get img_align_celeba.zip by way of https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
            ),
        ),
        CatalogueEntry(
            name="celeba_hq",
            title="CelebA-HQ, 30,000 faces at 1024×1024, in CelebAMask-HQ's form (Karras et al. 2018)",
            licence="non-commercial research only, no redistribution",
            resolution=256,
            channels=3,
            read=_celeba_hq,
            files=(RemoteFile(name="CelebAMask-HQ.zip"),),
            counts={"all": 30_000},
            how_to_get=_by_hand(
                "celeba_hq",
                "CelebAMask-HQ.zip",
                "get CelebAMask-HQ.zip by way of https://github.com/switchablenorms/CelebAMask-HQ",
            ),
        ),
    )
}
