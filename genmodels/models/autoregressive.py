"""What the models share that draw pixels one after the other: everything but their networks."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from genmodels.errors import SpecError
from genmodels.models.base import (
    Adam,
    Batch,
    Context,
    DataInfo,
    Density,
    Ema,
    GenerativeModel,
    LossTerms,
    OneStageConfig,
    Passes,
    Stage,
    Update,
)
from genmodels.nn.levels import from_levels, to_levels
from genmodels.nn.pixel_likelihood import bits_per_dim, pixel_likelihood


class AutoregressiveConfig(OneStageConfig):
    """The settings that these models share."""

    stage = "likelihood"

    resolution: int = Field(32, ge=1)
    levels: int = Field(256, ge=2, le=256, description="values of a pixel; what has more is rounded, 2: black or white")
    likelihood: Literal["categorical", "logistic_mixture"] = "categorical"
    mixture_components: int = Field(10, ge=1, description="logistics of logistic_mixture")
    features: int = Field(ge=1, description="of a hidden layer; at least one for each channel")
    layers: int = Field(ge=1)
    first_kernel: int = Field(7, ge=3, description="width of the convolution that comes first; odd")
    head_features: int = Field(1024, ge=1, description="of the last layer but one")
    learning_rate: float = Field(1e-3, gt=0)
    batch_images: int = Field(ge=1)
    images: int = Field(ge=1, description="images shown in all")
    ema_half_life_images: float = Field(gt=0)

    @field_validator("first_kernel", "kernel", check_fields=False)
    @classmethod
    def _is_odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError(f"{kernel} has no middle; take an odd width")
        return kernel

    def stages(self, data: DataInfo) -> list[Stage]:
        if min(self.features, self.head_features) < data.channels:
            raise SpecError(f"features and head_features must be at least {data.channels}, one for each channel.")
        return super().stages(data)


class Autoregressive(GenerativeModel):
    """One stage and one update: the likelihood. A model makes its `network` in its `__init__`: images, (B, C, H, W) in
    [-1, 1], and labels, (B,), if it has `classes` -> the parameters of every pixel's `distribution`, (B, P, H, W)."""

    Config = AutoregressiveConfig
    config: AutoregressiveConfig
    density = Density.TRACTABLE
    likelihood = "exact"
    network: Any
    classes: int = 0  # of which it is told; 0: of none

    def __init__(self, config: AutoregressiveConfig, data: DataInfo):
        super().__init__(config, data)
        self.levels = config.levels
        self.distribution = pixel_likelihood(
            config.likelihood, data.channels, levels=config.levels, components=config.mixture_components
        )
        self.ema = Ema(("network",), half_life_images=config.ema_half_life_images)

    def updates(self, stage: Stage) -> list[Update]:
        return [Update("likelihood", list(self.parameters()), self.loss, Adam(self.config.learning_rate))]

    def least_flops(self, passes: Mapping[str, Passes]) -> float:
        return passes["network"].forward + passes["network"].to_weights

    def loss(self, batch: Batch, context: Context) -> LossTerms:
        bits = bits_per_dim(self._log_likelihood(batch["image"], batch.get("label")), batch["image"][0].numel())
        return LossTerms(bits, {"bits_per_dim": bits})

    def _log_likelihood(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """ln P of images, (B, C, H, W) in [-1, 1], rounded to the levels: (B,)."""
        rounded = from_levels(to_levels(images, self.levels), self.levels)
        told = () if labels is None else (labels,)
        return self.distribution.log_likelihood(self.network(rounded, *told), rounded)

    def _uniform(self, n: int, generator: torch.Generator) -> Tensor:
        """The uniform numbers that n images are drawn with, (n, draws, H, W), on the device."""
        size = self.config.resolution
        drawn = torch.rand(n, self.distribution.draws, size, size, generator=generator, device=generator.device)
        return drawn.to(next(self.parameters()).device)
