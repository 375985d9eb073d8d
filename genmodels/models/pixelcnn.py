"""PixelCNN: pixels one after the other, each by a network of all before it (van den Oord, Kalchbrenner & Kavukcuoglu,
ICML 2016), in its gated form (van den Oord et al., NeurIPS 2016), if asked for with the likelihood of PixelCNN++
(Salimans et al., ICLR 2017).

Two stacks of convolutions see between them all that was drawn, and nothing else: the vertical one the rows above, the
horizontal one the pixels to the left and, through the vertical one, the rows above. B batch, C channels, F features,
P numbers that describe a pixel's distribution, H height, W width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.errors import SpecError
from genmodels.models.base import (
    Adam,
    Batch,
    Context,
    DataInfo,
    Density,
    Ema,
    GenerativeModel,
    Input,
    LossTerms,
    ModelConfig,
    Stage,
    Update,
)
from genmodels.nn.exportable_loop import loop
from genmodels.nn.levels import from_levels, to_levels
from genmodels.nn.masked import HorizontalConv
from genmodels.nn.pixel_likelihood import PixelLikelihood, bits_per_dim, pixel_likelihood


class Config(ModelConfig):
    """The defaults are the gated network's for ImageNet 32x32 (section 3.1 of its paper), with Adam for RMSprop."""

    resolution: int = Field(32, ge=1)
    levels: int = Field(256, ge=2, le=256, description="values of a pixel; what has more is rounded")
    likelihood: Literal["categorical", "logistic_mixture"] = "categorical"
    mixture_components: int = Field(10, ge=1, description="logistics of logistic_mixture")
    features: int = Field(384, ge=1, description="of each stack; at least one for each channel")
    layers: int = Field(20, ge=1, description="gated layers, the first included")
    first_kernel: int = Field(7, ge=3, description="width of the first layer's convolutions; odd")
    kernel: int = Field(5, ge=3, description="width of the others'; odd")
    head_features: int = Field(1024, ge=1, description="of the last layer but one")
    conditional: bool = Field(False, description="the label biases every gate (section 2.3)")
    learning_rate: float = Field(1e-3, gt=0)
    batch_images: int = Field(128, ge=1)
    images: int = Field(25_600_000, ge=1, description="images shown in all")
    ema_half_life_images: float = Field(177_000, gt=0, description="0.9995 a step at batch 128")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "pixelcnn++": {"likelihood": "logistic_mixture"},
        "demo": {
            "resolution": 8,
            "levels": 17,
            "features": 32,
            "layers": 5,
            "first_kernel": 5,
            "kernel": 3,
            "head_features": 64,
            "learning_rate": 3e-3,
            "batch_images": 64,
            "images": 60_000,
            "ema_half_life_images": 4_000,
        },
    }

    @field_validator("first_kernel", "kernel")
    @classmethod
    def _is_odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError(f"{kernel} has no middle; take an odd width")
        return kernel

    @model_validator(mode="after")
    def _kernel_fits(self) -> Self:
        if self.first_kernel // 2 > self.resolution:
            raise ValueError(f"first_kernel={self.first_kernel} reaches beyond {self.resolution} pixels; take less")
        return self


class GatedLayer(nn.Module):
    """Figure 2 of the gated paper: both stacks by one layer. The first layer's vertical convolution sees the rows above
    only, so that no later one has to be shifted, and its horizontal one the pixel itself only in earlier channels."""

    def __init__(self, config: Config, in_channels: int, groups: int, classes: int, *, first: bool):
        super().__init__()
        width = config.features
        self.first, self.reach = first, (config.first_kernel if first else config.kernel) // 2
        rows = self.reach + (not first)
        self.vertical = nn.Conv2d(in_channels, 2 * width, (rows, 2 * self.reach + 1))
        self.across = nn.Conv2d(2 * width, 2 * width, kernel_size=1)
        self.horizontal = HorizontalConv(in_channels, 2 * width, self.reach, groups=groups, exclusive=first, halves=2)
        self.out = HorizontalConv(width, width, 0, groups=groups)
        self.label = nn.Embedding(classes, 4 * width) if classes else None

    def biases(self, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Labels (B,) -> what they add before the gates of the vertical and of the horizontal stack."""
        if self.label is None:
            zero = torch.zeros((), device=self.out.weight.device)
            return zero, zero
        vertical, horizontal = self.label(labels)[..., None, None].chunk(2, dim=1)
        return vertical, horizontal

    def above(self, rows: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Rows with their surroundings -> the vertical stack, and what it tells the horizontal one."""
        features = self.vertical(rows)
        return gate(features + bias), self.across(features)

    def beside(self, pixels: Tensor, told: Tensor, bias: Tensor) -> Tensor:
        """Pixels with those to their left -> the horizontal stack."""
        features = self.out(gate(self.horizontal(pixels) + told + bias))
        return features if self.first else features + pixels[..., self.reach :]

    def forward(self, v: Tensor, h: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, F, H, W) of both stacks, of the images themselves in the first layer, to the same of the next."""
        bias_v, bias_h = self.biases(labels)
        rows_below = -1 if self.first else 0
        v, told = self.above(F.pad(v, (self.reach, self.reach, self.reach, rows_below)), bias_v)
        return v, self.beside(F.pad(h, (self.reach, 0)), told, bias_h)


def gate(x: Tensor) -> Tensor:
    """tanh(one half) sigmoid(the other) (eq. 2)."""
    value, opening = x.chunk(2, dim=1)
    return value.tanh() * opening.sigmoid()


class Network(nn.Module):
    """From images to the parameters of every pixel's distribution, and from noise to images."""

    def __init__(self, config: Config, channels: int, classes: int, likelihood: PixelLikelihood):
        super().__init__()
        groups, width, head = likelihood.groups, config.features, config.head_features
        self.width = width
        self.channels, self.resolution, self.likelihood = channels, config.resolution, likelihood
        first = GatedLayer(config, channels, groups, classes, first=True)
        rest = (GatedLayer(config, width, groups, classes, first=False) for _ in range(config.layers - 1))
        self.layers = nn.ModuleList([first, *rest])
        self.head = nn.Sequential(
            nn.ReLU(),
            HorizontalConv(width, head, 0, groups=groups),
            nn.ReLU(),
            HorizontalConv(head, likelihood.outputs, 0, groups=groups),
        )

    @property
    def gated_layers(self) -> list[GatedLayer]:
        """The layers, to a type checker."""
        return cast("list[GatedLayer]", list(self.layers))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [-1, 1] and, if conditional, (B,) -> (B, P, H, W)."""
        v = h = images
        for layer in self.layers:
            v, h = layer(v, h, labels)
        return self.head(h)

    def sample(self, uniform: Tensor, labels: Tensor | None = None) -> Tensor:
        """Uniform numbers (B, draws, H, W) and, if conditional, (B,) -> images (B, C, H, W).

        A row of the vertical stack and a pixel of the horizontal one are computed once. Of what came before, each layer
        keeps as much as its kernel reaches: of the rows above here, of the pixels to the left in `_row`.
        """
        first, *rest = self.gated_layers
        biases = [layer.biases(labels) for layer in self.gated_layers]

        def row(index: Tensor, images: Tensor, *above: Tensor) -> tuple[Tensor, ...]:
            v, told = first.above(pad_sides(images[:, :, -first.reach :], first.reach), biases[0][0])
            everything_told, kept = [told], []
            for layer, rows, (bias, _) in zip(rest, above, biases[1:], strict=True):
                rows = torch.cat((rows, v), dim=2)
                kept.append(rows[:, :, 1:].contiguous())
                v, told = layer.above(pad_sides(rows, layer.reach), bias)
                everything_told.append(told)
            drawn = self._row(uniform.index_select(2, index.view(1)), everything_told, [h for _, h in biases])
            return torch.cat((images[:, :, 1:], drawn), dim=2), *kept

        size = self.resolution
        images = uniform.new_zeros(len(uniform), self.channels, size, size)
        above = [uniform.new_zeros(len(uniform), self.width, layer.reach, size) for layer in rest]
        return loop(size, row, (images, *above))[0]

    def _row(self, uniform: Tensor, told: list[Tensor], biases: list[Tensor]) -> Tensor:
        """Uniform numbers (B, draws, 1, W) and what the vertical stack told each layer -> a row, (B, C, 1, W)."""
        _, *rest = self.gated_layers

        def pixel(index: Tensor, row: Tensor, *left: Tensor) -> tuple[Tensor, ...]:
            column = index.view(1)
            told_here = [each.index_select(3, column) for each in told]
            noise = uniform.index_select(3, column).flatten(1)
            known: list[Tensor] = []
            parameters, windows = noise, []
            for channel in range(self.channels):
                if channel < self.likelihood.groups:
                    unknown = [torch.zeros_like(noise[:, 0])] * (self.channels - channel)
                    here = torch.stack([*known, *unknown], dim=1)[:, :, None, None]
                    parameters, windows = self._pixel(torch.cat((row, here), dim=3), left, told_here, biases)
                known.append(self.likelihood.draw(parameters, noise, known))
            drawn = torch.stack(known, dim=1)[:, :, None, None]
            kept = [window[..., 1:].contiguous() for window in windows]
            return torch.cat((row[..., 1:], drawn), dim=3), *kept

        row = uniform.new_zeros(len(uniform), self.channels, 1, self.resolution)
        left = [uniform.new_zeros(len(uniform), self.width, 1, layer.reach) for layer in rest]
        return loop(self.resolution, pixel, (row, *left))[0]

    def _pixel(
        self, pixels: Tensor, left: Sequence[Tensor], told: list[Tensor], biases: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The pixels up to this one, and what the later layers keep of those to the left -> this one's parameters,
        (B, P), and the windows that those layers looked through."""
        first, *rest = self.gated_layers
        h = first.beside(pixels[..., -1 - first.reach :], told[0], biases[0])
        windows = []
        for layer, kept, told_here, bias in zip(rest, left, told[1:], biases[1:], strict=True):
            windows.append(torch.cat((kept, h), dim=3))
            h = layer.beside(windows[-1], told_here, bias)
        return self.head(h).flatten(1), windows


def pad_sides(x: Tensor, columns: int) -> Tensor:
    return F.pad(x, (columns, columns))


class PixelCNN(GenerativeModel):
    """One stage and one update: the likelihood."""

    Config = Config
    config: Config
    density = Density.TRACTABLE
    title = "PixelCNN"
    likelihood = "exact"

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        if config.conditional and not data.classes:
            raise SpecError("conditional=true needs a data set with labels; take another or set it to false.")
        if config.features < data.channels or config.head_features < data.channels:
            raise SpecError(f"features and head_features must be at least {data.channels}, one for each channel.")
        self.levels = config.levels
        distribution = pixel_likelihood(
            config.likelihood, data.channels, levels=config.levels, components=config.mixture_components
        )
        self.network = Network(config, data.channels, data.classes if config.conditional else 0, distribution)
        self.ema = Ema(("network",), half_life_images=config.ema_half_life_images)

    def stages(self) -> list[Stage]:
        config = self.config
        inputs = {"image": Input(resolution=config.resolution)}
        inputs |= {"label": Input(column="label")} if config.conditional else {}
        return [Stage("likelihood", config.images, config.batch_images, inputs, config.resolution)]

    def updates(self, stage: Stage) -> list[Update]:
        return [Update("likelihood", list(self.parameters()), self.loss, Adam(self.config.learning_rate))]

    def least_flops(self, forward: Mapping[str, float]) -> float:
        """Forward costs 1, backward 2."""
        return 3 * forward["network"]

    def loss(self, batch: Batch, context: Context) -> LossTerms:
        bits = bits_per_dim(self._log_likelihood(batch["image"], batch.get("label")), batch["image"][0].numel())
        return LossTerms(bits, {"bits_per_dim": bits})

    def _log_likelihood(self, images: Tensor, labels: Tensor | None) -> Tensor:
        rounded = from_levels(to_levels(images, self.levels), self.levels)
        return self.network.likelihood.log_likelihood(self.network(rounded, labels), rounded)

    @torch.no_grad()
    def log_likelihood(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] -> ln P in nats, (n,); of a conditional model the mean over its classes."""
        if not self.config.conditional:
            return self._log_likelihood(images, None)
        labels = torch.arange(self.data.classes, device=images.device)
        of_classes = [self._log_likelihood(images, label.expand(len(images))) for label in labels]
        return torch.stack(of_classes).logsumexp(0) - math.log(len(labels))

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        """n images, (n, C, H, W) in [-1, 1]; of random labels if it needs them."""
        device, size = next(self.parameters()).device, self.config.resolution
        draws = self.network.likelihood.draws
        uniform = torch.rand(n, draws, size, size, generator=generator, device=generator.device).to(device)
        if self.config.conditional and labels is None:
            labels = torch.randint(self.data.classes, (n,), generator=generator, device=generator.device)
        return self.network.sample(uniform, None if labels is None else labels.to(device))
