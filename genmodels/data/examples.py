"""Examples as their source holds them, and the layouts of files that become tables and labels."""

import gzip
import hashlib
import math
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from genmodels.data.archives import UNREADABLE, open_archive, read_gzip
from genmodels.data.images import SUFFIXES, Content
from genmodels.errors import DataError

HELD_OUT = 0.1
MAX_NPY_BYTES = 4 << 30
TABLE_OF_FOLDER = {"trainA": "train_a", "trainB": "train_b", "testA": "test_a", "testB": "test_b"}


class Example(NamedTuple):
    """One input image: where it belongs and what it is, with the values of the factors it was made from if it was."""

    name: str
    table: str
    label: int | None
    content: Content
    factors: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Examples:
    """All examples of a source, which can be gone through more than once, always in the same order."""

    count: int
    tables: frozenset[str]
    encoded: bool
    class_names: tuple[str, ...]
    read: Callable[[], Iterator[Example]]


class Files(NamedTuple):
    """Named files that can be read in one go; a name ending in / is an empty folder."""

    title: str
    names: list[str]
    read: Callable[[Collection[str]], Iterator[tuple[str, bytes]]]


class Layout(NamedTuple):
    """What the folders of a set of images mean: table and label by name of the image."""

    unpaired: bool
    class_names: tuple[str, ...]
    places: dict[str, tuple[str, int | None]]


def files_of_folder(path: Path) -> Files:
    """The files under a folder, hidden ones apart."""

    def read(names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for name in names:
            with readable(path / name):
                content = (path / name).read_bytes()
            yield name, content

    names = []
    for entry in path.rglob("*"):
        relative = entry.relative_to(path)
        if not any(part.startswith(".") for part in relative.parts):
            with readable(entry):
                names.append(f"{relative.as_posix()}/" if entry.is_dir() else relative.as_posix())
    return Files(title=f"folder:{path}", names=names, read=read)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises DataError that names the file of a folder if it cannot be looked at or read."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"The file {path} cannot be read ({error.strerror or error}); "
            "make it readable, or remove it if it is a link to nothing."
        ) from error


def files_of_archive(path: Path, title: str) -> Files:
    """The files in an archive, without the one folder that they all lie in."""
    archive = open_archive(path, title)
    tops = {name.split("/")[0] for name in archive.names}
    inside = f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in archive.names) else ""

    def read(names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        return ((name[len(inside) :], data) for name, data in archive.read([inside + name for name in names]))

    return Files(title=title, names=[name[len(inside) :] for name in archive.names], read=read)


def layout(title: str, names: Iterable[str]) -> Layout:
    """Reads the layout off the names: images at the top, one sub-folder per class, or trainA and trainB and perhaps
    testA and testB. Raises DataError where it is none of these."""
    names = sorted(names)
    images = [n for n in names if PurePosixPath(n).suffix.lower() in SUFFIXES]
    if not images:
        raise DataError(f"{title} holds no images; expected files ending in {', '.join(sorted(SUFFIXES))}.")
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    if TABLE_OF_FOLDER.keys() & set(folders):
        return _two_domains(title, images)
    loose = [name for name in images if "/" not in name]
    if len(loose) == len(images):
        return Layout(unpaired=False, class_names=(), places=dict.fromkeys(images, ("train", None)))
    if loose:
        raise DataError(
            f"{title} holds images both directly (such as {loose[0]!r}) and in sub-folders; either put all of them "
            "directly into it or all into one sub-folder per class."
        )
    counts = {folder: sum(name.startswith(f"{folder}/") for name in images) for folder in folders}
    for folder, count in counts.items():
        if count == 0:
            raise DataError(f"The class {folder!r} of {title} has no images; add some or remove the folder.")
    if len(folders) == 1:
        raise DataError(
            f"{title} has one class only ({folders[0]!r}); add a sub-folder for another class, or put the images "
            "directly into it."
        )
    labels = {folder: label for label, folder in enumerate(folders)}
    places: dict[str, tuple[str, int | None]] = {name: ("train", labels[name.split("/")[0]]) for name in images}
    return Layout(unpaired=False, class_names=tuple(folders), places=places)


def laid_out(files: Files) -> Examples:
    """The images among the files, with the tables and labels that their folders give them."""
    found = layout(files.title, files.names)

    def read() -> Iterator[Example]:
        for name, data in files.read(list(found.places)):
            yield Example(name, *found.places[name], data)

    tables = frozenset(table for table, _ in found.places.values())
    return Examples(len(found.places), tables, encoded=True, class_names=found.class_names, read=read)


def named_by(files: Files, label: Callable[[str], int | None], class_names: Sequence[str]) -> Examples:
    """The images among the files, with the labels that their names give them; all are training examples."""
    names = sorted(name for name in files.names if PurePosixPath(name).suffix.lower() in SUFFIXES)

    def read() -> Iterator[Example]:
        return (Example(name, "train", label(name), data) for name, data in files.read(names))

    return Examples(len(names), frozenset({"train"}), encoded=True, class_names=tuple(class_names), read=read)


def of_arrays(
    tables: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
    class_names: Sequence[str] = (),
    factors: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Examples:
    """Decoded images, (N, H, W) or (N, H, W, C), and their labels, by table; and by name the factors that the
    images of the only table were made from, (N,) whole numbers from 0, in the order of what they stand for."""

    def read() -> Iterator[Example]:
        for table, (images, labels) in tables.items():
            for row, image in enumerate(images):
                label = None if labels is None else int(labels[row])
                values = {name: int(column[row]) for name, column in factors.items()}
                yield Example(f"{table} {row}", table, label, image, values)

    count = sum(len(images) for images, _ in tables.values())
    return Examples(count, frozenset(tables), encoded=False, class_names=tuple(class_names), read=read)


def with_held_out(examples: Examples) -> Examples:
    """The same with a tenth of each training table moved to a test table, if it has no test examples.

    Which tenth is decided by the SHA-256 of the content: it does not depend on names or order, and equal images
    stay on the same side. An image with so many copies that more than half would be held out is passed over.
    """
    if any(table.startswith("test") for table in examples.tables):
        return examples
    hashes: dict[str, list[bytes]] = {table: [] for table in examples.tables}
    for example in examples.read():
        hashes[example.table].append(_sha256(example.content))
    held_out = {}
    for table, values in hashes.items():
        copies = Counter(values)
        if len(copies) < 2:
            raise DataError(f"{table} has {len(copies)} different images; the least is two, one of them to hold out.")
        held_out[table] = _lowest(copies, max(1, round(HELD_OUT * len(values))), len(values) // 2)

    def read() -> Iterator[Example]:
        for example in examples.read():
            moves = _sha256(example.content) in held_out[example.table]
            yield example._replace(table=example.table.replace("train", "test")) if moves else example

    tables = examples.tables | {table.replace("train", "test") for table in examples.tables}
    return replace(examples, tables=tables, read=read)


def _lowest(copies: Mapping[bytes, int], count: int, most: int) -> set[bytes]:
    """The lowest hashes, of at least `count` images with their copies, without any that makes them more than `most`."""
    chosen: set[bytes] = set()
    images = 0
    for value in sorted(copies):
        if images >= count:
            break
        if images + copies[value] <= most:
            chosen.add(value)
            images += copies[value]
    return chosen


def read_npz(path: Path, names: Sequence[str], title: str) -> list[np.ndarray]:
    """The named arrays of a .npz file. What else is in it, such as pickled objects, is not looked at.

    Raises DataError if one is missing, is not of plain numbers, or is not as large as its header says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [_npy(archive, f"{name}.npy") for name in names]
    except (*UNREADABLE, KeyError) as error:
        raise DataError(f"{title} cannot be read as arrays {', '.join(names)} ({error}); fetch it again.") from error


def _npy(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    size = archive.getinfo(name).file_size
    with archive.open(name) as file:
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = header[np.lib.format.read_magic(file)](file)
        if dtype.kind not in "iu" or by_columns or file.tell() + math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{name} is no array of whole numbers, or truncated")
        if size > MAX_NPY_BYTES:
            raise ValueError(f"{name} has {size:,} bytes, more than the {MAX_NPY_BYTES:,} that are allowed")
        return np.frombuffer(file.read(), dtype).reshape(shape)


def read_idx(path: Path, title: str) -> np.ndarray:
    """A gzipped idx file of bytes (LeCun's MNIST format): magic 0x0800 + dimensions, sizes, data, all big-endian."""
    with gzip.open(path) as file:
        try:
            header = file.read(4)
            dimensions = header[3] if len(header) == 4 else 0
            if header[:3] != b"\0\0\x08" or not 1 <= dimensions <= 3:
                raise DataError(f"{title} is no idx file of bytes: it starts with {header.hex() or 'nothing'}.")
            shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
        except (OSError, EOFError, struct.error) as error:
            raise DataError(f"{title} is no gzipped idx file, or is truncated; fetch it again.") from error
    offset, size = 4 + 4 * dimensions, math.prod(shape)
    data = read_gzip(path, offset + min(size, 1 << 31), title)
    if len(data) != offset + size:
        raise DataError(f"{title} holds {len(data) - offset:,} bytes of data; its header says {size:,}.")
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape)


def _two_domains(title: str, images: list[str]) -> Layout:
    places: dict[str, tuple[str, int | None]] = {}
    for name in images:
        if (folder := name.split("/")[0]) in TABLE_OF_FOLDER:
            places[name] = TABLE_OF_FOLDER[folder], None
    tables = {table for table, _ in places.values()}
    needed = {"train_a", "train_b"} | ({"test_a", "test_b"} if tables & {"test_a", "test_b"} else set())
    for folder, table in TABLE_OF_FOLDER.items():
        if table in needed - tables:
            raise DataError(
                f"{title} has no images in {folder}; two domains need trainA and trainB, or all four folders."
            )
    return Layout(unpaired=True, class_names=(), places=places)


def _sha256(content: Content) -> bytes:
    return hashlib.sha256(content if isinstance(content, bytes) else np.ascontiguousarray(content).data).digest()
