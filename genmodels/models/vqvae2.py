"""VQ-VAE-2 (Razavi, van den Oord & Vinyals, NeurIPS 2019); with one level of codes the VQ-VAE (van den Oord, Vinyals &
Kavukcuoglu, NeurIPS 2017).

An autoencoder whose codes are small maps of whole numbers, one at the top and one, told of it, at the bottom; then a
network that predicts the top codes one after the other, then one that predicts the bottom codes from them. Images are
drawn from the top down. B batch, C channels, D dimensions of a code's vector, F features, H height and W width of an
image, h and w of a map of codes, K codes.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.models.base import (
    Adam,
    Batch,
    ConditionalConfig,
    Context,
    DataInfo,
    Density,
    Ema,
    GenerativeModel,
    LossTerms,
    Stage,
    Update,
)
from genmodels.nn.codebook import Codebook, perplexity, straight_through
from genmodels.nn.gated_pixelcnn import GatedPixelCNN
from genmodels.nn.levels import from_levels, to_levels
from genmodels.nn.likelihoods import discretised
from genmodels.nn.pixel_likelihood import Categorical, mean_over_classes


class Config(ConditionalConfig):
    """The defaults are those for ImageNet 256x256, with top codes of 32x32 and bottom codes of 64x64. Both priors are
    of one size, and without the paper's dropout and output stack; the lengths of the stages are ours."""

    resolution: int = Field(256, ge=4)
    levels: int = Field(256, ge=2, le=256, description="values of a pixel, for the likelihood")
    code_maps: Literal[1, 2] = Field(2, description="top and bottom, or the top alone, which is the VQ-VAE")
    downsampling: Literal[2, 4] = Field(4, description="pixels to a bottom code, each way; to a top code twice as many")
    width: int = Field(128, ge=2, description="feature maps of encoders and decoders")
    residual_blocks: int = Field(2, ge=0, description="in each of them")
    residual_width: int = Field(32, ge=1, description="feature maps inside a residual block")
    codes: int = Field(512, ge=2, description="in each codebook")
    code_dimensions: int = Field(64, ge=1, description="of the vector that a code stands for")
    codebook_decay: float = Field(0.99, gt=0, lt=1, description="of the averages that codebooks are, in a step")
    restart_below: float = Field(0.03, gt=0, lt=1, description="share of even use below which a code starts again")
    commitment: float = Field(0.25, ge=0, description="beta, weight of the encoder's distance from its codes")
    learning_rate: float = Field(3e-4, gt=0, description="of the autoencoder")
    batch_images: int = Field(128, ge=1, description="of the autoencoder")
    images: int = Field(128_000_000, ge=1, description="shown to the autoencoder")
    conditional: bool = Field(False, description="the priors are told the class")
    prior_features: int = Field(512, ge=1, description="of each stack of a prior")
    prior_layers: int = Field(20, ge=1, description="gated layers of a prior")
    prior_kernel: int = Field(5, ge=3, description="width of their convolutions; odd")
    prior_head_features: int = Field(1024, ge=1, description="of a prior's last layer but one")
    attention_every: int = Field(
        5, ge=0, description="so many layers of the top prior are followed by attention; 0: none"
    )
    attention_heads: int = Field(8, ge=1, description="they divide prior_features")
    conditioning_blocks: int = Field(
        20, ge=0, description="residual blocks through which the bottom prior sees the top"
    )
    prior_learning_rate: float = Field(3e-4, gt=0)
    prior_batch_images: int = Field(512, ge=1)
    prior_images: int = Field(512_000_000, ge=1, description="shown to each prior")
    prior_ema_half_life_images: float = Field(3_500_000, gt=0, description="0.9999 a step at batch 512")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"conditional": True},
        "vqvae": {"code_maps": 1},
        "cpu": {  # grey 32x32 with codes of 8x8 and 16x16
            "downsampling": 2,
            "width": 64,
            "residual_blocks": 1,
            "codes": 128,
            "code_dimensions": 16,
            "learning_rate": 1e-3,
            "batch_images": 64,
            "images": 100_000,
            "prior_features": 64,
            "prior_layers": 6,
            "prior_kernel": 3,
            "prior_head_features": 128,
            "attention_every": 3,
            "attention_heads": 4,
            "conditioning_blocks": 2,
            "prior_learning_rate": 2e-3,
            "prior_batch_images": 64,
            "prior_images": 60_000,
            "prior_ema_half_life_images": 8_000,
        },
        "demo": {
            "resolution": 8,
            "levels": 17,
            "downsampling": 2,
            "width": 32,
            "residual_blocks": 1,
            "residual_width": 16,
            "codes": 64,
            "code_dimensions": 16,
            "learning_rate": 2e-3,
            "batch_images": 64,
            "images": 120_000,
            "prior_features": 32,
            "prior_layers": 4,
            "prior_kernel": 3,
            "prior_head_features": 64,
            "attention_every": 2,
            "attention_heads": 4,
            "conditioning_blocks": 2,
            "prior_learning_rate": 3e-3,
            "prior_batch_images": 64,
            "prior_images": 80_000,
            "prior_ema_half_life_images": 2_000,
        },
    }

    @property
    def strides(self) -> dict[str, int]:
        """How much smaller each map of codes is than what it is made of, from the top down."""
        return {"top": 2, "bottom": self.downsampling} if self.code_maps == 2 else {"top": self.downsampling}

    @property
    def sides(self) -> dict[str, int]:
        """The side of each map of codes, from the top down."""
        top = self.resolution // math.prod(self.strides.values())
        return dict(zip(self.strides, (top, 2 * top), strict=False))

    def stages(self, data: DataInfo) -> list[Stage]:
        told = self.inputs(data)
        priors = self.prior_images, self.prior_batch_images, told, self.resolution
        return [
            Stage("autoencoder", self.images, self.batch_images, {"image": told["image"]}, self.resolution),
            *(Stage(f"{name}_prior", *priors) for name in self.sides),
        ]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        stride = math.prod(self.strides.values())
        if self.resolution % stride:
            raise ValueError(f"resolution={self.resolution} cannot be divided by {stride}; take a multiple of it")
        if self.prior_kernel % 2 == 0:
            raise ValueError(f"prior_kernel={self.prior_kernel} has no middle; take an odd width")
        if self.attention_every and self.prior_features % self.attention_heads:
            raise ValueError(f"attention_heads={self.attention_heads} does not divide prior_features")
        return self


class ResidualBlock(nn.Sequential):
    """x + ReLU, 3x3, ReLU, 1x1."""

    def __init__(self, width: int, inner: int):
        super().__init__(nn.ReLU(), nn.Conv2d(width, inner, 3, padding=1), nn.ReLU(), nn.Conv2d(inner, width, 1))

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def encoder(config: Config, channels: int, stride: int) -> nn.Sequential:
    """(B, channels, H, W) -> (B, width, H / stride, W / stride)."""
    layers: list[nn.Module] = []
    maps = [channels, config.width // 2, config.width][: stride.bit_length()]
    for before, after in pairwise(maps):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    same = nn.Conv2d(maps[-1], config.width, 3, padding=1)
    return nn.Sequential(*layers, same, *residual_blocks(config), nn.ReLU())


def decoder(config: Config, channels: int, out: int, stride: int) -> nn.Sequential:
    """(B, channels, h, w) -> (B, out, stride * h, stride * w)."""
    layers: list[nn.Module] = [nn.Conv2d(channels, config.width, 3, padding=1), *residual_blocks(config)]
    maps = [config.width, config.width // 2, out] if stride == 4 else [config.width, out]
    for before, after in pairwise(maps):
        layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
    return nn.Sequential(*layers)


def residual_blocks(config: Config) -> list[nn.Module]:
    return [ResidualBlock(config.width, config.residual_width) for _ in range(config.residual_blocks)]


class Quantised(NamedTuple):
    """A map of an encoder's vectors, (B, D, h, w), the codes that stand for them, (B, h, w), and the codes' vectors
    with the gradient that goes straight through."""

    vectors: Tensor
    codes: Tensor
    quantised: Tensor


class Level(nn.Module):
    """One map of codes. One that lies below another is told of it twice: before it is quantised, so that it keeps what
    the other does not (section 3.1), and before both are decoded.

    Args:
        channels: of what it encodes, images or the features of the level below.
        stride: how much smaller the map is than that.
        below: whether it lies below another.
    """

    def __init__(self, config: Config, channels: int, stride: int, *, below: bool):
        super().__init__()
        size = config.code_dimensions
        self.encoder = encoder(config, channels, stride)
        self.to_vectors = nn.Conv2d(config.width + size * below, size, kernel_size=1)
        self.codebook = Codebook(config.codes, size, decay=config.codebook_decay, restart_below=config.restart_below)
        self.told = decoder(config, size, size, 2) if below else None
        self.enlarged = nn.ConvTranspose2d(size, size, 4, stride=2, padding=1) if below else None

    def quantise(self, features: Tensor, above: Tensor | None) -> Quantised:
        """The encoder's features, (B, width, h, w), and the quantised map above."""
        if self.told is not None:
            features = torch.cat((self.told(above), features), dim=1)
        vectors = self.to_vectors(features).float()
        codes = self.codebook(vectors)
        return Quantised(vectors, codes, straight_through(vectors, self.codebook.look_up(codes)))


class Autoencoder(nn.Module):
    """Images to maps of codes, listed from the top down, and back."""

    def __init__(self, config: Config, channels: int):
        super().__init__()
        top, *bottom = config.strides.values()
        self.levels = nn.ModuleList([Level(config, config.width if bottom else channels, top, below=False)])
        self.levels.extend(Level(config, channels, stride, below=True) for stride in bottom)
        self.decoder = decoder(config, config.code_dimensions * config.code_maps, channels, config.downsampling)

    @property
    def of_levels(self) -> list[Level]:
        """The levels, to a type checker."""
        return cast("list[Level]", list(self.levels))

    def forward(self, images: Tensor) -> tuple[Tensor, list[Quantised]]:
        """(B, C, H, W) -> their reconstruction, and what it was made of."""
        found = self.quantise(images)
        return self.decode([level.quantised for level in found]), found

    def quantise(self, images: Tensor) -> list[Quantised]:
        """(B, C, H, W) -> each level's map."""
        features = [images]
        for level in reversed(self.of_levels):
            features.insert(0, level.encoder(features[0]))
        found: list[Quantised] = []
        for level, own in zip(self.of_levels, features, strict=False):
            found.append(level.quantise(own, found[-1].quantised if found else None))
        return found

    def decode(self, quantised: Sequence[Tensor]) -> Tensor:
        """The codes' vectors, (B, D, h, w) of each level -> images (B, C, H, W), about in [-1, 1]."""
        together, *lower = quantised
        for level, own in zip(self.of_levels[1:], lower, strict=True):
            assert level.enlarged is not None
            together = torch.cat((level.enlarged(together), own), dim=1)
        return self.decoder(together).float()

    def look_up(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """The codes' vectors: (B, h, w) of each level -> (B, D, h, w) of each."""
        return [level.codebook.look_up(own) for level, own in zip(self.of_levels, codes, strict=True)]


class Conditioning(nn.Module):
    """What a prior is told at each place of the codes above, there and around: (B, h, w) -> (B, F, 2h, 2w)."""

    def __init__(self, config: Config):
        super().__init__()
        width = config.prior_features
        self.embedding = nn.Embedding(config.codes, width)
        blocks = (ResidualBlock(width, width // 2) for _ in range(config.conditioning_blocks))
        self.blocks = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), *blocks)

    def forward(self, codes: Tensor) -> Tensor:
        maps = self.blocks(self.embedding(codes).permute(0, 3, 1, 2))
        return F.interpolate(maps, scale_factor=2, mode="nearest")


class Prior(nn.Module):
    """p(codes | codes above, label): a gated PixelCNN, to which a map of codes is an image whose levels have no order.
    The top one has attention, the bottom one is told the top codes (section 3.2)."""

    def __init__(self, config: Config, side: int, classes: int, *, below: bool):
        super().__init__()
        self.codes, width = config.codes, config.prior_features
        self.conditioning = Conditioning(config) if below else None
        self.network = GatedPixelCNN(
            Categorical(1, config.codes),
            channels=1,
            resolution=side,
            features=width,
            layers=config.prior_layers,
            kernels=(config.prior_kernel, config.prior_kernel),
            head_features=config.prior_head_features,
            classes=classes,
            maps=width if below else 0,
            embedded=width,
            attention_every=0 if below else config.attention_every,
            heads=config.attention_heads,
        )

    def forward(self, codes: Tensor, above: Tensor | None, labels: Tensor | None) -> Tensor:
        """ln P, (B,), of codes (B, h, w), given those above and labels (B,)."""
        images = from_levels(codes, self.codes)[:, None]
        return self.network.likelihood.log_likelihood(self.network(images, labels, self._told(above)), images)

    def sample(self, uniform: Tensor, above: Tensor | None, labels: Tensor | None) -> Tensor:
        """Uniform numbers (B, 1, h, w) -> codes (B, h, w), given those above and labels (B,)."""
        images = self.network.sample(uniform, labels, self._told(above))
        return to_levels(images, self.codes).squeeze(1)

    def _told(self, above: Tensor | None) -> Tensor | None:
        return None if self.conditioning is None else self.conditioning(above)


class VQVAE2(GenerativeModel):
    """The autoencoder's stage and then one for each prior, from the top down; in these the autoencoder, which finds the
    codes, does not change."""

    Config = Config
    config: Config
    density = Density.APPROXIMATE
    title = "VQ-VAE-2"
    likelihood = "lower bound by the codes of the encoder alone"

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.levels = config.levels
        self.classes = config.classes(data)
        self.autoencoder = Autoencoder(config, data.channels)
        self.log_scale = nn.Parameter(torch.full((data.channels, 1, 1), -1.0))  # of the reconstruction's error
        self.priors = nn.ModuleDict(
            {name: Prior(config, side, self.classes, below=name == "bottom") for name, side in config.sides.items()}
        )
        self.ema = Ema(("priors",), half_life_images=config.prior_ema_half_life_images)

    @property
    def of_priors(self) -> list[Prior]:
        """The priors, to a type checker."""
        return cast("list[Prior]", list(self.priors.values()))

    def networks(self) -> dict[str, nn.Module]:
        return {"autoencoder": self.autoencoder} | {f"{name}_prior": prior for name, prior in self.priors.items()}

    def updates(self, stage: Stage) -> list[Update]:
        network = list(self.networks()[stage.name].parameters())
        if stage.name == "autoencoder":
            adam = Adam(self.config.learning_rate)
            return [Update(stage.name, [*network, self.log_scale], self.autoencoder_loss, adam)]
        index = list(self.networks()).index(stage.name) - 1
        return [Update(stage.name, network, partial(self.prior_loss, index), Adam(self.config.prior_learning_rate))]

    def at(self, stage: Stage, images_in_stage: int) -> None:
        """The codebooks move between steps, by what all micro-batches of the last one were quantised to."""
        for level in self.autoencoder.of_levels:
            level.codebook.update()

    def autoencoder_loss(self, batch: Batch, context: Context) -> LossTerms:
        """The squared error of a pixel, and the squared distance of the encoder's vectors from the codes', beta times
        (eq. 2). The error's scale is fitted beside them, and moves nothing else."""
        images = batch["image"]
        decoded, found = self.autoencoder(images)
        error = (decoded - images).square().mean()
        commitment = sum((level.vectors - level.quantised.detach()).square().mean() for level in found)
        nats = -self._log_likelihood_given(decoded.detach(), images).mean() / images[0].numel()
        terms = {"squared_error": (1.0, error), "commitment": (self.config.commitment, commitment), "nats": (1.0, nats)}
        for name, level, found_there in zip(self.priors, self.autoencoder.of_levels, found, strict=True):
            uniform = context.same_rand(self.config.codes)
            counts = level.codebook.observe(found_there.vectors, found_there.codes, uniform, context.workers)
            terms[f"{name}_perplexity"] = 0.0, perplexity(counts)
        return LossTerms.weighted(terms)

    def prior_loss(self, index: int, batch: Batch, context: Context) -> LossTerms:
        """Nats a code, of the map of codes of that index from the top."""
        codes = self._codes(batch["image"])
        nats = -self._log_prior(index, codes, batch.get("label")).mean() / codes[index][0].numel()
        return LossTerms(nats, {"nats": nats})

    @torch.no_grad()
    def _codes(self, images: Tensor) -> list[Tensor]:
        return [level.codes for level in self.autoencoder.quantise(images)]

    def _log_prior(self, index: int, codes: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        return self.of_priors[index](codes[index], codes[index - 1] if index else None, labels)

    def _log_likelihood_given(self, decoded: Tensor, images: Tensor) -> Tensor:
        """ln p(x | codes) of images (B, C, H, W), rounded to the levels: a normal distribution about what is decoded,
        cut into levels; (B,)."""
        pixels = to_levels(images, self.levels)
        return discretised("gaussian", pixels, decoded, self.log_scale, self.levels).sum((1, 2, 3))

    @torch.no_grad()
    def log_likelihood(self, images: Tensor, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] -> ln p(x | codes) + ln p(codes) in nats, (n,), of the codes that the encoder
        gives: one term of the sum over all codes, and so a lower bound. Of a conditional model given the labels, or
        with none given that of the mean over its classes."""
        decoded, found = self.autoencoder(images)
        codes = [level.codes for level in found]

        def log_prior(labels: Tensor | None) -> Tensor:
            return torch.stack([self._log_prior(index, codes, labels) for index in range(len(codes))]).sum(0)

        given = self._log_likelihood_given(decoded, images)
        if labels is not None or not self.classes:
            return given + log_prior(labels)
        return given + mean_over_classes(log_prior, self.classes, images)

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        """n images, (n, C, H, W), about in [-1, 1], decoded from codes drawn from the top down; of random labels if it
        needs them."""
        device = self.log_scale.device
        uniform = [
            torch.rand(n, 1, side, side, generator=generator, device=generator.device).to(device)
            for side in self.config.sides.values()
        ]
        if self.classes and labels is None:
            labels = torch.randint(self.classes, (n,), generator=generator, device=generator.device)
        labels = None if labels is None else labels.to(device)
        codes: list[Tensor] = []
        for prior, drawn in zip(self.of_priors, uniform, strict=True):
            codes.append(prior.sample(drawn, codes[-1] if codes else None, labels))
        return self.autoencoder.decode(self.autoencoder.look_up(codes))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> the vectors of all their codes, (B, sum of D * h * w), from the top down."""
        return torch.cat([level.quantised.flatten(1) for level in self.autoencoder.quantise(images)], dim=1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """The way back: (B, sum of D * h * w) -> (B, C, H, W), about in [-1, 1]."""
        shapes = [(self.config.code_dimensions, side, side) for side in self.config.sides.values()]
        parts = codes.split([math.prod(shape) for shape in shapes], dim=1)
        return self.autoencoder.decode([part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)])
