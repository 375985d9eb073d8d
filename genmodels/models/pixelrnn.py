"""PixelRNN: pixels one after the other, each by LSTMs that run over all before it (van den Oord, Kalchbrenner &
Kavukcuoglu, ICML 2016).

The Row LSTM goes down row by row, each state from the three above it. The Diagonal BiLSTM goes along the diagonals from
both upper corners: skewed, a diagonal is a column. B batch, C channels, F features of a state, P numbers that describe
a pixel's distribution, H height, W width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

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
        "cpu": {  # the same by the LSTM that is faster on a CPU; for binarised 32x32
            "recurrence": "row_lstm",
            "levels": 2,
            "features": 16,
            "layers": 7,
            "head_features": 32,
            "learning_rate": 3e-3,
            "batch_images": 64,
            "images": 120_000,
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


def lstm(gates: Tensor, cell: Tensor, inside: Tensor | int = 1) -> tuple[Tensor, Tensor]:
    """Gates (B, 4F, N) and cells (B, F, N) -> the next hidden states and cells (eq. 3); where not `inside`, 0."""
    output, forget, enter, content = gates.chunk(4, dim=1)
    cell = (forget.sigmoid() * cell + enter.sigmoid() * content.tanh()) * inside
    return output.sigmoid() * cell.tanh(), cell


class ConvLSTM(nn.Module):
    """States in a line, stepped together: each new one is told by a convolution of the line before (eq. 3)."""

    def __init__(self, features: int, padding: tuple[int, int]):
        super().__init__()
        self.state_to_state = nn.Conv1d(features, 4 * features, 1 + sum(padding), bias=False)
        self.padding = padding

    def told(self, hidden: Tensor) -> Tensor:
        """What a line of states, (B, F, N), says to the gates of the next one: (B, 4F, N)."""
        return self.state_to_state(F.pad(hidden, self.padding))

    def forward(self, inputs: Tensor, inside: Tensor) -> Tensor:
        """(B, 4F, T, N) for T steps of N states -> the states' outputs, (B, F, T, N); where `inside`, (T, N), is 0 a
        state stays 0."""
        batch, _, _, size = inputs.shape
        hidden = cell = inputs.new_zeros(batch, inputs.shape[1] // 4, size)
        outputs = []
        for step, keep in zip(inputs.unbind(2), inside, strict=True):
            hidden, cell = lstm(step + self.told(hidden), cell, keep)
            outputs.append(hidden)
        return torch.stack(outputs, dim=2)


class RowLSTM(nn.Module):
    """Steps down the rows; a state sees those above it, one to the left and one to the right (section 3.1).

    Sampling remembers the states of a row, and of the row that it draws the input to the left.
    """

    def __init__(self, features: int, groups: int):
        super().__init__()
        self.input_to_state = HorizontalConv(2 * features, 4 * features, 1, groups=groups, halves=4)
        self.lstm = ConvLSTM(features, padding=(1, 1))
        self.drawn = 2 * features  # hidden state and cell

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2F, H, W) -> (B, F, H, W)."""
        inputs = self.input_to_state(F.pad(x, (1, 0)))
        return self.lstm(inputs, inputs.new_ones(inputs.shape[2:]))

    def told(self, memory: Tensor) -> Tensor:
        """The row above as it is remembered, (B, 2F, W) -> what it says to the gates, and its cells: (B, 5F, W)."""
        hidden, cell = memory.chunk(2, dim=1)
        return torch.cat((self.lstm.told(hidden), cell), dim=1)

    def step(self, x: Tensor, told: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A pixel (B, 2F), what it is told (B, 5F), and what is kept of the one to its left (B, 2F) -> its output, (B,
        F), what is kept of it for the one to its right, and what for `remember`."""
        inputs = self.input_to_state(torch.stack((left, x), dim=2)[:, :, None]).flatten(1)
        gates, cell = told.split([inputs.shape[1], told.shape[1] - inputs.shape[1]], dim=1)
        hidden, cell = lstm(inputs + gates, cell)
        return hidden, x, torch.cat((hidden, cell), dim=1)

    def remember(self, drawn: Tensor, memory: Tensor) -> Tensor:
        """What `step` left of a whole row, and the memory of the row above -> the memory of the row, (B, 2F, W)."""
        return drawn


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

    def told(self, hidden: Tensor) -> Tensor:
        """What the states of a row, (B, F, W), say to the gates of the row below."""
        from_above, _ = self.lstm.state_to_state.weight.split(1, dim=2)
        return F.conv1d(hidden, from_above)

    def step(self, x: Tensor, told: Tensor, left: Tensor) -> Tensor:
        """A pixel (B, 2F), what the row above says, (B, 4F), and the hidden state and cell to its left, (B, 2F) -> its
        own."""
        _, from_left = self.lstm.state_to_state.weight.unbind(2)
        hidden, cell = left.chunk(2, dim=1)
        gates = self.input_to_state(x[:, :, None, None]).flatten(1) + told + F.linear(hidden, from_left)
        return torch.cat(lstm(gates, cell), dim=1)


class DiagonalBiLSTM(nn.Module):
    """A diagonal LSTM from each upper corner; what the right one says of a row is told to the next row (section 3.2).

    No feature of a row holds the row's last value, so beyond the reach of the first convolution the next row does not
    see that one value; it is the only one that the paper's network misses.

    Sampling remembers the states of both in a row, and of the row that it draws the state to the left.
    """

    def __init__(self, features: int, groups: int):
        super().__init__()
        self.from_left, self.from_right = DiagonalLSTM(features, groups), DiagonalLSTM(features, groups)
        self.drawn = 3 * features  # hidden state from the left, and the input, which the right one has yet to see

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2F, H, W) -> (B, F, H, W)."""
        return self.from_left(x) + F.pad(self.from_right(x.flip(3)).flip(3), (0, 0, 1, -1))

    def told(self, memory: Tensor) -> Tensor:
        """As in `RowLSTM`; in the cells' place what the right one says."""
        hidden, said_by_right = memory.chunk(2, dim=1)
        return torch.cat((self.from_left.told(hidden), said_by_right), dim=1)

    def step(self, x: Tensor, told: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `RowLSTM`."""
        features = x.shape[1] // 2
        gates, said_by_right = told.split([4 * features, features], dim=1)
        state = self.from_left.step(x, gates, left)
        hidden = state[:, :features]
        return hidden + said_by_right, state, torch.cat((hidden, x), dim=1)

    def remember(self, drawn: Tensor, memory: Tensor) -> Tensor:
        """As in `RowLSTM`: only now, with the row complete, can the right one go along it."""
        _, right_above = memory.chunk(2, dim=1)
        hidden, x = drawn.tensor_split([right_above.shape[1]], dim=1)
        told, size = self.from_right.told(right_above), drawn.shape[2]

        def pixel(index: Tensor, state: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
            column = (size - 1 - index).view(1)
            here, told_here = (each.index_select(2, column).squeeze(2) for each in (x, told))
            state = self.from_right.step(here, told_here, state)
            hidden, _ = state.chunk(2, dim=1)
            return state, torch.cat((hidden[:, :, None], states[:, :, :-1]), dim=2)

        _, right = loop(size, pixel, (torch.zeros_like(x[:, :, 0]), torch.zeros_like(hidden)))
        return torch.cat((hidden, right), dim=1)


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

    def step(self, x: Tensor, told: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A pixel (B, 2F), what its row is `told` by the memory, and what is kept of the pixel to its left (B, 2F) ->
        the pixel, what is to be kept of it for the one to its right, and for the memory."""
        states, left, drawn = self.recurrence.step(x, told, left)
        return x + self.out(states[:, :, None, None]).flatten(1), left, drawn


class Network(nn.Module):
    """From images, (B, C, H, W) in [-1, 1], to the parameters of every pixel's distribution, (B, P, H, W) (table 1)."""

    def __init__(self, config: Config, channels: int, likelihood: PixelLikelihood):
        super().__init__()
        groups, width, reach = likelihood.groups, 2 * config.features, config.first_kernel // 2
        mask = torch.ones(width, channels, reach + 1, 2 * reach + 1)
        mask[:, :, reach, reach:] = 0
        mask[:, :, reach, reach] = group_mask(width, channels, groups, exclusive=True)
        self.likelihood, self.channels, self.resolution, self.reach = likelihood, channels, config.resolution, reach
        self.first = MaskedConv2d(channels, width, (reach + 1, 2 * reach + 1), mask)
        self.layers = nn.ModuleList(RecurrentLayer(config, groups) for _ in range(config.layers))
        self.head = nn.Sequential(
            nn.ReLU(),
            HorizontalConv(width, config.head_features, 0, groups=groups),
            nn.ReLU(),
            HorizontalConv(config.head_features, likelihood.outputs, 0, groups=groups),
        )

    @property
    def recurrent_layers(self) -> list[RecurrentLayer]:
        """The layers, to a type checker."""
        return cast("list[RecurrentLayer]", list(self.layers))

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(F.pad(images, (self.reach, self.reach, self.reach, 0)))
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def sample(self, uniform: Tensor) -> Tensor:
        """Uniform numbers (B, draws, H, W) -> images (B, C, H, W). Each layer computes a state once, and remembers the
        row above."""
        layers, size, reach = self.recurrent_layers, self.resolution, self.reach

        def row(index: Tensor, images: Tensor, above: Tensor, *memories: Tensor) -> tuple[Tensor, ...]:
            everything_told = [layer.recurrence.told(memory) for layer, memory in zip(layers, memories, strict=True)]
            row, *drawn = self._row(uniform.index_select(2, index.view(1)).squeeze(2), above, everything_told)
            memories = tuple(
                layer.recurrence.remember(new, memory)
                for layer, new, memory in zip(layers, drawn, memories, strict=True)
            )
            above = torch.cat((above[:, :, 1:], row), dim=2)
            return torch.cat((images[:, :, 1:], row[..., reach : reach + size]), dim=2), above, *memories

        images = uniform.new_zeros(len(uniform), self.channels, size, size)
        above = uniform.new_zeros(len(uniform), self.channels, reach, size + 2 * reach)
        memories = [uniform.new_zeros(len(uniform), self.first.out_channels, size) for _ in layers]
        return loop(size, row, (images, above, *memories))[0]

    def _row(self, uniform: Tensor, above: Tensor, told: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Uniform numbers (B, draws, W), the rows above with a margin on both sides, and what each layer is told -> the
        row with the same margin, (B, C, 1, W + 2 reach), and what each layer has to remember of it."""
        layers, size = self.recurrent_layers, self.resolution
        window = torch.arange(2 * self.reach + 1, device=uniform.device)

        def pixel(column: Tensor, row: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            left, drawn = state[: len(layers)], state[len(layers) :]
            noise, *told_here = (each.index_select(2, column.view(1)).squeeze(2) for each in (uniform, *told))
            known: list[Tensor] = []
            new: list[tuple[Tensor, Tensor]] = []
            parameters = noise
            for channel in range(self.channels):
                if channel < self.likelihood.groups:
                    seen = torch.cat([rows.index_select(3, column + window) for rows in (above, row)], dim=2)
                    x, new = self.first(seen).flatten(1), []
                    for layer, kept, told_layer in zip(layers, left, told_here, strict=True):
                        x, *both = layer.step(x, told_layer, kept)
                        new.append((both[0], both[1]))
                    parameters = self.head(x[:, :, None, None]).flatten(1)
                known.append(self.likelihood.draw(parameters, noise, known))
                values = torch.stack([*known, *[torch.zeros_like(known[0])] * (self.channels - channel - 1)], dim=1)
                row = row.index_copy(3, column.view(1) + self.reach, values[:, :, None, None])
            added = [
                torch.cat((rows[..., 1:], one[:, :, None]), dim=2) for rows, (_, one) in zip(drawn, new, strict=True)
            ]
            return row, *(one for one, _ in new), *added

        row = torch.zeros_like(above[:, :, :1])
        left = [row.new_zeros(len(row), self.first.out_channels) for _ in layers]
        drawn = [row.new_zeros(len(row), layer.recurrence.drawn, size) for layer in layers]
        row, *kept = loop(size, pixel, (row, *left, *drawn))
        return row, *kept[len(layers) :]


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
        """n images, (n, C, H, W) in [-1, 1]."""
        return self.network.sample(self._uniform(n, generator))
