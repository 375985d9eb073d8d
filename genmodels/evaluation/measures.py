"""All the measures of how alike two sets of images are, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genmodels.evaluation import manifold, ms_ssim, sliced_wasserstein
from genmodels.evaluation.bootstrap import Estimate, mean, sample_mean
from genmodels.evaluation.extractors import Extractor, held_out_features
from genmodels.evaluation.frechet import fid
from genmodels.evaluation.kernel import kid
from genmodels.evaluation.modes import mode_scores
from genmodels.nn.structural_similarity import scales

SEED = 0
PRIMARY = "sliced_wasserstein"  # needs no weights, so every data set has it
ABSOLUTE = "sliced_wasserstein_absolute"  # the same, but a change of colour, or of place, counts


def likeness(
    real: Mapping[str, Tensor],
    images: Mapping[str, Tensor],
    extractors: Sequence[Extractor],
    *,
    frequencies: Tensor | None = None,
    labels: Tensor | None = None,
    absolute: bool = False,
    replicates: int,
    progress: Callable[[str, int], None],
) -> dict[str, Estimate]:
    """Sliced Wasserstein, `absolute` or not, by pyramid level and in the mean; by extractor FID, KID, precision and
    recall, density and coverage, and where it knows classes their modes, and label agreement where there are labels.

    Args:
        real, images: as many real images as judged ones, (N, C, R, R) uint8, points float32, under the suffix of their
            metrics' names.
        frequencies: of the real classes, (K,), where there are any.
        labels: the classes, (N,), that the judged images should have.
        progress: told what looks at the images, and how many more it has looked at.
    """
    name = ABSOLUTE if absolute else PRIMARY
    measured: dict[str, Estimate] = {}
    levels: list[Estimate] = []
    for suffix in real:
        generator = torch.Generator().manual_seed(SEED)
        distances = sliced_wasserstein.sliced_wasserstein(
            real[suffix], images[suffix], absolute=absolute, generator=generator, replicates=replicates
        )
        measured |= {f"{name}_{size}{suffix}": distance for size, distance in distances.items()}
        levels += distances.values()
        progress(name, len(real[suffix]))
        for extractor in extractors:
            tell = partial(progress, extractor.name)
            features = held_out_features(extractor, real[suffix]), extractor(images[suffix], tell)
            values = feature_measures(*features, replicates=replicates)
            if frequencies is not None and extractor.knows_classes:
                classes = extractor.classes(features[1])
                generator = torch.Generator().manual_seed(SEED)
                values |= mode_scores(classes, frequencies, generator=generator, replicates=replicates)
                if labels is not None:
                    values["label_agreement"] = label_agreement(classes, labels, replicates=replicates)
            measured |= {f"{measure}_{extractor.name}{suffix}": value for measure, value in values.items()}
    return {name: mean(levels)} | measured


def feature_measures(real: Tensor, fake: Tensor, *, replicates: int) -> dict[str, Estimate]:
    """All that is measured of two sets of features, (N, D) each."""
    generators = [torch.Generator().manual_seed(SEED) for _ in range(3)]
    return {
        "fid": fid(real, fake, generator=generators[0], replicates=replicates),
        "kid": kid(real, fake, generator=generators[1], replicates=replicates),
        **manifold.manifold_scores(real, fake, generator=generators[2], replicates=replicates),
    }


def label_agreement(classes: Tensor, labels: Tensor, *, replicates: int) -> Estimate:
    """The share of images whose class (N,), as an extractor tells it, is that of their label (N,)."""
    return replace(sample_mean(classes == labels, replicates, torch.Generator().manual_seed(SEED)), better="higher")


def diversity(images: Tensor, *, replicates: int) -> dict[str, Estimate]:
    """MS-SSIM of random pairs; the number of scales is in its name."""
    generator = torch.Generator().manual_seed(SEED)
    estimate = ms_ssim.diversity(images, generator=generator, replicates=replicates)
    return {f"ms_ssim_{scales(images.shape[-1])}_scales": estimate}


def protocol(resolution: int, extractors: Sequence[Extractor]) -> dict[str, Any]:
    """All of the measures that must be equal for two scores to be comparable."""
    swd = sliced_wasserstein
    return {
        "measures_seed": SEED,
        "sliced_wasserstein": {
            "levels": swd.levels(resolution),
            "patch": min(swd.PATCH, resolution),
            "patches_per_image": swd.patches_per_image(resolution),
            "directions": swd.DIRECTIONS,
            "repeats": swd.REPEATS,
        },
        "ms_ssim": {"scales": scales(resolution), "window": 11, "sigma": 1.5},
        "kid": "all pairs, (x.y / D + 1)^3",
        "manifold": {"precision": manifold.PRECISION_NEIGHBOURS, "density": manifold.DENSITY_NEIGHBOURS},
        "extractors": {extractor.name: extractor.protocol for extractor in extractors},
    }
