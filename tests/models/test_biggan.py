"""BigGAN: the published counts, the ways of the latent's chunks, and its regularisation."""

import pytest
import torch
from drawing import draws
from pydantic import ValidationError
from torch import nn

from genmodels.models import build, sagan
from genmodels.models.base import DataInfo
from genmodels.models.biggan import BigGAN, Config
from genmodels.nn.spectral_norm import SpectralNorm

LABELS = torch.tensor([0, 2, 1, 2])


def small(**config) -> BigGAN:
    values = {"resolution": 16, "latent": 12, "channels": 8, "embedding": 6} | config
    model = build("biggan", values, DataInfo(channels=3, classes=4), seed=0)
    assert isinstance(model, BigGAN)
    return model


def test_parameter_counts_are_those_of_the_papers_networks():
    """As the author's code counts them for ImageNet at 128x128; without the embedding, 70.3 million and 88.0."""
    with torch.device("meta"):
        model = BigGAN(Config(), DataInfo(channels=3, classes=1000))
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in model.networks().items()}
    assert counts == {"generator": 70_433_988, "discriminator": 87_982_370}
    assert counts["generator"] - model.generator.embedding.weight.numel() == 70_305_988


def convolution(before: int, after: int, kernel: int) -> int:
    return before * after * kernel**2 + after


# Parameters of the networks for 32x32, layer by layer: all maps have 256 channels, of which attention takes 32 for
# queries and keys and 128 for values.
WIDTH = 256
CONVOLUTIONS = 2 * convolution(WIDTH, WIDTH, 3)  # of a residual block
SHORTCUT = convolution(WIDTH, WIDTH, 1)
ATTENTION = WIDTH * (32 + 32 + 128) + 128 * WIDTH + 1
TO_IMAGE = 2 * WIDTH + convolution(WIDTH, 3, 3)  # and the last batch norm
FIRST_BLOCK = convolution(3, WIDTH, 3) + convolution(WIDTH, WIDTH, 3) + convolution(3, WIDTH, 1)
DISCRIMINATOR = FIRST_BLOCK + 3 * CONVOLUTIONS + SHORTCUT + ATTENTION + (WIDTH + 1) + 10 * WIDTH
SAGAN_NORMS = 2 * 2 * 10 * WIDTH  # a scale and a shift for each of ten classes
SAGAN_GENERATOR = (128 + 1) * 16 * WIDTH + 3 * (CONVOLUTIONS + SHORTCUT + SAGAN_NORMS) + ATTENTION + TO_IMAGE
BIGGAN_NORMS = 2 * 2 * (128 + 32) * WIDTH  # from the embedded class beside a quarter of the latent
BIGGAN_GENERATOR = (
    10 * 128 + (32 + 1) * 16 * WIDTH + 3 * (CONVOLUTIONS + SHORTCUT + BIGGAN_NORMS) + ATTENTION + TO_IMAGE
)


@pytest.mark.parametrize(
    ("network", "generator", "rates", "betas", "updates", "discriminator_steps", "batch", "decay"),
    [
        (sagan.SAGAN, SAGAN_GENERATOR, (1e-4, 4e-4), (0.0, 0.9), 200_000, 1, 64, None),
        (BigGAN, BIGGAN_GENERATOR, (2e-4, 2e-4), (0.0, 0.999), 125_000, 4, 50, 0.9999),
    ],
    ids=["sagan", "biggan"],
)
def test_the_presets_for_cifar10(network, generator, rates, betas, updates, discriminator_steps, batch, decay):
    """Rates of the generator and the discriminator, updates of the generator, and its average's decay in one."""
    with torch.device("meta"):
        model = network(network.Config.preset("cifar10"), DataInfo(channels=3, classes=10))
    counts = {name: sum(p.numel() for p in players.parameters()) for name, players in model.networks().items()}
    assert counts == {"generator": generator, "discriminator": DISCRIMINATOR}
    (stage,) = model.stages
    assert stage.batch_images == batch
    assert stage.images == updates * discriminator_steps * batch
    players = {update.name: update for update in model.updates(stage)}
    assert (players["discriminator"].interval_steps, players["generator"].interval_steps) == (1, discriminator_steps)
    adams = players["generator"].optimizer, players["discriminator"].optimizer
    assert tuple(adam.learning_rate for adam in adams) == rates
    assert [adam.betas for adam in adams] == [betas, betas]
    if decay is None:
        assert model.ema is None
    else:
        assert 0.5 ** (discriminator_steps * batch / model.ema.half_life_images) == pytest.approx(decay, abs=1e-6)


@pytest.mark.parametrize(("preset", "chunk"), [("paper", 20), ("paper_256", 20), ("cifar10", 32)])
def test_shapes_of_the_papers_networks(preset, chunk):
    with torch.device("meta"):
        model = BigGAN(Config.preset(preset), DataInfo(channels=3, classes=10))
        labels = torch.zeros(2, dtype=torch.int64)
        images = model.generator(torch.zeros(2, model.config.latent), labels)
        logits = model.discriminator(images, labels)
    assert model.generator.chunk == chunk
    assert images.shape == (2, 3, model.config.resolution, model.config.resolution)
    assert logits.shape == (2,)


def test_the_papers_training():
    """Batches of 2,048, two updates of the discriminator for one of the generator, of which there are 165,000."""
    with torch.device("meta"):
        model = BigGAN(Config(), DataInfo(channels=3, classes=1000))
    (stage,) = model.stages
    discriminator, generator = model.updates(stage)
    assert stage.images / stage.batch_images / generator.interval_steps == 165_000
    assert (discriminator.optimizer.learning_rate, generator.optimizer.learning_rate) == (2e-4, 5e-5)
    assert generator.optimizer.betas == (0.0, 0.999)
    # The weights of one update before count 0.9999 of those of the next.
    assert model.ema and 0.5 ** (2 * 2048 / model.ema.half_life_images) == pytest.approx(0.9999, abs=1e-7)


def test_each_chunk_of_the_latent_enters_in_its_own_place():
    """The first makes the 4x4 map; each later one reaches the batch norms of its block, beside the embedded label."""
    generator, seen = small().generator, []
    for block in generator.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    latent = torch.randn(4, 12)
    generator(latent, LABELS)
    assert len(generator.blocks) == len(seen) == 2
    for place, condition in enumerate(seen, start=1):
        expected = torch.cat((generator.embedding.weight[LABELS], latent[:, 4 * place : 4 * place + 4]), dim=1)
        assert torch.equal(condition, expected)
    assert generator.dense.in_features == 4


def test_the_penalty_is_the_papers_and_spares_the_embedding():
    """Sum of the squared products of different rows, with a loop over the weights and numpy's own product."""
    model = small(orthogonal_weight=0.5)
    expected = 0.0
    for name, parameter in model.generator.named_parameters():
        if parameter.dim() >= 2 and not name.startswith("embedding"):
            rows = parameter.detach().double().flatten(1).numpy()
            products = rows @ rows.T
            expected += (products**2).sum() - (products.diagonal() ** 2).sum()
    loss = model.generator_loss({"image": torch.zeros(4, 3, 16, 16), "label": LABELS}, draws())
    assert loss.terms["orthogonal"].item() == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(loss.total, loss.terms["adversarial"] + 0.5 * loss.terms["orthogonal"])


def test_weights_start_orthogonal():
    for layer in small().modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
            matrix = layer.weight.detach().flatten(1)
            products = matrix @ matrix.t() if len(matrix) <= matrix.shape[1] else matrix.t() @ matrix
            torch.testing.assert_close(products, torch.eye(len(products)), atol=1e-5, rtol=0)


def test_all_layers_but_the_embedding_are_spectrally_normalised():
    layers = [m for m in small().modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    plain = [layer for layer in layers if not isinstance(getattr(layer, "normalized", None), SpectralNorm)]
    assert [type(layer) for layer in plain] == [nn.Embedding]


def test_truncation_reaches_samples_and_standing_statistics():
    seen = []
    model = small(truncation=0.5).eval()
    model.generator.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.prepare_evaluation()
    model.sample(50, generator=torch.Generator().manual_seed(0))
    assert len(seen) == 17
    assert max(latent.abs().max().item() for latent in seen) <= 0.5
    assert torch.cat(seen).abs().max() > 0.49


def test_a_latent_that_does_not_divide_is_refused():
    with pytest.raises(ValidationError, match="take a multiple of 6"):
        Config(latent=128)
