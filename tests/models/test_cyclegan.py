"""CycleGAN: the published counts, the learning rate, the image pool, and what the losses are made of."""

import pytest
import torch
from drawing import as_worker, draws
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from genmodels.errors import SpecError
from genmodels.losses import ADVERSARIAL
from genmodels.models import build
from genmodels.models.base import DataInfo, Translates
from genmodels.models.cyclegan import Config, CycleGAN, Generator, ImagePool

TINY = {
    "resolution": 16,
    "generator_channels": 4,
    "residual_blocks": 1,
    "discriminator_channels": 4,
    "discriminator_layers": 1,
    "zoom": 1.0,
    "flip": False,
}


def tiny(**config) -> CycleGAN:
    model = build("cyclegan", TINY | config, DataInfo(channels=3), seed=0)
    assert isinstance(model, CycleGAN)
    return model


def batch(n: int = 2) -> dict[str, torch.Tensor]:
    a, b = torch.rand(2, n, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return {"a": a, "b": b}


@pytest.mark.parametrize(("resolution", "count"), [(256, 11_378_179), (128, 7_837_699)])
def test_parameter_counts_are_the_published_ones(resolution, count):
    """Nine residual blocks from 256x256 on, six below."""
    networks = CycleGAN(Config.preset("paper", resolution=resolution), DataInfo(channels=3)).networks()
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert counts == {
        "generator_ab": count,
        "generator_ba": count,
        "discriminator_a": 2_764_737,
        "discriminator_b": 2_764_737,
    }


@pytest.mark.parametrize(("resolution", "layers"), [(16, 2), (24, 3), (28, 3), (48, 4), (192, 6)])
def test_the_smallest_images_have_one_patch_and_more_layers_are_refused(resolution, layers):
    config = {"resolution": resolution, "discriminator_layers": layers}
    logits = tiny(**config).discriminator_a(torch.zeros(1, 3, resolution, resolution))
    assert logits.shape[2] == resolution // 2**layers - 2 >= 1
    for more in (layers + 1, 10**12):
        message = f"resolution={resolution} is too small for discriminator_layers={more}; .* at most {layers} layers"
        with pytest.raises(ValidationError, match=message):
            Config.model_validate(config | {"discriminator_layers": more})


def test_the_generator_against_the_layers_written_out():
    torch.manual_seed(0)
    ours = Generator(Config.model_validate(TINY), channels=3)

    def block(width: int) -> list[nn.Module]:
        return [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]

    first = nn.Sequential(
        nn.ReflectionPad2d(3), nn.Conv2d(3, 4, 7), nn.InstanceNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 8, 3, 2, 1), nn.InstanceNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1), nn.InstanceNorm2d(16), nn.ReLU(),
    )  # fmt: skip
    residual = nn.Sequential(*block(16), nn.ReLU(), *block(16))
    last = nn.Sequential(
        nn.ConvTranspose2d(16, 8, 3, 2, 1, 1), nn.InstanceNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 3, 2, 1, 1), nn.InstanceNorm2d(4), nn.ReLU(),
        nn.ReflectionPad2d(3), nn.Conv2d(4, 3, 7), nn.Tanh(),
    )  # fmt: skip
    theirs = [p for part in (first, residual, last) for p in part.parameters()]
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs, strict=True):
            other.copy_(mine)
    x = torch.randn(2, 3, 16, 16)
    between = first(x)
    torch.testing.assert_close(ours(x), last(between + residual(between)), rtol=1e-4, atol=1e-5)


def test_weights_are_drawn_as_in_the_paper():
    model = tiny(generator_channels=32)
    weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert all(m.bias.eq(0).all() for m in model.modules() if isinstance(m, nn.Conv2d) and m.bias is not None)


def test_the_learning_rate_is_constant_and_then_falls_to_zero():
    factor = Config.preset("paper", constant_images=100, decay_images=100).learning_rate_factor
    assert [factor(images) for images in (0, 100, 150, 175, 200, 250)] == [1.0, 1.0, 0.5, 0.25, 0.0, 0.0]
    assert Config.preset("paper", constant_images=100, decay_images=0).learning_rate_factor(100) == 1.0


def test_the_cycle_of_identity_generators_is_exactly_zero():
    model = tiny()
    model.generator_ab.layers = model.generator_ba.layers = nn.Sequential()
    terms = model.generators_loss(batch(), draws()).terms
    assert terms["cycle"].item() == 0
    assert terms["identity"].item() == 0


@pytest.mark.parametrize("identity_weight", [0.0, 0.5])
def test_the_generators_loss_is_the_papers(identity_weight):
    """Equations 1 to 3 and section 5.2, every network called once for every image."""
    model = tiny(identity_weight=identity_weight, cycle_weight=7.0)
    data, context = batch(), draws()
    loss = model.generators_loss(data, context)
    g, f, a, b = model.generator_ab, model.generator_ba, data["a"], data["b"]
    adversarial = (model.discriminator_b(g(a)) - 1).square().mean() + (model.discriminator_a(f(b)) - 1).square().mean()
    cycle = (f(g(a)) - a).abs().mean() + (g(f(b)) - b).abs().mean()
    identity = (g(b) - b).abs().mean() + (f(a) - a).abs().mean()
    torch.testing.assert_close(loss.total, adversarial + 7 * cycle + 7 * identity_weight * identity)
    torch.testing.assert_close(context.shared["fakes"], {"a": f(b).detach(), "b": g(a).detach()})


def test_the_discriminators_loss_is_halved_least_squares_on_pooled_fakes():
    model, context, data = tiny(), draws(), batch()
    model.generators_loss(data, context)
    fakes = context.shared["fakes"]
    loss = model.discriminators_loss(data, context)
    expected = sum(
        ((d(data[x]) - 1).square().mean() + d(fakes[x]).square().mean()) / 2
        for x, d in (("a", model.discriminator_a), ("b", model.discriminator_b))
    )
    torch.testing.assert_close(loss.total, expected)


def test_updates_share_no_parameters_and_train_every_network():
    model = tiny()
    generators, discriminators = model.updates(model.stages[0])
    groups = [{id(p) for p in update.parameters} for update in (generators, discriminators)]
    assert not groups[0] & groups[1]
    assert groups[0] | groups[1] == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_every_adversarial_loss_with_r1(name):
    model = tiny(adversarial_loss=name, r1_gamma=2.0)
    model.at(model.stages[0], 0)
    context = draws()
    model.generators_loss(batch(), context)
    loss = model.discriminators_loss(batch(), context)
    penalties = {"gradient_penalty_a", "gradient_penalty_b"} if name.startswith("wgan_") else set()
    judged = {f"{term}_{domain}" for term in ("separation", "certainty") for domain in "ab"}
    judged = set() if name.startswith("wgan") else judged
    assert set(loss.terms) == {"adversarial_a", "adversarial_b", "r1_a", "r1_b"} | penalties | judged
    assert torch.isfinite(loss.total)
    loss.total.backward(inputs=model.updates(model.stages[0])[1].parameters)


def test_a_pool_of_none_is_the_identity():
    fakes = batch()["a"]
    assert ImagePool(0, 3, 16).query(fakes, draws()) is fakes


def fake(value: float) -> torch.Tensor:
    return torch.full((1, 1, 2, 2), value)


def test_the_pool_returns_its_input_until_it_is_full():
    pool = ImagePool(50, 1, 2)
    for step in range(50):
        assert torch.equal(pool.query(fake(step), draws(step)), fake(step))
    assert pool.filled == 50
    assert pool.images[:, 0, 0, 0].tolist() == list(range(50))


def test_a_full_pool_swaps_half_of_its_queries_for_images_seen_before():
    pool = ImagePool(10, 1, 2)
    held, swaps = set(), 0
    for step in range(400):
        answer = pool.query(fake(step), draws(step))[0, 0, 0, 0].item()
        if step < 10:
            held.add(step)
        elif answer != step:
            assert answer in held
            held = held - {answer} | {step}
            swaps += 1
    assert {int(image) for image in pool.images[:, 0, 0, 0]} == held
    assert 150 < swaps < 240


def test_the_pool_is_the_same_on_every_worker():
    """Two workers with one fake each leave the pool, and get the answers, of one worker with both."""
    alone, first, second = (ImagePool(3, 1, 2) for _ in range(3))
    for step in range(20):
        both, drawn = torch.cat((fake(2 * step), fake(2 * step + 1))), draws(step).rand(2, 2)
        whole = alone.query(both, draws(step))
        parts = [
            pool.query(both[r : r + 1], draws(step, as_worker(r, both, drawn)))
            for r, pool in enumerate((first, second))
        ]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(first.images, alone.images)
    assert torch.equal(second.images, alone.images)


def test_the_pool_is_the_same_in_micro_batches():
    """Four of one fake each leave the pool, and get the answers, of one batch of four."""
    whole, parts = ImagePool(5, 1, 2), ImagePool(5, 1, 2)
    for step in range(20):
        fakes = torch.cat([fake(4 * step + row) for row in range(4)])
        answers = [parts.query(each, draws(step, micros=4, micro=m)) for m, each in enumerate(fakes.split(1))]
        assert torch.equal(torch.cat(answers), whole.query(fakes, draws(step)))
    assert torch.equal(parts.images, whole.images)


def test_the_pool_is_part_of_the_checkpoint():
    assert {"pool_a.images", "pool_a.filled", "pool_b.images", "pool_b.filled"} <= set(tiny().state_dict())


def test_without_zoom_and_flip_images_are_only_scaled():
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = pixels.float() / 127.5 - 1
    torch.testing.assert_close(tiny().preprocess({"a": pixels, "b": pixels}, draws())["a"], expected)


def test_flips_are_exact_and_about_half():
    pixels = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    straight = pixels.float() / 127.5 - 1
    seen = tiny(flip=True).preprocess({"a": pixels, "b": pixels}, draws())["a"]
    flipped = (seen - straight).abs().amax((1, 2, 3)) > 1e-4
    torch.testing.assert_close(seen[flipped], straight[flipped].flip(3))
    assert 16 < flipped.sum() < 48


def test_crops_are_cut_from_the_enlarged_image():
    """With a zoom of 2, a crop of the image that rises linearly by 1 a pixel rises by 1/2 and stays inside it."""
    ramp = torch.arange(16).expand(1, 3, 16, 16).to(torch.uint8)
    crop = (tiny(zoom=2.0).preprocess({"a": ramp, "b": ramp}, draws())["a"] + 1) * 127.5
    inner = crop[0, 0, 8]
    assert inner.min() >= 0
    assert inner.max() <= 15
    torch.testing.assert_close(inner.diff()[2:-2], torch.full((11,), 0.5), rtol=1e-3, atol=1e-3)


def test_domains_are_drawn_independently():
    inputs = tiny().stages[0].inputs
    assert {name: wanted.domain for name, wanted in inputs.items()} == {"a": "a", "b": "b"}


def test_translation_goes_both_ways():
    model = tiny()
    assert isinstance(model, Translates)
    a = batch()["a"]
    assert torch.equal(model.translate(a, "b"), model.generator_ab(a).detach())
    assert torch.equal(model.translate(a, "a"), model.generator_ba(a).detach())
    with pytest.raises(SpecError, match="Unknown domain"):
        model.translate(a, "c")


def test_images_of_other_sizes_keep_their_size():
    assert tiny().translate(torch.zeros(1, 3, 24, 40), "b").shape == (1, 3, 24, 40)


def test_one_call_for_translation_and_identity_equals_two():
    """Instance norm looks at one sample alone, so joined batches change nothing."""
    generator, data = tiny().generator_ab, batch()
    joined = generator(torch.cat((data["a"], data["b"])))
    torch.testing.assert_close(joined, torch.cat((generator(data["a"]), generator(data["b"]))))


def test_bf16_autocast_keeps_images_in_fp32():
    model, context = tiny(), draws()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.generators_loss(batch(), context)
    assert context.shared["fakes"]["a"].dtype == torch.float32
    assert F.l1_loss(loss.total, loss.total.float()) == 0
