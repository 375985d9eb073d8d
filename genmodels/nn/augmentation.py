"""Augmentation of what a discriminator sees, real images and fakes alike, through which a generator can learn.

Always (DiffAugment: Zhao, Liu, Lin, Zhu & Han 2020), or as often as the discriminator overfits (ADA: Karras, Aittala,
Hellsten, Laine, Lehtinen & Aila 2020). Images are (B, C, H, W) in [-1, 1]; what is moved in or cut out is 0.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genmodels.spec import AugmentationName

Rand = Callable[..., Tensor]  # (rows, *shape) -> uniform on [0, 1)
BATCHES_BETWEEN_CHANGES = 4


def color(images: Tensor, rand: Rand) -> Tensor:
    """Brightness plus up to 1/2 either way, saturation times up to 2, contrast times 1/2 to 3/2."""
    brightness, saturation, contrast = rand(len(images), 3, 1, 1, 1).unbind(1)
    images = images + (brightness - 0.5)
    images = torch.lerp(images.mean(1, keepdim=True), images, 2 * saturation)
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast + 0.5)


def translation(images: Tensor, rand: Rand) -> Tensor:
    """Moved by up to an eighth of the side either way."""
    height, width = images.shape[2:]
    reach = max(1, height // 8)
    down, right = (rand(len(images), 2) * (2 * reach + 1)).long().sub(reach).unbind(1)
    rows, columns = _places(height, images) - down[:, None], _places(width, images) - right[:, None]
    inside = _both((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
    return moved(images, down, right) * inside


def cutout(images: Tensor, rand: Rand) -> Tensor:
    """Without a square of half the side, whose centre is anywhere."""
    height, width = images.shape[2:]
    centres = rand(len(images), 2) * torch.tensor([height + 1, width + 1], device=images.device)
    covered = []
    for side, centre in zip((height, width), centres.long().unbind(1), strict=True):
        into = _places(side, images) - (centre - side // 4)[:, None]
        covered.append((into >= 0) & (into < side // 2))
    return images * ~_both(*covered)


AUGMENTATIONS: dict[AugmentationName, Callable[[Tensor, Rand], Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}


def moved(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Each image moved by so many pixels, (B,) int64; the border is repeated."""
    batch, _, height, width = images.shape
    rows = (_places(height, images) - down[:, None]).clamp(0, height - 1)
    columns = (_places(width, images) - right[:, None]).clamp(0, width - 1)
    each = torch.arange(batch, device=images.device)[:, None, None]
    return images[each, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def _places(side: int, images: Tensor) -> Tensor:
    return torch.arange(side, device=images.device)


def _both(rows: Tensor, columns: Tensor) -> Tensor:
    """(B, 1, H, W), true where the row, (B, H), and the column, (B, W), are."""
    return (rows[:, :, None] & columns[:, None, :])[:, None]


class Augmentation(nn.Module):
    """The named augmentations one after the other.

    Without a `target` each is always applied. With one, each is applied to an image with a probability that begins at 0
    and moves, by 1 in `ramp_images` images shown, so that r = E sign D(real) becomes the target: a discriminator that
    knows its training images has an r near 1 (Karras et al. 2020, section 3.1).
    """

    probability: Tensor
    sign_sum: Tensor
    batches: Tensor

    def __init__(self, names: Sequence[AugmentationName], *, target: float | None, ramp_images: int):
        super().__init__()
        self.names, self.target, self.ramp_images = names, target, ramp_images
        if target is not None:
            for name in ("probability", "sign_sum", "batches"):
                self.register_buffer(name, torch.zeros(()))

    def forward(self, images: Tensor, rand: Rand) -> Tensor:
        """(B, C, H, W) -> the same, differentiable."""
        for name in self.names:
            changed = AUGMENTATIONS[name](images, rand)
            if self.target is not None:
                changed = torch.where(rand(len(images), 1, 1, 1) < self.probability, changed, images)
            images = changed
        return images

    @torch.no_grad()
    def adapt(self, sign: Tensor, batch_images: int) -> None:
        """Told E sign D(real) over each batch; every few batches the probability follows, without asking the device for
        anything."""
        assert self.target is not None
        self.sign_sum += sign
        self.batches += 1
        due = (self.batches == BATCHES_BETWEEN_CHANGES).float()
        direction = (self.sign_sum / BATCHES_BETWEEN_CHANGES - self.target).sign()
        step = BATCHES_BETWEEN_CHANGES * batch_images / self.ramp_images
        self.probability.add_(due * direction * step).clamp_(0, 1)
        self.sign_sum *= 1 - due
        self.batches *= 1 - due
