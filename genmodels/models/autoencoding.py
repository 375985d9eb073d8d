"""What the models share that encode an image to a vector and decode it by a network that mirrors the encoder."""

from pydantic import Field
from torch import Tensor

from genmodels.models.base import Batch, Context, DataInfo, GenerativeModel, LossTerms, OneStageConfig
from genmodels.nn.coders import Architecture, decoder, encoder


class AutoencodingConfig(OneStageConfig):
    """The settings that these models share."""

    resolution: int = Field(28, ge=4)
    architecture: Architecture = "dense"
    hidden: tuple[int, ...] = Field(description="sizes of the coders' dense layers; none makes them linear")
    width: int = Field(32, ge=1, description="feature maps of the first convolution")
    learning_rate: float = Field(1e-3, gt=0, description="of encoder and decoder")
    batch_images: int = Field(100, ge=1)
    images: int = Field(12_000_000, ge=1, description="images shown in all")


class AutoencodingModel(GenerativeModel):
    """One stage. B batch, C channels, H height, W width, D code.

    Args:
        code: D.
        encoded: how many numbers the encoder gives for an image, if not D.
    """

    Config = AutoencodingConfig
    config: AutoencodingConfig

    def __init__(self, config: AutoencodingConfig, data: DataInfo, *, code: int, encoded: int | None = None):
        super().__init__(config, data)
        shape = config.architecture, data.channels, config.resolution
        self.encoder = encoder(*shape, encoded or code, hidden=config.hidden, width=config.width)
        self.decoder = decoder(*shape, code, hidden=config.hidden, width=config.width)

    def reconstruction_loss(self, batch: Batch, context: Context) -> LossTerms:
        """Squared error of an image, summed over its pixels, in the mean over the batch."""
        error = (self.decode(self.encode(batch["image"])) - batch["image"]).square().sum(dim=(1, 2, 3)).mean()
        return LossTerms(error, {"squared_error": error})

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, D)."""
        return self.encoder(images).float()

    def decode(self, codes: Tensor) -> Tensor:
        """(B, D) -> (B, C, H, W), about in [-1, 1]."""
        return self.decoder(codes).float()
