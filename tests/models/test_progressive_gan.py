"""Progressive GAN: the published counts and schedule, continuity of the fades, and what the losses are made of."""

import json
import math

import pytest
import torch
from drawing import draws
from pydantic import ValidationError
from torch.nn import functional as F

from genmodels.errors import SpecError
from genmodels.losses import ADVERSARIAL
from genmodels.models import build
from genmodels.models.base import DataInfo, Samples
from genmodels.models.progressive_gan import Config, ProgressiveGAN, largest_divisor

TINY = {"resolution": 16, "latent": 8, "fmap_base": 64, "fmap_max": 16, "minibatch_stddev_group": 2}


def tiny(**config) -> ProgressiveGAN:
    model = build("progressive_gan", TINY | config, DataInfo(channels=3, classes=4), seed=0)
    assert isinstance(model, ProgressiveGAN)
    return model


def images(n: int = 4, resolution: int = 16) -> torch.Tensor:
    return torch.rand(n, 3, resolution, resolution, generator=torch.Generator().manual_seed(1)) * 2 - 1


def latents(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("preset", "generator", "discriminator"),
    [("paper", 23_079_115, 23_087_249), ("cifar10", 1_296_908, 1_298_689)],
)
def test_parameter_counts_are_those_of_the_papers_networks(preset, generator, discriminator):
    model = ProgressiveGAN(Config.preset(preset), DataInfo(channels=3))
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in model.networks().items()}
    assert counts == {"generator": generator, "discriminator": discriminator}


def test_the_widths_of_the_known_64x64_configuration():
    """128 channels at every scale and 64 in the last."""
    config = Config.preset("paper", resolution=64, fmap_base=2048, fmap_max=128)
    assert [config.feature_maps(level) for level in range(config.levels)] == [128, 128, 128, 128, 64]


@pytest.mark.parametrize(
    ("thousand_images", "detail_left"), [(0, 8.0), (600, 8.0), (900, 7.5), (1200, 7.0), (9600, 0.0)]
)
def test_growth_in_images(thousand_images, detail_left):
    """The published schedule with 600 + 600 thousand images a level: levels that are still missing from 1024x1024."""
    model = tiny(resolution=1024, fmap_max=1, fade_images=600_000, stable_images=600_000)
    shown = 1000 * thousand_images
    for stage in model.stages:
        if shown < stage.images:
            break
        shown -= stage.images
    model.at(stage, shown)
    assert 8 - (model.level - 1 + model.alpha) == detail_left
    assert model.whole == (thousand_images not in {600, 900}), "not while a level fades in"


def test_stages_of_the_papers_run():
    stages = ProgressiveGAN(Config.preset("paper", fmap_max=1), DataInfo(channels=3)).stages
    assert [stage.resolution for stage in stages] == [4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert [stage.batch_images for stage in stages] == [16, 16, 16, 16, 16, 16, 14, 6, 3]
    assert sum(stage.images for stage in stages) == 19_000_000


def test_the_papers_run_on_cifar10_shows_20_million_images():
    stages = ProgressiveGAN(Config.preset("cifar10"), DataInfo(channels=3)).stages
    assert [stage.images for stage in stages] == [400_000, 800_000, 800_000, 18_000_000]
    assert sum(stage.images for stage in stages) == 20_000_000


@pytest.mark.parametrize("level", [1, 2])
def test_a_fade_starts_at_the_upsampled_level_before_and_ends_at_the_new_one(level):
    generator = tiny().generator
    before = F.interpolate(generator(latents(), None, level - 1, 1.0), scale_factor=2)
    after = generator(latents(), None, level, 1.0)
    torch.testing.assert_close(generator(latents(), None, level, 0.0), before)
    torch.testing.assert_close(generator(latents(), None, level, 0.25), before + 0.25 * (after - before))


@pytest.mark.parametrize("level", [1, 2])
def test_the_discriminators_fade_starts_at_the_downsampled_image(level):
    discriminator = tiny().discriminator
    fine = images(resolution=4 * 2**level)
    torch.testing.assert_close(discriminator(fine, level, 0.0), discriminator(F.avg_pool2d(fine, 2), level - 1, 1.0))
    torch.testing.assert_close(discriminator(fine, level, 1 - 1e-7), discriminator(fine, level, 1.0))


def test_real_images_are_blended_like_the_generators():
    model = tiny(fade_images=100)
    model.at(model.stages[2], 25)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    sharp = pixels.double() / 127.5 - 1
    coarse = (
        sharp.unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean((3, 5)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    blended = model.preprocess({"image": pixels}, draws())["image"]
    torch.testing.assert_close(blended, (0.75 * coarse + 0.25 * sharp).float())


def test_mirroring_flips_about_half_and_changes_nothing_else():
    model = tiny(mirror=True)
    pixels = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    straight = pixels.float() / 127.5 - 1
    mirrored = model.preprocess({"image": pixels}, draws())["image"]
    same = (mirrored == straight).all((1, 2, 3))
    assert torch.equal(mirrored[~same], straight[~same].flip(3))
    assert 16 < same.sum() < 48


def test_only_what_takes_part_is_trained():
    """Every trained parameter gets a gradient during the fade, and no other parameter of the level's output matters."""
    model = tiny(fade_images=100)
    stage = model.stages[1]
    model.at(stage, 50)
    for update in model.updates(stage):
        loss = update.loss({"image": images(resolution=8)}, draws()).total
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        owner = model.generator if update.name == "generator" else model.discriminator
        reached = {id(p) for p, g in zip(model.parameters(), gradients, strict=True) if g is not None}
        assert {id(p) for p in update.parameters} == reached & {id(p) for p in owner.parameters()}


def test_latents_lie_on_the_hypersphere():
    generator = tiny().generator
    torch.testing.assert_close(generator(latents(), None, 2, 1.0), generator(1e3 * latents(), None, 2, 1.0))


def test_joined_batches_give_the_same_logits_as_separate_ones():
    discriminator = tiny(minibatch_stddev_group=16).discriminator
    real, fake = images(3), -0.5 * images(3)
    joined = discriminator(torch.cat((real, fake)), 2, 1.0, batches=2)
    torch.testing.assert_close(joined, torch.cat((discriminator(real, 2, 1.0), discriminator(fake, 2, 1.0))))


@pytest.mark.parametrize(("batch", "group"), [(16, 4), (14, 2), (6, 3), (3, 3), (1, 1), (5, 1)])
def test_groups_divide_the_batch(batch, group):
    assert largest_divisor(batch, at_most=4) == group


def test_the_discriminators_loss_is_the_papers():
    """WGAN-GP with drift (appendix A.1), with separate calls for real, fake and mixed images."""
    model = tiny(gradient_penalty_target=2.0)
    context = draws().begin(0)
    loss = model.discriminator_loss({"image": images()}, context)
    fake = context.shared["fakes"].detach()
    again = draws().begin(0)
    again.randn(4, 8)
    mix = again.rand(4, 1, 1, 1)
    d_real, d_fake = (model.discriminator(x, 2, 1.0)[:, 0] for x in (images(), fake))
    mixed = (images() + mix * (fake - images())).requires_grad_()
    (slope,) = torch.autograd.grad(model.discriminator(mixed, 2, 1.0).sum(), mixed)
    penalty = 10 * (slope.flatten(1).norm(dim=1) - 2).square().mean() / 4
    expected = d_fake.mean() - d_real.mean() + penalty + 0.001 * d_real.square().mean()
    torch.testing.assert_close(loss.total, expected)


def test_both_updates_of_a_step_judge_the_same_fakes():
    model, context = tiny(), draws()
    model.discriminator_loss({"image": images()}, context.begin(0))
    loss = model.generator_loss({"image": images()}, context.begin(1))
    expected = -model.discriminator(context.shared["fakes"], 2, 1.0).mean()
    torch.testing.assert_close(loss.total, expected)
    assert all(g is not None for g in torch.autograd.grad(loss.total, [*model.generator.conv.parameters()]))


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_every_adversarial_loss_with_r1(name):
    model = tiny(adversarial_loss=name, r1_gamma=2.0, r1_interval_steps=3)
    model.at(model.stages[-1], 10**9)
    due, idle = (model.discriminator_loss({"image": images()}, draws(step)) for step in (3, 4))
    assert ("gradient_penalty" in due.terms) == name.startswith("wgan_")
    assert set(due.terms) - set(idle.terms) == {"r1"}
    adversarial = due.total - 6 * due.terms["r1"] - 0.001 * due.terms["drift"]
    if not name.startswith("wgan_"):
        torch.testing.assert_close(adversarial, due.terms["adversarial"])


def test_labels_change_images_only_through_the_label():
    model = tiny(conditional=True)
    same, other = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0])
    one, two = (model.generator(latents(), labels, 2, 1.0) for labels in (same, other))
    assert torch.equal(one[:3], two[:3])
    assert not torch.allclose(one[3], two[3])
    assert model.generator.dense.weight.shape[1] == 8 + 4


def test_the_discriminator_classifies_if_conditional():
    model = tiny(conditional=True, label_weight=0.5)
    batch = {"image": images(), "label": torch.tensor([0, 1, 2, 3])}
    context = draws()
    loss = model.discriminator_loss(batch, context)
    classes = [model.discriminator(x, 2, 1.0)[:, 1:].log_softmax(1) for x in (images(), context.shared["fakes"])]
    expected = -sum(c[torch.arange(4), batch["label"]].mean() for c in classes) / 2
    torch.testing.assert_close(loss.terms["label"], expected)
    terms = {"adversarial": 1.0, "gradient_penalty": 10.0, "drift": 0.001, "label": 2 * 0.5}
    torch.testing.assert_close(loss.total, sum(weight * loss.terms[name] for name, weight in terms.items()))
    assert model.stages[0].inputs["label"].column == "label"


def test_conditioning_needs_labels():
    with pytest.raises(SpecError, match="needs a data set with labels"):
        build("progressive_gan", {"conditional": True}, DataInfo(channels=3), seed=0)


def test_samples_come_from_the_generator_alone():
    model = tiny(conditional=True)
    assert isinstance(model, Samples)
    first = model.sample(5, generator=torch.Generator().manual_seed(3))
    assert first.shape == (5, 3, 16, 16)
    assert torch.equal(first, model.sample(5, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(first, model.sample(5, generator=torch.Generator().manual_seed(4)))


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(7)
    first, untouched = tiny(), torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), untouched)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), tiny().parameters(), strict=True))
    other = build("progressive_gan", TINY, DataInfo(channels=3), seed=1)
    assert not torch.equal(first.generator.conv.weight, other.state_dict()["generator.conv.weight"])


@pytest.mark.parametrize("preset", Config.presets)
def test_presets_survive_json(preset):
    config = Config.preset(preset)
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize(
    "wrong", [{"resolution": 48}, {"resolution": 2}, {"resolution": 2048}, {"batch_images": []}, {"batch_images": 0}]
)
def test_bad_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        Config.model_validate({"resolution": 16} | wrong)


def test_bf16_autocast_keeps_images_and_losses_in_fp32():
    model, context = tiny(), draws()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.discriminator_loss({"image": images()}, context)
    assert context.shared["fakes"].dtype == torch.float32
    assert math.isfinite(loss.total.item())
