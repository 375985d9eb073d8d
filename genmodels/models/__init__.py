"""The models by name."""

from typing import Any

import torch

from genmodels.errors import unknown
from genmodels.models.adversarial_autoencoder import AdversarialAutoencoder
from genmodels.models.autoencoder import Autoencoder
from genmodels.models.base import DataInfo, GenerativeModel
from genmodels.models.biggan import BigGAN
from genmodels.models.conditional_gan import ConditionalGAN
from genmodels.models.cyclegan import CycleGAN
from genmodels.models.dcgan import DCGAN
from genmodels.models.flow import Flow
from genmodels.models.gan import GAN
from genmodels.models.infogan import InfoGAN
from genmodels.models.pixelcnn import PixelCNN
from genmodels.models.pixelrnn import PixelRNN
from genmodels.models.progressive_gan import ProgressiveGAN
from genmodels.models.sagan import SAGAN
from genmodels.models.sngan import SNGAN
from genmodels.models.vae import VAE
from genmodels.models.vqvae2 import VQVAE2

MODELS: dict[str, type[GenerativeModel]] = {
    "adversarial_autoencoder": AdversarialAutoencoder,
    "autoencoder": Autoencoder,
    "biggan": BigGAN,
    "conditional_gan": ConditionalGAN,
    "cyclegan": CycleGAN,
    "dcgan": DCGAN,
    "flow": Flow,
    "gan": GAN,
    "infogan": InfoGAN,
    "pixelcnn": PixelCNN,
    "pixelrnn": PixelRNN,
    "progressive_gan": ProgressiveGAN,
    "sagan": SAGAN,
    "sngan": SNGAN,
    "vae": VAE,
    "vqvae2": VQVAE2,
}


def build(name: str, config: dict[str, Any], data: DataInfo, seed: int) -> GenerativeModel:
    """The model of that name with weights drawn from `seed`. Raises SpecError for an unknown name or a config that does
    not fit the data, pydantic's ValidationError for a bad value."""
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    model = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model(model.Config.model_validate(config), data)
