"""The models by name."""

from typing import Any

import torch

from genmodels.errors import unknown
from genmodels.models.base import DataInfo, GenerativeModel
from genmodels.models.biggan import BigGAN
from genmodels.models.conditional_gan import ConditionalGAN
from genmodels.models.cyclegan import CycleGAN
from genmodels.models.progressive_gan import ProgressiveGAN
from genmodels.models.sagan import SAGAN
from genmodels.models.sngan import SNGAN

MODELS: dict[str, type[GenerativeModel]] = {
    "biggan": BigGAN,
    "conditional_gan": ConditionalGAN,
    "cyclegan": CycleGAN,
    "progressive_gan": ProgressiveGAN,
    "sagan": SAGAN,
    "sngan": SNGAN,
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
