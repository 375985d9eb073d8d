"""What is asked of a model, by what it can do: images to make, held-out images to score or to reconstruct."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import permutations
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from genmodels.data.dataset import Dataset, Table
from genmodels.data.manifest import Manifest, factor_column
from genmodels.errors import SpecError
from genmodels.evaluation import (
    density,
    disentanglement,
    generation,
    interpolation,
    measures,
    memorisation,
    pictures,
    reals,
    representation,
)
from genmodels.evaluation.bootstrap import Estimate, sample_mean
from genmodels.evaluation.extractors import Extractor, held_out_features
from genmodels.evaluation.kernel import prior_mmd
from genmodels.evaluation.pictures import contact_sheet
from genmodels.models.base import (
    Clusters,
    Density,
    Encodes,
    FromLatents,
    GenerativeModel,
    HasPrior,
    Samples,
    ScoresDensity,
    Translates,
)

SHEET_IMAGES = 64
CYCLES = 16
INTERPOLATIONS = 8
CLASS = "class"
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


class Likelihood(Task):
    """The likelihood of held-out images."""

    kind = "density"
    primary = "bits_per_dim"

    def __init__(self, model: ScoresDensity, manifest: Manifest, dataset: Dataset, extractors: Sequence[Extractor]):
        train, test = dataset.table("train"), dataset.table("test")
        self.looks = reals.count(manifest)
        self.real, self.others = _images(test, manifest, self.looks), _images(train, manifest, self.looks)
        self.labels = _labels(test, self.looks) if _conditional(model) else None
        self.levels, self.likelihood = model.levels, model.likelihood
        settings = {"levels": self.levels, "likelihood": self.likelihood, "seed": density.SEED}
        self.protocol = {"density": settings | {"given": "label" if _conditional(model) else "nothing"}}

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
            name: replace(_mean(values, replicates), note=f"{likelihood}, {self.levels} levels")
            for name, values in (("bits_per_dim", bits), ("nats", nats))
        }


class Sampling(Task):
    """Samples, of the held-out images' classes where the model takes any: how much they are like those, how much they
    differ among themselves, how far they are from the training images, and whether they are of their class."""

    kind = "samples"
    primary = measures.PRIMARY

    def __init__(self, model: GenerativeModel, manifest: Manifest, dataset: Dataset, extractors: Sequence[Extractor]):
        self.train, test = dataset.table("train"), dataset.table("test")
        self.count = reals.count(manifest)
        self.labels = _labels(test, self.count) if _conditional(model) else None
        self.real, self.others = _images(test, manifest, self.count), _images(self.train, manifest, self.count)
        self.extractors = extractors
        self.protocol = _protocol(manifest, extractors) | {
            "training_distance": {"side": memorisation.side(manifest.resolution), "most": memorisation.MOST_IMAGES}
        }
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
        scores = self._scores(self.others, None, 0, progress) | {"training_distance_ratio": _perfect(1.0)}
        for extractor in self.extractors:
            if self.labels is not None and extractor.knows_classes:
                features = held_out_features(extractor, self.real)
                agreement = measures.label_agreement(extractor, features, self.labels, replicates=0)
                scores[f"label_agreement_{extractor.name}"] = agreement
        return scores

    def _scores(self, made: Tensor, labels: Tensor | None, replicates: int, progress: Looks) -> dict[str, Estimate]:
        alike = measures.likeness(
            {"": self.real}, {"": made}, self.extractors, labels=labels, replicates=replicates, progress=progress
        )
        return alike | measures.diversity(made, replicates=replicates)

    def _pictures(self, made: Tensor, nearest: memorisation.Nearest) -> dict[str, bytes]:
        columns = {"real, held out": self.real[:SHEET_IMAGES], "generated": made[:SHEET_IMAGES]}
        shown = nearest.distances.argsort()[:SHEET_IMAGES]
        copied = self.train.read(f"image@{made.shape[-1]}", nearest.rows[shown].numpy())
        pairs = {"generated, likest to training images": made[shown], "the training images": torch.from_numpy(copied)}
        return {
            "samples": contact_sheet(columns, images_per_row=8),
            "training_neighbours": contact_sheet(pairs, images_per_row=8),
        }


class Translation(Task):
    """Translations of held-out images of each domain, against held-out images of the other; and back again."""

    kind = "translations"
    primary = measures.ABSOLUTE

    def __init__(self, model: Translates, manifest: Manifest, dataset: Dataset, extractors: Sequence[Extractor]):
        count = reals.count(manifest)
        self.sources = {d: _images(dataset.table("test", d), manifest, count) for d in model.domains}
        others = {d: _images(dataset.table("train", d), manifest, count) for d in model.domains}
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
        errors = {f"cycle_error_{source}": _mean(each.cycle_error, replicates) for (source, _), each in made.items()}
        return Judged(self._likeness(images, replicates, progress) | errors, partial(self._pictures, made))

    def floor(self, progress: Looks) -> dict[str, Estimate]:
        perfect = {f"cycle_error_{source}": _perfect(0.0) for source, _ in self.directions}
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


class Representation(Task):
    """Codes of held-out images: the images decoded from them, their classes, and the prior they should follow."""

    kind = "codes"
    primary = "reconstruction_psnr"

    def __init__(self, model: Encodes, manifest: Manifest, dataset: Dataset, extractors: Sequence[Extractor]):
        train, test = dataset.table("train"), dataset.table("test")
        count = reals.count(manifest)
        self.real, self.others = _images(test, manifest, count), _images(train, manifest, count)
        self.labelled, self.has_prior = manifest.classes > 1, isinstance(model, HasPrior)
        if self.labelled:
            self.labels, self.other_labels = _labels(test, count), _labels(train, count)
        self.looks = count * (3 if self.labelled else 2)
        self.protocol = {
            "codes": {
                "probes": "none"
                if not self.labelled
                else f"{count} images; logistic regression with weight decay 1; "
                f"{representation.NEIGHBOURS} nearest neighbours",
                "ssim_window": representation.SSIM_WINDOW,
                "prior": self.has_prior,
                "seed": representation.SEED,
            }
        }

    def judge(self, model: GenerativeModel, *, replicates: int, progress: Looks) -> Judged:
        assert isinstance(model, Encodes)
        codes = representation.codes_of(model, self.real, partial(progress, "encode"))
        made = representation.decoded(model, codes, self.real.shape[-1], partial(progress, "decode"))
        scores = {
            f"reconstruction_{name}": replace(_mean(similarity(self.real, made), replicates), better="higher")
            for name, similarity in (("psnr", representation.psnr), ("ssim", representation.ssim))
        }
        if self.labelled:
            others = representation.codes_of(model, self.others, partial(progress, "encode"))
            scores |= self._probes(others, codes, replicates)
        if isinstance(model, HasPrior):
            prior, posterior = representation.prior_and_posterior(model, self.real)
            seeds = [torch.Generator().manual_seed(measures.SEED) for _ in range(2)]
            scores["prior_mmd"] = prior_mmd(prior, posterior, generator=seeds[0], replicates=replicates)
            scores["active_units"] = representation.active_units(
                codes, prior, generator=seeds[1], replicates=replicates
            )
        return Judged(scores, partial(self._pictures, model, codes, made))

    def floor(self, progress: Looks) -> dict[str, Estimate]:
        return {"reconstruction_ssim": _perfect(1.0)} | ({"prior_mmd": _perfect(0.0)} if self.has_prior else {})

    def baselines(self, *, replicates: int, progress: Looks) -> dict[str, Estimate]:
        if not self.labelled:
            return {}
        others, real = (representation.pixel_codes(images) for images in (self.others, self.real))
        return {f"{name}_of_pixels": score for name, score in self._probes(others, real, replicates).items()}

    def _probes(self, others: Tensor, codes: Tensor, replicates: int) -> dict[str, Estimate]:
        """The share of the held-out images whose class is read off right, by what reads it."""
        probes = {
            "linear_probe_accuracy": representation.linear_probe,
            "nearest_neighbour_accuracy": representation.nearest_neighbours,
        }
        return {
            name: replace(_mean(probe(others, self.other_labels, codes) == self.labels, replicates), better="higher")
            for name, probe in probes.items()
        }

    def _pictures(self, model: Encodes, codes: Tensor, made: Tensor) -> dict[str, bytes]:
        columns = {"real, held out": self.real[:SHEET_IMAGES], "reconstructed": made[:SHEET_IMAGES]}
        drawn = {"reconstructions": contact_sheet(columns, images_per_row=8)}
        resolution = self.real.shape[-1]
        decode = partial(representation.decoded, model, resolution=resolution, progress=lambda images: None)
        drawn["traversals"] = pictures.traversals(decode, codes)
        if isinstance(model, HasPrior):
            prior, posterior = representation.prior_and_posterior(model, self.real)
            labels = self.labels if self.labelled else None
            if codes.shape[1] > 1:
                drawn["aggregated_posterior"] = pictures.scattered(prior, posterior, labels)
            if codes.shape[1] == 2:
                drawn["latent_manifold"] = pictures.manifold(decode, prior)
        return drawn


class Interpolation(Task):
    """How smoothly images change between latents, in the space of every extractor."""

    kind = "interpolations"

    def __init__(self, model: FromLatents, manifest: Manifest, dataset: Dataset, extractors: Sequence[Extractor]):
        self.extractors, self.resolution = extractors, manifest.resolution
        self.primary = f"perceptual_path_length_{extractors[0].name}"
        self.looks = min(reals.count(manifest), interpolation.MOST_PATHS)
        self.labels = _labels(dataset.table("test"), self.looks) if _conditional(model) else None
        settings = {"step": interpolation.STEP, "paths": self.looks, "seed": interpolation.SEED}
        self.protocol = {"perceptual_path_length": settings}

    def judge(self, model: GenerativeModel, *, replicates: int, progress: Looks) -> Judged:
        assert isinstance(model, FromLatents)
        told = partial(progress, "interpolate")
        where = {"resolution": self.resolution, "labels": self.labels}
        lengths = interpolation.path_lengths(model, self.extractors, self.looks, **where, progress=told)
        scores = {
            f"perceptual_path_length_{extractor.name}": _mean(each, replicates)
            for extractor, each in zip(self.extractors, lengths, strict=True)
        }
        return Judged(scores, partial(self._pictures, model))

    def _pictures(self, model: FromLatents) -> dict[str, bytes]:
        labels = None if self.labels is None else self.labels[:INTERPOLATIONS]
        images = interpolation.walks(model, INTERPOLATIONS, labels=labels)
        sheet = contact_sheet({"from one latent to another": images.flatten(0, 1)}, images_per_row=images.shape[1])
        return {"interpolations": sheet}


class Disentanglement(Task):
    """Whether codes of held-out images keep the factors apart that these were made from. The class is one of them, the
    one whose values have no order."""

    kind = "factors"
    primary = "mig"

    def __init__(self, model: Encodes, manifest: Manifest, dataset: Dataset, extractors: Sequence[Extractor]):
        count = reals.count(manifest)
        self.images, self.factors = {}, {}
        for split in ("train", "test"):
            table = dataset.table(split)
            self.images[split] = _images(table, manifest, count)
            self.factors[split] = {name: _column(table, factor_column(name), count) for name in manifest.factors}
            if manifest.classes:
                self.factors[split][CLASS] = _labels(table, count)
        self.looks = 2 * count
        self.protocol = {
            "factors": {
                "mig": f"{disentanglement.BINS} bins",
                "factor_vae_score": f"{disentanglement.VOTES} votes of {disentanglement.VOTE_IMAGES} images",
                "dci": f"random forests of {disentanglement.TREES} trees",
                "dimensions": disentanglement.MOST_DIMENSIONS,
            }
        }

    def judge(self, model: GenerativeModel, *, replicates: int, progress: Looks) -> Judged:
        assert isinstance(model, Encodes)
        told = partial(progress, "encode")
        learnt, judged = (
            disentanglement.Coded(representation.codes_of(model, images, told), self.factors[split])
            for split, images in self.images.items()
        )
        generator = torch.Generator().manual_seed(measures.SEED)
        scores = disentanglement.disentanglement(
            learnt, judged, unordered=CLASS, generator=generator, replicates=replicates
        )
        return Judged(scores, dict)


class Clustering(Task):
    """Whether the kinds into which a model sorts images, which it was not told, are their classes."""

    kind = "clusters"
    primary = "cluster_accuracy"

    def __init__(self, model: Clusters, manifest: Manifest, dataset: Dataset, extractors: Sequence[Extractor]):
        train, test = dataset.table("train"), dataset.table("test")
        self.looks, self.clusters = reals.count(manifest), model.clusters
        self.real, self.others = _images(test, manifest, self.looks), _images(train, manifest, self.looks)
        self.labels = _labels(test, self.looks)
        self.protocol = {"cluster_accuracy": {f"{self.clusters} clusters": "at most one for each class"}}

    def judge(self, model: GenerativeModel, *, replicates: int, progress: Looks) -> Judged:
        assert isinstance(model, Clusters)
        found = representation.clustered(model, self.real, partial(progress, "cluster"))
        return Judged({"cluster_accuracy": self._accuracy(found, replicates)}, dict)

    def baselines(self, *, replicates: int, progress: Looks) -> dict[str, Estimate]:
        found = representation.pixel_clusters(self.others, self.real, self.clusters)
        return {"cluster_accuracy_of_pixels": self._accuracy(found, replicates)}

    def _accuracy(self, clusters: Tensor, replicates: int) -> Estimate:
        return replace(_mean(representation.matched(clusters, self.labels), replicates), better="higher")


def tasks_of(
    model: GenerativeModel, manifest: Manifest, dataset: Dataset, extractors: Sequence[Extractor]
) -> tuple[list[Task], dict[str, str]]:
    """What the model is judged by, and why not by the rest. The first task decides: of an explicit density its
    likelihood, else what the model makes, and the reconstruction where it makes nothing.

    Raises:
        SpecError: if it can nothing that can be judged.
        DataError: if there are too few images to judge it.
    """
    what = manifest, dataset, extractors
    tasks: list[Task] = []
    if isinstance(model, ScoresDensity):
        tasks.append(Likelihood(model, *what))
    if isinstance(model, Samples):
        tasks.append(Sampling(model, *what))
    if isinstance(model, Translates):
        tasks.append(Translation(model, *what))
    if isinstance(model, Encodes):
        tasks.append(Representation(model, *what))
    if isinstance(model, FromLatents) and extractors:
        tasks.append(Interpolation(model, *what))
    if isinstance(model, Encodes) and manifest.factors:
        tasks.append(Disentanglement(model, *what))
    if isinstance(model, Clusters) and model.clusters and manifest.classes:
        tasks.append(Clustering(model, *what))
    if not tasks:
        raise SpecError(
            f"{type(model).__name__} cannot be evaluated: it neither samples nor translates, encodes or scores images."
        )
    return tasks, _not_judged(model)


WITHOUT_DENSITY = {
    Density.TRACTABLE: "has a tractable density but no method that scores images",
    Density.APPROXIMATE: "has an approximate density but no method that bounds it",
    Density.IMPLICIT: "defines its density only by drawing from it, and estimates from samples mislead",
    Density.NONE: "defines no density",
}


def _not_judged(model: GenerativeModel) -> dict[str, str]:
    """The axes on which a model is not judged, and why."""
    reasons = {}
    if not isinstance(model, ScoresDensity):
        reasons["density"] = f"{model.title} {WITHOUT_DENSITY[model.density]}."
    if not isinstance(model, Samples | Translates):
        reasons["generation"] = f"{model.title} makes no new images."
    if not isinstance(model, Encodes):
        reasons["representation"] = f"{model.title} has no codes of images."
    return reasons


def _protocol(manifest: Manifest, extractors: Sequence[Extractor]) -> dict[str, Any]:
    return {
        "generation": {"seed": generation.SEED, "pixels": "8 bits", "weights": "as registered, evaluation mode"},
        **measures.protocol(manifest.resolution, extractors),
    }


def _conditional(model: Any) -> bool:
    return "label" in model.stages[-1].inputs


def _mean(values: Tensor, replicates: int) -> Estimate:
    return sample_mean(values, replicates, torch.Generator().manual_seed(measures.SEED))


def _perfect(value: float) -> Estimate:
    return Estimate(value, torch.empty(0))


def _images(table: Table, manifest: Manifest, count: int) -> Tensor:
    return torch.from_numpy(table.read(f"image@{manifest.resolution}", reals.judged_by(table, count)))


def _labels(table: Table, count: int) -> Tensor:
    return _column(table, "label", count)


def _column(table: Table, column: str, count: int) -> Tensor:
    return torch.from_numpy(table.read(column, reals.judged_by(table, count)).astype(np.int64))
