"""PatchGAN, which judges overlapping patches instead of the image (Isola et al. 2017, section 3.2.2)."""

from torch import Tensor, nn

from genmodels.nn.normalization import instance_norm


class PatchDiscriminator(nn.Module):
    """C64-C128-C256-C512: with three layers, patches of 70x70 pixels; 256x256 images give 30x30 logits."""

    def __init__(self, in_channels: int, *, channels: int = 64, layers: int = 3):
        super().__init__()
        widths = [channels * min(2**depth, 8) for depth in range(layers + 1)]
        stages: list[nn.Module] = [
            nn.Conv2d(in_channels, widths[0], kernel_size=4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for depth in range(1, layers + 1):
            stages += [
                nn.Conv2d(
                    widths[depth - 1], widths[depth], kernel_size=4, stride=2 if depth < layers else 1, padding=1
                ),
                instance_norm(widths[depth]),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.layers = nn.Sequential(*stages, nn.Conv2d(widths[-1], 1, kernel_size=4, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, 1, h, w)."""
        return self.layers(images)
