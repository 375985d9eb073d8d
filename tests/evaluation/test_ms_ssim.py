"""A collapsed generator and noise, whose answers are known, and the similarities of the pairs one by one."""

import pytest
import torch

from genmodels.evaluation import ms_ssim
from genmodels.nn.structural_similarity import ms_ssim as similarities


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_collapsed_generator_has_diversity_one_and_noise_almost_none():
    collapsed = torch.randint(0, 256, (1, 3, 32, 32), generator=generator(), dtype=torch.uint8).expand(20, -1, -1, -1)
    assert ms_ssim.diversity(collapsed, generator=generator()).value == pytest.approx(1, abs=1e-4)
    noise = torch.randint(0, 256, (20, 3, 32, 32), generator=generator(), dtype=torch.uint8)
    estimate = ms_ssim.diversity(noise, generator=generator())
    assert estimate.low < estimate.value < 0.2


def test_the_standard_error_is_that_of_a_mean():
    images = torch.randint(0, 256, (400, 1, 8, 8), generator=generator(), dtype=torch.uint8)
    order = torch.randperm(400, generator=generator(5))
    similarity = similarities(images[order[::2]].float(), images[order[1::2]].float())
    estimate = ms_ssim.diversity(images, generator=generator(5))
    assert estimate.value == pytest.approx(similarity.mean().item(), rel=1e-5)
    assert estimate.standard_error == pytest.approx(similarity.std().item() / 200**0.5, rel=0.3)
