"""Autoencoder: a code from which an image is reconstructed (Hinton & Salakhutdinov, Science 2006).

Not a generative model: nothing says how codes are distributed, so there is nothing to draw new ones from. Models
with a prior on their codes are compared with it. B batch, C channels, H height, W width, D code.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from genmodels.models.base import (
    Adam,
    Batch,
    Context,
    DataInfo,
    Density,
    GenerativeModel,
    Input,
    LossTerms,
    ModelConfig,
    Stage,
    Update,
)
from genmodels.nn.coders import Architecture, decoder, encoder


class Config(ModelConfig):
    """The defaults are the paper's networks for MNIST, 784-1000-500-250-30, with ReLU and Adam in place of sigmoids and
    pretraining layer by layer."""

    resolution: int = Field(28, ge=4)
    architecture: Architecture = "dense"
    hidden: tuple[int, ...] = Field((1000, 500, 250), description="sizes of dense layers; none makes it linear")
    width: int = Field(32, ge=1, description="feature maps of the first convolution")
    code: int = Field(30, ge=1, description="size of the code")
    learning_rate: float = Field(1e-3, gt=0)
    batch_images: int = Field(128, ge=1)
    images: int = Field(12_000_000, ge=1, description="images shown in all")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "convolutional": {"architecture": "convolutional"},
        "demo": {"architecture": "convolutional", "width": 16, "code": 16, "batch_images": 64, "images": 150_000},
    }


class Autoencoder(GenerativeModel):
    """One stage and one update: encoder and decoder together, by the squared error."""

    Config = Config
    config: Config
    density = Density.NONE
    title = "Autoencoder"

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        shape = config.architecture, data.channels, config.resolution, config.code
        self.encoder = encoder(*shape, hidden=config.hidden, width=config.width)
        self.decoder = decoder(*shape, hidden=config.hidden, width=config.width)

    def stages(self) -> list[Stage]:
        resolution = self.config.resolution
        inputs = {"image": Input(resolution=resolution)}
        return [Stage("reconstruction", self.config.images, self.config.batch_images, inputs, resolution)]

    def updates(self, stage: Stage) -> list[Update]:
        return [Update("reconstruction", list(self.parameters()), self.loss, Adam(self.config.learning_rate))]

    def loss(self, batch: Batch, context: Context) -> LossTerms:
        """Squared error of an image, summed over its pixels, in the mean over the batch."""
        error = (self.decode(self.encode(batch["image"])) - batch["image"]).square().sum(dim=(1, 2, 3)).mean()
        return LossTerms(error, {"squared_error": error})

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, D)."""
        return self.encoder(images)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, D) -> (B, C, H, W), about in [-1, 1]."""
        return self.decoder(codes).float()
