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

    def __init__(
        self,
        model: ScoresDensity,
        manifest: Manifest,
        dataset: Dataset,
        extractors: Sequence[Extractor],
        iwae_samples: int,
    ):
        train, test = dataset.table("train"), dataset.table("test")
        count, has_tighter_bound = reals.count(manifest), isinstance(model, density.HasTighterBound)
        self.looks = count * (2 if has_tighter_bound else 1)
        self.iwae_samples = iwae_samples
        self.real, self.others = images_of(test, manifest, count), images_of(train, manifest, count)
        self.labels = labels_of(test, count) if conditional(model) else None
        self.levels, self.likelihood = model.levels, model.likelihood
        if has_tighter_bound:
            self.likelihood = f"lower bound of {iwae_samples} importance samples"
        settings = {"levels": self.levels, "likelihood": self.likelihood, "seed": density.SEED}
        self.protocol = {"density": settings | {"given": "label" if conditional(model) else "nothing"}}
        if has_tighter_bound:
            self.protocol["elbo"] = "one sample an image"

    def judge(self, model: GenerativeModel, *, replicates: int, progress: Looks) -> Judged:
        assert isinstance(model, ScoresDensity)
        told = partial(progress, "score")
        nats = density.nats(model, self.real, labels=self.labels, progress=told)
        if not isinstance(model, density.HasTighterBound):
            return Judged(self._scores(nats, self.likelihood, replicates), dict)
        tighter = density.bounded_nats(model, self.real, self.iwae_samples, progress=told)
        elbo = {"elbo_nats": self._score(nats, model.likelihood, replicates)}
        return Judged(self._scores(tighter, self.likelihood, replicates) | elbo, dict)

    def baselines(self, *, replicates: int, progress: Looks) -> dict[str, Estimate]:
        nats = density.independent_pixels(self.others, self.real, self.levels)
        scores = self._scores(nats, "exact", replicates)
        return {f"{name}_of_independent_pixels": score for name, score in scores.items()}

    def _scores(self, nats: Tensor, likelihood: str, replicates: int) -> dict[str, Estimate]:
        bits = density.bits_per_dim(nats, self.real[0].numel())
        return {
            name: self._score(values, likelihood, replicates)
            for name, values in (("bits_per_dim", bits), ("nats", nats))
        }

    def _score(self, values: Tensor, likelihood: str, replicates: int) -> Estimate:
        return replace(mean(values, replicates), note=f"{likelihood}, {self.levels} levels")
