"""How many of 1,000 modes a DCGAN finds under each loss: three digits stacked as the channels of one image.

    python tests/benchmarks/stacked_digits.py [--images 200000] [--losses hinge wgan_gp] [--samples 26000]

Prints the modes found among the samples and the Kullback-Leibler divergence of their histogram from that of the real
images, in nats, as Metz et al. (Unrolled GAN, 2017) and Srivastava et al. (VEEGAN, 2017) count them; here the digits
are the 8x8 ones that come with scikit-learn. The pipeline's classifier, trained on single digits, reads each channel.
"""

import argparse
import time
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from genmodels.data.catalogue import CATALOGUE
from genmodels.data.dataset import Dataset
from genmodels.data.loader import Loader
from genmodels.evaluation.classifier import Classifier, accuracy, train_classifier
from genmodels.evaluation.generation import samples
from genmodels.losses import ADVERSARIAL
from genmodels.models import build
from genmodels.models.base import DataInfo, Samples
from genmodels.spec import GuardsSpec, TrainingSpec
from genmodels.training.engine import Engine
from genmodels.training.loop import train

STACKS, DIGITS = 50_000, 10
MODES = DIGITS**3
WARNING = GuardsSpec(mode_collapse=GuardsSpec().mode_collapse.model_copy(update={"action": "warn"}))


@cache
def digits(table: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) uint8 and labels (N,) of a table of `digits`."""
    with CATALOGUE["digits"].examples(lambda done, total: None) as examples:
        found = [(example.content, example.label) for example in examples.read() if example.table == table]
    images, labels = zip(*found, strict=True)
    return torch.from_numpy(np.stack(images))[:, None], torch.tensor(labels)


def stacks(table: str, count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 8, 8) of three digits each, and the number that these are, below 1,000; the same every time."""
    images, labels = digits(table)
    rows = torch.randint(len(images), (count, 3), generator=torch.Generator().manual_seed(0))
    return images[rows, 0], number(labels[rows])


def number(digits: Tensor) -> Tensor:
    """(N, 3) digits as numbers (N,)."""
    return digits @ torch.tensor([100, 10, 1])


@cache
def classifier() -> Classifier:
    """Of single digits."""
    return train_classifier(*digits("train"), classes=DIGITS, seed=0, progress=lambda done, total: None)


@torch.inference_mode()
def read(images: Tensor) -> Tensor:
    """The numbers (N,) that the classifier reads from the channels of (N, 3, 8, 8) uint8 images."""
    parts = [classifier()(part.flatten(0, 1)[:, None]).argmax(1) for part in images.split(1_000)]
    return number(torch.cat(parts).unflatten(0, (-1, 3)))


def modes(found: Tensor, real: Tensor) -> tuple[int, float]:
    """How many numbers are among `found`, and KL(found || real) of the histograms, in nats."""
    ours, theirs = (torch.bincount(numbers, minlength=MODES).double() for numbers in (found, real))
    p, q = ours / ours.sum(), (theirs + 1e-9) / theirs.sum()
    return int((ours > 0).sum()), float(torch.special.xlogy(p, p / q).sum())


def trained(loss: str, images: int, seed: int = 0) -> tuple[Samples, list[str]]:
    """A model after so many images shown, ready for evaluation, and the guards that have raised an alarm."""
    preset = {"resolution": 8, "coarsest": 2, "latent": 64, "generator_channels": 32, "discriminator_channels": 32}
    rates = {"generator_learning_rate": 1e-3, "discriminator_learning_rate": 4e-4, "ema_half_life_images": 5_000}
    config = preset | rates | {"batch_images": 64, "images": images, "adversarial_loss": loss}
    model = build("dcgan", config, DataInfo(channels=3), seed=seed)
    data = Dataset.from_arrays({"train": {"image@8": stacks("train", STACKS)[0].numpy()}})
    engine = Engine(
        model,
        lambda stage: Loader(data, stage.inputs, stage.batch_images, seed=seed),
        training=TrainingSpec(guards=WARNING),
        seed=seed,
    )
    alarms = train(engine).alarms
    with engine.evaluating():
        kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    assert isinstance(model, Samples)
    return model.eval(), [alarm.guard for alarm in alarms]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000, help="stacks shown to each model")
    parser.add_argument("--losses", nargs="+", choices=list(ADVERSARIAL), default=list(ADVERSARIAL))
    parser.add_argument("--samples", type=int, default=26_000)
    asked = parser.parse_args(arguments)
    real = stacks("train", STACKS)[1]
    right = accuracy(classifier(), *digits("test"))
    found, divergence = modes(read(stacks("test", asked.samples)[0]), real)
    title = f"{asked.images:,} images shown, {asked.samples:,} samples; digits read right: {right:.1%}"
    table = Table("loss", f"modes of {MODES:,}", "KL in nats", "alarms", "seconds", title=title)
    table.add_row("held-out real images", str(found), f"{divergence:.3f}", "", "", end_section=True)
    with Progress(console=Console(stderr=True)) as progress:
        for loss in progress.track(asked.losses, description="training"):
            started = time.perf_counter()
            model, alarms = trained(loss, asked.images)
            made = samples(model, asked.samples, resolution=8, labels=None, progress=lambda images: None)
            found, divergence = modes(read(made), real)
            seconds = f"{time.perf_counter() - started:.0f}"
            table.add_row(loss, str(found), f"{divergence:.3f}", ", ".join(alarms), seconds)
    Console().print(table)


if __name__ == "__main__":
    main()
