"""Files that appear whole, and full disks."""

from contextlib import suppress
from pathlib import Path

import pytest

from genmodels.errors import AccessError
from genmodels.storage.files import disk_errors, new_file, new_folder


def test_a_new_file_appears_only_when_it_is_whole(tmp_path: Path):
    with suppress(RuntimeError), new_file(tmp_path / "file") as part:
        part.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_file(tmp_path / "file") as part:
        part.write_text("whole")
        assert not (tmp_path / "file").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_new_folder_is_gone_afterwards(tmp_path: Path):
    with new_folder(tmp_path / "work") as folder:
        (folder / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_says_so(tmp_path: Path):
    with pytest.raises(AccessError, match=r"disk of .* is full; free some space"), disk_errors(tmp_path):
        Path("/dev/full").write_text("x")
