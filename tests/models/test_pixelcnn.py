"""PixelCNN: what each pixel sees, probabilities that add up, and sampling with a memory against sampling without."""

import itertools
import json
import math
from typing import Any

import pytest
import torch
from drawing import draws
from naive_sampling import sample
from pydantic import ValidationError

from genmodels.errors import SpecError
from genmodels.models import build
from genmodels.models.base import DataInfo, Samples, ScoresDensity, scaled
from genmodels.models.pixelcnn import Config, PixelCNN

TINY: dict[str, Any] = {
    "resolution": 5,
    "levels": 4,
    "features": 12,
    "layers": 3,
    "first_kernel": 5,
    "kernel": 3,
    "head_features": 24,
    "mixture_components": 2,
}


def tiny(*, channels: int = 3, **config: Any) -> PixelCNN:
    """A network whose every weight, masked ones too, has moved away from its start."""
    model = build("pixelcnn", TINY | config, DataInfo(channels, classes=4), seed=0)
    assert isinstance(model, PixelCNN)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_value_depends_on_all_values_before_it_and_on_no_other(channels: int):
    """The Jacobian between all pixels and channels in raster order is strictly lower triangular, and full: no value
    sees itself or what follows, and there is no blind spot."""
    network = tiny(channels=channels, layers=5).network.double()
    x = torch.randn(1, channels, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x).unflatten(1, (channels, 4))[0], x)[:, :, :, :, 0]
    seen = (jacobian != 0).any(dim=1).permute(1, 2, 0, 4, 5, 3).flatten(3).flatten(0, 2)  # each in raster order
    assert torch.equal(seen, torch.ones(25 * channels, 25 * channels).tril(-1).bool())


def test_a_mixtures_parameters_see_whole_pixels():
    network = tiny(likelihood="logistic_mixture", layers=5).network.double()
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x)[0], x)[:, :, :, 0]
    seen = (jacobian != 0).any(dim=0).permute(0, 1, 3, 4, 2).flatten(2, 3).flatten(0, 1)
    assert torch.equal(seen, torch.ones(25, 25).tril(-1).bool()[:, :, None].expand(-1, -1, 3))


@pytest.mark.parametrize("config", [{}, {"conditional": True}, {"likelihood": "logistic_mixture"}], ids=str)
def test_the_probabilities_of_all_binary_3x3_images_add_up_to_1(config: dict[str, Any]):
    model = tiny(channels=1, resolution=3, levels=2, **config)
    every = torch.tensor([*itertools.product((-1.0, 1.0), repeat=9)]).view(512, 1, 3, 3)
    probabilities = model.log_likelihood(every, generator=torch.Generator()).double().exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert model.likelihood == "exact"
    assert probabilities.std() > 1e-4


def test_a_last_layer_of_zeros_is_8_bits_per_dimension():
    model = tiny(levels=256)
    model.network.head[-1].weight.data.zero_()
    model.network.head[-1].bias.data.zero_()
    pixels = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    assert model.loss({"image": scaled(pixels)}, draws()).total.item() == pytest.approx(8.0)
    assert isinstance(model, ScoresDensity)
    nats = model.log_likelihood(scaled(pixels), generator=torch.Generator())
    torch.testing.assert_close(nats, torch.full((4,), -75 * 8 * math.log(2)))


@pytest.mark.parametrize(
    "config",
    [
        {"channels": 1, "levels": 2},
        {"channels": 3, "conditional": True},
        {"channels": 3, "likelihood": "logistic_mixture", "levels": 256},
        {"channels": 1, "layers": 1, "first_kernel": 3},
        {"channels": 1, "first_kernel": 13, "kernel": 11},
    ],
    ids=str,
)
def test_sampling_with_a_memory_draws_the_very_images_of_sampling_without(config: dict[str, Any]):
    model = tiny(**config)
    n, channels = 40, config["channels"]
    images = model.sample(n, labels=torch.arange(n) % 4, generator=torch.Generator().manual_seed(4))
    uniform = torch.rand(n, model.distribution.draws, 5, 5, generator=torch.Generator().manual_seed(4))
    naive = sample(model.network, model.distribution, images, uniform, torch.arange(n) % 4)
    assert images.shape == (n, channels, 5, 5)
    assert torch.equal(images, naive)
    assert len(images.unique()) > model.levels / 2


def test_labels_are_drawn_where_none_are_given():
    model = tiny(conditional=True)
    assert isinstance(model, Samples)
    generator = torch.Generator().manual_seed(5)
    torch.rand(6, 3, 5, 5, generator=generator)
    labels = torch.randint(4, (6,), generator=generator)
    given = model.sample(6, labels=labels, generator=torch.Generator().manual_seed(5))
    assert torch.equal(model.sample(6, generator=torch.Generator().manual_seed(5)), given)


def test_the_likelihood_of_a_conditional_model_is_the_mean_over_its_classes():
    model = tiny(conditional=True)
    images = torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(6)) * 2 - 1
    of_classes = [-model.loss({"image": images[:1], "label": torch.tensor([k])}, draws()).total for k in range(4)]
    nats = torch.stack(of_classes) * 75 * math.log(2)
    given = model.log_likelihood(images[:1], labels=torch.tensor([2]), generator=torch.Generator())
    torch.testing.assert_close(given[0], nats[2])
    expected = nats.double().exp().mean().log().float()
    torch.testing.assert_close(model.log_likelihood(images, generator=torch.Generator())[0], expected)
    assert nats.std() > 0.01


def test_images_are_rounded_to_the_levels():
    model = tiny(levels=4)
    images = torch.tensor([-1.0, -0.4, 0.3, 0.9]).repeat(75).view(4, 3, 5, 5)
    rounded = torch.tensor([-1.0, -1 / 3, 1 / 3, 1.0]).repeat(75).view(4, 3, 5, 5)
    generator = torch.Generator()
    expected = model.log_likelihood(rounded, generator=generator)
    torch.testing.assert_close(model.log_likelihood(images, generator=generator), expected)


def test_conditioning_needs_labels():
    with pytest.raises(SpecError, match="needs a data set with labels"):
        build("pixelcnn", TINY | {"conditional": True}, DataInfo(channels=3), seed=0)


def test_every_channel_needs_a_feature():
    with pytest.raises(SpecError, match="at least 3"):
        build("pixelcnn", TINY | {"features": 2}, DataInfo(channels=3), seed=0)


@pytest.mark.parametrize("wrong", [{"kernel": 4}, {"first_kernel": 2}, {"levels": 1}])
def test_bad_values_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        Config.model_validate(TINY | wrong)


@pytest.mark.parametrize("preset", Config.presets)
def test_presets_survive_json(preset: str):
    config = Config.preset(preset)
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
