"""VQ-VAE-2: what each prior sees, samples with a memory against samples without, the bound against the sum over all
codes, and that each stage changes its own network and nothing else."""

import copy
import itertools
import json
import math
from typing import Any

import pytest
import torch
from drawing import draws
from naive_sampling import sample
from pydantic import ValidationError
from torch import Tensor

from genmodels.data.loader import Loader
from genmodels.errors import SpecError
from genmodels.models import build
from genmodels.models.base import DataInfo, Encodes, Samples, ScoresDensity
from genmodels.models.vqvae2 import VQVAE2, Config
from genmodels.nn.codebook import as_rows
from genmodels.nn.levels import from_levels, to_levels
from genmodels.training.bench import random_data
from genmodels.training.engine import Engine

TINY: dict[str, Any] = {
    "resolution": 8,
    "levels": 4,
    "downsampling": 2,
    "width": 8,
    "residual_blocks": 1,
    "residual_width": 4,
    "codes": 5,
    "code_dimensions": 3,
    "batch_images": 4,
    "images": 12,
    "prior_features": 8,
    "prior_layers": 4,
    "prior_kernel": 3,
    "prior_head_features": 16,
    "attention_every": 2,
    "attention_heads": 2,
    "conditioning_blocks": 1,
    "prior_batch_images": 4,
    "prior_images": 8,
}


def tiny(*, channels: int = 3, **config: Any) -> VQVAE2:
    """Whose every weight, masked ones too, has moved away from its start."""
    model = build("vqvae2", TINY | config, DataInfo(channels, classes=4), seed=0)
    assert isinstance(model, VQVAE2)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def images_like(model: VQVAE2, n: int) -> Tensor:
    size = model.config.resolution
    shape = n, model.data.channels, size, size
    return from_levels(torch.randint(4, shape, generator=torch.Generator().manual_seed(2)), 4)


def engine_of(**config: Any) -> Engine:
    model = build("vqvae2", TINY | config, DataInfo(1, classes=4), seed=0)
    data = random_data(model.stages[-1].inputs, 1, 4)
    return Engine(model, lambda stage: Loader(data, stage.inputs, stage.batch_images, seed=0))


def state_of(engine: Engine) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in engine.model.state_dict().items()}


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel**2 + outputs


def test_the_papers_autoencoder_for_imagenet():
    """Maps of 32x32 and 64x64 codes; weights counted from the layers of the public port of the authors' encoder."""
    with torch.device("meta"):
        autoencoder = VQVAE2(Config.preset("paper"), DataInfo(3, 1000)).autoencoder
        decoded, (top, bottom) = autoencoder(torch.zeros(1, 3, 256, 256))
    assert top.codes.shape == (1, 32, 32)
    assert bottom.codes.shape == (1, 64, 64)
    assert top.quantised.shape == (1, 64, 32, 32)
    assert decoded.shape == (1, 3, 256, 256)
    residual = 2 * (conv(128, 32, 3) + conv(32, 128, 1))
    halved, enlarged = conv(64, 128, 4), conv(128, 64, 4)
    bottom_encoder = conv(3, 64, 4) + halved + conv(128, 128, 3) + residual
    top_encoder = conv(128, 64, 4) + conv(64, 128, 3) + residual
    told = conv(64, 128, 3) + residual + enlarged
    decoder = conv(128, 128, 3) + residual + enlarged + conv(64, 3, 4)
    quantised = conv(128, 64, 1) + conv(128 + 64, 64, 1) + conv(64, 64, 4)
    expected = bottom_encoder + top_encoder + told + decoder + quantised
    assert sum(p.numel() for p in autoencoder.parameters()) == expected
    assert {tuple(level.codebook.vectors.shape) for level in autoencoder.of_levels} == {(512, 64)}


@pytest.mark.parametrize("index", [0, 1], ids=["top", "bottom"])
def test_a_code_is_predicted_from_all_before_it_and_from_no_other(index: int):
    model = tiny(prior_layers=6)
    prior, (top, bottom) = model.of_priors[index], model._codes(images_like(model, 1))
    network, seen = prior.network, []

    def note(module: torch.nn.Module, inputs: Any, vectors: Tensor) -> None:
        vectors.retain_grad()
        seen.append(vectors)

    network.embedding.register_forward_hook(note)  # type: ignore[union-attr]
    codes, above = (bottom, top) if index else (top, None)
    parameters = network(from_levels(codes, 5)[:, None], None, prior._told(above)).flatten(2)
    places = parameters.shape[2]
    for place in range(places):
        seen[0].grad = None
        parameters[:, :, place].square().sum().backward(retain_graph=True)
        nonzero = (seen[0].grad[0] != 0).any(dim=2).flatten()
        assert nonzero.tolist() == [before < place for before in range(places)]


def test_the_bottom_codes_depend_on_every_top_code():
    model = tiny(conditioning_blocks=2)
    prior, (top, bottom) = model.of_priors[1], model._codes(images_like(model, 1))
    images = from_levels(bottom, 5)[:, None]
    before = prior.network(images, None, prior._told(top))
    for row, column in itertools.product(range(2), repeat=2):
        other = top.clone()
        other[0, row, column] = (top[0, row, column] + 1) % 5
        after = prior.network(images, None, prior._told(other))
        assert (after != before).any(dim=1).all()  # each place, the first one too


@pytest.mark.parametrize("config", [{}, {"conditional": True}, {"code_maps": 1}], ids=str)
def test_samples_with_a_memory_are_those_without(config: dict[str, Any]):
    model, n = tiny(**config), 16
    labels = torch.arange(n) % 4 if model.classes else None
    assert isinstance(model, Samples)
    images = model.sample(n, labels=labels, generator=torch.Generator().manual_seed(3))
    generator, codes = torch.Generator().manual_seed(3), list[Tensor]()
    uniform = [torch.rand(n, 1, side, side, generator=generator) for side in model.config.sides.values()]
    for prior, drawn in zip(model.of_priors, uniform, strict=True):
        with torch.no_grad():
            told = prior._told(codes[-1] if codes else None)
        levels = sample(prior.network, prior.network.likelihood, drawn, drawn, labels, told)
        codes.append(to_levels(levels, 5).squeeze(1))
        assert len(codes[-1].unique()) == 5
    with torch.no_grad():
        naive = model.autoencoder.decode(model.autoencoder.look_up(codes))
    assert images.shape == (n, 3, 8, 8)
    assert torch.equal(images, naive)


def test_labels_are_drawn_where_none_are_given():
    model = tiny(conditional=True)
    generator = torch.Generator().manual_seed(5)
    for side in (2, 4):
        torch.rand(6, 1, side, side, generator=generator)
    labels = torch.randint(4, (6,), generator=generator)
    given = model.sample(6, labels=labels, generator=torch.Generator().manual_seed(5))
    assert torch.equal(model.sample(6, generator=torch.Generator().manual_seed(5)), given)


def test_the_bound_is_one_term_of_the_sum_over_all_codes():
    """Of two top codes and 2^4 maps of bottom codes every one is gone through: the priors add up to 1, and of the
    exact likelihood of an image the bound is the term of its own codes."""
    model = tiny(channels=1, resolution=4, codes=2, levels=2)
    assert isinstance(model, ScoresDensity)
    images = images_like(model, 16).sign()
    for index, level in enumerate(model.autoencoder.of_levels):  # two codes that are both in use
        level.codebook.vectors.copy_(as_rows(model.autoencoder.quantise(images)[index].vectors)[[0, 7]])
    tops = torch.tensor([0, 1]).view(2, 1, 1).repeat_interleave(16, dim=0)
    bottoms = torch.tensor([*itertools.product((0, 1), repeat=4)]).view(16, 2, 2).repeat(2, 1, 1)
    with torch.no_grad():
        log_prior = model._log_prior(0, [tops], None) + model._log_prior(1, [tops, bottoms], None)
        decoded = model.autoencoder.decode(model.autoencoder.look_up([tops, bottoms]))
        given = torch.stack([model._log_likelihood_given(decoded, image.expand(32, 1, 4, 4)) for image in images])
        own_tops, own_bottoms = model._codes(images)
    assert log_prior.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    terms = given + log_prior
    bound = model.log_likelihood(images, generator=torch.Generator())
    number = 16 * own_tops.flatten() + (own_bottoms.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)
    torch.testing.assert_close(bound, terms[torch.arange(16), number])
    assert (bound < terms.logsumexp(1)).all()
    assert model.likelihood.startswith("lower bound")
    assert len(number.unique()) > 1


def test_the_bound_of_a_conditional_model_is_the_mean_over_its_classes():
    model = tiny(conditional=True)
    images = images_like(model, 3)
    of_classes = [
        model.log_likelihood(images, labels=torch.full((3,), label), generator=torch.Generator()) for label in range(4)
    ]
    expected = torch.stack(of_classes).double().logsumexp(0) - math.log(4)
    torch.testing.assert_close(model.log_likelihood(images, generator=torch.Generator()).double(), expected)
    assert torch.stack(of_classes).std(0).min() > 0.01


@pytest.mark.parametrize("index", [0, 1])
def test_a_prior_that_knows_nothing_takes_ln_k_nats_a_code(index: int):
    model = tiny()
    last = model.of_priors[index].network.head[-1]
    last.weight.data.zero_()
    last.bias.data.zero_()
    terms = model.prior_loss(index, {"image": images_like(model, 4)}, draws()).terms
    assert terms["nats"].item() == pytest.approx(math.log(5))


def test_codes_are_decoded_to_the_reconstruction():
    model = tiny()
    assert isinstance(model, Encodes)
    images = images_like(model, 4)
    with torch.no_grad():
        reconstruction, _ = model.autoencoder(images)
    codes = model.encode(images)
    assert codes.shape == (4, 3 * 2 * 2 + 3 * 4 * 4)
    assert torch.equal(model.decode(codes), reconstruction)


def test_the_loss_is_that_of_the_paper():
    """Squared error and beta times the distance to the codes; codes that are the encoder's own vectors cost nothing."""
    model = tiny(code_maps=1, commitment=0.7)
    images = images_like(model, 2)
    decoded, (level,) = model.autoencoder(images)
    loss = model.autoencoder_loss({"image": images}, draws())
    torch.testing.assert_close(loss.terms["squared_error"], (decoded - images).square().mean())
    distance = (level.vectors - model.autoencoder.look_up([level.codes])[0]).square().mean()
    torch.testing.assert_close(loss.terms["commitment"], distance)
    assert 1 <= loss.terms["top_perplexity"] <= 5
    expected = loss.terms["squared_error"] + 0.7 * distance + loss.terms["nats"]
    torch.testing.assert_close(loss.total, expected)
    (gradient,) = torch.autograd.grad(loss.terms["nats"], model.log_scale, retain_graph=True)
    assert gradient.abs().min() > 0
    others = torch.autograd.grad(loss.terms["nats"], list(model.autoencoder.parameters()), allow_unused=True)
    assert not any(other is not None and other.any() for other in others)


def test_each_stage_changes_its_own_network_and_no_other():
    engine = engine_of(conditional=True)
    assert [stage.name for stage in engine.stages] == ["autoencoder", "top_prior", "bottom_prior"]
    before = state_of(engine)
    own = {"autoencoder": ("autoencoder.", "log_scale"), "top_prior": "priors.top.", "bottom_prior": "priors.bottom."}
    for stage in engine.stages:
        while not engine.finished and engine.stage is stage:
            engine.step()
        after = state_of(engine)
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        assert changed
        assert all(name.startswith(own[stage.name]) for name in changed)
        before = after


def test_an_interrupted_training_ends_with_the_same_weights_bit_for_bit():
    """Interrupted between any two steps: what a codebook has seen of the last one is in its state."""
    engine, states = engine_of(), []
    while not engine.finished:
        states.append(copy.deepcopy(engine.state_dict()))
        engine.step()
    expected = state_of(engine)
    assert engine.model.autoencoder.of_levels[0].codebook.counts.sum() > 0
    for state in states[1:4]:
        resumed = engine_of()
        resumed.load_state_dict(state)
        while not resumed.finished:
            resumed.step()
        assert all(torch.equal(value, expected[name]) for name, value in state_of(resumed).items())


def test_conditioning_needs_labels():
    with pytest.raises(SpecError, match="needs a data set with labels"):
        build("vqvae2", TINY | {"conditional": True}, DataInfo(channels=3), seed=0)


@pytest.mark.parametrize("wrong", [{"resolution": 6}, {"prior_kernel": 4}, {"attention_heads": 3}, {"code_maps": 3}])
def test_bad_values_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        Config.model_validate(TINY | wrong)


@pytest.mark.parametrize("preset", Config.presets)
def test_presets_survive_json(preset: str):
    config = Config.preset(preset)
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
