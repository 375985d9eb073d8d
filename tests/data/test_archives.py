"""Hostile and broken archives are refused whole, by name, and nothing of them reaches the disk."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from genmodels.data import archives
from genmodels.data.archives import open_archive, read_gzip
from genmodels.errors import DataError

MEMBERS = {"set/a.jpg": b"first", "set/b/c.jpg": b"second" * 1000}


def zip_with(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def tar_with(path: Path, *members: tarfile.TarInfo | tuple[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                file.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(path: Path) -> Path:
    info = zipfile.ZipInfo("set/link.jpg")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(info, "/etc/passwd")
    return path


def zip_encrypted(path: Path) -> Path:
    zip_with(path, MEMBERS, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + offset] |= 1
    path.write_bytes(data)
    return path


def zip_twice(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("same.jpg", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("same.jpg", b"2")
    return path


def pax_bomb(path: Path) -> Path:
    """A header of 3 GiB of zeros, which tarfile would read into memory; 3 MiB of it are there."""
    info = tarfile.TarInfo("set/a.jpg")
    info.type, info.size = tarfile.XHDTYPE, 3 << 30
    path.write_bytes(gzip.compress(info.tobuf() + bytes(3 << 20)))
    return path


def file_with(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def truncated(path: Path, whole: Path) -> Path:
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    return path


NOISE = bytes(i * i % 251 for i in range(100_000))

HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zip out of its folder": (lambda p: zip_with(p, {"../../evil.jpg": b"x"}), "leads outside"),
    "zip to the root": (lambda p: zip_with(p, {"/etc/evil.jpg": b"x"}), "leads outside"),
    "zip to a drive": (lambda p: zip_with(p, {"C:evil.jpg": b"x"}), "leads outside"),
    "zip by backslashes": (lambda p: zip_with(p, {"a\\..\\evil.jpg": b"x"}), "leads outside"),
    "zip link": (zip_link, "link or device"),
    "zip encrypted": (zip_encrypted, "encrypted"),
    "zip doubled": (zip_twice, "twice"),
    "zip bomb": (lambda p: zip_with(p, {"zeros.jpg": bytes(50 << 20)}), "may be a bomb"),
    "zip of many small bombs": (
        lambda p: zip_with(p, {f"{i}.jpg": bytes(800_000) for i in range(30)}),
        "more than 200 times its size",
    ),
    "tar out of its folder": (lambda p: tar_with(p, ("../evil.jpg", b"x")), "leads outside"),
    "tar to the root": (lambda p: tar_with(p, ("/tmp/evil.jpg", b"x")), "leads outside"),
    "tar symbolic link": (lambda p: tar_with(p, special("a.jpg", tarfile.SYMTYPE, "/etc/passwd")), "link, device"),
    "tar hard link": (lambda p: tar_with(p, special("a.jpg", tarfile.LNKTYPE, "../b")), "link, device"),
    "tar device": (lambda p: tar_with(p, special("a.jpg", tarfile.CHRTYPE)), "link, device"),
    "tar pipe": (lambda p: tar_with(p, special("a.jpg", tarfile.FIFOTYPE)), "link, device"),
    "tar doubled": (lambda p: tar_with(p, ("a.jpg", b"1"), ("a.jpg", b"2")), "twice"),
    "tar bomb": (lambda p: tar_with(p, ("zeros.jpg", bytes(50 << 20))), "more than 200 times its size"),
    "tar header bomb": (pax_bomb, "bytes; the most is"),
    "zip truncated": (lambda p: truncated(p, zip_with(p.with_name("w"), {"a.jpg": NOISE})), "cannot be read"),
    "tar truncated": (lambda p: truncated(p, tar_with(p.with_name("w"), ("a.jpg", NOISE))), "cannot be read"),
    "empty file": (lambda p: file_with(p, b""), "cannot be read"),
    "text": (lambda p: file_with(p, b"<html>Not found</html>" * 100), "cannot be read"),
}


def read_all(path: Path) -> None:
    archive = open_archive(path, "the archive")
    list(archive.read(archive.names))


@pytest.mark.parametrize("case", HOSTILE)
def test_refused(tmp_path: Path, case: str):
    make, message = HOSTILE[case]
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in/archive")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=message) as caught:
        read_all(path)
    assert "the archive" in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar"])
def test_honest_archives_are_read_without_their_being_unpacked(tmp_path: Path, kind: str):
    path = tmp_path / f"set.{kind}"
    if kind == "zip":
        zip_with(path, {"set/": b"", **MEMBERS})
    else:
        tar_with(path, special("set", tarfile.DIRTYPE), *MEMBERS.items(), mode="w:gz" if kind == "tar.gz" else "w")
    archive = open_archive(path)
    assert sorted(archive.names) == sorted(MEMBERS)
    assert dict(archive.read(archive.names)) == MEMBERS
    assert dict(archive.read(["set/a.jpg"])) == {"set/a.jpg": b"first"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_member_whose_bytes_were_changed_is_named(tmp_path: Path):
    path = zip_with(tmp_path / "set.zip", MEMBERS, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"first", b"worst"))
    with pytest.raises(DataError, match=r"set/a.jpg in .*set.zip cannot be read"):
        list(open_archive(path).read(["set/a.jpg"]))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_packed_member_whose_bytes_were_flipped_is_named(tmp_path: Path, method: int):
    """A few bytes at a time, since each packing finds some only by its checksum."""
    whole = zip_with(tmp_path / "whole.zip", {"a.jpg": NOISE}, method).read_bytes()
    start = 30 + len("a.jpg")
    for offset in range(start, start + 200, 8):
        flipped = bytes(byte ^ 0xFF for byte in whole[offset : offset + 8])
        path = file_with(tmp_path / "set.zip", whole[:offset] + flipped + whole[offset + 8 :])
        with pytest.raises(DataError, match=r"a\.jpg in the archive cannot be read"):
            read_all(path)


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    for path in (zip_with(tmp_path / "a.zip", MEMBERS), tar_with(tmp_path / "a.tar.gz", *MEMBERS.items())):
        with pytest.raises(DataError, match="more than 1 members"):
            open_archive(path)


def test_a_gzipped_file_larger_than_it_should_be(tmp_path: Path):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(bytes(1000)))
    assert read_gzip(path, 1000, "it") == bytes(1000)
    with pytest.raises(DataError, match="it unpacks to more than the 999 bytes"):
        read_gzip(path, 999, "it")
