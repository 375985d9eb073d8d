"""PixelRNN: pixels one after the other, each by LSTMs that run over all before it (van den Oord, Kalchbrenner &
Kavukcuoglu, ICML 2016).

The Row LSTM goes down row by row, each state from the three above it. The Diagonal BiLSTM goes along the diagonals from
both upper corners: skewed, a diagonal is a column. B batch, C channels, F features of a state, P numbers that describe
a pixel's distribution, H height, W width.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.models.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.models.base import DataInfo
from genmodels.nn.exportable_loop import loop
from genmodels.nn.masked import HorizontalConv, MaskedConv2d, group_mask
from genmodels.nn.pixel_likelihood import PixelLikelihood


class Config(AutoregressiveConfig):
    """The defaults are the paper's for CIFAR-10 (section 5.3), with Adam for RMSprop."""

    recurrence: Literal["row_lstm", "diagonal_bilstm"] = "diagonal_bilstm"
    features: int = Field(128, ge=1, description="h, of a state; between the layers are twice as many")
    layers: int = Field(12, ge=1, description="LSTM layers")
    batch_images: int = Field(16, ge=1)
    images: int = Field(5_000_000, ge=1, description="images shown in all")
    ema_half_life_images: float = Field(22_000, gt=0, description="0.9995 a step at batch 16")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "mnist": {"levels": 2, "features": 16, "layers": 7, "head_features": 32},  # section 5.3, binarised
        "cpu": {  # the same by the LSTM that is faster on a CPU; binarised 32x32: 35 minutes on two cores
            "recurrence": "row_lstm",
            "levels": 2,
            "features": 16,
            "layers": 7,
            "head_features": 32,
            "learning_rate": 3e-3,
            "batch_images": 64,
            "images": 300_000,
            "ema_half_life_images": 10_000,
        },
        "demo": {
            "resolution": 8,
            "levels": 17,
            "features": 16,
            "layers": 2,
            "first_kernel": 5,
            "head_features": 64,
            "learning_rate": 3e-3,
            "batch_images": 64,
            "images": 40_000,
            "ema_half_life_images": 4_000,
        },
    }


class ConvLSTM(nn.Module):
    """States in a line, stepped together: each new one is told by a convolution of the line before (eq. 3)."""

    def __init__(self, features: int, padding: tuple[int, int]):
        super().__init__()
        self.state_to_state = nn.Conv1d(features, 4 * features, 1 + sum(padding), bias=False)
        self.padding = padding

    def forward(self, inputs: Tensor, inside: Tensor) -> Tensor:
        """(B, 4F, T, N) for T steps of N states -> the states' outputs, (B, F, T, N); where `inside`, (T, N), is 0 a
        state stays 0."""
        batch, _, _, size = inputs.shape
        hidden = cell = inputs.new_zeros(batch, inputs.shape[1] // 4, size)
        outputs = []
        for step, keep in zip(inputs.unbind(2), inside, strict=True):
            gates = step + self.state_to_state(F.pad(hidden, self.padding))
            output, forget, enter, content = gates.chunk(4, dim=1)
            cell = (forget.sigmoid() * cell + enter.sigmoid() * content.tanh()) * keep
            hidden = output.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs, dim=2)


class RowLSTM(nn.Module):
    """Steps down the rows; a state sees those above it, one to the left and one to the right (section 3.1)."""

    def __init__(self, features: int, groups: int):
        super().__init__()
        self.input_to_state = HorizontalConv(2 * features, 4 * features, 1, groups=groups, halves=4)
        self.lstm = ConvLSTM(features, padding=(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2F, H, W) -> (B, F, H, W)."""
        inputs = self.input_to_state(F.pad(x, (1, 0)))
        return self.lstm(inputs, inputs.new_ones(inputs.shape[2:]))


class DiagonalLSTM(nn.Module):
    """Steps along the diagonals from the upper left; a state sees those to its left and above it (section 3.2)."""

    def __init__(self, features: int, groups: int):
        super().__init__()
        self.input_to_state = HorizontalConv(2 * features, 4 * features, 0, groups=groups, halves=4)
        self.lstm = ConvLSTM(features, padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2F, H, W) -> (B, F, H, W)."""
        inside = skew(torch.ones_like(x[:1, :1]))[0, 0]
        states = self.lstm(skew(self.input_to_state(x)).transpose(2, 3), inside.T)
        return unskew(states.transpose(2, 3))


class DiagonalBiLSTM(nn.Module):
    """A diagonal LSTM from each upper corner; what the right one says of a row is told to the next row (section 3.2).

    No feature of a row holds the row's last value, so beyond the reach of the first convolution the next row does not
    see that one value; it is the only one that the paper's network misses.
    """

    def __init__(self, features: int, groups: int):
        super().__init__()
        self.from_left, self.from_right = DiagonalLSTM(features, groups), DiagonalLSTM(features, groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2F, H, W) -> (B, F, H, W)."""
        return self.from_left(x) + F.pad(self.from_right(x.flip(3)).flip(3), (0, 0, 1, -1))


def skew(x: Tensor) -> Tensor:
    """Each row moved one further to the right than the one above it: (B, F, H, W) -> (B, F, H, H + W - 1)."""
    height, width = x.shape[2:]
    return F.pad(x, (0, height)).flatten(2)[:, :, : height * (height + width - 1)].unflatten(2, (height, -1))


def unskew(x: Tensor) -> Tensor:
    """The way back."""
    height, skewed = x.shape[2:]
    return F.pad(x.flatten(2), (0, height)).unflatten(2, (height, -1))[..., : skewed - height + 1]


class RecurrentLayer(nn.Module):
    """An LSTM layer with the residual connection around it (figure 5, right)."""

    def __init__(self, config: Config, groups: int):
        super().__init__()
        kind = RowLSTM if config.recurrence == "row_lstm" else DiagonalBiLSTM
        self.recurrence = kind(config.features, groups)
        self.out = HorizontalConv(config.features, 2 * config.features, 0, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.recurrence(x))


class Network(nn.Sequential):
    """From images, (B, C, H, W) in [-1, 1], to the parameters of every pixel's distribution, (B, P, H, W) (table 1)."""

    def __init__(self, config: Config, channels: int, likelihood: PixelLikelihood):
        groups, width, reach = likelihood.groups, 2 * config.features, config.first_kernel // 2
        mask = torch.ones(width, channels, reach + 1, 2 * reach + 1)
        mask[:, :, reach, reach:] = 0
        mask[:, :, reach, reach] = group_mask(width, channels, groups, exclusive=True)
        super().__init__(
            nn.ZeroPad2d((reach, reach, reach, 0)),
            MaskedConv2d(channels, width, (reach + 1, 2 * reach + 1), mask),
            *(RecurrentLayer(config, groups) for _ in range(config.layers)),
            nn.ReLU(),
            HorizontalConv(width, config.head_features, 0, groups=groups),
            nn.ReLU(),
            HorizontalConv(config.head_features, likelihood.outputs, 0, groups=groups),
        )


class PixelRNN(Autoregressive):
    """LSTM layers of one of the two kinds."""

    Config = Config
    title = "PixelRNN (Row LSTM, Diagonal BiLSTM)"

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.network = Network(config, data.channels, self.distribution)

    @torch.no_grad()
    def log_likelihood(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] -> ln P in nats, (n,)."""
        return self._log_likelihood(images)

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        """n images, (n, C, H, W) in [-1, 1]; each value takes a pass through the whole network."""
        size, channels = self.config.resolution, self.data.channels
        everywhere = self._uniform(n, generator).flatten(2)

        def pixel(index: Tensor, images: Tensor) -> tuple[Tensor]:
            place = index.view(1)
            noise = everywhere.index_select(2, place).flatten(1)
            known: list[Tensor] = []
            parameters = noise
            for channel in range(channels):
                if channel < self.distribution.groups:
                    everything = self.network(images.unflatten(2, (size, size)))
                    parameters = everything.flatten(2).index_select(2, place).flatten(1)
                known.append(self.distribution.draw(parameters, noise, known))
                values = torch.stack((*known, *[torch.zeros_like(known[0])] * (channels - channel - 1)), dim=1)
                images = images.index_copy(2, place, values[:, :, None])
            return (images,)

        (images,) = loop(size * size, pixel, (everywhere.new_zeros(n, channels, size * size),))
        return images.unflatten(2, (size, size))
