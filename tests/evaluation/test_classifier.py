"""Learning what can be learnt, the same each time, and looking at large images as at their reduced copies."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.evaluation import classifier
from genmodels.evaluation.classifier import Classifier, accuracy, train_classifier


@pytest.fixture(autouse=True)
def few_images(monkeypatch) -> None:
    monkeypatch.setattr(classifier, "IMAGES_SHOWN", (1_500, 1_500))


def bright_halves(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with one brighter half: the upper one is class 0, the lower class 1."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 200, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(2, (n,), generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[0, 4 * int(label) : 4 * int(label) + 4] += 55
    return images, labels


def trained(seed: int = 0) -> Classifier:
    return train_classifier(*bright_halves(300, 0), classes=2, seed=seed, progress=lambda done, total: None)


def test_it_learns_what_can_be_learnt_and_is_a_coin_where_there_is_nothing():
    model = trained()
    assert accuracy(model, *bright_halves(300, 1)) > 0.95
    images, labels = bright_halves(300, 1)
    assert accuracy(model, images.flip(2), labels) < 0.05  # upside down it is always wrong
    noise = torch.randint(0, 256, (2000, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert accuracy(model, noise, torch.arange(2000) % 2) == pytest.approx(0.5, abs=0.05)


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    first = trained().state_dict()
    after = torch.rand(())
    torch.manual_seed(7)
    assert torch.rand(()) == after
    again, other = trained().state_dict(), trained(seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_progress_ends_at_its_total():
    told = []
    train_classifier(*bright_halves(64, 0), classes=2, seed=0, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("resolution", [4, 8, 16, 32, 48, 64, 128])
def test_features_have_one_size(resolution):
    images = torch.randint(0, 256, (2, 3, resolution, resolution), dtype=torch.uint8)
    assert Classifier(3, 5, resolution).eval().features(images).shape == (2, 128)


def test_a_large_image_is_seen_as_its_areas_means():
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8).float() / 127.5 - 1
    model = Classifier(3, 5, 64).eval()
    torch.testing.assert_close(model.features(images), model.features(F.avg_pool2d(images, 2)))
