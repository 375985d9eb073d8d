"""The engine beside the same networks written the way public implementations write them, in blocks that take turns.

    python tests/benchmarks/common_implementations.py [--threads 2]

Each side is a process of its own, as people run them: what the engine tells its C library to keep is not lent to the
other side. They never run at the same time.

What they have in common, and ours has not: weights scaled in every forward, upsampling through expanded views, a
discriminator's forward and backward for each of real, fake and interpolated, unfused optimisers, NCHW memory. Both
sides have the same layers, batch and losses. Prints images/s of both and the median ratio (ours / theirs).
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.models import build
from genmodels.models.base import DataInfo
from genmodels.training.bench import endless_engine

WARM_UP, BLOCKS, STEPS = 3, 12, 2
WIDTHS = [128, 128, 128, 128, 64]
CONFIGS: dict[str, dict[str, Any]] = {
    "progressive_gan": {"resolution": 64, "latent": 128, "fmap_base": 2048, "fmap_max": 128, "batch_images": 16},
    "cyclegan": {"resolution": 128, "residual_blocks": 9, "batch_images": 1},
}


class EqualizedConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.scale = (2 / (inputs * kernel**2)) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


def pixel_norm(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def upsample(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c, h, 1, w, 1).expand(n, c, h, 2, w, 2).contiguous().view(n, c, 2 * h, 2 * w)


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(128, 128 * 16)
        self.second = EqualizedConv(128, 128, 3)
        self.blocks = nn.ModuleList(
            nn.ModuleList([EqualizedConv(a, b, 3), EqualizedConv(b, b, 3)]) for a, b in pairwise(WIDTHS)
        )
        self.to_rgb = EqualizedConv(64, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = pixel_norm(F.leaky_relu(self.first(pixel_norm(z)).view(-1, 128, 4, 4), 0.2))
        x = pixel_norm(F.leaky_relu(self.second(x), 0.2))
        for block in self.blocks:
            x = upsample(x)
            for conv in block.children():
                x = pixel_norm(F.leaky_relu(conv(x), 0.2))
        return self.to_rgb(x)


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.from_rgb = EqualizedConv(3, 64, 1)
        self.blocks = nn.ModuleList(
            nn.ModuleList([EqualizedConv(a, a, 3), EqualizedConv(a, b, 3)]) for a, b in pairwise(WIDTHS[::-1])
        )
        self.last = EqualizedConv(129, 128, 3)
        self.hidden = nn.Linear(128 * 16, 128)
        self.out = nn.Linear(128, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.from_rgb(x), 0.2)
        for block in self.blocks:
            for conv in block.children():
                x = F.leaky_relu(conv(x), 0.2)
            x = F.avg_pool2d(x, 2)
        deviation = (x.view(4, -1, *x.shape[1:]).var(0) + 1e-8).sqrt().mean((1, 2, 3))
        x = torch.cat([x, deviation.view(-1, 1, 1, 1).repeat(4, 1, 4, 4)], 1)
        x = F.leaky_relu(self.last(x), 0.2)
        return self.out(F.leaky_relu(self.hidden(x.flatten(1)), 0.2))


def progressive_gan() -> Callable[[], None]:
    generator, critic = Generator(), Critic()
    g_optimizer, c_optimizer = (torch.optim.Adam(net.parameters(), 1e-3, (0.0, 0.99)) for net in (generator, critic))
    real = torch.rand(16, 3, 64, 64) * 2 - 1

    def step() -> None:
        c_optimizer.zero_grad()
        on_real = critic(real)
        on_real.mean().neg().backward(retain_graph=True)
        (0.001 * on_real.square().mean()).backward()
        fake = generator(torch.randn(16, 128)).detach()
        critic(fake).mean().backward()
        mix = torch.rand(16, 1, 1, 1)
        between = (mix * real + (1 - mix) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        (10 * (slope.flatten(1).norm(2, 1) - 1).square().mean()).backward()
        c_optimizer.step()
        g_optimizer.zero_grad()
        critic.zero_grad()
        critic(generator(torch.randn(16, 128))).mean().neg().backward()
        g_optimizer.step()

    return step


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        half = [nn.ReflectionPad2d(1), nn.Conv2d(256, 256, 3), nn.InstanceNorm2d(256)]
        again = [nn.ReflectionPad2d(1), nn.Conv2d(256, 256, 3), nn.InstanceNorm2d(256)]
        self.block = nn.Sequential(*half, nn.ReLU(True), *again)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def translator() -> nn.Module:
    layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, 64, 7), nn.InstanceNorm2d(64), nn.ReLU(True)]
    for a, b in pairwise([64, 128, 256]):
        layers += [nn.Conv2d(a, b, 3, 2, 1), nn.InstanceNorm2d(b), nn.ReLU(True)]
    layers += [Residual() for _ in range(9)]
    for a, b in pairwise([256, 128, 64]):
        layers += [nn.ConvTranspose2d(a, b, 3, 2, 1, 1), nn.InstanceNorm2d(b), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(64, 3, 7), nn.Tanh())


def patch_discriminator() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for a, b, stride in [(64, 128, 2), (128, 256, 2), (256, 512, 1)]:
        layers += [nn.Conv2d(a, b, 4, stride, 1), nn.InstanceNorm2d(b), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(512, 1, 4, 1, 1))


def cyclegan() -> Callable[[], None]:
    to_b, to_a, d_a, d_b = translator(), translator(), patch_discriminator(), patch_discriminator()
    g_optimizer = torch.optim.Adam([*to_b.parameters(), *to_a.parameters()], 2e-4, (0.5, 0.999))
    d_parameters = [*d_a.parameters(), *d_b.parameters()]
    d_optimizer = torch.optim.Adam(d_parameters, 2e-4, (0.5, 0.999))
    a, b = torch.rand(2, 1, 3, 128, 128) * 2 - 1

    def step() -> None:
        fake_b, fake_a = to_b(a), to_a(b)
        back_a, back_b = to_a(fake_b), to_b(fake_a)
        for parameter in d_parameters:
            parameter.requires_grad_(False)
        g_optimizer.zero_grad()
        identity = F.l1_loss(to_a(a), a) + F.l1_loss(to_b(b), b)
        cycle = F.l1_loss(back_a, a) + F.l1_loss(back_b, b)
        adversarial = (d_a(fake_a) - 1).square().mean() + (d_b(fake_b) - 1).square().mean()
        (5 * identity + adversarial + 10 * cycle).backward()
        g_optimizer.step()
        for parameter in d_parameters:
            parameter.requires_grad_(True)
        d_optimizer.zero_grad()
        for discriminator, real, fake in ((d_a, a, fake_a), (d_b, b, fake_b)):
            on_real, on_fake = discriminator(real), discriminator(fake.detach())
            (0.5 * ((on_real - 1).square().mean() + on_fake.square().mean())).backward()
        d_optimizer.step()

    return step


def ours(name: str) -> Callable[[], None]:
    model = build(name, CONFIGS[name], DataInfo(channels=3), seed=0)
    return endless_engine(model, model.stages[-1]).step


THEIRS = {"progressive_gan": progressive_gan, "cyclegan": cyclegan}


def side(name: str, engine: bool, threads: int, turns: Connection) -> None:
    """A process of one side: it takes `STEPS` steps whenever it is asked, and answers with the seconds of one."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = ours(name) if engine else THEIRS[name]()
    while turns.recv():
        started = time.perf_counter()
        for _ in range(STEPS):
            step()
        turns.send((time.perf_counter() - started) / STEPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    processes = multiprocessing.get_context("spawn")
    for name in THEIRS:
        lines = []
        for engine in (True, False):
            here, there = processes.Pipe()
            processes.Process(target=side, args=(name, engine, threads, there), daemon=True).start()
            lines.append(here)

        def seconds(line: Connection) -> float:
            line.send(True)
            return line.recv()

        pairs = [tuple(map(seconds, lines)) for _ in range(WARM_UP + BLOCKS)][WARM_UP:]
        for line in lines:
            line.send(False)
        images = CONFIGS[name]["batch_images"]
        mine_rate, their_rate = (images / statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(t / m for m, t in pairs)
        print(f"{name}: ours {mine_rate:.3g} images/s, theirs {their_rate:.3g}: {ratio:.2f} times ({BLOCKS} blocks)")


if __name__ == "__main__":
    main()
