"""Reading zip and tar archives that may be hostile: members are read in memory, nothing is ever extracted.

An archive is refused as a whole when it holds what an honest one does not: names that leave their folder, links,
devices, encrypted or doubled members, or far more than its size explains.
"""

import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

from genmodels.errors import DataError

MAX_MEMBERS = 2_000_000
MAX_MEMBER_BYTES = 1 << 30
MAX_RATIO = 200  # of unpacked to packed bytes; images hardly shrink, the sparsest of our own archives by 6

UNREADABLE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, ValueError, NotImplementedError),
)


class Archive(Protocol):
    """A checked archive: the names of its files, and a way to read them."""

    names: list[str]

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Name and content of the named members, in the archive's own order."""
        ...


def open_archive(path: Path, title: str | None = None) -> Archive:
    """A zip or (gzipped) tar archive, by its content; raises DataError if it is neither, corrupt or hostile.

    `title` names it in errors, by default its path.
    """
    title = title or str(path)
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:2] == b"PK":
        return ZipArchive(path, title)
    return TarArchive(path, title, gzipped=start[:2] == b"\x1f\x8b")


def read_gzip(path: Path, max_bytes: int, title: str) -> bytes:
    """The content of a gzipped file; raises DataError if it is corrupt or larger than `max_bytes`."""
    with _readable(title), gzip.open(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise DataError(f"{title} unpacks to more than the {max_bytes:,} bytes it should hold; it may be a bomb.")
    return data


def check_name(name: str, title: str) -> None:
    """Raises DataError for a name that could lead out of its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or any(c in name for c in "\\\0") or name[1:2] == ":":
        raise DataError(f"{title} holds {name!r}, which leads outside its folder; it is refused.")


class ZipArchive:
    """A zip archive; its directory is checked before anything is unpacked."""

    def __init__(self, path: Path, title: str):
        self.title, self._path = title, path
        with _readable(title), zipfile.ZipFile(path) as file:
            members = [_checked_zip_member(info, title) for info in file.infolist()]
        _check_amount(title, len(members), sum(info.file_size for info in members), path.stat().st_size)
        self.names = [info.filename for info in members if not info.is_dir()]
        _check_unique(title, self.names)

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Name and content of the named members, in the archive's own order."""
        wanted = set(names)
        with _readable(self.title), zipfile.ZipFile(self._path) as file:
            for name in filter(wanted.__contains__, self.names):
                with _readable(f"{name} in {self.title}"):
                    content = file.read(name)
                yield name, content


class TarArchive:
    """A tar archive, read from front to back; opening it reads it once to check and count its members."""

    def __init__(self, path: Path, title: str, *, gzipped: bool):
        self.title, self._path, self._gzipped = title, path, gzipped
        self.names: list[str] = []
        with self._open() as file:
            for count, member in enumerate(file, start=1):
                _check_tar_member(member, title)
                _check_amount(title, count, 0, 1)
                if member.isreg():
                    self.names.append(member.name)
        _check_unique(title, self.names)

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Name and content of the named members, in the archive's own order."""
        wanted = set(names)
        with self._open() as file:
            for member in file:
                if member.name in wanted and (content := file.extractfile(member)) is not None:
                    data = content.read()
                    if len(data) != member.size:
                        raise EOFError
                    yield member.name, data

    @contextmanager
    def _open(self) -> Iterator[tarfile.TarFile]:
        with _readable(self.title), open(self._path, "rb") as packed:
            unpacked = gzip.GzipFile(fileobj=packed) if self._gzipped else packed
            limit = MAX_RATIO * self._path.stat().st_size if self._gzipped else None
            with tarfile.open(fileobj=_Bounded(unpacked, limit, self.title), mode="r:") as file:
                yield file


class _Bounded(io.RawIOBase):
    """A file that refuses to be read past `limit` bytes or in one piece too large: tarfile itself reads headers of
    any size into memory."""

    def __init__(self, file: gzip.GzipFile | io.BufferedReader, limit: int | None, title: str):
        self._file, self._limit, self._title = file, limit, title

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        self._check(self.tell() + size, size)
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check(offset, 0)
        return self._file.seek(offset, whence)

    def _check(self, end: int, size: int) -> None:
        if size < 0 or size > MAX_MEMBER_BYTES:
            raise DataError(f"{self._title} holds a member of {size:,} bytes; the most is {MAX_MEMBER_BYTES:,}.")
        if self._limit is not None and end > self._limit + (1 << 20):
            raise DataError(_too_dense(self._title))


def _checked_zip_member(info: zipfile.ZipInfo, title: str) -> zipfile.ZipInfo:
    check_name(info.filename, title)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise DataError(f"{title} holds a link or device, {info.filename!r}; it is refused.")
    if info.flag_bits & 1:
        raise DataError(f"{title} is encrypted ({info.filename!r}); unpack it and use folder:PATH.")
    if info.file_size > MAX_MEMBER_BYTES or info.file_size > MAX_RATIO * max(info.compress_size, 1 << 12):
        raise DataError(
            f"{title} holds {info.filename!r} of {info.file_size:,} bytes, packed into "
            f"{info.compress_size:,}; it may be a bomb and is refused."
        )
    return info


def _check_tar_member(member: tarfile.TarInfo, title: str) -> None:
    check_name(member.name, title)
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise DataError(f"{title} holds a link, device or sparse file, {member.name!r}; it is refused.")
    if member.size > MAX_MEMBER_BYTES:
        raise DataError(f"{title} holds {member.name!r} of {member.size:,} bytes; the most is {MAX_MEMBER_BYTES:,}.")


def _check_amount(title: str, members: int, unpacked: int, packed: int) -> None:
    if members > MAX_MEMBERS:
        raise DataError(f"{title} holds more than {MAX_MEMBERS:,} members; it is refused.")
    if unpacked > MAX_RATIO * packed + (1 << 20):
        raise DataError(_too_dense(title))


def _check_unique(title: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        doubled = next(name for i, name in enumerate(sorted(names)) if i and sorted(names)[i - 1] == name)
        raise DataError(f"{title} holds {doubled!r} twice; it is refused.")


def _too_dense(title: str) -> str:
    return f"{title} unpacks to more than {MAX_RATIO} times its size; it may be a bomb and is refused."


@contextmanager
def _readable(title: str) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise DataError(
            f"{title} cannot be read ({error or type(error).__name__}): it is corrupt, truncated or no zip or tar "
            "archive; fetch it again."
        ) from error
