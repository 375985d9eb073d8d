"""Models of pixels one after the other, and others with a likelihood: all judge the same binarised images."""

from typing import Any

import pytest
import torch

from genmodels.models import MODELS, build
from genmodels.models.base import DataInfo, ScoresDensity, scaled

SMALL = {"resolution": 4, "features": 4, "layers": 1, "head_features": 4}
BINARY: dict[str, dict[str, Any]] = {"pixelcnn": SMALL, "pixelrnn": SMALL, "vae": {"resolution": 4, "hidden": (8,)}}


@pytest.mark.parametrize("name", BINARY)
def test_the_cpu_presets_score_images_made_black_or_white_at_one_half(name: str):
    """Their likelihoods can be compared: of grey images each gives that of 128..255 as white and of 0..127 as black."""
    config = MODELS[name].Config.preset("cpu", **BINARY[name])
    model = build(name, config.model_dump(mode="json"), DataInfo(channels=1), seed=0).eval()
    assert isinstance(model, ScoresDensity)
    assert model.levels == 2
    grey = torch.randint(0, 256, (8, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey[0, 0, 0, :2] = torch.tensor([127, 128])
    binary = torch.where(grey >= 128, 255, 0).to(torch.uint8)
    of_grey, of_binary = (model.log_likelihood(scaled(x), generator=torch.Generator()) for x in (grey, binary))
    assert torch.equal(of_grey, of_binary)
    assert not torch.equal(of_grey, model.log_likelihood(scaled(255 - binary), generator=torch.Generator()))
