"""Density: how likely a model finds held-out images."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from genmodels.data.dataset import Dataset
from genmodels.data.manifest import Manifest
from genmodels.evaluation import density, reals
from genmodels.evaluation.bootstrap import Estimate
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.tasks.base import (
    Judged,
    Looks,
    Task,
    conditional,
    images_of,
    labels_of,
    mean,
)
from genmodels.models.base import GenerativeModel, ScoresDensity


class Likelihood(Task):
    """The likelihood of held-out images."""

    kind = "density"
    primary = "bits_per_dim"

    def __init__(self, model: ScoresDensity, manifest: Manifest, dataset: Dataset, extractors: Sequence[Extractor]):
        train, test = dataset.table("train"), dataset.table("test")
        self.looks = reals.count(manifest)
        self.real, self.others = images_of(test, manifest, self.looks), images_of(train, manifest, self.looks)
        self.labels = labels_of(test, self.looks) if conditional(model) else None
        self.levels, self.likelihood = model.levels, model.likelihood
        settings = {"levels": self.levels, "likelihood": self.likelihood, "seed": density.SEED}
        self.protocol = {"density": settings | {"given": "label" if conditional(model) else "nothing"}}

    def judge(self, model: GenerativeModel, *, replicates: int, progress: Looks) -> Judged:
        assert isinstance(model, ScoresDensity)
        nats = density.nats(model, self.real, labels=self.labels, progress=partial(progress, "score"))
        return Judged(self._scores(nats, self.likelihood, replicates), dict)

    def baselines(self, *, replicates: int, progress: Looks) -> dict[str, Estimate]:
        nats = density.independent_pixels(self.others, self.real, self.levels)
        scores = self._scores(nats, "exact", replicates)
        return {f"{name}_of_independent_pixels": score for name, score in scores.items()}

    def _scores(self, nats: Tensor, likelihood: str, replicates: int) -> dict[str, Estimate]:
        bits = density.bits_per_dim(nats, self.real[0].numel())
        return {
            name: replace(mean(values, replicates), note=f"{likelihood}, {self.levels} levels")
            for name, values in (("bits_per_dim", bits), ("nats", nats))
        }
