"""Whether a code keeps the factors that images were made from apart, each in a dimension of its own, where the factors
are known. N images, D dimensions, F factors with values 0, 1, ..., R rows of weights: the images and their resamplings.

The field has settled on no one measure (Locatello et al. 2019 compare them), so there are four. Each is highest where
every dimension holds one factor and every factor lies in one dimension, and falls where such a code is rotated.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from genmodels.evaluation.bootstrap import REPLICATES, Estimate, original_and_resampled, sample_mean

BINS = 20
VOTES, VOTE_IMAGES = 800, 64
LEAST_DEVIATION = 0.05  # of the largest: what varies less is no part of the code
TREES = REPLICATES
MOST_DIMENSIONS = 32


@dataclass(frozen=True)
class Coded:
    """Codes of images, (N, D), and by name the factors that these were made from, (N,) int64 each."""

    codes: Tensor
    factors: Mapping[str, Tensor]


def perfect(factors: Mapping[str, Tensor]) -> Coded:
    """A code that is the factors, in a dimension each."""
    return Coded(torch.stack([*factors.values()], dim=1).double(), factors)


def disentanglement(
    learnt: Coded, judged: Coded, *, unordered: str, generator: torch.Generator, replicates: int = REPLICATES
) -> dict[str, Estimate]:
    """All measures of `judged`; what has to be learnt for one is learnt from other images, `learnt`.

    Factors of one value are passed over. Of codes with more than 32 dimensions those of the largest variance are
    taken. The values of the factor `unordered` have no order, those of the others have.
    """
    varied = [name for name, values in learnt.factors.items() if values.unique().numel() > 1]
    widest = learnt.codes.var(dim=0).topk(min(MOST_DIMENSIONS, learnt.codes.shape[1])).indices.sort().values
    learnt, judged = (
        Coded(coded.codes[:, widest].double(), {name: coded.factors[name] for name in varied})
        for coded in (learnt, judged)
    )
    times = original_and_resampled(len(judged.codes), replicates, generator)
    gaps = mutual_information_gap(judged, times), separated_attribute_predictability(learnt, judged, times, unordered)
    return {
        **{name: Estimate(float(r[0]), r[1:], "higher") for name, r in zip(("mig", "sap"), gaps, strict=True)},
        "factor_vae_score": factor_vae_score(learnt, judged, generator, replicates),
        **dci(learnt, judged, generator, replicates),
    }


def mutual_information_gap(judged: Coded, times: Tensor) -> Tensor:
    """MIG (Chen, Li, Grosse & Duvenaud 2018), (R,): how much more of a factor the dimension that knows most of
    it knows than the second, as a share of the factor's entropy; the mean over factors. From the frequencies of 20
    equal bins of each dimension, which find a little information where there is none, but about as much in any two."""
    low, high = judged.codes.amin(dim=0), judged.codes.amax(dim=0)
    bins = ((judged.codes - low) / (high - low).clamp_min(1e-12) * BINS).long().clamp_max(BINS - 1)
    gaps = []
    for values in judged.factors.values():
        information = torch.stack([mutual_information(each, values, times) for each in bins.T], dim=1)
        gaps.append(_gap(information) / mutual_information(values, values, times))
    return torch.stack(gaps).mean(dim=0)


def mutual_information(first: Tensor, second: Tensor, times: Tensor) -> Tensor:
    """I(first; second) in nats, (R,), of two variables with whole values from 0, (N,) each, seen `times` (R, N)."""
    columns = int(second.max()) + 1
    joint = times.new_zeros(len(times), (int(first.max()) + 1) * columns)
    joint = joint.index_add_(1, first * columns + second, times) / times.sum(dim=1, keepdim=True)
    entropy = lambda share: torch.special.entr(share).sum(dim=1)  # noqa: E731
    table = joint.unflatten(1, (-1, columns))
    return entropy(table.sum(dim=2)) + entropy(table.sum(dim=1)) - entropy(joint)


def separated_attribute_predictability(learnt: Coded, judged: Coded, times: Tensor, unordered: str) -> Tensor:
    """SAP (Kumar, Sattigeri & Balakrishnan 2018, section 3), (R,): how much better the dimension that best predicts a
    factor does it than the second; the mean over factors. Predicted is by a straight line, whose squared correlation
    counts, or, if the values have no order, by thresholds half way between the values' means, whose balanced accuracy
    does."""
    weights = times / times.sum(dim=1, keepdim=True)
    gaps = []
    for name, values in judged.factors.items():
        if name == unordered:
            scores = _balanced_accuracy(learnt.codes, learnt.factors[name], judged.codes, values, weights)
        else:
            scores = _squared_correlation(judged.codes, values.double(), weights)
        gaps.append(_gap(scores))
    return torch.stack(gaps).mean(dim=0)


def factor_vae_score(learnt: Coded, judged: Coded, generator: torch.Generator, replicates: int) -> Estimate:
    """The score of FactorVAE (Kim & Mnih 2018, section 4): of 64 images that agree in one factor, the code's dimension
    that varies least for its usual spread votes for that factor. How often 800 such votes are right, if each dimension
    stands for the factor that it has most often voted for in 800 others. Dead dimensions do not vote."""
    dimensions, factors = _votes(learnt, learnt.codes, generator)
    ballots = torch.zeros(learnt.codes.shape[1], len(learnt.factors)).index_put_(
        (dimensions, factors), torch.ones(()), accumulate=True
    )
    dimensions, factors = _votes(judged, learnt.codes, generator)
    return _higher(sample_mean(ballots.argmax(dim=1)[dimensions] == factors, replicates, generator))


def dci(learnt: Coded, judged: Coded, generator: torch.Generator, replicates: int) -> dict[str, Estimate]:
    """Disentanglement, completeness and informativeness (Eastwood & Williams 2018, section 2) by random forests that
    tell each factor's value from the code; the last is the share of factors told right.

    A forest's 50 trees each learn from a resampling, so that the intervals of the first two are those of the trees'
    own scores: wider than the forest's would be.
    """
    from sklearn.ensemble import RandomForestClassifier  # takes seconds

    importances, right = [], []
    for name, values in learnt.factors.items():
        forest = RandomForestClassifier(
            TREES,
            max_features=1.0,  # pyright: ignore[reportArgumentType]
            min_samples_leaf=5,
            random_state=0,
        )
        forest.fit(learnt.codes.numpy(), values.numpy())
        importances.append(np.stack([tree.feature_importances_ for tree in forest.estimators_]))
        right.append(torch.from_numpy(forest.predict(judged.codes.numpy())) == judged.factors[name])
    trees = torch.from_numpy(np.stack(importances, axis=2))
    scores = {
        f"dci_{name}": Estimate(score(trees.mean(dim=0)), torch.tensor([*map(score, trees[:replicates])]), "higher")
        for name, score in (("disentanglement", disentanglement_of), ("completeness", completeness_of))
    }
    informativeness = sample_mean(torch.stack(right).double().mean(dim=0), replicates, generator)
    return scores | {"dci_informativeness": _higher(informativeness)}


def disentanglement_of(importance: Tensor) -> float:
    """How far each dimension matters to one factor alone, the more important dimensions counting more, of how much each
    dimension matters to each factor, (D, F)."""
    of_dimension = importance.sum(dim=1)
    return float(_concentration(importance) @ of_dimension / of_dimension.sum())


def completeness_of(importance: Tensor) -> float:
    """How far each factor depends on one dimension alone, in the mean; of the same (D, F)."""
    return float(_concentration(importance.T).mean())


def _concentration(shares: Tensor) -> Tensor:
    """1 less the entropy of each row, (N, K) to be scaled to the sum 1, with the logarithm to the base K: (N,)."""
    shares = shares / shares.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return 1 - torch.special.entr(shares).sum(dim=1) / math.log(max(2, shares.shape[1]))


def _gap(scores: Tensor) -> Tensor:
    """Of (R, D) by how much the highest exceeds the second, which is 0 if there is none: (R,)."""
    highest = torch.cat((scores, torch.zeros_like(scores[:, :1])), dim=1).topk(2).values
    return highest[:, 0] - highest[:, 1]


def _squared_correlation(codes: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Of each dimension of (N, D) with (N,), under each row of weights (R, N): (R, D); 0 where nothing varies."""
    codes, values = codes - codes.mean(dim=0), values - values.mean()
    mean_code, mean_value = weights @ codes, (weights @ values)[:, None]
    covariance = weights @ (codes * values[:, None]) - mean_code * mean_value
    variances = (weights @ codes.square() - mean_code**2) * ((weights @ values.square())[:, None] - mean_value**2)
    return covariance.square() / variances.clamp_min(1e-12)


def _balanced_accuracy(
    learnt_codes: Tensor, learnt_values: Tensor, codes: Tensor, values: Tensor, weights: Tensor
) -> Tensor:
    """Of taking each code for the value whose mean is nearest, in each dimension by itself: (R, D). A value's images
    count as much as another's."""
    kinds = learnt_values.unique()
    means = torch.stack([learnt_codes[learnt_values == kind].mean(dim=0) for kind in kinds])
    nearest = kinds[(codes[:, None] - means).abs().argmin(dim=1)]
    right = (nearest == values[:, None]).double()
    accuracies = []
    for kind in kinds:
        weight = weights * (values == kind)
        accuracies.append(weight @ right / weight.sum(dim=1, keepdim=True).clamp_min(1e-12))
    return torch.stack(accuracies).mean(dim=0)


def _votes(coded: Coded, learnt_codes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Dimensions voted for and the factors in which the voting images agreed, (800,) int64 each."""
    deviation = learnt_codes.std(dim=0)
    dead = deviation <= LEAST_DEVIATION * deviation.max()
    factors = torch.stack([*coded.factors.values()])
    fixed = torch.randint(len(factors), (VOTES,), generator=generator)
    like = torch.randint(len(coded.codes), (VOTES,), generator=generator)
    agree = factors[fixed] == factors[fixed, like][:, None]
    images = torch.multinomial(agree.float(), VOTE_IMAGES, replacement=True, generator=generator)
    spread = (coded.codes[images] / deviation.clamp_min(1e-12)).var(dim=1)
    return spread.masked_fill(dead, torch.inf).argmin(dim=1), fixed


def _higher(estimate: Estimate) -> Estimate:
    return replace(estimate, better="higher")
