"""Gated PixelCNN (van den Oord et al., NeurIPS 2016): from images to the parameters of every pixel's distribution,
given all pixels before it, and from noise to images.

Two stacks of convolutions see between them all that was drawn, and nothing else: the vertical one the rows above, the
horizontal one the pixels to the left and, through the vertical one, the rows above.

B batch, C channels, E channels of what the first layer sees, F features, M maps of the condition, P numbers that
describe a pixel's distribution, H height, W width.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.nn.attention import CausalSelfAttention
from genmodels.nn.exportable_loop import loop
from genmodels.nn.levels import to_levels
from genmodels.nn.masked import HorizontalConv
from genmodels.nn.pixel_likelihood import Categorical, PixelLikelihood


class GatedLayer(nn.Module):
    """Figure 2 of the paper: both stacks by one layer. The first layer's vertical convolution sees the rows above only,
    so that no later one has to be shifted, and its horizontal one the pixel itself only in earlier channels.

    A label, and a condition that has something of its own for each place, bias the gates (section 2.3). Attention, if
    there is any, looks from the horizontal stack's output at that of the pixels before.
    """

    def __init__(
        self,
        in_channels: int,
        features: int,
        kernel: int,
        *,
        groups: int,
        first: bool,
        classes: int = 0,
        maps: int = 0,
        attention: CausalSelfAttention | None = None,
    ):
        super().__init__()
        self.first, self.reach = first, kernel // 2
        rows = self.reach + (not first)
        self.vertical = nn.Conv2d(in_channels, 2 * features, (rows, 2 * self.reach + 1))
        self.across = nn.Conv2d(2 * features, 2 * features, kernel_size=1)
        self.horizontal = HorizontalConv(
            in_channels, 2 * features, self.reach, groups=groups, exclusive=first, halves=2
        )
        self.out = HorizontalConv(features, features, 0, groups=groups)
        self.label = nn.Embedding(classes, 4 * features) if classes else None
        self.condition = nn.Conv2d(maps, 4 * features, kernel_size=1) if maps else None
        self.attention = attention

    def above(self, rows: Tensor, labels: Tensor | None, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows with their surroundings, labels (B,) and condition (B, M, h, W) -> the vertical stack, and what the
        horizontal one is told."""
        features = self.vertical(rows)
        told = self.across(features)
        if self.label is not None:
            vertical, horizontal = self.label(labels)[..., None, None].chunk(2, dim=1)
            features, told = features + vertical, told + horizontal
        if self.condition is not None:
            vertical, horizontal = self.condition(condition).chunk(2, dim=1)
            features, told = features + vertical, told + horizontal
        return gate(features), told

    def beside(self, pixels: Tensor, told: Tensor) -> Tensor:
        """Pixels with those to their left -> the horizontal stack, before any attention."""
        features = self.out(gate(self.horizontal(pixels) + told))
        return features if self.first else features + pixels[..., self.reach :]

    def forward(
        self, v: Tensor, h: Tensor, labels: Tensor | None = None, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, F, H, W) of both stacks, of the images themselves in the first layer, to the same of the next."""
        rows_below = -1 if self.first else 0
        v, told = self.above(F.pad(v, (self.reach, self.reach, self.reach, rows_below)), labels, condition)
        h = self.beside(F.pad(h, (self.reach, 0)), told)
        return v, h if self.attention is None else self.attention(h)


def gate(x: Tensor) -> Tensor:
    """tanh(one half) sigmoid(the other) (eq. 2)."""
    value, opening = x.chunk(2, dim=1)
    return value.tanh() * opening.sigmoid()


class GatedPixelCNN(nn.Module):
    """The network.

    Args:
        likelihood: of a pixel.
        channels: C.
        resolution: H and W.
        features: F, of each stack.
        layers: how many gated ones, the first included.
        kernels: widths of the first layer's convolutions and of the others', odd.
        head_features: of the last layer but one.
        classes: of the labels that it is told; 0 if it is told none.
        maps: M; 0 if there is no condition.
        embedded: E, if the first layer is to see a learnt vector for each level instead of its number, as it should
            where the order of the levels means nothing. Takes one channel.
        attention_every: so many layers are followed by attention; 0: none are. Takes one channel.
        heads: of the attention.
    """

    def __init__(
        self,
        likelihood: PixelLikelihood,
        *,
        channels: int,
        resolution: int,
        features: int,
        layers: int,
        kernels: tuple[int, int],
        head_features: int,
        classes: int = 0,
        maps: int = 0,
        embedded: int = 0,
        attention_every: int = 0,
        heads: int = 1,
    ):
        super().__init__()
        self.likelihood, self.channels, self.resolution, self.features = likelihood, channels, resolution, features
        self.embedding = None
        if embedded:
            assert isinstance(likelihood, Categorical) and channels == 1
            self.embedding = nn.Embedding(likelihood.levels, embedded)
        self.layers = nn.ModuleList()
        groups = likelihood.groups
        for index in range(layers):
            first = index == 0
            attends = attention_every and (index + 1) % attention_every == 0
            layer = GatedLayer(
                (embedded or channels) if first else features,
                features,
                kernels[0] if first else kernels[1],
                groups=groups,
                first=first,
                classes=classes,
                maps=maps,
                attention=CausalSelfAttention(features, heads, resolution**2) if attends else None,
            )
            self.layers.append(layer)
        self.head = nn.Sequential(
            nn.ReLU(),
            HorizontalConv(features, head_features, 0, groups=groups),
            nn.ReLU(),
            HorizontalConv(head_features, likelihood.outputs, 0, groups=groups),
        )

    @property
    def gated_layers(self) -> list[GatedLayer]:
        """The layers, to a type checker."""
        return cast("list[GatedLayer]", list(self.layers))

    def forward(self, images: Tensor, labels: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [-1, 1], labels (B,) and a condition (B, M, H, W) where it takes them -> (B, P, H, W)."""
        v = h = self._seen(images)
        for layer in self.layers:
            v, h = layer(v, h, labels, condition)
        return self.head(h)

    def _seen(self, images: Tensor) -> Tensor:
        """What the first layer sees of images: (B, C, H, W) -> (B, E, H, W)."""
        if self.embedding is None:
            return images
        levels = to_levels(images.squeeze(1), self.embedding.num_embeddings)
        return self.embedding(levels).permute(0, 3, 1, 2)

    def sample(self, uniform: Tensor, labels: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Uniform numbers (B, draws, H, W), labels and condition as in `forward` -> images (B, C, H, W).

        A row of the vertical stack and a pixel of the horizontal one are computed once. Of what came before, each layer
        keeps as much as its kernel reaches: of the rows above here, of the pixels to the left in `_row`. An attention's
        memory is of all pixels.
        """
        layers, size = self.gated_layers, self.resolution

        def row(index: Tensor, images: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
            above, memories = kept[: len(layers)], kept[len(layers) :]
            condition_here = None if condition is None else condition.index_select(2, index.view(1))
            v, everything_told, windows = None, [], []
            for layer, rows in zip(layers, above, strict=True):
                rows = rows if v is None else torch.cat((rows, v), dim=2)
                windows.append(rows)
                v, told = layer.above(F.pad(rows, (layer.reach, layer.reach)), labels, condition_here)
                everything_told.append(told)
            drawn, *memories = self._row(index, uniform.index_select(2, index.view(1)), everything_told, memories)
            windows[0] = torch.cat((windows[0], self._seen(drawn)), dim=2)
            following = (window[:, :, 1:].contiguous() for window in windows)
            return torch.cat((images[:, :, 1:], drawn), dim=2), *following, *memories

        images = uniform.new_zeros(len(uniform), self.channels, size, size)
        above = [uniform.new_zeros(len(uniform), width, layer.reach, size) for layer, width in self._widths]
        attentions = [layer.attention for layer in layers if layer.attention]
        memories = [uniform.new_zeros(len(uniform), *attention.memory) for attention in attentions]
        return loop(size, row, (images, *above, *memories))[0]

    @property
    def _widths(self) -> list[tuple[GatedLayer, int]]:
        """The layers, and the channels of what each of them sees."""
        first, *rest = self.gated_layers
        return [(first, first.vertical.in_channels), *((layer, self.features) for layer in rest)]

    def _row(
        self, index: Tensor, uniform: Tensor, told: list[Tensor], memories: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Uniform numbers (B, draws, 1, W), what the vertical stack told each layer, and the attentions' memories ->
        the row of that index, (B, C, 1, W), and the memories with it."""
        layers = self.gated_layers

        def pixel(column: Tensor, row: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
            left, memories = kept[: len(layers)], kept[len(layers) :]
            told_here = [each.index_select(3, column.view(1)) for each in told]
            noise = uniform.index_select(3, column.view(1)).flatten(1)
            place = (index * self.resolution + column).view(1)
            known: list[Tensor] = []
            windows: list[Tensor] = []
            memorised: list[Tensor] = []
            parameters = noise
            for channel in range(self.channels):
                if channel < self.likelihood.groups:
                    unknown = [torch.zeros_like(noise[:, 0])] * (self.channels - channel)
                    here = self._seen(torch.stack([*known, *unknown], dim=1)[:, :, None, None])
                    parameters, windows, memorised = self._pixel(here, left, told_here, place, memories)
                known.append(self.likelihood.draw(parameters, noise, known))
            drawn = torch.stack(known, dim=1)[:, :, None, None]
            windows[0] = torch.cat((left[0], self._seen(drawn)), dim=3)
            following = (window[..., 1:].contiguous() for window in windows)
            return torch.cat((row[..., 1:], drawn), dim=3), *following, *memorised

        row = uniform.new_zeros(len(uniform), self.channels, 1, self.resolution)
        left = [uniform.new_zeros(len(uniform), width, 1, layer.reach) for layer, width in self._widths]
        row, *kept = loop(self.resolution, pixel, (row, *left, *memories))
        return row, *kept[len(layers) :]

    def _pixel(
        self, here: Tensor, left: Sequence[Tensor], told: list[Tensor], place: Tensor, memories: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """What is seen of a pixel, what each layer keeps of those to the left, and the attentions' memories of those
        before -> its parameters, (B, P), the windows that the layers looked through, and the memories with it."""
        h, windows, memorised = here, [], []
        for layer, kept, told_here in zip(self.gated_layers, left, told, strict=True):
            windows.append(torch.cat((kept, h), dim=3))
            h = layer.beside(windows[-1], told_here)
            if layer.attention is not None:
                h, memory = layer.attention.step(h, place, memories[len(memorised)])
                memorised.append(memory)
        return self.head(h).flatten(1), windows, memorised
