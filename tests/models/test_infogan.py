"""InfoGAN: the mutual-information bound on channels that can be solved, the authors' layers, and samples by code."""

import json
import math

import pytest
import torch
from drawing import draws
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from genmodels.losses import ADVERSARIAL
from genmodels.models import build
from genmodels.models.base import DataInfo, Samples
from genmodels.models.infogan import Config, InfoGAN, categorical_information, uniform_information

TINY = {"resolution": 8, "latent": 5, "hidden_units": 16, "channels": 4, "recognition_units": 8}


def tiny(**config) -> InfoGAN:
    model = build("infogan", TINY | config, DataInfo(channels=3), seed=0)
    assert isinstance(model, InfoGAN)
    return model


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_q_that_knows_nothing_gains_nothing():
    codes = F.one_hot(torch.arange(10), 10).float()
    assert categorical_information(torch.zeros(10, 10), codes).item() == pytest.approx(0, abs=1e-6)


def test_a_perfect_q_gains_the_entropy_of_the_code():
    codes = F.one_hot(torch.arange(10), 10).float()
    assert categorical_information(100 * codes, codes).item() == pytest.approx(math.log(10))


def test_the_bound_of_the_best_q_is_the_mutual_information():
    """A symmetric channel: of six symbols the code's own arrives with probability 1/2, each other one with 1/10. Every
    case occurs in its proportion, so nothing is random: Q, a table of logits, is trained until it stands still, and the
    bound, which was below all the time, is then I(c; x) = ln 6 + 1/2 ln 1/2 + 1/2 ln 1/10."""
    pairs = [(code, symbol) for code in range(6) for symbol in range(6) for _ in range(5 if code == symbol else 1)]
    code, symbol = torch.tensor(pairs).unbind(1)
    codes = F.one_hot(code, 6).double()
    information = math.log(6) + 0.5 * math.log(1 / 2) + 0.5 * math.log(1 / 10)
    table = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([table], max_iter=100, tolerance_change=1e-12)
    bounds = []

    def minus_the_bound() -> Tensor:
        optimizer.zero_grad()
        bound = categorical_information(table[symbol], codes)
        (-bound).backward()
        bounds.append(bound.item())
        return -bound

    optimizer.step(minus_the_bound)
    assert bounds[0] == pytest.approx(0)
    assert max(bounds) <= information + 1e-9
    assert bounds[-1] == pytest.approx(information, abs=1e-6)
    torch.testing.assert_close(table.softmax(1).diagonal(), torch.full((6,), 0.5).double(), atol=1e-3, rtol=0)


def test_the_bound_of_continuous_codes():
    """H = ln 2 for each code. Exact means leave -ln(2 pi) / 2 of log Q; means of 0 lose E c^2 / 2 = 1/6 besides."""
    codes = torch.linspace(-1, 1, 20_001).unsqueeze(1).repeat(1, 2)
    exact = 2 * (math.log(2) - 0.5 * math.log(2 * math.pi))
    assert uniform_information(codes, codes).item() == pytest.approx(exact, abs=1e-5)
    assert uniform_information(0 * codes, codes).item() == pytest.approx(exact - 2 / 6, abs=1e-3)


def test_parameter_counts_are_those_of_the_authors_mnist_networks():
    """28x28 in grey: 74-1024-6272 and deconvolutions to 64 and 1; 64 and 128 kernels, 1024, then 1 and 128-12."""
    networks = InfoGAN(Config.preset("paper"), DataInfo(channels=1)).networks()
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    generator = 75 * 1024 + 2 * 1024 + 1025 * 6272 + 2 * 6272 + (128 * 16 + 1) * 64 + 2 * 64 + 64 * 16 + 1
    trunk = 17 * 64 + (64 * 16 + 1) * 128 + 2 * 128 + 6273 * 1024 + 2 * 1024
    recognition = 1025 * 128 + 2 * 128 + 129 * 12
    assert counts == {"generator": generator, "discriminator": trunk + 1025 + recognition}


def test_latents_are_codes_and_noise():
    latents = tiny(categorical_codes=[10, 3], continuous_codes=2).latents(3000, draws())
    assert latents.shape == (3000, 10 + 3 + 2 + 5)
    for chosen, kind in ((latents[:, :10], 10), (latents[:, 10:13], 3)):
        assert torch.equal(chosen.sum(1), torch.ones(3000)) and set(chosen.unique().tolist()) == {0.0, 1.0}
        torch.testing.assert_close(chosen.mean(0), torch.full((kind,), 1 / kind), atol=0.03, rtol=0)
    rest = latents[:, 13:]
    assert -1 <= rest.min() < -0.99 and 0.99 < rest.max() < 1
    assert torch.corrcoef(latents[:, 10:].T).tril(-1)[3:].abs().max() < 0.06


def test_both_players_maximise_the_bound():
    model = tiny(categorical_weight=2.0, continuous_weight=0.5)
    context = draws()
    for index, update in enumerate(model.updates(model.stages[0])):
        loss = update.loss({"image": images()}, context.begin(index))
        latents, fakes = context.shared["latents"], context.shared["fakes"]
        recognised = model.discriminator(fakes)[1]
        categorical = categorical_information(recognised[:, :10], latents[:, :10])
        continuous = uniform_information(recognised[:, 10:], latents[:, 10:12])
        torch.testing.assert_close(loss.terms["categorical_information"], categorical)
        torch.testing.assert_close(loss.terms["continuous_information"], continuous)
        torch.testing.assert_close(loss.total, loss.terms["adversarial"] - 2 * categorical - 0.5 * continuous)
        towards = torch.autograd.grad(categorical, update.parameters, allow_unused=True, retain_graph=True)
        assert sum(gradient is not None and bool(gradient.any()) for gradient in towards) >= 8


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_every_adversarial_loss(name):
    model = tiny(adversarial_loss=name, r1_gamma=1.0, r2_gamma=1.0, consistency_weight=1.0)
    context = draws()
    for index, update in enumerate(model.updates(model.stages[0])):
        loss = update.loss({"image": images()}, context.begin(index))
        gradients = torch.autograd.grad(loss.total, update.parameters, retain_graph=True, allow_unused=True)
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("kinds", [0, 1])
def test_a_category_alone_tells_nothing_and_is_refused(kinds: int):
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        tiny(categorical_codes=[10, kinds])


@pytest.mark.parametrize(("categorical", "continuous"), [([], 3), ([4], 0)])
def test_codes_of_one_kind_alone(categorical, continuous):
    model = tiny(categorical_codes=categorical, continuous_codes=continuous)
    loss = model.discriminator_loss({"image": images()}, draws())
    assert ("categorical_information" in loss.terms, "continuous_information" in loss.terms) == (
        bool(categorical),
        bool(continuous),
    )


def test_samples_by_code():
    """Codes replace their part of the latent vector and nothing else; labels the first categorical code."""
    model = tiny().eval()
    assert isinstance(model, Samples)
    codes = torch.cat((F.one_hot(torch.tensor([3, 3, 7]), 10).float(), torch.zeros(3, 2)), dim=1)

    def draw(**by: Tensor) -> Tensor:
        return model.sample(3, generator=torch.Generator().manual_seed(0), **by)

    noise = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))[:, 3:] * 2 - 1
    torch.testing.assert_close(draw(codes=codes), model.generator(torch.cat((codes, noise), dim=1)))
    labelled = draw(labels=torch.tensor([3, 3, 7]))
    assert not torch.equal(labelled, draw(labels=torch.tensor([3, 3, 8])))
    assert torch.equal(labelled[:2], draw(labels=torch.tensor([3, 3, 8]))[:2])


def test_recognised_codes_are_probabilities_and_means():
    recognised = tiny().eval().recognise(images())
    assert recognised.shape == (6, 12)
    torch.testing.assert_close(recognised[:, :10].sum(1), torch.ones(6))


@pytest.mark.parametrize("preset", Config.presets)
def test_presets_survive_json(preset):
    config = Config.preset(preset)
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_clipping_spares_the_layers_of_q():
    model = tiny(adversarial_loss="wgan", weight_clip=1e-3)
    before = model.discriminator.recognition[0].weight.detach().clone()
    model.updates(model.stages[0])[0].after()
    assert model.discriminator.trunk[0].weight.abs().max().item() == pytest.approx(1e-3)
    assert model.discriminator.logit.weight.abs().max().item() == pytest.approx(1e-3)
    assert torch.equal(model.discriminator.recognition[0].weight, before)
