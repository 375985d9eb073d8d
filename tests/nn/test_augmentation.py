"""What each augmentation does to images where that is known, that it can be differentiated, and ADA's probability."""

import pytest
import torch
from torch import Tensor, nn

from genmodels.nn.augmentation import AUGMENTATIONS, Augmentation, Rand, color, cutout, translation

RAMP = {"ramp_images": 100}


def seeded(dtype: torch.dtype = torch.float32) -> Rand:
    generator = torch.Generator().manual_seed(0)
    return lambda *size: torch.rand(*size, generator=generator).to(dtype)


def constant(*values: float) -> Rand:
    """Draws that say the same for every image."""
    return lambda rows, *size: torch.tensor(values).view(size).expand(rows, *size)


IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_color_in_closed_form():
    """Brightness 1/2 less or more, all colour taken or twice as much, half or one and a half of the contrast."""
    torch.testing.assert_close(color(IMAGES, constant(0.5, 0.5, 0.5)), IMAGES)
    torch.testing.assert_close(color(IMAGES, constant(1.0, 0.5, 0.5)), IMAGES + 0.5)
    grey = IMAGES.mean(1, keepdim=True).expand_as(IMAGES)
    torch.testing.assert_close(color(IMAGES, constant(0.5, 0.0, 0.5)), grey)
    torch.testing.assert_close(color(IMAGES, constant(0.5, 1.0, 0.5)), 2 * IMAGES - grey)
    mean = IMAGES.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(color(IMAGES, constant(0.5, 0.5, 0.0)), (IMAGES + mean) / 2)


def test_translations_are_crops_of_the_image_in_a_frame_of_zeros():
    """Every result is one of the 3 x 3 crops, and all of them occur."""
    framed = nn.functional.pad(IMAGES[:1], (1, 1, 1, 1))
    crops = [framed[0, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    moved = translation(IMAGES[:1].expand(200, -1, -1, -1), seeded())
    assert {next(i for i, crop in enumerate(crops) if torch.equal(crop, one)) for one in moved} == set(range(9))


def test_a_square_of_half_the_side_is_cut_out_wherever_its_centre_is():
    """With the centre at the corner a quarter of the square is seen; every pixel can be lost."""
    lost = 1 - cutout(torch.ones(2_000, 1, 8, 8), seeded())
    counts = lost.sum((1, 2, 3))
    assert set(counts.tolist()) == {rows * columns for rows in (2, 3, 4) for columns in (2, 3, 4)}
    assert (lost.amax(0) == 1).all()
    for one in lost[counts == 16][:10, 0]:
        rows, columns = one.nonzero().unbind(1)
        assert rows.max() - rows.min() == columns.max() - columns.min() == 3


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_gradients_against_finite_differences(name):
    images = IMAGES[:2].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: AUGMENTATIONS[name](x, seeded(torch.float64)), (images,))


def test_each_image_is_augmented_with_the_probability():
    augmentation = Augmentation(("color",), target=0.6, **RAMP)
    many = IMAGES[:1].expand(1_000, -1, -1, -1)

    def changed(probability: float) -> float:
        augmentation.probability.fill_(probability)
        return float((augmentation(many, seeded()) != many).flatten(1).any(1).float().mean())

    assert (changed(0.0), changed(1.0)) == (0.0, 1.0)
    assert changed(0.3) == pytest.approx(0.3, abs=0.05)


def test_the_probability_grows_while_more_is_taken_to_be_real_than_asked_for():
    """It takes four batches of 2 images, of 40 for the whole way, to move by 8 / 40."""
    augmentation, seen = Augmentation(("color",), target=0.6, ramp_images=40), []
    for sign in [0.7] * 8 + [0.5] * 4:
        seen.append(round(augmentation.probability.item(), 6))
        augmentation.adapt(torch.tensor(sign), 2)
    assert seen == [0.0] * 4 + [0.2] * 4 + [0.4] * 4
    assert augmentation.probability.item() == pytest.approx(0.2)


def test_the_probability_stays_between_0_and_1():
    augmentation = Augmentation(("color",), target=0.6, **RAMP)
    for sign, end in ((1.0, 1.0), (-1.0, 0.0)):
        for _ in range(20):
            augmentation.adapt(torch.tensor(sign), 10)
        assert augmentation.probability == end


def test_what_is_always_applied_has_no_state():
    augmentation = Augmentation(tuple(AUGMENTATIONS), target=None, **RAMP)
    assert augmentation.state_dict() == {}
    images: Tensor = augmentation(IMAGES, seeded())
    assert images.shape == IMAGES.shape
    assert not torch.equal(images, IMAGES)
