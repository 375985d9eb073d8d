"""Generation: how much what a model makes is like held-out images."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genmodels.data.dataset import Dataset, Table
from genmodels.data.manifest import Manifest
from genmodels.evaluation import generation, measures, memorisation, modes, reals
from genmodels.evaluation.bootstrap import Estimate
from genmodels.evaluation.extractors import Extractor, held_out_features
from genmodels.evaluation.pictures import contact_sheet, samples_shown, sheet_columns
from genmodels.evaluation.tasks.base import (
    Judged,
    Looks,
    Task,
    conditional,
    exactly,
    images_of,
    labels_of,
    mean,
)
from genmodels.models.base import GenerativeModel, Samples, Translates

CYCLES = 16


class Sampling(Task):
    """Samples, of the held-out images' classes where the model takes any: how much they are like those, how much they
    differ among themselves, how far they are from the training images, how many of their classes are among them, and
    whether they are of their class."""

    kind = "samples"

    def __init__(self, model: GenerativeModel, manifest: Manifest, dataset: Dataset, extractors: Sequence[Extractor]):
        self.train, test = dataset.table("train"), dataset.table("test")
        self.count = reals.count(manifest)
        self.labels = labels_of(test, self.count) if conditional(model) else None
        self.real, self.others = images_of(test, manifest, self.count), images_of(self.train, manifest, self.count)
        self.extractors = extractors
        self.frequencies = _frequencies(self.train, manifest.classes) if manifest.classes > 1 else None
        self.mixture = _mixture(self.train) if manifest.has_points else None
        self.primary = measures.ABSOLUTE if self.mixture else measures.PRIMARY  # where points lie counts
        self.protocol = _protocol(manifest, extractors) | {
            "training_distance": {"side": memorisation.side(manifest.resolution), "most": memorisation.MOST_IMAGES}
        }
        if self.mixture:
            self.protocol["sliced_wasserstein"] |= {"standardised": "as the held-out points"}
            self.protocol["modes"] = f"within {modes.DEVIATIONS} deviations of a class of the training points"
        elif self.frequencies is not None:
            self.protocol["modes"] = "classes of the training images"
        if self.labels is not None:
            self.protocol["label_agreement"] = "classes of the held-out images"
        self.anchor_looks = self.count * (1 + len(extractors))
        self.looks = self.count + self.anchor_looks

    def judge(self, model: GenerativeModel, *, replicates: int, progress: Looks) -> Judged:
        assert isinstance(model, Samples)
        resolution = self.real.shape[-1]
        told = partial(progress, "generate")
        made = generation.samples(model, self.count, resolution=resolution, labels=self.labels, progress=told)
        nearest = memorisation.nearest_training_images(made[: memorisation.MOST_IMAGES], self.train)
        generator = torch.Generator().manual_seed(measures.SEED)
        distance_ratio = memorisation.distance_ratio(
            nearest.distances, self.held_out_distances, generator=generator, replicates=replicates
        )
        scores = self._scores(made, self.labels, replicates, progress) | {"training_distance_ratio": distance_ratio}
        return Judged(scores, partial(self._pictures, made, nearest))

    @cached_property
    def held_out_distances(self) -> Tensor:
        """From held-out images to the training images nearest to them."""
        return memorisation.nearest_training_images(self.real[: memorisation.MOST_IMAGES], self.train).distances

    def floor(self, progress: Looks) -> dict[str, Estimate]:
        scores = self._scores(self.others, None, 0, progress) | {"training_distance_ratio": exactly(1.0)}
        for extractor in self.extractors:
            if self.labels is not None and extractor.knows_classes:
                classes = extractor.classes(held_out_features(extractor, self.real))
                agreement = measures.label_agreement(classes, self.labels, replicates=0)
                scores[f"label_agreement_{extractor.name}"] = agreement
        return scores

    def _scores(self, made: Tensor, labels: Tensor | None, replicates: int, progress: Looks) -> dict[str, Estimate]:
        alike = measures.likeness(
            {"": self.real},
            {"": made},
            self.extractors,
            frequencies=self.frequencies,
            labels=labels,
            absolute=bool(self.mixture),
            replicates=replicates,
            progress=progress,
        )
        if not self.mixture:
            return alike | measures.diversity(made, replicates=replicates)
        generator = torch.Generator().manual_seed(measures.SEED)
        points = made.flatten(1)
        return alike | modes.mixture_scores(points, self.mixture, generator=generator, replicates=replicates)

    def _pictures(self, made: Tensor, nearest: memorisation.Nearest) -> dict[str, bytes]:
        resolution = made.shape[-1]
        count, per_row = samples_shown(resolution), sheet_columns(resolution)
        columns = {"real, held out": self.real[:count], "generated": made[:count]}
        shown = nearest.distances.argsort()[: per_row**2]
        copied = self.train.read(f"image@{resolution}", nearest.rows[shown].numpy())
        pairs = {"generated, likest to training images": made[shown], "the training images": torch.from_numpy(copied)}
        return {
            "samples": contact_sheet(columns, images_per_row=per_row),
            "training_neighbours": contact_sheet(pairs, images_per_row=per_row),
        }


class Translation(Task):
    """Translations of held-out images of each domain, against held-out images of the other; and back again."""

    kind = "translations"
    primary = measures.ABSOLUTE

    def __init__(self, model: Translates, manifest: Manifest, dataset: Dataset, extractors: Sequence[Extractor]):
        count = reals.count(manifest)
        self.sources = {d: images_of(dataset.table("test", d), manifest, count) for d in model.domains}
        others = {d: images_of(dataset.table("train", d), manifest, count) for d in model.domains}
        self.directions = list(permutations(model.domains, 2))
        self.real = {f"_to_{target}": self.sources[target] for _, target in self.directions}
        self.others = {f"_to_{target}": others[target] for _, target in self.directions}
        self.extractors = extractors
        self.protocol = _protocol(manifest, extractors)
        made = len(self.directions) * count
        self.anchor_looks = 2 * made * (1 + len(extractors))
        self.looks = made + made * (1 + len(extractors))

    def judge(self, model: GenerativeModel, *, replicates: int, progress: Looks) -> Judged:
        assert isinstance(model, Translates)
        told = partial(progress, "translate")
        made = {
            (source, target): generation.translations(
                model, self.sources[source], source=source, target=target, progress=told
            )
            for source, target in self.directions
        }
        images = {f"_to_{target}": each.images for (_, target), each in made.items()}
        errors = {f"cycle_error_{source}": mean(each.cycle_error, replicates) for (source, _), each in made.items()}
        return Judged(self._likeness(images, replicates, progress) | errors, partial(self._pictures, made))

    def floor(self, progress: Looks) -> dict[str, Estimate]:
        perfect = {f"cycle_error_{source}": exactly(0.0) for source, _ in self.directions}
        return self._likeness(self.others, 0, progress) | perfect

    def baselines(self, *, replicates: int, progress: Looks) -> dict[str, Estimate]:
        untranslated = {f"_to_{target}": self.sources[source] for source, target in self.directions}
        scores = self._likeness(untranslated, replicates, progress)
        return {f"{self.primary}_untranslated": scores[self.primary]}

    def _likeness(self, made: Mapping[str, Tensor], replicates: int, progress: Looks) -> dict[str, Estimate]:
        return measures.likeness(
            self.real, made, self.extractors, absolute=True, replicates=replicates, progress=progress
        )

    def _pictures(self, made: Mapping[tuple[str, str], generation.Translations]) -> dict[str, bytes]:
        return {
            f"{source}_to_{target}": contact_sheet(
                {
                    f"{source}, held out": self.sources[source][:CYCLES],
                    f"as {target}": each.images[:CYCLES],
                    f"back to {source}": each.cycled[:CYCLES],
                },
                images_per_row=4,
            )
            for (source, target), each in made.items()
        }


def _frequencies(train: Table, classes: int) -> Tensor:
    """How many training images are of each class, (classes,) int64."""
    return torch.from_numpy(np.bincount(train.read("label", np.arange(train.rows)), minlength=classes))


def _mixture(train: Table) -> modes.Mixture:
    """Of all training points."""
    rows = np.arange(train.rows)
    points, labels = (torch.from_numpy(train.read(column, rows)) for column in ("image@1", "label"))
    return modes.mixture_of(points.flatten(1), labels)


def _protocol(manifest: Manifest, extractors: Sequence[Extractor]) -> dict[str, Any]:
    return {
        "generation": {
            "seed": generation.SEED,
            "pixels": "not rounded" if manifest.has_points else "8 bits",
            "weights": "as registered, evaluation mode",
        },
        **measures.protocol(manifest.resolution, extractors),
    }
