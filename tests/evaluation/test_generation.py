"""What models make: bytes, in batches, the same for the same seed."""

import torch
from torch import Tensor, nn

from genmodels.evaluation import generation
from genmodels.models.base import GenerativeModel, ModelConfig


class Noise(GenerativeModel):
    """Samples uniform noise, of a brightness that its label sets; translates by changing the sign."""

    domains: tuple[str, ...] = ("a", "b")

    def __init__(self):
        nn.Module.__init__(self)
        self.config = ModelConfig(resolution=8)
        self.weight = nn.Parameter(torch.zeros(()))

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor:
        images = torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1
        return images if labels is None else labels.view(-1, 1, 1, 1).expand(images.shape) / 10

    def translate(self, images: Tensor, target: str) -> Tensor:
        return -images + (0.5 if target == "b" else 0.25)


def test_samples_are_bytes_and_repeatable(monkeypatch):
    counted = []
    images = generation.samples(Noise(), 10, resolution=8, labels=None, progress=counted.append)
    again = generation.samples(Noise(), 10, resolution=8, labels=None, progress=counted.append)
    assert images.dtype == torch.uint8
    assert images.shape == (10, 1, 8, 8)
    assert counted == [10, 10]
    assert torch.equal(images, again)
    monkeypatch.setattr(generation, "BATCH_PIXELS", 3 * 64)
    generation.samples(Noise(), 10, resolution=8, labels=None, progress=counted.append)
    assert counted[2:] == [3, 3, 3, 1]


def test_each_sample_has_its_own_label(monkeypatch):
    monkeypatch.setattr(generation, "BATCH_PIXELS", 4 * 64)
    images = generation.samples(Noise(), 10, resolution=8, labels=torch.arange(10), progress=lambda n: None)
    expected = ((torch.arange(10) / 10 + 1) * 127.5).round().byte()
    assert torch.equal(images[:, 0, 0, 0], expected)


def test_a_translation_comes_back_with_its_error():
    """-(-x + 0.5) + 0.25 = x - 0.25 for every pixel."""
    sources = torch.full((3, 1, 8, 8), 255, dtype=torch.uint8)
    made = generation.translations(Noise(), sources, source="a", target="b", progress=lambda n: None)
    torch.testing.assert_close(made.cycle_error, torch.full((3,), 0.25))
    assert made.images.unique().tolist() == [64]
    assert made.cycled.unique().tolist() == [223]
