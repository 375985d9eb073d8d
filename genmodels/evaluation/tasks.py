"""What is asked of a model, by what it can do: the images to make, and the real ones that they should be like."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from genmodels.data.dataset import Dataset, Table
from genmodels.data.manifest import Manifest
from genmodels.errors import SpecError
from genmodels.evaluation import generation, measures, reals
from genmodels.evaluation.bootstrap import Estimate, sample_mean
from genmodels.evaluation.pictures import contact_sheet
from genmodels.models.base import GenerativeModel, Samples, Translates

SHEET_IMAGES = 64
CYCLES = 16


@dataclass
class Made:
    """Images under the suffixes of their metrics' names, and what was measured of them alone."""

    images: dict[str, Tensor]
    measured: dict[str, Estimate] = field(default_factory=dict)
    cycled: dict[str, Tensor] = field(default_factory=dict)


class Task(Protocol):
    """A way of judging a model on `count` held-out images of each domain.

    `real` are held-out images by suffix, `floor` is what a perfect model would make: as many images of the training
    set; `baselines` are images that took no model to make, by name.
    """

    kind: str
    count: int
    real: dict[str, Tensor]
    floor: Made
    baselines: dict[str, dict[str, Tensor]]

    def make(self, model: GenerativeModel, *, replicates: int, progress: Callable[[int], None]) -> Made:
        """The model's images; `progress` is told how many more there are."""
        ...

    def pictures(self, made: Made) -> dict[str, bytes]:
        """PNG contact sheets by name."""
        ...


class Sampling:
    """Samples, of the held-out images' classes where the model takes any."""

    kind = "samples"

    def __init__(self, model: GenerativeModel, manifest: Manifest, dataset: Dataset):
        train, test = dataset.table("train"), dataset.table("test")
        self.count = reals.count(manifest)
        self.labels = None
        if "label" in model.stages()[-1].inputs:
            self.labels = torch.from_numpy(test.read("label", reals.judged_by(test, self.count)).astype(np.int64))
        self.real = {"": _images(test, manifest, self.count)}
        others = _images(train, manifest, self.count)
        self.floor = Made({"": others}, measures.diversity(others, replicates=0))
        self.baselines: dict[str, dict[str, Tensor]] = {}

    def make(self, model: GenerativeModel, *, replicates: int, progress: Callable[[int], None]) -> Made:
        assert isinstance(model, Samples)
        resolution = self.real[""].shape[-1]
        images = generation.samples(model, self.count, resolution=resolution, labels=self.labels, progress=progress)
        return Made({"": images}, measures.diversity(images, replicates=replicates))

    def pictures(self, made: Made) -> dict[str, bytes]:
        columns = {"real, held out": self.real[""][:SHEET_IMAGES], "generated": made.images[""][:SHEET_IMAGES]}
        return {"samples": contact_sheet(columns, images_per_row=8)}


class Translation:
    """Translations of held-out images of each domain, against held-out images of the other; and back again."""

    kind = "translations"

    def __init__(self, model: Translates, manifest: Manifest, dataset: Dataset):
        train = {domain: dataset.table("train", domain) for domain in model.domains}
        test = {domain: dataset.table("test", domain) for domain in model.domains}
        self.count = reals.count(manifest)
        real = {domain: _images(table, manifest, self.count) for domain, table in test.items()}
        others = {domain: _images(table, manifest, self.count) for domain, table in train.items()}
        self.sources = real
        self.directions = list(permutations(model.domains, 2))
        self.real = {f"_to_{target}": real[target] for _, target in self.directions}
        perfect = {f"cycle_error_{source}": Estimate(0.0, torch.empty(0)) for source, _ in self.directions}
        self.floor = Made({f"_to_{target}": others[target] for _, target in self.directions}, perfect)
        self.baselines = {"untranslated": {f"_to_{target}": real[source] for source, target in self.directions}}

    def make(self, model: GenerativeModel, *, replicates: int, progress: Callable[[int], None]) -> Made:
        assert isinstance(model, Translates)
        made = Made({})
        for source, target in self.directions:
            translated = generation.translations(
                model, self.sources[source], source=source, target=target, progress=progress
            )
            generator = torch.Generator().manual_seed(measures.SEED)
            made.images[f"_to_{target}"] = translated.images
            made.cycled[f"_to_{target}"] = translated.cycled
            made.measured[f"cycle_error_{source}"] = sample_mean(translated.cycle_error, replicates, generator)
        return made

    def pictures(self, made: Made) -> dict[str, bytes]:
        return {
            f"{source}_to_{target}": contact_sheet(
                {
                    f"{source}, held out": self.sources[source][:CYCLES],
                    f"as {target}": made.images[f"_to_{target}"][:CYCLES],
                    f"back to {source}": made.cycled[f"_to_{target}"][:CYCLES],
                },
                images_per_row=4,
            )
            for source, target in self.directions
        }


def task_of(model: GenerativeModel, manifest: Manifest, dataset: Dataset) -> Task:
    """What the model is judged by.

    Raises:
        SpecError: if it can nothing that can be judged.
        DataError: if there are too few images to judge it.
    """
    if isinstance(model, Samples):
        return Sampling(model, manifest, dataset)
    if isinstance(model, Translates):
        return Translation(model, manifest, dataset)
    raise SpecError(f"{type(model).__name__} cannot be evaluated: it neither samples nor translates.")


def _images(table: Table, manifest: Manifest, count: int) -> Tensor:
    return torch.from_numpy(table.read(f"image@{manifest.resolution}", reals.judged_by(table, count)))
