"""Checkpoints of one run in the object store: whole or absent, the newest few kept, and the best.

A snapshot is copied to host memory at once, since training goes on changing the tensors; serialising and uploading
happen in the background. A store that is away for a while delays checkpoints, not training.
"""

import logging
import math
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from genmodels.errors import DataError, GenmodelsError
from genmodels.spec import Record
from genmodels.storage.objects import ObjectStore

log = logging.getLogger(__name__)


class Best(Record):
    """Which checkpoint of a stage scored best; lower is better."""

    key: str
    score: float
    stage: str = ""


class Good(Record):
    """The newest checkpoint that no guard which acts objected to."""

    key: str


class Checkpoints:
    """Writes and finds the checkpoints under a prefix.

    Args:
        store: where they lie.
        prefix: of the run, e.g. `runs/<run_key>`.
        keep: how many of the newest to keep, besides the best and the newest good one.
    """

    def __init__(self, store: ObjectStore, prefix: str, keep: int):
        self._store, self._keep = store, keep
        self._folder = f"{prefix}/checkpoints/"
        self._best_key, self._good_key = f"{prefix}/best.json", f"{prefix}/good.json"
        self._uploading: threading.Thread | None = None
        self._failure: GenmodelsError | None = None

    @property
    def busy(self) -> bool:
        """Whether an upload is under way."""
        return self._uploading is not None and self._uploading.is_alive()

    def save(
        self, state: dict[str, Any], images: int, score: float | None = None, *, stage: str = "", good: bool = True
    ) -> None:
        """Copies the state and uploads it behind the caller's back, after the upload under way if there is one. Scores
        are compared within a stage alone."""
        if self._uploading:
            self._uploading.join()
        snapshot = _map_tensors(state, lambda tensor: tensor.detach().to("cpu", copy=True))
        self._uploading = threading.Thread(target=self._upload, args=(snapshot, images, score, stage, good))
        self._uploading.start()

    def wait(self) -> None:
        """Waits for the upload under way; raises what stopped the last one."""
        if self._uploading:
            self._uploading.join()
        if self._failure:
            failure, self._failure = self._failure, None
            raise failure

    def latest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, on the host; None if there is none. A damaged one is passed over."""
        return self._first(reversed(self._keys()))

    def good(self) -> dict[str, Any] | None:
        """The newest one that no guard which acts objected to, or one before it if that is damaged; None without."""
        good = self._store.get_record(self._good_key, Good)
        return self._first(key for key in reversed(self._keys()) if good is None or key <= good.key)

    def best(self, stage: str) -> dict[str, Any] | None:
        """The one of the stage that scored best; None if none did, or if it is damaged."""
        best = self._store.get_record(self._best_key, Best)
        return self._first([best.key]) if best and best.stage == stage else None

    def drop_after(self, images: int) -> None:
        """Removes those with more images shown: training has gone back to before them."""
        later = [key for key in self._keys() if key > self._key(images)]
        best = self._store.get_record(self._best_key, Best)
        self._store.delete([*later, *([self._best_key] if best and best.key in later else [])])

    def _first(self, keys: Iterable[str]) -> dict[str, Any] | None:
        for key in keys:
            try:
                return self._load(key)
            except DataError as error:
                log.warning("Passing over a checkpoint: %s", error)
        return None

    def at(self, images: int) -> dict[str, Any]:
        """The checkpoint after so many images shown, on the host. Raises MissingObject, DataError if it is damaged."""
        return self._load(self._key(images))

    def _load(self, key: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.pt"
            self._store.download(key, path)
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:
                raise DataError(f"The checkpoint {key} cannot be read ({error}); an earlier one is used.") from error

    def _upload(self, snapshot: dict[str, Any], images: int, score: float | None, stage: str, good: bool) -> None:
        key = self._key(images)
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "checkpoint.pt"
                torch.save(snapshot, path)
                self._store.upload(path, key)
            best = self._store.get_record(self._best_key, Best)
            better = best is None or best.stage != stage or (score is not None and score < best.score)
            if score is not None and math.isfinite(score) and better:
                best = Best(key=key, score=score, stage=stage)
                self._store.put_record(self._best_key, best)
            if good:
                self._store.put_record(self._good_key, Good(key=key))
            named = best, self._store.get_record(self._good_key, Good)
            kept = {*self._keys()[-self._keep :], *(record.key for record in named if record)}
            self._store.delete([old for old in self._keys() if old not in kept])
            self._failure = None
        except (OSError, RuntimeError) as error:  # torch's writer knows no OSError
            reason = str(error).splitlines()[0]
            self._failure = DataError(f"The checkpoint {key} could not be written ({reason}); free some disk space.")
        except GenmodelsError as error:
            self._failure = error
        if self._failure:
            log.warning("The checkpoint after %s images was not stored: %s", f"{images:,}", self._failure)

    def _key(self, images: int) -> str:
        return f"{self._folder}{images:012d}.pt"

    def _keys(self) -> list[str]:
        return sorted(info.key for info in self._store.list(self._folder))


def _map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(item, change) for item in value)
    return value
