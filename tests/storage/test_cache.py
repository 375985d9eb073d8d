"""What goes from a node's cache, in which order, and what stays."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from genmodels.settings import settings
from genmodels.storage.cache import make_room

MIB = 2**20


@pytest.fixture
def copies(configure: Callable[..., None]) -> dict[str, Path]:
    """A data set, a downloaded file and a model of 1 MiB each, last used in that order, in a cache of 4 MiB."""
    configure(cache_gib=str(4 / 1024))
    cache = settings().cache
    paths = {"dataset": cache / "datasets/d1", "raw": cache / "raw/r1", "model": cache / "models/gan.digits/1"}
    files = [paths["dataset"] / "train/image@4-00000.npy", paths["raw"], paths["model"] / "sample.pt2"]
    for used, (path, file) in enumerate(zip(paths.values(), files, strict=True)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(MIB))
        lock = path.with_name(f".{path.name}.lock")
        lock.touch()
        os.utime(lock, (used, used))
    return paths


def there(copies: dict[str, Path]) -> list[str]:
    return [name for name, path in copies.items() if path.exists()]


@pytest.mark.parametrize(
    ("needed", "left"),
    [(MIB, ["dataset", "raw", "model"]), (MIB + 1, ["raw", "model"]), (3 * MIB, ["model"]), (9 * MIB, [])],
)
def test_those_used_longest_ago_make_room(copies: dict[str, Path], needed: int, left: list[str]):
    make_room(needed)
    assert there(copies) == left


def test_what_is_used_again_is_the_last_to_go(copies: dict[str, Path]):
    used = f"from pathlib import Path\nfrom genmodels.storage.cache import keep\nkeep(Path({str(copies['dataset'])!r}))"
    subprocess.run([sys.executable, "-c", used], check=True)
    make_room(3 * MIB)
    assert there(copies) == ["dataset"]


def test_what_another_process_reads_stays_until_that_ends(copies: dict[str, Path]):
    reads = (
        f"import time\nfrom pathlib import Path\nfrom genmodels.storage.cache import keep\n"
        f"keep(Path({str(copies['dataset'])!r}))\nprint(flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", reads], stdout=subprocess.PIPE) as reader:
        assert reader.stdout
        reader.stdout.readline()
        make_room(9 * MIB)
        assert there(copies) == ["dataset"]
        reader.kill()
    make_room(9 * MIB)
    assert there(copies) == []


def test_without_a_limit_a_full_disk_is_one(copies: dict[str, Path], configure: Callable[..., None]):
    configure(cache_gib="1024")
    make_room(MIB)
    assert len(there(copies)) == 3
    make_room(2**60)
    assert there(copies) == []
