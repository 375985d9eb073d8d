"""Normalizing flows: RealNVP (Dinh, Sohl-Dickstein & Bengio, ICLR 2017) and Glow (Kingma & Dhariwal, NeurIPS 2018).

An invertible function f carries pixels y in (0, 1) to a Gaussian, so ln p(y) = ln N(f(y)) + ln |det df/dy|, exactly.
Both papers work at several scales: between them half of the channels are factored out as Gaussians. Where RealNVP
normalises by running averages over batches we take Glow's actnorm, so that no image's likelihood depends on others.

A pixel of `levels` values is a unit cell of the real line: uniform noise fills the cell (Theis, van den Oord & Bethge
2016), and -D ln(levels) takes the density of y back to it. In the mean over the noise that is at most ln P of the
levels, so it bounds their likelihood (Ho et al., Flow++, ICML 2019), and equals it where the density is even in each
cell. B batch, C channels, H height, W width, D = C H W.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.models.base import (
    Adam,
    Batch,
    Context,
    DataInfo,
    Density,
    GenerativeModel,
    LossTerms,
    OneStageConfig,
    Passes,
    Stage,
    Update,
    Workers,
)
from genmodels.nn.levels import from_levels, to_levels
from genmodels.nn.pixel_likelihood import bits_per_dim


class Config(OneStageConfig):
    """The defaults are Glow's for CIFAR-10 (table 4 of its paper), 1,800 epochs."""

    stage = "likelihood"

    architecture: Literal["realnvp", "glow"] = "glow"
    resolution: int = Field(32, ge=2)
    levels: int = Field(256, ge=2, le=256, description="values of a pixel; what has more is rounded")
    logit_margin: float = Field(
        0.0, ge=0, lt=0.5, description="alpha of RealNVP's logit(alpha + (1 - 2 alpha) y); 0 takes y - 1/2 instead"
    )
    scales: int = Field(3, ge=1, description="L; each halves the resolution, in realnvp each but the last")
    steps: int = Field(32, ge=1, description="K of glow: actnorm, 1x1 convolution and coupling, at each scale")
    hidden_channels: int = Field(512, ge=1, description="of the couplings' networks")
    residual_blocks: int = Field(8, ge=1, description="of realnvp's networks")
    temperature: float = Field(1.0, ge=0, description="standard deviation of the codes that are sampled")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="L2 on all parameters")
    warm_up_images: int = Field(500_000, ge=1, description="images shown while the learning rate rises from 0")
    batch_images: int = Field(64, ge=1)
    images: int = Field(90_000_000, ge=1, description="images shown in all")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"temperature": 0.7},
        "realnvp": {  # CIFAR-10, section 4.1: one factoring-out, 8 residual blocks of 64 feature maps
            "architecture": "realnvp",
            "logit_margin": 0.05,
            "scales": 2,
            "hidden_channels": 64,
            "weight_decay": 5e-5,
            "warm_up_images": 1,
        },
        "cpu": {  # grey 32x32
            "steps": 8,
            "hidden_channels": 64,
            "temperature": 0.7,
            "batch_images": 32,
            "warm_up_images": 10_000,
            "images": 240_000,
        },
        "cpu_realnvp": {
            "architecture": "realnvp",
            "logit_margin": 0.05,
            "scales": 2,
            "hidden_channels": 16,
            "residual_blocks": 1,
            "temperature": 0.7,
            "batch_images": 32,
            "warm_up_images": 10_000,
            "images": 150_016,
        },
        "demo": {
            "resolution": 8,
            "levels": 17,
            "scales": 2,
            "steps": 8,
            "hidden_channels": 64,
            "temperature": 0.8,
            "learning_rate": 2e-3,
            "warm_up_images": 5_000,
            "images": 60_000,
        },
    }

    @model_validator(mode="after")
    def _can_be_halved(self) -> Self:
        halvings = self.scales - (self.architecture == "realnvp")
        if self.resolution % 2**halvings:
            raise ValueError(
                f"{self.scales} scales of {self.architecture} halve the resolution {halvings} times, and "
                f"{self.resolution} cannot be; take fewer scales or a multiple of {2**halvings}."
            )
        return self


class ActNorm(nn.Module):
    """An affine function for each channel that the first batch sets so as to standardise it (Glow, section 3.1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    @torch.no_grad()
    def standardise(self, x: Tensor, workers: Workers) -> None:
        """Gives mean 0 and variance 1 to what comes of x, (B, C, H, W), over the batches of all workers."""
        count = workers.sum(x.new_tensor(x.numel() / x.shape[1]))
        mean = workers.sum(x.sum((0, 2, 3))) / count
        variance = workers.sum((x - mean.view(-1, 1, 1)).square().sum((0, 2, 3))) / count
        self.bias.copy_(-mean.view(-1, 1, 1))
        self.log_scale.copy_(-0.5 * torch.log(variance + 1e-6).view(-1, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = self.log_scale.sum() * (x.shape[2] * x.shape[3])
        return (x + self.bias) * self.log_scale.exp(), log_det.expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return y * (-self.log_scale).exp() - self.bias


class InvertibleConv(nn.Module):
    """1x1 convolution with W = P L (U + diag(s)), begun as a random rotation (Glow, section 3.2, eq. 10)."""

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int):
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation.argmax(dim=1))
        self.register_buffer("sign", diagonal.sign())
        self.lower, self.upper = nn.Parameter(lower.tril(-1)), nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(diagonal.abs().log())

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower = self.lower.tril(-1) + torch.eye(len(self.lower), device=self.lower.device)
        return lower, self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())

    def weight(self) -> Tensor:
        """W, (C, C)."""
        lower, upper = self._factors()
        return (lower @ upper)[self.permutation]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = self.log_diagonal.sum() * (x.shape[2] * x.shape[3])
        return F.conv2d(x, self.weight()[..., None, None]), log_det.expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        lower, upper = self._factors()
        identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        half = torch.linalg.solve_triangular(lower, identity, upper=False, unitriangular=True)
        inverse = torch.linalg.solve_triangular(upper, half, upper=True)
        return F.conv2d(y, inverse[:, self.permutation, None, None])


class Squeeze(nn.Module):
    """Blocks of 2x2 pixels become channels: (B, C, H, W) -> (B, 4C, H/2, W/2)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return F.pixel_shuffle(y, 2)


class NormalizedConv2d(nn.Module):
    """Convolution with `same` padding, then actnorm."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.normal_(self.conv.weight, std=0.05)
        self.norm = ActNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))[0]


class ZeroConv2d(nn.Conv2d):
    """3x3 convolution that begins as zero, so that a coupling begins as the identity, a prior as N(0, 1)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]


class ResidualBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.conv2 = NormalizedConv2d(channels, channels, 3), NormalizedConv2d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


def coupling_network(config: Config, in_channels: int, out_channels: int) -> nn.Module:
    """What finds scale and shift: two hidden layers in Glow, a ResNet in RealNVP."""
    width = config.hidden_channels
    first, last = NormalizedConv2d(in_channels, width, 3), ZeroConv2d(width, out_channels)
    if config.architecture == "glow":
        return nn.Sequential(first, nn.ReLU(), NormalizedConv2d(width, width, 1), nn.ReLU(), last)
    return nn.Sequential(first, *(ResidualBlock(width) for _ in range(config.residual_blocks)), nn.ReLU(), last)


class AffineCoupling(nn.Module):
    """y = x exp(s) + t on one part of x, with s and t found from the rest (RealNVP, eq. 7). s is a tanh times a learned
    bound, so that neither direction overflows (section 4.1)."""

    def __init__(self, config: Config, conditioned_on: int, changed: int):
        super().__init__()
        self.network = coupling_network(config, conditioned_on, 2 * changed)
        self.bound = nn.Parameter(torch.ones(changed, 1, 1))

    def scale_and_shift(self, rest: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C', H, W) -> s and t."""
        raw, shift = self.network(rest).chunk(2, dim=1)
        return self.bound * raw.tanh(), shift


class CheckerboardCoupling(AffineCoupling):
    """Changes the pixels with row + column of one parity (RealNVP, figure 3, left)."""

    changed: Tensor

    def __init__(self, config: Config, channels: int, resolution: int, parity: int):
        super().__init__(config, conditioned_on=channels, changed=channels)
        rows = torch.arange(resolution)
        changed = ((rows[:, None] + rows) % 2 == parity).float()
        self.register_buffer("changed", changed, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = (part * self.changed for part in self.scale_and_shift(x * (1 - self.changed)))
        return x * scale.exp() + shift, scale.sum((1, 2, 3))

    def inverse(self, y: Tensor) -> Tensor:
        scale, shift = (part * self.changed for part in self.scale_and_shift(y * (1 - self.changed)))
        return (y - shift) * (-scale).exp()


class ChannelCoupling(AffineCoupling):
    """Changes one half of the channels, the first unless `second` (RealNVP, figure 3, right; Glow, section 3.3)."""

    def __init__(self, config: Config, channels: int, *, second: bool = False):
        half = channels // 2
        super().__init__(config, conditioned_on=half, changed=half)
        self.second = second

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, dim=1)
        return (second, first) if self.second else (first, second)

    def _joined(self, changed: Tensor, rest: Tensor) -> Tensor:
        return torch.cat((rest, changed) if self.second else (changed, rest), dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        changed, rest = self._halves(x)
        scale, shift = self.scale_and_shift(rest)
        return self._joined(changed * scale.exp() + shift, rest), scale.sum((1, 2, 3))

    def inverse(self, y: Tensor) -> Tensor:
        changed, rest = self._halves(y)
        scale, shift = self.scale_and_shift(rest)
        return self._joined((changed - shift) * (-scale).exp(), rest)


class Composed(nn.ModuleList):
    """Invertible layers one after the other; the log-determinants add up."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for layer in self:
            x, log_det = layer(x)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor) -> Tensor:
        for layer in reversed(self):
            y = layer.inverse(y)  # type: ignore[operator]
        return y


def realnvp_scale(config: Config, channels: int, resolution: int, *, last: bool) -> Composed:
    """Three checkerboard couplings, squeeze, three couplings of channels; at the last scale four checkerboards
    (RealNVP, section 3.6)."""
    layers: list[nn.Module] = []
    for index in range(4 if last else 3):
        layers += [CheckerboardCoupling(config, channels, resolution, parity=index % 2), ActNorm(channels)]
    if not last:
        layers.append(Squeeze())
        for index in range(3):
            coupling = ChannelCoupling(config, 4 * channels, second=index % 2 == 1)
            layers += [coupling, ActNorm(4 * channels)]
    return Composed(layers)


def glow_scale(config: Config, channels: int) -> Composed:
    """Squeeze and K steps of flow (Glow, figure 2)."""
    layers: list[nn.Module] = [Squeeze()]
    for _ in range(config.steps):
        layers += [ActNorm(4 * channels), InvertibleConv(4 * channels), ChannelCoupling(config, 4 * channels)]
    return Composed(layers)


class Gaussian(nn.Module):
    """The density of what a scale factors out. Glow finds mean and deviation from what goes on, and learns those of the
    last scale; RealNVP takes N(0, 1)."""

    def __init__(self, config: Config, channels: int, *, last: bool):
        super().__init__()
        learned = config.architecture == "glow"
        self.network = ZeroConv2d(channels, 2 * channels) if learned and not last else None
        self.top = nn.Parameter(torch.zeros(2 * channels, 1, 1)) if learned and last else None

    def forward(self, z: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """z, (B, C, H, W), given the rest -> its standardised code, and ln p(z), (B,)."""
        mean, log_deviation = self._moments(rest)
        code = (z - mean) * (-log_deviation).exp()
        log_density = -0.5 * (code.square() + math.log(2 * math.pi)) - log_deviation
        return code, log_density.sum((1, 2, 3))

    def inverse(self, code: Tensor, rest: Tensor) -> Tensor:
        """The z of a code."""
        mean, log_deviation = self._moments(rest)
        return mean + code * log_deviation.exp()

    def _moments(self, rest: Tensor) -> tuple[Tensor, Tensor]:
        if self.network is not None:
            mean, log_deviation = self.network(rest).chunk(2, dim=1)
        elif self.top is not None:
            mean, log_deviation = self.top.chunk(2)
        else:
            mean = log_deviation = rest.new_zeros(())
        return mean, log_deviation


class MultiScaleFlow(nn.Module):
    """From pixels to standard normal codes and back."""

    def __init__(self, config: Config, channels: int):
        super().__init__()
        self.scales, self.gaussians = nn.ModuleList(), nn.ModuleList()
        self.shapes: list[tuple[int, int, int]] = []
        resolution = config.resolution
        for index in range(config.scales):
            last = index == config.scales - 1
            if config.architecture == "glow":
                self.scales.append(glow_scale(config, channels))
            else:
                self.scales.append(realnvp_scale(config, channels, resolution, last=last))
            if config.architecture == "glow" or not last:
                channels, resolution = 4 * channels, resolution // 2
            if not last:
                channels //= 2  # one half goes on
            self.gaussians.append(Gaussian(config, channels, last=last))
            self.shapes.append((channels, resolution, resolution))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> codes (B, D) and ln p(x), (B,)."""
        codes, log_density = [], x.new_zeros(len(x))
        for scale, gaussian in zip(self.scales, self.gaussians, strict=True):
            x, log_det = scale(x)
            x, z = (x, x) if scale is self.scales[-1] else x.chunk(2, dim=1)
            code, log_density_z = gaussian(z, x)
            codes.append(code.flatten(1))
            log_density = log_density + log_det + log_density_z
        return torch.cat(codes, dim=1), log_density

    def inverse(self, codes: Tensor) -> Tensor:
        """(B, D) -> (B, C, H, W)."""
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = [p.unflatten(1, s) for p, s in zip(codes.split(sizes, dim=1), self.shapes, strict=True)]
        x = parts[-1]
        for scale, gaussian, code in reversed([*zip(self.scales, self.gaussians, parts, strict=True)]):
            z = gaussian.inverse(code, x)  # type: ignore[operator]
            x = scale.inverse(z if scale is self.scales[-1] else torch.cat((x, z), dim=1))  # type: ignore[operator]
        return x


class Flow(GenerativeModel):
    """One stage and one update: the likelihood."""

    Config = Config
    config: Config
    density = Density.TRACTABLE
    title = "Normalizing flow (RealNVP, Glow)"
    likelihood = "lower bound, the exact density of uniformly dequantised pixels"
    initialised: Tensor

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.levels = config.levels
        self.flow = MultiScaleFlow(config, data.channels)
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    def updates(self, stage: Stage) -> list[Update]:
        adam = Adam(self.config.learning_rate, weight_decay=self.config.weight_decay)
        return [Update("likelihood", list(self.parameters()), self.loss, adam, schedule=self._learning_rate_factor)]

    def _learning_rate_factor(self, images_in_stage: int) -> float:
        return min(1.0, (images_in_stage + self.config.batch_images) / self.config.warm_up_images)

    def least_flops(self, passes: Mapping[str, Passes]) -> float:
        return passes["flow"].forward + passes["flow"].to_weights

    def loss(self, batch: Batch, context: Context) -> LossTerms:
        """Bits per dimension of the dequantised pixels, always in fp32: in bf16 the inverse would be none."""
        images = batch["image"]
        y = self._dequantised(images, context.rand(*images.shape))
        with torch.autocast(y.device.type, enabled=False):
            if context.images_in_stage == 0 and not self.initialised:
                self._initialise(y, context.workers)
            log_likelihood = self._log_likelihood(y)
        bits = bits_per_dim(log_likelihood, images[0].numel())
        return LossTerms(bits, {"bits_per_dim": bits})

    @torch.no_grad()
    def _initialise(self, y: Tensor, workers: Workers) -> None:
        """Lets one forward pass set every actnorm, from the outside in."""

        def standardise(norm: nn.Module, inputs: tuple[Tensor]) -> None:
            assert isinstance(norm, ActNorm)
            norm.standardise(inputs[0], workers)

        hooks = [m.register_forward_pre_hook(standardise) for m in self.modules() if isinstance(m, ActNorm)]
        self._log_likelihood(y)
        for hook in hooks:
            hook.remove()
        self.initialised.fill_(True)

    def _dequantised(self, images: Tensor, noise: Tensor) -> Tensor:
        """Images in [-1, 1] and noise in [0, 1) -> the place of each pixel in (0, 1)."""
        return (to_levels(images, self.levels) + noise) / self.levels

    def _log_likelihood(self, y: Tensor) -> Tensor:
        """ln P of the levels, (B,), from their places."""
        x, log_det = to_real(y, self.config.logit_margin)
        return self.flow(x)[1] + log_det - y[0].numel() * math.log(self.levels)

    @torch.no_grad()
    def log_likelihood(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] -> the bound of ln P in nats, (n,), by one draw of the noise in each pixel."""
        noise = torch.rand(images.shape, generator=generator, device=generator.device)
        return self._log_likelihood(self._dequantised(images, noise.to(images.device)))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] -> standard normal codes, (n, D), of the centres of their pixels' cells."""
        centres = self._dequantised(images, images.new_full((), 0.5))
        return self.flow(to_real(centres, self.config.logit_margin)[0])[0]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """The way back, (n, D) -> (n, C, H, W) in [-1, 1]; not rounded to levels: near codes make near images."""
        y = from_real(self.flow.inverse(codes), self.config.logit_margin)
        return from_levels(y.mul(self.levels).sub(0.5).clamp(0, self.levels - 1), self.levels)

    def prior(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Normal codes whose deviation is the config's temperature: (n, D)."""
        size = self.data.channels * self.config.resolution**2
        codes = torch.randn(n, size, generator=generator, device=generator.device).to(self.initialised.device)
        return self.config.temperature * codes

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        """n images, (n, C, H, W) in [-1, 1], decoded from the prior and rounded to the levels."""
        images = self.decode(self.prior(n, generator=generator))
        return from_levels(to_levels(images, self.levels), self.levels)


def to_real(y: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Places in (0, 1) -> the real line, by logit(margin + (1 - 2 margin) y) (RealNVP, section 4.1) or y - 1/2 if the
    margin is 0; and the logarithm of the derivative, summed, (B,)."""
    if margin == 0:
        return y - 0.5, y.new_zeros(len(y))
    x = torch.logit(margin + (1 - 2 * margin) * y)
    log_derivative = math.log(1 - 2 * margin) + F.softplus(x) + F.softplus(-x)
    return x, log_derivative.sum((1, 2, 3))


def from_real(x: Tensor, margin: float) -> Tensor:
    """The inverse; the margins come out below 0 and above 1."""
    return x + 0.5 if margin == 0 else (x.sigmoid() - margin) / (1 - 2 * margin)
