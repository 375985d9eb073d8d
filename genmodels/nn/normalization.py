"""Normalisations and statistics that are not in torch.nn."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from genmodels.nn.distributed import of_every_worker, workers


class BatchNorm(_BatchNorm):
    """Batch normalisation (Ioffe & Szegedy 2015) of (B, C, ...) over the batches of all workers, so that their number
    changes nothing. torch's own does that on GPUs only, and cannot be differentiated twice there."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, input: Tensor) -> Tensor:
        if workers() == 1 or not self.training:
            return super().forward(input)
        x = input.float()
        over = [0, *range(2, x.dim())]
        shape = (1, -1, *[1] * (x.dim() - 2))
        own_mean = x.mean(over)
        own_variance = (x - own_mean.view(shape)).square().mean(over)
        means, variances = of_every_worker(torch.stack((own_mean, own_variance))).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        self._remember(mean.detach(), variance.detach(), workers() * x.numel() // len(mean))
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Moves the running statistics, of which the variance is the unbiased one, as torch's do."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), momentum)


def instance_norm(channels: int) -> nn.GroupNorm:
    """Instance normalisation without scale and shift: every channel of every sample gets mean 0 and variance 1 (Ulyanov
    et al. 2016). As a group norm of one channel a group it takes half the time of torch's own on a CPU."""
    return nn.GroupNorm(channels, channels, affine=False)


def pixel_norm(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Divides every pixel's feature vector, dimension 1, by its root mean square (Karras et al. 2018, section 4.2)."""
    mean_square = x.float().square().mean(dim=1, keepdim=True)
    return x * torch.rsqrt(mean_square + eps).to(x.dtype)


def minibatch_stddev(x: Tensor, group_size: int, eps: float = 1e-8) -> Tensor:
    """Adds one feature map: the standard deviation over a group, averaged over features and pixels (Karras et al.
    2018, section 3).

    Groups are `group_size` consecutive samples, so that batches joined one after the other do not meet in a group.
    (B, C, H, W) -> (B, C + 1, H, W); B must be a multiple of `group_size`.
    """
    groups = x.float().unflatten(0, (-1, group_size))
    deviation = (groups.var(dim=1, correction=0) + eps).sqrt().mean(dim=(1, 2, 3))
    column = deviation.to(x.dtype).repeat_interleave(group_size, output_size=len(x)).view(-1, 1, 1, 1)
    return torch.cat((x, column.expand(-1, 1, *x.shape[2:])), dim=1)
