"""How many modes of a mixture of Gaussians a GAN finds under each loss: points, and no image, through the real engine.

    python tests/benchmarks/gaussians.py [--images 1000000] [--losses non_saturating wgan_gp] [--seeds 3]

Prints, for 8 Gaussians on a ring and 25 on a grid, the share of high-quality samples (of 2,500 those within three
standard deviations of a mode) and the modes found (those with at least one of them). Adam and the losses are those of
`gan`.
"""

import argparse
import math
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from genmodels.data.dataset import Dataset
from genmodels.data.loader import Loader
from genmodels.losses import ADVERSARIAL
from genmodels.models import gan
from genmodels.models.base import Context, DataInfo
from genmodels.spec import GuardsSpec, TrainingSpec
from genmodels.training.engine import Engine
from genmodels.training.loop import train

SAMPLES, POINTS = 2_500, 100_000
RING = np.array([[math.cos(2 * math.pi * i / 8), math.sin(2 * math.pi * i / 8)] for i in range(8)])
GRID = np.array([[x, y] for x in range(-4, 5, 2) for y in range(-4, 5, 2)], dtype=np.float64)
WARNING = GuardsSpec(mode_collapse=GuardsSpec().mode_collapse.model_copy(update={"action": "warn"}))
MIXTURES = {"8 Gaussians": (RING, 0.01), "25 Gaussians": (GRID, 0.05)}


class Generator(nn.Sequential):
    """(B, Z) to points, which are images (B, 2, 1, 1)."""

    def __init__(self, config: gan.GameConfig, channels: int):
        hidden = [nn.Linear(config.latent, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU()]
        super().__init__(*hidden, nn.Linear(400, channels), nn.Unflatten(1, (channels, 1, 1)))


class Discriminator(nn.Sequential):
    """Points (B, 2, 1, 1) to logits (B,)."""

    def __init__(self, config: gan.GameConfig, channels: int):
        hidden = [nn.Linear(channels, 200), nn.LeakyReLU(0.2), nn.Linear(200, 200), nn.LeakyReLU(0.2)]
        super().__init__(nn.Flatten(), *hidden, nn.Linear(200, 1), nn.Flatten(0))


class PointGAN(gan.GAN):
    """The game of `gan` on the plane."""

    Generator, Discriminator = Generator, Discriminator

    def judge(self, images: Tensor, context: Context) -> Tensor:
        return self.discriminator(images)


def points(centres: np.ndarray, deviation: float, seed: int = 0) -> Dataset:
    """Draws of the mixture, as images of one pixel with two channels."""
    generator = np.random.default_rng(seed)
    drawn = centres[generator.integers(len(centres), size=POINTS)] + deviation * generator.normal(size=(POINTS, 2))
    return Dataset.from_arrays({"train": {"image@1": drawn.astype(np.float32)[:, :, None, None]}})


def quality(samples: Tensor, centres: np.ndarray, deviation: float) -> tuple[int, float]:
    """Modes found by points (N, 2), and the share of these that lie within three standard deviations of a mode."""
    distances, nearest = torch.cdist(samples, torch.from_numpy(centres).to(samples)).min(dim=1)
    good = distances <= 3 * deviation
    return len(nearest[good].unique()), float(good.float().mean())


def trained(loss: str, mixture: str, images: int, seed: int) -> tuple[PointGAN, list[str]]:
    """A model after so many points shown, and the guards that have raised an alarm."""
    settings = {"resolution": 1, "latent": 2, "batch_images": 256, "images": images, "adversarial_loss": loss}
    rates = {"generator_learning_rate": 1e-3, "discriminator_learning_rate": 1e-3, "ema_half_life_images": 10_000}
    if loss.startswith("wgan"):
        settings |= {"discriminator_steps": 5, "adam_betas": (0.0, 0.9), "gradient_penalty_weight": 0.1}
    else:
        settings |= {"r1_gamma": 0.1, "r1_interval_steps": 1}
    torch.manual_seed(seed)
    model = PointGAN(gan.Config.model_validate(settings | rates), DataInfo(channels=2))
    data = points(*MIXTURES[mixture], seed=seed)
    engine = Engine(
        model,
        lambda stage: Loader(data, stage.inputs, stage.batch_images, seed=seed),
        training=TrainingSpec(guards=WARNING),
        seed=seed,
    )
    alarms = train(engine).alarms
    if engine.average:
        model.load_state_dict(engine.average.average, strict=False)
    return model, [alarm.guard for alarm in alarms]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, help="points shown to each model")
    parser.add_argument("--losses", nargs="+", choices=list(ADVERSARIAL), default=list(ADVERSARIAL))
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args(arguments)
    table = Table(
        "loss", "mixture", "modes found", "high-quality samples", "alarms", "seconds", title=f"{asked.images:,} points"
    )
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=len(asked.losses) * len(MIXTURES) * asked.seeds)
        for loss in asked.losses:
            for mixture, (centres, deviation) in MIXTURES.items():
                found, shares, alarms, started = [], [], Counter[str](), time.perf_counter()
                for seed in range(asked.seeds):
                    model, raised = trained(loss, mixture, asked.images, seed)
                    alarms.update(raised)
                    samples = model.sample(SAMPLES, generator=torch.Generator().manual_seed(seed)).flatten(1)
                    modes, share = quality(samples, centres, deviation)
                    found.append(modes)
                    shares.append(share)
                    progress.advance(task)
                seconds = (time.perf_counter() - started) / asked.seeds
                mean = f"{np.mean(found):.1f} of {len(centres)}"
                told = ", ".join(f"{count} {guard}" for guard, count in alarms.items())
                table.add_row(loss, mixture, mean, f"{np.mean(shares):.1%}", told, f"{seconds:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
