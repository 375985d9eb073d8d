"""PatchGAN: the published sizes."""

import pytest
import torch

from genmodels.nn.patch_discriminator import PatchDiscriminator


def test_parameter_count_is_the_published_one():
    assert sum(p.numel() for p in PatchDiscriminator(3).parameters()) == 2_764_737


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_receptive_field(layers, field):
    """The pixels that one logit depends on, with the norms taken out since they look at the whole map."""
    network = PatchDiscriminator(1, channels=2, layers=layers).double()
    kept = [m for m in network.layers if not isinstance(m, torch.nn.GroupNorm | torch.nn.LeakyReLU)]
    images = torch.zeros(1, 1, 256, 256, dtype=torch.float64, requires_grad=True)
    logits = torch.nn.Sequential(*kept)(images)
    (gradient,) = torch.autograd.grad(logits[0, 0, 15, 15], images)
    seen = gradient[0, 0].nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [field, field]


def test_256_pixels_make_a_map_of_30_logits():
    with torch.no_grad():
        assert PatchDiscriminator(3, channels=4)(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
