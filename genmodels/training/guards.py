"""Guards: what a training is watched for. Each has a name, a value that is logged, and a threshold.

`genmodels.training.looks` shows them the training every so many images, and the loop does what the settings say when a
value has been beyond its threshold for so many looks in a row. Every model is watched for divergence and for its
gradients, adversarial ones for the rest too. Most figures in the docstrings are what tests/benchmarks/guards.py prints.

They are of digits. Of the README's trainings of Fashion-MNIST the DCGANs of the five losses that bound no gradient were
warned of a strong discriminator or of a loss at its floor, and VQ-VAE-2 of a gradient that vanished: that of its top
prior, for all images had the same top codes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any, ClassVar

import torch
from torch import Tensor

from genmodels.nn.structural_similarity import ms_ssim
from genmodels.spec import Alarm, GuardSpec, is_points
from genmodels.training.engine import NORM

BATCH_PIXELS = 2**18


@dataclass(frozen=True)
class Look:
    """What guards see: the mean of each loss term since the last look, by update/term, and of each gradient's norm, by
    gradient_norm/update; sets of real images, each (N, C, H, W) in [-1, 1], with as many that the model makes to look
    like them, from the same latents or sources every time; if the data have classes, other real images (M, C, H, W)
    with the class of each, (M,); and of an autoencoder what it reconstructs of the real ones, (N, C, H, W)."""

    losses: Mapping[str, float]
    images: Sequence[tuple[Tensor, Tensor]] = ()
    labelled: tuple[Tensor, Tensor] | None = None
    reconstructed: Tensor | None = None


@dataclass
class Guard:
    """One guard with what it remembers. `sentence` takes its value and its threshold."""

    name: ClassVar[str]
    sentence: ClassVar[str]
    looks_at_images: ClassVar[bool] = False
    spec: GuardSpec
    value: float | None = None
    looks_beyond: int = 0
    memory: list[Any] = field(default_factory=list)

    def measure(self, look: Look) -> float | None:
        """The value, None where there is nothing to measure."""
        raise NotImplementedError

    @property
    def watches(self) -> bool:
        """Whether it may raise an alarm; if not, images are made for it at the end alone."""
        return self.spec.action != "off"

    @property
    def is_beyond(self) -> bool:
        """Whether the last value is worse than the threshold."""
        return self.value is not None and not self.value <= self.spec.threshold

    def alarm(self, images: int) -> Alarm:
        """The alarm that it raises after so many images."""
        assert self.value is not None
        message = self.sentence.format(value=self.value, threshold=self.spec.threshold)
        facts = {"value": self.value, "threshold": self.spec.threshold, "action": self.spec.action}
        return Alarm.model_validate(
            {"guard": self.name, "images": images, "message": f"After {images:,} images {message}", **facts}
        )


class Divergence(Guard):
    """The largest loss, in units of what is usual for it: the median of the looks before, at least 1. Of 30 healthy
    GANs none was above 2.5; a critic without a bound is at 5 to 13, and one that learns 100 times too fast at up to
    1e9."""

    name = "divergence"
    sentence = "a loss is {value:.3g} times as large as it was before (alarm above {threshold:.3g})"

    def measure(self, look: Look) -> float | None:
        losses = [abs(value) for name, value in look.losses.items() if name.endswith("/loss")]
        if not losses:
            return None
        usual = max(1.0, median(self.memory)) if self.memory else math.inf
        self.memory.append(max(losses))
        return max(losses) / usual


class GradientNorm(Guard):
    """How many times larger or smaller an update's gradient is than is usual for that update: its mean norm since the
    last look beside the median of the looks before, of the update for which this is most. It sees gradients that
    explode and those that vanish; what is due in some steps alone, such as lazy R1, is in every mean. Of 9 healthy GANs
    none was above 1.6 for three looks, and three that learn slowly were at 8 to 17 once; where both players learn 100
    times too fast it is 6 to 5e29."""

    name = "gradient_norm"
    sentence = "a gradient is {value:.3g} times larger or smaller than it was before (alarm above {threshold:.3g})"
    least = 1e-30  # so that a gradient that was always zero is as usual

    def measure(self, look: Look) -> float | None:
        norms = {name: norm for name, norm in look.losses.items() if name.startswith(f"{NORM}/")}
        if not norms:
            return None
        before = {name: [past[name] for past in self.memory if name in past] for name in norms}
        self.memory.append(norms)
        ratios = [max(norms[name], self.least) / max(median(past), self.least) for name, past in before.items() if past]
        return max((max(ratio, 1 / ratio) for ratio in ratios), default=None)


class ModeCollapse(Guard):
    """How much closer images that the model makes lie to their nearest neighbour than real ones do.

    The median distance of a real image, among as many, over that of a made one: about 1 if the model is as diverse as
    the data, large if it repeats itself (the birthday paradox test of Arora & Zhang 2017, in degrees). On digits
    healthy models of six kinds ended at 0.5 to 3.0, and those with a latent of one dimension at 92 and more; two GANs
    with a latent of two dimensions ended at 5.5.

    The images of an autoencoder lie on a surface of as few dimensions as its codes have, which is no collapse. Real
    ones are therefore measured on the same surface, where it reconstructs them.
    """

    name = "mode_collapse"
    sentence = (
        "images are {value:.3g} times closer to their nearest neighbours than real ones are (alarm above "
        "{threshold:.3g}): the model repeats itself"
    )
    looks_at_images = True

    def measure(self, look: Look) -> float | None:
        ratios = []
        for real, made in look.images:
            usual = nearest_neighbour_distance(real if look.reconstructed is None else look.reconstructed)
            ratios.append(usual / max(nearest_neighbour_distance(made), 1e-6))
        return max(ratios, default=None)


class LowDiversity(Guard):
    """How many times less two images that the model makes differ than two real ones: one less the mean MS-SSIM of pairs
    (Odena et al. 2017), of real images over made ones. About 1 if the model is as diverse as the data; large if all of
    its images are alike, even where none is another's copy. On digits 9 healthy models of three losses ended at 1.0 to
    1.4, though WGAN-GP's were at 3.3 to 4.0 for three looks before; where generator or both players learn 100 times too
    fast it was 2.8 to 8e5. A latent of one dimension is diverse enough for it, with 1.3."""

    name = "low_diversity"
    sentence = "images differ {value:.3g} times less from each other than real ones do (alarm above {threshold:.3g})"
    looks_at_images = True

    def measure(self, look: Look) -> float | None:
        pairs = [pair for pair in look.images if not is_points(pair[0].shape[-1])]  # points have no structure
        return max((dissimilarity(real) / max(dissimilarity(made), 1e-6) for real, made in pairs), default=None)


class LostClasses(Guard):
    """How much less entropy, in nats, the classes of made images have than those of real ones, on data with labels,
    where an image, made or real, is of the class of the nearest among other real ones: about 0 if the model makes all
    classes, ln(10 / 4) = 0.9 for four of ten, ln(1000 / 100) = 2.3 for 100 of 1,000. On digits 18 healthy models
    of three losses ended at 0.01 to 0.40, those with a latent of one dimension at 0.52 to 0.79, and those whose players
    both learn 100 times too fast at 0.99 and more. One that learns slowly is as high at first (WGAN-GP's were at 1.6
    for three looks), so that by default it is a warning."""

    name = "lost_classes"
    sentence = (
        "the classes of the images made have {value:.3g} nats less entropy than those of real ones (alarm above "
        "{threshold:.3g})"
    )
    looks_at_images = True

    def measure(self, look: Look) -> float | None:
        if look.labelled is None:
            return None
        [sets] = look.images
        others, labels = look.labelled
        real, made = (class_entropy(labels[nearest(images, others)]) for images in sets)
        return real - made


class StrongDiscriminator(Guard):
    """Share of pairs of a real image and a made one of which the discriminator takes the right one to be more real. One
    that never errs has its loss at the floor, and the generator learns little from it. On digits that is 0.999 at 100
    times a healthy one's learning rate, which has 0.64 to 0.74; but a conditional GAN that knows its images by heart
    has 0.998, a DCGAN of Fashion-MNIST 1.0, and both make good ones, so that by default it is a warning. A critic
    (WGAN) ought to be as strong as can be and is not watched."""

    name = "strong_discriminator"
    sentence = "the discriminator tells {value:.2%} of all made images from real ones (alarm above {threshold:.2%})"

    def measure(self, look: Look) -> float | None:
        return max((value for name, value in look.losses.items() if "/separation" in name), default=None)


class LossAtFloor(Guard):
    """How much of the way from the loss of a discriminator that cannot tell to the floor, where it is sure of every
    image and right, the discriminator's has gone: 0 at 2 ln 2 of the binary losses, 2 of the hinge loss and 1/4 of the
    least squares, 1 at 0. Below 0 is one that errs and is sure. Critics have no floor. On digits 6 healthy models were
    never above 0.15, and a slower one at 0.26; where a player learns 100 times too fast it is 0.55 to 0.98, and 0.81 to
    1 where both do."""

    name = "loss_at_floor"
    sentence = "the discriminator's loss has gone {value:.2%} of the way to its floor (alarm above {threshold:.2%})"

    def measure(self, look: Look) -> float | None:
        return max((value for name, value in look.losses.items() if "/certainty" in name), default=None)


class Oscillation(Guard):
    """How far the mean of what the model makes moves between two looks beyond what brings it anywhere: the way it has
    gone in the last looks, less the distance, in units of the real images' standard deviation. Of 30 healthy GANs none
    was above 0.27; a generator that learns 100 times too fast is at up to 0.7 until it collapses."""

    name = "oscillation"
    sentence = (
        "the mean image moves to and fro by {value:.3g} standard deviations of the real ones at each look (alarm above "
        "{threshold:.3g})"
    )
    looks_at_images = True
    steps = 4

    def measure(self, look: Look) -> float | None:
        if not look.images:
            return None
        self.memory.append([made.mean(dim=0).cpu() / spread(real) for real, made in look.images])
        self.memory = self.memory[-self.steps - 1 :]
        if len(self.memory) <= self.steps:
            return None
        return max(to_and_fro(path) for path in zip(*self.memory, strict=True))


GUARDS: tuple[type[Guard], ...] = (
    Divergence,
    GradientNorm,
    ModeCollapse,
    LowDiversity,
    LostClasses,
    StrongDiscriminator,
    LossAtFloor,
    Oscillation,
)


def parts(images: Tensor) -> tuple[Tensor, ...]:
    """Images in batches that are small where they are large."""
    return images.split(max(8, BATCH_PIXELS // images.shape[-1] ** 2))


def nearest(images: Tensor, others: Tensor) -> Tensor:
    """For each of (N, C, H, W) images which of the (M, C, H, W) others is nearest to it, (N,)."""
    flat = others.flatten(1)
    return torch.cat([torch.cdist(part.flatten(1), flat).argmin(dim=1) for part in images.split(256)])


def nearest_neighbour_distance(images: Tensor) -> float:
    """Median over (N, C, H, W) images of the Euclidean distance to the nearest other one."""
    flat = images.flatten(1)
    return float(torch.cdist(flat, flat).fill_diagonal_(torch.inf).amin(dim=1).median())


def dissimilarity(images: Tensor) -> float:
    """One less the mean MS-SSIM of each of (N, C, H, W) images in [-1, 1] and the one before it."""
    pixels = images.add(1).mul(127.5)
    pairs = zip(parts(pixels), parts(pixels.roll(1, dims=0)), strict=True)
    return 1 - fmean(torch.cat([ms_ssim(*pair) for pair in pairs]).tolist())


def class_entropy(labels: Tensor) -> float:
    """Entropy of the histogram of (N,) labels, in nats."""
    shares = labels.unique(return_counts=True)[1] / len(labels)
    return float(-shares.log().mul(shares).sum())


def spread(images: Tensor) -> float:
    """Root mean square distance of (N, C, H, W) images from their mean."""
    return float((images - images.mean(dim=0)).flatten(1).square().sum(dim=1).mean().sqrt())


def to_and_fro(path: Sequence[Tensor]) -> float:
    """Length of a path through the points, less the distance of its ends, for each step."""
    length = sum(float((after - before).norm()) for before, after in pairwise(path))
    return (length - float((path[-1] - path[0]).norm())) / (len(path) - 1)
