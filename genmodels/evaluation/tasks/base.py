"""What a task is, and what tasks share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from genmodels.data.dataset import Table
from genmodels.data.manifest import Manifest
from genmodels.evaluation import measures, reals
from genmodels.evaluation.bootstrap import Estimate, sample_mean
from genmodels.models.base import GenerativeModel

Looks = Callable[[str, int], None]  # told what looks at images or makes them, and how many more it has done


@dataclass(frozen=True)
class Judged:
    """Scores by name, and how to draw what they were made of: PNG by name."""

    scores: dict[str, Estimate]
    pictures: Callable[[], Mapping[str, bytes]]


class Task(ABC):
    """A way of judging a model by held-out images.

    Of all its scores `primary` is the one that decides, where this is the first of a model's tasks. `looks` counts the
    images that judging takes, `anchor_looks` those of floor and baselines.
    """

    kind: ClassVar[str]
    primary: str
    protocol: dict[str, Any]
    looks: int
    anchor_looks = 0

    @abstractmethod
    def judge(self, model: GenerativeModel, *, replicates: int, progress: Looks) -> Judged:
        """What the model gets."""

    def floor(self, progress: Looks) -> dict[str, Estimate]:
        """The scores of a perfect model, where there are any: of as many images of the training set, say."""
        return {}

    def baselines(self, *, replicates: int, progress: Looks) -> dict[str, Estimate]:
        """Scores that take no model, by a name of their own."""
        return {}


def conditional(model: Any) -> bool:
    """Whether the model is told the class of what it makes or scores."""
    return "label" in model.stages[-1].inputs


def mean(values: Tensor, replicates: int) -> Estimate:
    """The mean over images, (N,), with its interval."""
    return sample_mean(values, replicates, torch.Generator().manual_seed(measures.SEED))


def exactly(value: float) -> Estimate:
    """A score that is known without measuring."""
    return Estimate(value, torch.empty(0))


def images_of(table: Table, manifest: Manifest, count: int) -> Tensor:
    """The images that models are judged by, (count, C, R, R) uint8, points float32."""
    return torch.from_numpy(table.read(f"image@{manifest.resolution}", reals.judged_by(table, count)))


def labels_of(table: Table, count: int) -> Tensor:
    """Their classes, (count,) int64."""
    return column_of(table, "label", count)


def column_of(table: Table, column: str, count: int) -> Tensor:
    """Another column of theirs, int64."""
    return torch.from_numpy(table.read(column, reals.judged_by(table, count)).astype(np.int64))
