"""What codes keep of images: how well the images are reconstructed from them, how easily classes are read off them, how
many of their dimensions are used, and how their distribution lies on the prior's."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from genmodels.evaluation.bootstrap import Estimate, original_and_resampled
from genmodels.evaluation.generation import batches, device_of
from genmodels.evaluation.images import as_stored
from genmodels.models.base import Clusters, Encodes, HasPrior, scaled

SEED = 0
NEIGHBOURS = 5
SSIM_WINDOW = 11
HIGHEST_PSNR = 58.9  # dB; what rounding to 8 bits costs, a mean square of 1/12 of a level, allows no more
LARGEST_PIXEL_CODE = 32
ACTIVE_VARIANCE = 0.01  # of the prior's
BATCH_ROWS = 1024


@torch.inference_mode()
def codes_of(model: Encodes, images: Tensor, progress: Callable[[int], None]) -> Tensor:
    """(N, D) float32 on the CPU, of (N, C, R, R) uint8 images; `progress` is told how many more are done."""
    codes = []
    for rows in batches(len(images), images.shape[-1]):
        codes.append(model.encode(scaled(images[rows].to(device_of(model)))).float().cpu())
        progress(len(codes[-1]))
    return torch.cat(codes)


@torch.inference_mode()
def decoded(model: Encodes, codes: Tensor, resolution: int, progress: Callable[[int], None]) -> Tensor:
    """(N, C, R, R) uint8 images on the CPU, of (N, D) codes."""
    images = []
    for rows in batches(len(codes), resolution):
        images.append(as_stored(model.decode(codes[rows].to(device_of(model)))).cpu())
        progress(len(images[-1]))
    return torch.cat(images)


@torch.inference_mode()
def prior_and_posterior(model: HasPrior, images: Tensor, *, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """As many draws from the prior as there are images, of their classes `labels` (N,) where the model takes any, and
    one from each image's posterior: (N, D) float32 each."""
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(SEED)
    given = {} if labels is None else {"labels": labels}
    prior = model.prior(len(images), **given, generator=generator).float().cpu()
    posterior = [
        model.posterior(scaled(images[rows].to(device)), generator=generator).float().cpu()
        for rows in batches(len(images), images.shape[-1])
    ]
    return prior, torch.cat(posterior)


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each reconstruction in dB, (N,), at most 58.9; both (N, C, R, R) uint8."""
    from torchmetrics.functional.image import peak_signal_noise_ratio  # takes seconds

    ratio = peak_signal_noise_ratio(
        reconstructions.float(), images.float(), data_range=255.0, dim=(1, 2, 3), reduction="none"
    )
    return ratio.clamp(max=HIGHEST_PSNR)


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each reconstruction, (N,), 1 for equal images. The window of 11
    pixels and sigma 1.5 shrinks with smaller images."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes seconds

    sigma = 1.5 * min(SSIM_WINDOW, images.shape[-1]) / SSIM_WINDOW
    pairs = zip(reconstructions.float().split(BATCH_ROWS), images.float().split(BATCH_ROWS), strict=True)
    similarities = [
        structural_similarity_index_measure(made, real, sigma=sigma, data_range=255.0, reduction="none")
        for made, real in pairs
    ]
    return torch.cat([torch.as_tensor(value).view(-1) for value in similarities])


def active_units(codes: Tensor, prior: Tensor, *, generator: torch.Generator, replicates: int) -> Estimate:
    """How many dimensions of codes, (N, D), vary from image to image by more than a hundredth of the variance of their
    prior, of which `prior` (M, D) are draws: Burda, Grosse & Salakhutdinov 2016, section 5.2, where that is 1."""
    shares = original_and_resampled(len(codes), replicates, generator) / len(codes)
    centred = codes.double() - codes.double().mean(dim=0)
    variances = shares @ centred.square() - (shares @ centred).square()
    active = (variances > ACTIVE_VARIANCE * prior.double().var(dim=0)).sum(dim=1).double()
    return Estimate(float(active[0]), active[1:], "higher", note=f"of {codes.shape[1]}")


@torch.inference_mode()
def clustered(model: Clusters, images: Tensor, progress: Callable[[int], None]) -> Tensor:
    """The cluster of each of (N, C, R, R) uint8 images: (N,) int64 on the CPU."""
    found = []
    for rows in batches(len(images), images.shape[-1]):
        found.append(model.cluster(scaled(images[rows].to(device_of(model)))).cpu())
        progress(len(found[-1]))
    return torch.cat(found)


def matched(clusters: Tensor, labels: Tensor) -> Tensor:
    """Whether each image's cluster (N,) stands for its class (N,), where each class has at most one cluster and most
    images are right: the assignment of the Hungarian method (Kuhn 1955)."""
    from scipy.optimize import linear_sum_assignment  # takes a second

    together = torch.zeros(int(clusters.max()) + 1, int(labels.max()) + 1)
    together.index_put_((clusters, labels), torch.ones(()), accumulate=True)
    of_class = torch.full((together.shape[0],), -1)
    rows, columns = linear_sum_assignment(together.numpy(), maximize=True)
    of_class[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return of_class[clusters] == labels


def best_cluster_accuracy(labels: Tensor, clusters: int) -> float:
    """Of clusters that are classes (N,) without a mistake: 1, or where there are fewer clusters than classes the share
    of the most frequent classes."""
    counts = labels.bincount()
    return float(counts.topk(min(clusters, len(counts))).values.sum() / len(labels))


def pixel_clusters(learnt: Tensor, images: Tensor, clusters: int) -> Tensor:
    """The cluster of each of (N, C, R, R) uint8 images, (N,) int64, if k-means of other images makes them."""
    from sklearn.cluster import KMeans  # takes seconds

    means = KMeans(
        clusters,
        n_init=10,  # pyright: ignore[reportArgumentType]
        random_state=SEED,
    ).fit(pixel_codes(learnt).numpy())
    return torch.from_numpy(means.predict(pixel_codes(images).numpy())).long()


def pixel_codes(images: Tensor) -> Tensor:
    """The images themselves as codes, (N, D), reduced to at most 32x32 by averaging areas."""
    size = min(images.shape[-1], LARGEST_PIXEL_CODE)
    return F.adaptive_avg_pool2d(scaled(images), size).flatten(1)


def linear_probe(codes: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """The classes, (M,), that a logistic regression learnt from codes (N, D) with labels (N,) gives to `others` (M, D).

    It minimises the sum of the cross entropies and half the squared weights, on standardised codes, by L-BFGS.
    """
    mean, deviation = codes.double().mean(dim=0), codes.double().std(dim=0).clamp_min(1e-6)
    inputs, others = ((each.double() - mean) / deviation for each in (codes, others))
    weight = torch.zeros(int(labels.max()) + 1, codes.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(weight), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weight.T + bias, labels, reduction="sum") + 0.5 * weight.square().sum()
        value = value / len(labels)
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return (others @ weight.T + bias).argmax(dim=1)


def nearest_neighbours(codes: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """The most frequent class, (M,), among the 5 nearest codes of each of `others`; of several the first."""
    votes = []
    for rows in others.split(BATCH_ROWS):
        nearest = torch.cdist(rows, codes).topk(min(NEIGHBOURS, len(codes)), largest=False).indices
        votes.append(F.one_hot(labels[nearest]).sum(dim=1).argmax(dim=1))
    return torch.cat(votes)
