"""Representation: what a model's codes keep of held-out images, and how what it makes changes with its latents."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from genmodels.data.dataset import Dataset
from genmodels.data.manifest import Manifest, factor_column
from genmodels.evaluation import disentanglement, interpolation, measures, pictures, reals, representation
from genmodels.evaluation.bootstrap import Estimate
from genmodels.evaluation.extractors import Extractor, held_out_features
from genmodels.evaluation.frechet import fid
from genmodels.evaluation.kernel import PERMUTATIONS, prior_mmd
from genmodels.evaluation.pictures import contact_sheet, sheet_columns
from genmodels.evaluation.tasks.base import (
    Judged,
    Looks,
    Task,
    column_of,
    conditional,
    exactly,
    images_of,
    labels_of,
    mean,
)
from genmodels.models.base import Clusters, Encodes, FromLatents, GenerativeModel, HasLatentCodes, HasPrior

INTERPOLATIONS = 8
CLASS = "class"


class Representation(Task):
    """Codes of held-out images: the images decoded from them, their classes, and the prior they should follow."""

    kind = "codes"
    primary = "reconstruction_psnr"

    def __init__(self, model: Encodes, manifest: Manifest, dataset: Dataset, extractors: Sequence[Extractor]):
        train, test = dataset.table("train"), dataset.table("test")
        count = reals.count(manifest)
        self.extractors = extractors
        self.real, self.others = images_of(test, manifest, count), images_of(train, manifest, count)
        self.labelled, self.has_prior = manifest.classes > 1, isinstance(model, HasPrior)
        if self.labelled:
            self.labels, self.other_labels = labels_of(test, count), labels_of(train, count)
        self.given = labels_of(test, count) if conditional(model) else None
        self.looks = count * ((3 if self.labelled else 2) + len(extractors))
        self.protocol = {
            "codes": {
                "probes": "none"
                if not self.labelled
                else f"{count} images; logistic regression with weight decay 1; "
                f"{representation.NEIGHBOURS} nearest neighbours",
                "ssim_window": representation.SSIM_WINDOW,
                "prior": self.has_prior,
                "seed": representation.SEED,
            },
            "extractors": {extractor.name: extractor.protocol for extractor in extractors},
        }
        if self.has_prior:
            self.protocol["prior_mmd"] = {"permutations": PERMUTATIONS}
            if self.given is not None:
                self.protocol["prior_mmd"] |= {"prior": "of the held-out images' classes"}

    def judge(self, model: GenerativeModel, *, replicates: int, progress: Looks) -> Judged:
        assert isinstance(model, Encodes)
        codes = representation.codes_of(model, self.real, partial(progress, "encode"))
        made = representation.decoded(model, codes, self.real.shape[-1], partial(progress, "decode"))
        scores = {
            f"reconstruction_{name}": replace(mean(similarity(self.real, made), replicates), better="higher")
            for name, similarity in (("psnr", representation.psnr), ("ssim", representation.ssim))
        }
        for extractor in self.extractors:
            features = held_out_features(extractor, self.real), extractor(made, partial(progress, extractor.name))
            generator = torch.Generator().manual_seed(measures.SEED)
            scores[f"reconstruction_fid_{extractor.name}"] = fid(
                *features, generator=generator, replicates=replicates, paired=True
            )
        if self.labelled:
            others = representation.codes_of(model, self.others, partial(progress, "encode"))
            scores |= self._probes(others, codes, replicates)
        if isinstance(model, HasPrior):
            prior, posterior = representation.prior_and_posterior(model, self.real, labels=self.given)
            seeds = [torch.Generator().manual_seed(measures.SEED) for _ in range(2)]
            scores["prior_mmd"] = prior_mmd(prior, posterior, generator=seeds[0], replicates=replicates)
            scores["active_units"] = representation.active_units(
                codes, prior, generator=seeds[1], replicates=replicates
            )
        return Judged(scores, partial(self._pictures, model, codes, made))

    def floor(self, progress: Looks) -> dict[str, Estimate]:
        known = {"reconstruction_psnr": representation.HIGHEST_PSNR, "reconstruction_ssim": 1.0}
        known |= {f"reconstruction_fid_{extractor.name}": 0.0 for extractor in self.extractors}
        if self.labelled:  # by a code that holds the class
            known |= {"linear_probe_accuracy": 1.0, "nearest_neighbour_accuracy": 1.0}
        if self.has_prior:
            known["prior_mmd"] = 0.0
        return {name: exactly(value) for name, value in known.items()}

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
            name: replace(mean(probe(others, self.other_labels, codes) == self.labels, replicates), better="higher")
            for name, probe in probes.items()
        }

    def _pictures(self, model: Encodes, codes: Tensor, made: Tensor) -> dict[str, bytes]:
        resolution = self.real.shape[-1]
        per_row = sheet_columns(resolution)
        columns = {"real, held out": self.real[: per_row**2], "reconstructed": made[: per_row**2]}
        drawn = {"reconstructions": contact_sheet(columns, images_per_row=per_row)}
        decode = partial(representation.decoded, model, resolution=resolution, progress=lambda images: None)
        drawn["traversals"] = pictures.traversals(decode, codes)
        pairs = min(INTERPOLATIONS, len(codes) // 2)
        between = decode(interpolation.on_the_way(codes[:pairs], codes[pairs : 2 * pairs], torch.lerp))
        caption = "from one held-out image to another, straight between their codes"
        drawn["interpolations_of_images"] = contact_sheet({caption: between}, images_per_row=interpolation.WALK_IMAGES)
        if isinstance(model, HasPrior):
            prior, posterior = representation.prior_and_posterior(model, self.real, labels=self.given)
            labels = self.labels if self.labelled else None
            if codes.shape[1] > 1:
                drawn["aggregated_posterior"] = pictures.scattered(
                    prior, posterior, labels, in_pairs=model.prior_in_pairs
                )
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
        self.labels = labels_of(dataset.table("test"), self.looks) if conditional(model) else None
        settings = {"step": interpolation.STEP, "paths": self.looks, "seed": interpolation.SEED}
        self.protocol = {"perceptual_path_length": settings}

    def judge(self, model: GenerativeModel, *, replicates: int, progress: Looks) -> Judged:
        assert isinstance(model, FromLatents)
        told = partial(progress, "interpolate")
        where = {"resolution": self.resolution, "labels": self.labels}
        lengths = interpolation.path_lengths(model, self.extractors, self.looks, **where, progress=told)
        scores = {
            f"perceptual_path_length_{extractor.name}": mean(each, replicates)
            for extractor, each in zip(self.extractors, lengths, strict=True)
        }
        return Judged(scores, partial(self._pictures, model))

    def _pictures(self, model: FromLatents) -> dict[str, bytes]:
        labels = None if self.labels is None else self.labels[:INTERPOLATIONS]
        drawn = {}
        for name, path in (("interpolations", interpolation.spherical), ("linear_interpolations", torch.lerp)):
            images = interpolation.walks(model, INTERPOLATIONS, path, labels=labels)
            drawn[name] = contact_sheet({"from one latent to another": images}, rows_apart=True)
        told = next((extractor for extractor in self.extractors if extractor.knows_classes), None)
        if self.labels is None and told and (rows := interpolation.arithmetic(model, told)) is not None:
            drawn["latent_arithmetic"] = contact_sheet({"A, B, C and their averages; A - B + C": rows})
        if isinstance(model, HasLatentCodes) and (traversals := interpolation.code_traversals(model, INTERPOLATIONS)):
            drawn["code_traversals"] = contact_sheet(traversals)
        return drawn


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
            self.images[split] = images_of(table, manifest, count)
            self.factors[split] = {name: column_of(table, factor_column(name), count) for name in manifest.factors}
            if manifest.classes:
                self.factors[split][CLASS] = labels_of(table, count)
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
        return Judged(self._scores(learnt, judged, replicates), dict)

    def floor(self, progress: Looks) -> dict[str, Estimate]:
        """Those of the factors themselves, a dimension each. Not all are 1: of the class other dimensions guess a share
        right, which SAP subtracts, and MIG's 20 bins tell no more values apart."""
        learnt, judged = map(disentanglement.perfect, (self.factors["train"], self.factors["test"]))
        return self._scores(learnt, judged, replicates=0)

    def _scores(
        self, learnt: disentanglement.Coded, judged: disentanglement.Coded, replicates: int
    ) -> dict[str, Estimate]:
        generator = torch.Generator().manual_seed(measures.SEED)
        return disentanglement.disentanglement(
            learnt, judged, unordered=CLASS, generator=generator, replicates=replicates
        )


class Clustering(Task):
    """Whether the kinds into which a model sorts images, which it was not told, are their classes."""

    kind = "clusters"
    primary = "cluster_accuracy"

    def __init__(self, model: Clusters, manifest: Manifest, dataset: Dataset, extractors: Sequence[Extractor]):
        train, test = dataset.table("train"), dataset.table("test")
        self.looks, self.clusters = reals.count(manifest), model.clusters
        self.real, self.others = images_of(test, manifest, self.looks), images_of(train, manifest, self.looks)
        self.labels = labels_of(test, self.looks)
        self.protocol = {"cluster_accuracy": {f"{self.clusters} clusters": "at most one for each class"}}

    def judge(self, model: GenerativeModel, *, replicates: int, progress: Looks) -> Judged:
        assert isinstance(model, Clusters)
        found = representation.clustered(model, self.real, partial(progress, "cluster"))
        return Judged({"cluster_accuracy": self._accuracy(found, replicates)}, dict)

    def baselines(self, *, replicates: int, progress: Looks) -> dict[str, Estimate]:
        found = representation.pixel_clusters(self.others, self.real, self.clusters)
        return {"cluster_accuracy_of_pixels": self._accuracy(found, replicates)}

    def floor(self, progress: Looks) -> dict[str, Estimate]:
        return {"cluster_accuracy": exactly(representation.best_cluster_accuracy(self.labels, self.clusters))}

    def _accuracy(self, clusters: Tensor, replicates: int) -> Estimate:
        return replace(mean(representation.matched(clusters, self.labels), replicates), better="higher")
