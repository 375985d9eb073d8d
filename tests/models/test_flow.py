"""Flows: log-determinants against the full Jacobian, inverses, dequantisation, and what the first batch sets."""

import json
import math
from typing import Any

import pytest
import torch
from drawing import draws
from pydantic import ValidationError

from genmodels.evaluation.images import as_stored
from genmodels.models import build
from genmodels.models.base import DataInfo, Encodes, Samples, ScoresDensity, scaled
from genmodels.models.flow import (
    ActNorm,
    ChannelCoupling,
    CheckerboardCoupling,
    Config,
    Flow,
    InvertibleConv,
    Squeeze,
    to_real,
)

TINY: dict[str, dict[str, Any]] = {
    "glow": {"resolution": 8, "scales": 2, "steps": 2, "hidden_channels": 8},
    "realnvp": {
        "architecture": "realnvp",
        "resolution": 8,
        "scales": 2,
        "residual_blocks": 1,
        "hidden_channels": 8,
        "logit_margin": 0.05,
    },
}
architectures = pytest.mark.parametrize("architecture", TINY)


def tiny(architecture: str, *, channels: int = 3, **config: Any) -> Flow:
    """A flow whose every parameter has moved away from its start."""
    model = build("flow", TINY[architecture] | config, DataInfo(channels), seed=0)
    assert isinstance(model, Flow)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def pixels(n: int = 4, channels: int = 3, resolution: int = 8) -> torch.Tensor:
    size = (n, channels, resolution, resolution)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def reals(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@architectures
@pytest.mark.parametrize("channels", [1, 3])
def test_the_density_is_that_of_the_full_jacobian(architecture: str, channels: int):
    """ln p(x) = ln N(code) + ln |det d code / dx|, with what the scales factor out and their learned Gaussians."""
    flow = tiny(architecture, channels=channels, resolution=4).flow.double()
    x = reals(1, channels, 4, 4)
    code, log_density = flow(x)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x)[0].flatten(), x).view(x.numel(), x.numel())
    normal = -0.5 * (code.square() + math.log(2 * math.pi)).sum()
    torch.testing.assert_close(log_density, (normal + torch.linalg.slogdet(jacobian).logabsdet).view(1))


@architectures
def test_the_inverse_is_exact(architecture: str):
    flow = tiny(architecture).flow
    x = reals(4, 3, 8, 8)
    assert (flow.inverse(flow(x.float())[0]) - x).abs().max() < 1e-4
    flow.double()
    assert (flow.inverse(flow(x)[0]) - x).abs().max() < 1e-10


@pytest.mark.parametrize(
    "layer",
    [
        ActNorm(4),
        InvertibleConv(4),
        Squeeze(),
        ChannelCoupling(Config(hidden_channels=4), 4),
        ChannelCoupling(Config(hidden_channels=4), 4, second=True),
        CheckerboardCoupling(Config(hidden_channels=4), 4, 4, 0),
        CheckerboardCoupling(Config(hidden_channels=4), 4, 4, 1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_layers_log_determinant(layer: Any):
    layer = layer.double()
    for parameter in layer.parameters():
        parameter.data += 0.1 * reals(*parameter.shape)
    x = reals(1, 4, 4, 4)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0].flatten(), x).view(64, 64)
    torch.testing.assert_close(layer(x)[1], torch.linalg.slogdet(jacobian).logabsdet.view(1))
    torch.testing.assert_close(layer.inverse(layer(x)[0]), x)


def test_a_1x1_convolution_begins_as_a_rotation_and_counts_every_pixel():
    layer = InvertibleConv(6).double()
    torch.testing.assert_close(layer.weight() @ layer.weight().T, torch.eye(6).double(), atol=1e-5, rtol=0)
    for parameter in layer.parameters():
        parameter.data += 0.3 * reals(*parameter.shape)
    expected = 5 * 7 * torch.linalg.det(layer.weight()).abs().log()
    torch.testing.assert_close(layer(reals(2, 6, 5, 7))[1], expected.expand(2))


def test_squeeze_is_a_permutation_of_2x2_blocks():
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    y, log_det = Squeeze()(x)
    assert y.shape == (1, 8, 2, 2)
    assert sorted(y.flatten().tolist()) == x.flatten().tolist()
    assert y[0, :, 0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    assert log_det.item() == 0


@pytest.mark.parametrize("second", [False, True])
def test_a_coupling_changes_its_part_by_the_rest_and_begins_as_the_identity(second: bool):
    layer = ChannelCoupling(Config(hidden_channels=4), 4, second=second).double()
    x = reals(2, 4, 3, 3)
    assert torch.equal(layer(x)[0], x)
    layer.network[-1].bias.data += 0.1  # type: ignore[index, operator]
    moved = (layer(x)[0] != x).all((0, 2, 3)).tolist()
    assert moved == ([False, False, True, True] if second else [True, True, False, False])


@pytest.mark.parametrize("parity", [0, 1])
def test_a_checkerboard_coupling_changes_one_colour_of_the_board(parity: int):
    layer = CheckerboardCoupling(Config(hidden_channels=4), 1, 4, parity).double()
    layer.network[-1].bias.data += 0.1  # type: ignore[index, operator]
    x = reals(1, 1, 4, 4)
    board = torch.tensor([[(row + column) % 2 == parity for column in range(4)] for row in range(4)])
    assert torch.equal((layer(x)[0] != x)[0, 0], board)


def test_the_logit_of_one_half():
    """0, with derivative 0.9 * 4, whose logarithm is 1.2809."""
    x, log_derivative = to_real(torch.full((1, 1, 1, 1), 0.5), 0.05)
    assert x.item() == 0
    assert log_derivative.item() == pytest.approx(1.2809, abs=1e-4)
    x, log_derivative = to_real(torch.full((1, 1, 1, 1), 0.5), 0.0)
    assert (x.item(), log_derivative.item()) == (0, 0)


def test_a_uniform_density_is_8_bits_per_dimension(monkeypatch: pytest.MonkeyPatch):
    """Density 1 on the cube that the pixels' cells fill."""
    model = tiny("glow")
    monkeypatch.setattr(model.flow, "forward", lambda x: (x.flatten(1), x.new_zeros(len(x))))
    assert model.loss({"image": scaled(pixels())}, draws()).total.item() == pytest.approx(8.0)
    nats = model.log_likelihood(scaled(pixels()), generator=torch.Generator())
    torch.testing.assert_close(nats, torch.full((4,), -8 * 192 * math.log(2)))


def test_the_mean_over_the_noise_is_below_the_likelihood(monkeypatch: pytest.MonkeyPatch):
    """Of a pixel of two levels with density 2y: ln u - ln 2 and ln(1 + u) - ln 2 have the means -1 - ln 2 and ln 2 - 1,
    but the levels have the probabilities 1/4 and 3/4."""
    model = tiny("glow", levels=2)
    monkeypatch.setattr(model.flow, "forward", lambda x: (x.flatten(1), (2 * (x + 0.5)).log().sum((1, 2, 3))))
    for level, mean, probability in ((0, -1 - math.log(2), 1 / 4), (1, math.log(2) - 1, 3 / 4)):
        images = torch.full((500, 3, 8, 8), 2.0 * level - 1)
        nats = model.log_likelihood(images, generator=torch.Generator().manual_seed(0)) / 192
        assert nats.mean().item() == pytest.approx(mean, abs=0.015)
        assert mean < math.log(probability)
    assert model.likelihood.startswith("lower bound")


def test_the_probabilities_of_all_images_add_up_to_1():
    """Of 3^4 images of 2x2 pixels; almost nothing of a Gaussian's mass lies in margins of 1e-6 beside their cells."""
    model = tiny("realnvp", channels=1, resolution=2, levels=3, logit_margin=1e-6)
    draws_of_each = 400
    every = torch.cartesian_prod(*[torch.arange(3.0)] * 4).view(81, 1, 2, 2).repeat(draws_of_each, 1, 1, 1) - 1
    total = model.log_likelihood(every, generator=torch.Generator().manual_seed(0)).exp().sum().item() / draws_of_each
    assert total == pytest.approx(1, abs=0.05)


@architectures
def test_the_loss_is_the_mean_likelihood_in_bits_per_dimension(architecture: str):
    model, images = tiny(architecture), scaled(pixels())
    model.initialised.fill_(True)
    y = (pixels().float() + draws().rand(4, 3, 8, 8)) / 256
    x, log_det = to_real(y, model.config.logit_margin)
    nats = model.flow(x)[1] + log_det - 192 * math.log(256)
    torch.testing.assert_close(model.loss({"image": images}, draws()).total, -nats.mean() / (192 * math.log(2)))


@architectures
def test_the_first_batch_standardises_every_actnorm_once(architecture: str):
    model, batch = tiny(architecture), {"image": scaled(pixels(32))}
    seen: dict[ActNorm, torch.Tensor] = {}
    for module in model.modules():
        if isinstance(module, ActNorm):
            module.register_forward_hook(lambda module, inputs, output: seen.update({module: output[0]}))
    model.loss(batch, draws())
    for output in seen.values():
        torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(output.shape[1]), atol=1e-3, rtol=0)
        torch.testing.assert_close(output.var((0, 2, 3)), torch.ones(output.shape[1]), atol=2e-2, rtol=0)
    resumed = build("flow", TINY[architecture], DataInfo(3), seed=5)
    resumed.load_state_dict(model.state_dict())
    resumed.loss({"image": -batch["image"]}, draws())  # type: ignore[operator]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


@architectures
def test_codes_of_images_come_back_as_the_images(architecture: str):
    model, images = tiny(architecture), scaled(pixels())
    assert isinstance(model, Encodes)
    codes = model.encode(images)
    assert codes.shape == (4, 3 * 8 * 8)
    decoded = model.decode(codes)
    assert torch.equal(as_stored(decoded), pixels())
    torch.testing.assert_close(decoded, images, atol=2e-4, rtol=0)
    ends = model.decode(torch.lerp(codes[:1], codes[1:2], torch.tensor([[0.0], [0.5], [1.0]])))
    assert torch.equal(as_stored(ends[::2]), pixels()[:2])
    assert ends.abs().max() <= 1


@architectures
def test_images_change_steadily_with_their_codes(architecture: str):
    """Also by less than a level: the difference of twice as long a step is twice as large."""
    model = tiny(architecture)
    codes = model.encode(scaled(pixels()))
    direction = codes.flip(0) - codes
    here, near, far = (model.decode(codes + share * direction) for share in (0, 2e-4, 4e-4))
    by_less = ((far - here).abs() < 2 / 255) & (torch.stack((here, near, far)).abs() < 1).all(0)
    assert by_less.float().mean() > 0.8
    assert (near != here)[by_less].float().mean() > 0.95
    once, twice = (near - here)[by_less], (far - here)[by_less]
    assert (twice - 2 * once).norm() < 0.1 * twice.norm()


@architectures
def test_samples_are_decoded_codes_of_the_temperature_rounded_to_levels(architecture: str):
    model = tiny(architecture, temperature=0.5, levels=17)
    assert isinstance(model, Samples)
    samples = model.sample(3, generator=torch.Generator().manual_seed(4))
    codes = torch.randn(3, 192, generator=torch.Generator().manual_seed(4))
    assert torch.equal(model.prior(3, generator=torch.Generator().manual_seed(4)), 0.5 * codes)
    torch.testing.assert_close(samples, model.decode(0.5 * codes), atol=1 / 16 + 1e-6, rtol=0)
    assert torch.equal((samples + 1) * 8, ((samples + 1) * 8).round())
    cold = tiny(architecture, temperature=0.0).sample(3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(cold[0], cold[1])


def test_images_are_rounded_to_the_levels():
    model = tiny("glow", levels=17)
    assert isinstance(model, ScoresDensity)
    coarse = torch.arange(4 * 3 * 64).view(4, 3, 8, 8) % 17
    images = scaled((coarse * (255 / 16)).round().byte())
    torch.testing.assert_close(model.decode(model.encode(images)), coarse / 8 - 1.0, atol=2e-4, rtol=0)
    torch.testing.assert_close(model.encode(images), model.encode(coarse / 8 - 1.0))


def test_bf16_autocast_changes_nothing():
    model = tiny("glow")
    expected = model.loss({"image": scaled(pixels())}, draws()).total
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.loss({"image": scaled(pixels())}, draws()).total, expected)


def test_the_papers_network_has_44_million_parameters():
    """The size that later papers give for Glow on CIFAR-10 (Chen et al., Residual Flows, 2019: 44.0 M)."""
    with torch.device("meta"):
        model = Flow(Config.preset("paper"), DataInfo(channels=3))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(44.0e6, rel=0.01)


@pytest.mark.parametrize("wrong", [{"resolution": 20}, {"architecture": "realnvp", "resolution": 18}])
def test_a_resolution_that_cannot_be_halved_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError, match="take fewer scales or a multiple of"):
        Config.model_validate(wrong)


@pytest.mark.parametrize("wrong", [{"logit_margin": 0.5}, {"levels": 1}, {"architecture": "nice"}])
def test_bad_values_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        Config.model_validate(wrong)


@pytest.mark.parametrize("preset", Config.presets)
def test_presets_survive_json(preset: str):
    config = Config.preset(preset)
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
