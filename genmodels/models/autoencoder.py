"""Autoencoder: a code from which an image is reconstructed (Hinton & Salakhutdinov, Science 2006).

Not a generative model: nothing says how codes are distributed, so there is nothing to draw new ones from. Models
with a prior on their codes are compared with it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from genmodels.models.autoencoding import AutoencodingConfig, AutoencodingModel
from genmodels.models.base import Adam, DataInfo, Density, Stage, Update


class Config(AutoencodingConfig):
    """The defaults are the paper's networks for MNIST, 784-1000-500-250-30, with ReLU and Adam in place of sigmoids and
    pretraining layer by layer."""

    stage = "reconstruction"

    hidden: tuple[int, ...] = Field((1000, 500, 250), description="sizes of dense layers; none makes it linear")
    code: int = Field(30, ge=1, description="size of the code")
    batch_images: int = Field(128, ge=1)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "convolutional": {"architecture": "convolutional"},
        "demo": {"architecture": "convolutional", "width": 16, "code": 16, "batch_images": 64, "images": 150_000},
    }


class Autoencoder(AutoencodingModel):
    """One stage and one update: encoder and decoder together, by the squared error."""

    Config = Config
    density = Density.NONE
    title = "Autoencoder"

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data, code=config.code)

    def updates(self, stage: Stage) -> list[Update]:
        adam = Adam(self.config.learning_rate)
        return [Update("reconstruction", list(self.parameters()), self.reconstruction_loss, adam)]
