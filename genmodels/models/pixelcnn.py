"""PixelCNN: pixels one after the other, each by a network of all before it (van den Oord, Kalchbrenner & Kavukcuoglu,
ICML 2016), in its gated form (van den Oord et al., NeurIPS 2016), if asked for with the likelihood of PixelCNN++
(Salimans et al., ICLR 2017).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from genmodels.models.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.models.base import ConditionalConfig, DataInfo
from genmodels.nn.gated_pixelcnn import GatedPixelCNN
from genmodels.nn.pixel_likelihood import mean_over_classes


class Config(AutoregressiveConfig, ConditionalConfig):
    """The defaults are the gated network's for ImageNet 32x32 (section 3.1 of its paper), with Adam for RMSprop."""

    features: int = Field(384, ge=1, description="of each stack; at least one for each channel")
    layers: int = Field(20, ge=1, description="gated layers, the first included")
    kernel: int = Field(5, ge=3, description="width of the later layers' convolutions; odd")
    conditional: bool = Field(False, description="the label biases every gate (section 2.3)")
    batch_images: int = Field(128, ge=1)
    images: int = Field(25_600_000, ge=1, description="images shown in all")
    ema_half_life_images: float = Field(177_000, gt=0, description="0.9995 a step at batch 128")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "pixelcnn++": {"likelihood": "logistic_mixture"},
        "cpu": {  # binarised 32x32
            "levels": 2,
            "features": 32,
            "layers": 7,
            "kernel": 3,
            "head_features": 64,
            "learning_rate": 3e-3,
            "batch_images": 32,
            "images": 120_000,
            "ema_half_life_images": 10_000,
        },
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


class PixelCNN(Autoregressive):
    """Gated convolutions, and if asked for the class in every gate."""

    Config = Config
    title = "PixelCNN"

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.classes = config.classes(data)
        self.network = GatedPixelCNN(
            self.distribution,
            channels=data.channels,
            resolution=config.resolution,
            features=config.features,
            layers=config.layers,
            kernels=(config.first_kernel, config.kernel),
            head_features=config.head_features,
            classes=self.classes,
        )

    @torch.no_grad()
    def log_likelihood(self, images: Tensor, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] -> ln P in nats, (n,); of a conditional model ln P given the labels, or with
        none given that of the mean over its classes."""
        if labels is not None or not self.classes:
            return self._log_likelihood(images, labels)
        return mean_over_classes(partial(self._log_likelihood, images), self.classes, images)

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        """n images, (n, C, H, W) in [-1, 1]; of random labels if it needs them."""
        uniform = self._uniform(n, generator)
        if self.classes and labels is None:
            labels = torch.randint(self.classes, (n,), generator=generator, device=generator.device)
        return self.network.sample(uniform, None if labels is None else labels.to(uniform.device))
