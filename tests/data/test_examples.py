"""Layouts of files, and which examples are held out."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from genmodels.data.entries import folder_entry
from genmodels.data.examples import files_of_folder, laid_out, layout, of_arrays, read_idx, with_held_out
from genmodels.errors import DataError


def test_flat_images():
    found = layout("it", ["b.jpg", "a.PNG", "notes.txt"])
    assert found.places == {"a.PNG": ("train", None), "b.jpg": ("train", None)}
    assert (found.unpaired, found.class_names) == (False, ())


def test_one_folder_for_each_class():
    found = layout("it", ["dogs/1.jpg", "cats/1.jpg", "cats/more/2.jpg", "notes.txt"])
    assert found.class_names == ("cats", "dogs")
    assert found.places == {"cats/1.jpg": ("train", 0), "cats/more/2.jpg": ("train", 0), "dogs/1.jpg": ("train", 1)}


def test_two_domains():
    names = ["trainA/1.jpg", "trainB/1.jpg"]
    assert layout("it", names).places == {"trainA/1.jpg": ("train_a", None), "trainB/1.jpg": ("train_b", None)}
    tables = {table for table, _ in layout("it", [*names, "testA/1.jpg", "testB/1.jpg"]).places.values()}
    assert tables == {"train_a", "train_b", "test_a", "test_b"}
    assert layout("it", names).unpaired


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "it holds no images; expected files ending in .bmp"),
        (["readme.md"], "it holds no images"),
        (["cats/1.jpg"], "it has one class only .'cats'."),
        (["cats/1.jpg", "dogs/"], "The class 'dogs' of it has no images"),
        (["cats/1.jpg", "dogs/1.txt"], "The class 'dogs' of it has no images"),
        (["1.jpg", "cats/1.jpg", "dogs/1.jpg"], "both directly .such as '1.jpg'. and in sub-folders"),
        (["trainA/1.jpg"], "no images in trainB"),
        (["trainA/1.jpg", "trainB/"], "no images in trainB"),
        (["trainA/1.jpg", "trainB/1.jpg", "testA/1.jpg"], "no images in testB"),
    ],
)
def test_layouts_that_are_none(names: list[str], message: str):
    with pytest.raises(DataError, match=message):
        layout("it", names)


def test_a_folder_is_read_in_the_order_of_its_names_without_hidden_files(tmp_path: Path):
    for name in ("b/2.jpg", "a/1.jpg", "a/.hidden.jpg", ".git/3.jpg", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    examples = laid_out(files_of_folder(tmp_path))
    assert [(e.name, e.label, e.content) for e in examples.read()] == [
        ("a/1.jpg", 0, b"a/1.jpg"),
        ("b/2.jpg", 1, b"b/2.jpg"),
    ]
    assert examples.count == 2


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "nowhere")
    message = r"The file .*/b.jpg cannot be read .No such file.*remove it if it is a link to nothing"
    with pytest.raises(DataError, match=message):
        list(laid_out(files_of_folder(tmp_path)).read())
    with pytest.raises(DataError, match=message):
        folder_entry(str(tmp_path)).identity(lambda done, total: None)


def numbered(rows: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    images = rows.astype(np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    return {"train": (images, rows)}


def test_a_tenth_is_held_out_by_content_whatever_the_order():
    def split(rows: np.ndarray) -> dict[str, set[int]]:
        tables: dict[str, set[int]] = {"train": set(), "test": set()}
        for example in with_held_out(of_arrays(numbered(rows))).read():
            assert example.label is not None
            tables[example.table].add(example.label)
        return tables

    once, shuffled = split(np.arange(100)), split(np.random.default_rng(0).permutation(100))
    assert once == shuffled
    assert len(once["test"]) == 10
    assert once["train"] | once["test"] == set(range(100))


def test_equal_images_stay_on_the_same_side():
    rows = np.repeat(np.arange(30), 3)
    sides: dict[int, set[str]] = {}
    for example in with_held_out(of_arrays(numbered(rows))).read():
        sides.setdefault(example.content[0, 0].item(), set()).add(example.table)  # type: ignore[union-attr]
    assert {len(tables) for tables in sides.values()} == {1}


@pytest.mark.parametrize(
    ("copies", "least"),
    [([19, 1], 1), ([1, 19], 1), ([10, 10], 10), ([2, 1], 1), ([1, 1], 1), ([9, 9, 2], 2), ([12, 3, 3, 2], 2)],
)
def test_copies_are_never_more_than_half_of_what_is_held_out(copies: list[int], least: int):
    rows = np.repeat(np.arange(len(copies)), copies)
    for shift in range(8):  # other contents, in another order of hashes
        tables = [e.table for e in with_held_out(of_arrays(numbered(rows + 10 * shift))).read()]
        assert least <= tables.count("test") <= len(rows) / 2


def test_what_has_a_held_out_part_keeps_it():
    tables = numbered(np.arange(10)) | {"test": numbered(np.arange(3))["train"]}
    examples = with_held_out(of_arrays(tables))
    assert [e.table for e in examples.read()] == ["train"] * 10 + ["test"] * 3


def test_one_image_cannot_be_split():
    with pytest.raises(DataError, match="1 different images; the least is two"):
        with_held_out(of_arrays(numbered(np.zeros(5))))


def idx(*shape: int, data: bytes | None = None, magic: bytes = b"\0\0\x08") -> bytes:
    content = bytes(range(int(np.prod(shape)))) if data is None else data
    header = magic + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return gzip.compress(header + content, mtime=0)  # the time in it would name the tests anew each second


def test_idx(tmp_path: Path):
    (tmp_path / "f").write_bytes(idx(2, 3, 4))
    assert (read_idx(tmp_path / "f", "it") == np.arange(24).reshape(2, 3, 4)).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is no gzipped idx file|it is no idx file"),
        (b"plain bytes", "it is no gzipped idx file"),
        (idx(2, 3)[:-9], "cannot be read|truncated"),
        (idx(2, magic=b"\0\0\x0d"), "it is no idx file of bytes: it starts with 00000d01"),
        (idx(5, 5, data=b"short"), "it holds 5 bytes of data; its header says 25"),
        (idx(2, data=b"too long"), "it unpacks to more than the 10 bytes"),
        (idx(1 << 31, 1 << 31, data=b""), "its header says 4,611,686,018,427,387,904"),
        (idx(1 << 31, 1 << 31, 4, data=b""), "its header says 18,446,744,073,709,551,616"),
    ],
)
def test_idx_files_that_are_none(tmp_path: Path, data: bytes, message: str):
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "f", "it")
