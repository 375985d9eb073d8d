"""What a data set is to the rest: a name, what may be done with it, and how its files become examples."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genmodels.data.archives import check_name
from genmodels.data.download import BytesDone, RemoteFile, fetch, locate
from genmodels.data.examples import Examples, files_of_folder, laid_out, layout, of_arrays, readable, with_held_out
from genmodels.errors import SpecError
from genmodels.settings import settings
from genmodels.spec import is_points
from genmodels.storage.files import new_folder
from genmodels.storage.objects import ObjectStore, split_uri

TRANSFERS = 16


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """A data set: where it comes from, what may be done with it, and how its files become examples.

    `resolution` is the one to take unless another is asked for, `margin` how many black pixels each side of an image is
    given unless its own resolution is asked for; `counts` are the published ones, by table.
    """

    name: str
    title: str
    licence: str
    resolution: int
    channels: int
    read: Callable[[Mapping[str, Path]], Examples]
    unpaired: bool = False
    margin: int = 0
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
        """images, unpaired for two domains of images, or points, which are images of one pixel."""
        return "unpaired" if self.unpaired else "points" if is_points(self.resolution) else "images"

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
        """Names, sizes and times of the files; raises DataError for one that cannot be read."""
        names = sorted(name for name in files_of_folder(self.path).names if not name.endswith("/"))
        states = []
        for name in names:
            with readable(self.path / name):
                state = (self.path / name).stat()
            states.append([name, state.st_size, state.st_mtime_ns])
        return states


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


def folder_entry(text: str) -> FolderEntry:
    """The entry of a folder of images; raises SpecError if there is none, DataError if its layout is unfit."""
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


def bucket_entry(uri: str) -> BucketEntry:
    """The entry of s3://bucket/prefix; raises DataError if nothing fit is there."""
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
