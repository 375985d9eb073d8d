"""DCGAN: the known counts, the five rules, and batch norm that keeps real images and fakes apart."""

import json

import pytest
import torch
from drawing import draws
from pydantic import ValidationError
from torch import Tensor, nn

from genmodels.data.dataset import Dataset
from genmodels.data.loader import Loader
from genmodels.losses import ADVERSARIAL
from genmodels.models import build
from genmodels.models.adversarial import STANDING_SAMPLES
from genmodels.models.base import DataInfo, Samples
from genmodels.models.dcgan import DCGAN, Config
from genmodels.models.gan import FromGenerator
from genmodels.nn.normalization import BatchNorm
from genmodels.training.engine import Engine

TINY = {"resolution": 16, "latent": 8, "generator_channels": 4, "discriminator_channels": 4}
RGB = DataInfo(channels=3)


def tiny(**config) -> DCGAN:
    model = build("dcgan", TINY | config, RGB, seed=0)
    assert isinstance(model, DCGAN)
    return model


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_parameter_counts_are_the_known_ones():
    """64x64 in colour, 100 latents, 64 channels, as in the many copies of the authors' code."""
    networks = DCGAN(Config.preset("paper"), RGB).networks()
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert counts == {"generator": 3_576_704, "discriminator": 2_765_568}


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128])
def test_each_layer_doubles_or_halves_the_side(resolution):
    model = tiny(resolution=resolution, generator_channels=1, discriminator_channels=1)
    sides = {"generator": [], "discriminator": []}
    for name, network in model.networks().items():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.register_forward_hook(lambda layer, args, out, name=name: sides[name].append(out.shape[-1]))
    fakes = model.generator(torch.rand(2, 8))
    assert fakes.shape == (2, 3, resolution, resolution)
    assert model.discriminator(fakes).shape == (2,)
    up = [4 * 2**level for level in range(resolution.bit_length() - 2)]
    assert sides == {"generator": up, "discriminator": [*up[-2::-1], 1]}


def test_the_five_rules():
    kinds = {name: [type(layer) for layer in network.modules()] for name, network in tiny().networks().items()}
    up, down, norm = nn.ConvTranspose2d, nn.Conv2d, BatchNorm
    assert kinds["generator"][1:] == [up, norm, nn.ReLU, up, norm, nn.ReLU, up, nn.Tanh]
    assert kinds["discriminator"][1:] == [down, nn.LeakyReLU, down, norm, nn.LeakyReLU, down, nn.Flatten]


def test_weights_are_drawn_as_in_the_paper():
    model = DCGAN(Config.preset("paper"), RGB)
    drawn = {"conv": [], "norm": []}
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            drawn["conv"].append(layer.weight.flatten())
        elif isinstance(layer, BatchNorm):
            drawn["norm"].append(layer.weight - 1)
            assert layer.bias.eq(0).all()
    for values in drawn.values():
        assert torch.cat(values).std().item() == pytest.approx(0.02, rel=0.05)
        assert torch.cat(values).mean().abs() < 0.002


def test_latents_are_uniform():
    latents = tiny().latents(4000, draws())
    assert -1 <= latents.min() < -0.99 and 0.99 < latents.max() < 1
    assert latents.var().item() == pytest.approx(1 / 3, abs=0.01)


def test_real_images_and_fakes_do_not_meet_in_a_batch_norm():
    """The loss is that of two passes, each normalised by its own statistics, on which no logit of the other depends."""
    model, context = tiny(), draws()
    loss = model.discriminator_loss({"image": images()}, context)
    fakes = context.shared["fakes"].detach()
    logits = [model.discriminator(x) for x in (images(), fakes)]
    torch.testing.assert_close(loss.total, ADVERSARIAL["non_saturating"].discriminator(*logits))
    together = model.discriminator(torch.cat((images(), fakes))).chunk(2)
    assert not torch.allclose(loss.total, ADVERSARIAL["non_saturating"].discriminator(*together))


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_every_adversarial_loss_goes_through_batch_norm_twice(name):
    model = tiny(adversarial_loss=name, r1_gamma=1.0, r2_gamma=1.0, consistency_weight=1.0)
    context = draws()
    for index, update in enumerate(model.updates(model.stages[0])):
        loss = update.loss({"image": images()}, context.begin(index))
        gradients = torch.autograd.grad(loss.total, update.parameters, retain_graph=True, allow_unused=True)
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_evaluation_normalises_by_the_statistics_of_the_weights_it_judges():
    """The averaged generator's own, on samples; the live statistics are back in place afterwards."""
    model = tiny(ema_half_life_images=100.0, batch_images=4)
    pixels = images(32).add(1).mul(127.5).byte().numpy()
    data = Dataset.from_arrays({"train": {"image@16": pixels}})
    engine = Engine(model, lambda stage: Loader(data, stage.inputs, stage.batch_images, seed=0))
    for _ in range(5):
        engine.step()
    first, norm = model.generator[0], model.generator[1]
    mean, weight = norm.running_mean.clone(), norm.weight.detach().clone()
    with engine.evaluating() as averaged:
        assert not torch.equal(norm.weight, weight)
        source = FromGenerator(torch.Generator().manual_seed(0), torch.device("cpu"))
        latents = torch.cat([model.latents(256, source) for _ in range(STANDING_SAMPLES // 256)])
        seen = first(latents[:, :, None, None])
        torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
        once, again = (averaged.sample(3, generator=torch.Generator().manual_seed(0)) for _ in range(2))
        assert torch.equal(once, again)
    assert torch.equal(norm.running_mean, mean) and torch.equal(norm.weight, weight)


def test_the_statistics_are_those_of_as_many_samples_where_images_are_large():
    model, shown = tiny(resolution=64), list[int]()
    model.generator.register_forward_hook(lambda network, given, made: shown.append(len(made)))
    model.eval()
    model.prepare_evaluation()
    assert sum(shown) == STANDING_SAMPLES
    assert max(shown) == 64, "fewer at a time"


def test_a_sample_does_not_depend_on_those_beside_it():
    model = tiny().eval()
    assert isinstance(model, Samples)
    latents = model.latents(6, draws())
    torch.testing.assert_close(model.generator(latents)[2:4], model.generator(latents[2:4]))


def test_the_smallest_images_may_start_from_2x2():
    """Digits of 8x8 would otherwise be judged by a single hidden layer."""
    config = Config.preset("demo")
    assert (config.widths(32), config.coarsest) == ([32, 64], 2)
    model = DCGAN(config, DataInfo(channels=1))
    assert model.discriminator(model.sample(2, generator=torch.Generator())).shape == (2,)


@pytest.mark.parametrize("preset", Config.presets)
def test_presets_survive_json(preset):
    config = Config.preset(preset)
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize("wrong", [{"resolution": 28}, {"resolution": 4}, {"resolution": 256}, {"coarsest": 3}])
def test_bad_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        Config.model_validate(wrong)
