"""What the class-conditional GANs share, held against each of them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import draws
from pydantic import ValidationError
from replicas import gradients
from torch import nn

from genmodels.data.loader import Loader
from genmodels.errors import SpecError
from genmodels.losses import ADVERSARIAL
from genmodels.models import MODELS, build
from genmodels.models.base import DataInfo, Samples
from genmodels.models.class_conditional import ClassConditionalGAN, latents
from genmodels.spec import RunSpec, TrainingSpec
from genmodels.tracking import packaging
from genmodels.tracking.exported_model import ExportedModel
from genmodels.training.bench import random_data
from genmodels.training.engine import Engine

SMALL: dict[str, dict[str, Any]] = {
    "conditional_gan": {"channels": 4},
    "biggan": {"channels": 8, "embedding": 4},
    "sagan": {"channels": 8},
    "sngan": {"generator_channels": 8, "discriminator_channels": 8},
}
each_model = pytest.mark.parametrize("name", SMALL)
LABELS = torch.tensor([0, 2, 1, 2])


def small(name: str = "conditional_gan", *, channels: int = 3, **config: Any) -> ClassConditionalGAN:
    config = {"resolution": 8, "latent": 8, "batch_images": 8} | SMALL[name] | config
    model = build(name, config, DataInfo(channels=channels, classes=4), seed=0)
    assert isinstance(model, ClassConditionalGAN)
    return model


def engine_of(model: ClassConditionalGAN, **training: Any) -> Engine:
    def batches(stage):
        return Loader(random_data(stage.inputs, 3, 4), stage.inputs, stage.batch_images, seed=0)

    return Engine(model, batches, training=TrainingSpec(**training))


def images(n: int = 4) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def batch() -> dict[str, torch.Tensor]:
    return {"image": images(), "label": LABELS}


@each_model
def test_the_discriminators_loss_is_the_hinge_loss_of_images_with_their_labels(name):
    model, context = small(name), draws()
    model.discriminator.eval()  # so that forwards can be repeated
    loss = model.discriminator_loss(batch(), context)
    real, fake = (model.discriminator(x, LABELS) for x in (images(), context.shared["fakes"].detach()))
    expected = (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
    torch.testing.assert_close(loss.total, expected)


@each_model
def test_both_updates_of_a_step_judge_the_same_fakes(name):
    model, context = small(name, adversarial_loss="non_saturating"), draws()
    model.discriminator.eval()
    model.discriminator_loss(batch(), context.begin(0))
    loss = model.generator_loss(batch(), context.begin(1))
    logits = model.discriminator(context.shared["fakes"], LABELS)
    torch.testing.assert_close(loss.terms["adversarial"], nn.functional.softplus(-logits).mean())
    gradients = torch.autograd.grad(loss.total, list(model.generator.parameters()), allow_unused=True)
    assert all(gradient is not None for gradient in gradients)


def test_the_generators_graph_is_kept_only_in_steps_that_update_it():
    model = small(discriminator_steps=3)
    for step, kept in enumerate([True, False, False, True]):
        context = draws(step)
        model.discriminator_loss(batch(), context)
        assert context.shared["fakes"].requires_grad == kept


def test_with_micro_batches_the_generator_makes_the_same_fakes_anew():
    """So that the discriminator's update over all of them keeps no graph of the generator's."""
    model, context = small(), draws(micros=4)
    model.discriminator_loss(batch(), context)
    judged = context.shared["fakes"]
    assert not judged.requires_grad
    model.generator_loss(batch(), context)
    assert context.shared["fakes"].requires_grad
    assert torch.equal(context.shared["fakes"], judged)


def test_updates_of_the_discriminator_for_one_of_the_generator():
    engine = engine_of(small(discriminator_steps=3, images=8 * 7))
    while not engine.finished:
        engine.step()
    assert engine.update_counts == {"discriminator": 7, "generator": 3}


def test_learning_rates_fall_to_zero_on_a_line():
    model = small(linear_decay=True, images=1000, generator_learning_rate=1e-4, discriminator_learning_rate=4e-4)
    discriminator, generator = model.updates(model.stages[0])
    assert (discriminator.optimizer.learning_rate, generator.optimizer.learning_rate) == (4e-4, 1e-4)
    assert [generator.schedule(shown) for shown in (0, 250, 1000)] == [1.0, 0.75, 0.0]


@each_model
@pytest.mark.parametrize("loss", ADVERSARIAL)
def test_every_adversarial_loss_with_every_penalty(name, loss):
    model = small(name, adversarial_loss=loss, r1_gamma=1.0, r2_gamma=1.0, consistency_weight=1.0)
    model.at(model.stages[0], 0)
    for update in model.updates(model.stages[0]):
        terms = update.loss(batch(), draws())
        gradients = torch.autograd.grad(terms.total, update.parameters, allow_unused=True)
        assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
        if update.name == "discriminator":
            assert {"r1", "r2", "consistency"} <= terms.terms.keys()


@each_model
def test_accumulated_micro_batches_make_the_gradient_of_the_whole_batch(name):
    """4 x 64 and 256, for every update, with batch norms and power iterations at rest: the ones look across a
    micro-batch, and each forward makes one of the others."""
    found = []
    for accumulation in (1, 4):
        engine = engine_of(small(name, batch_images=256), accumulation=accumulation)
        engine.model.eval().prepare_evaluation()
        engine.step()
        found.append([torch.cat([p.grad.flatten() for p in t.update.parameters]) for t in engine._trained])
    for whole, parts in zip(*found, strict=True):
        assert (parts - whole).norm() <= 1e-5 * whole.norm()


def test_standing_statistics_are_those_of_the_averaged_weights():
    """The first norm's are the mean and variance of the dense layer's output for the latents that samples use."""
    model = small(ema_half_life_images=100)
    engine = engine_of(model)
    for _ in range(12):
        engine.step()
    noise, outputs = torch.Generator().manual_seed(0), []
    with engine.evaluating(), torch.no_grad():
        for _ in range(16):
            outputs.append(model.generator.dense(torch.randn(256, 8, generator=noise)).unflatten(1, (-1, 16)))
            torch.randint(4, (256,), generator=noise)
        standing = {key: value.clone() for key, value in model.generator.state_dict().items() if "running" in key}
    x = torch.stack(outputs)
    torch.testing.assert_close(standing["norms.0.norm.running_mean"], x.mean((1, 3)).mean(0))
    torch.testing.assert_close(standing["norms.0.norm.running_var"], x.var((1, 3)).mean(0))
    assert engine.average
    weight = engine.average.average["generator.dense.weight"]
    assert not torch.allclose(weight, model.generator.dense.weight), "or it does not matter whose statistics they are"


@each_model
def test_an_image_does_not_depend_on_those_sampled_beside_it(name):
    model = small(name).eval()
    assert isinstance(model, Samples)
    model.prepare_evaluation()
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 1, 2, 3, 0])
    with torch.no_grad():
        together = model.generator(z, labels)
        torch.testing.assert_close(model.generator(z[:2], labels[:2]), together[:2])
    first = model.sample(5, generator=torch.Generator().manual_seed(3))
    assert first.shape == (5, 3, 8, 8)
    assert first.abs().max() <= 1
    assert torch.equal(first, model.sample(5, generator=torch.Generator().manual_seed(3)))


@each_model
def test_labels_change_images_where_their_parameters_differ(name):
    model = small(name)
    for parameter in model.generator.parameters():
        nn.init.normal_(parameter, std=0.5)
    model.eval().prepare_evaluation()
    z, other = torch.randn(4, 8), torch.tensor([0, 2, 1, 3])
    with torch.no_grad():
        one, two = (model.generator(z, labels) for labels in (LABELS, other))
    assert torch.equal(one[:3], two[:3])
    assert not torch.allclose(one[3], two[3])


@each_model
def test_without_labels_nothing_is_conditional(name):
    model = small(name, conditional=False)
    assert set(model.stages[0].inputs) == {"image"}
    assert model.generator(torch.randn(2, 8), None).shape == (2, 3, 8, 8)
    assert model.discriminator(images(), None).shape == (4,)
    with pytest.raises(SpecError, match="needs a data set with labels"):
        build(name, {"resolution": 8} | SMALL[name], DataInfo(channels=3), seed=0)


@pytest.mark.parametrize("truncation", [0.04, 0.5, 2.0])
def test_truncated_latents_are_those_of_a_truncated_normal(truncation):
    z = latents(20_000, 10, truncation, torch.Generator().manual_seed(0))
    assert z.abs().max() <= truncation
    density = math.exp(-(truncation**2) / 2) / math.sqrt(2 * math.pi)
    variance = 1 - 2 * truncation * density / math.erf(truncation / math.sqrt(2))
    assert z.var().item() == pytest.approx(variance, rel=0.02)
    assert z.mean().item() == pytest.approx(0, abs=0.02 * truncation)


def test_without_truncation_latents_are_standard_normal():
    expected = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(latents(3, 4, None, torch.Generator().manual_seed(0)), expected)


@each_model
@pytest.mark.parametrize("truncation", [None, 0.5])
def test_an_exported_model_draws_the_same_images(name, truncation, tmp_path: Path):
    model = small(name, channels=1, truncation=truncation).eval()
    model.prepare_evaluation()
    config = model.config.model_dump(mode="json")
    spec = RunSpec(model=name, dataset="digits", config=config, code_version="0", dataset_digest="0" * 64)
    packaging.export(model, spec, channels=1, classes=4, folder=tmp_path)
    export = ExportedModel().open(tmp_path)
    own = model.sample(1, labels=torch.tensor([2]), generator=torch.Generator().manual_seed(9))
    own = own.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(export.sample([9], [2]).astype(int), own, atol=1)


@each_model
def test_bf16_autocast_keeps_images_and_losses_in_fp32(name):
    model, context = small(name), draws()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.discriminator_loss(batch(), context)
    assert context.shared["fakes"].dtype == loss.total.dtype == torch.float32
    assert loss.total.isfinite()


@each_model
def test_a_run_is_the_same_twice(name):
    config = {"resolution": 8, "latent": 8, "batch_images": 8} | SMALL[name]
    one, two = (gradients(name, config, steps=2) for _ in range(2))
    assert all(torch.equal(a, b) for u in one[1] for a, b in zip(one[1][u], two[1][u], strict=True))


@each_model
def test_presets_can_be_built_and_survive_json(name):
    for preset in MODELS[name].Config.presets:
        config = MODELS[name].Config.preset(preset)
        assert type(config).model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
        with torch.device("meta"):
            assert MODELS[name](config, DataInfo(channels=3, classes=10)).stages


@pytest.mark.parametrize(
    "wrong", [{"resolution": 48}, {"resolution": 4}, {"truncation": 0}, {"discriminator_steps": 0}]
)
def test_bad_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        MODELS["conditional_gan"].Config.model_validate(wrong)
