"""How many of 1,000 modes a DCGAN finds under each loss, in as many samples as they are usually counted.

    python tests/benchmarks/stacked_digits.py [--images 200000] [--losses hinge wgan_gp] [--samples 26000]

The data set `stacked_digits` and the metrics `modes_classifier` and `mode_divergence_classifier` of the pipeline, which
counts them in 5,000 samples. The classifier learns from all training stacks.
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
from genmodels.evaluation.modes import mode_scores
from genmodels.losses import ADVERSARIAL
from genmodels.models import build
from genmodels.models.base import DataInfo, Samples
from genmodels.models.dcgan import DCGAN
from genmodels.spec import GuardsSpec, TrainingSpec
from genmodels.training.engine import Engine
from genmodels.training.loop import train

STACKED = CATALOGUE["stacked_digits"]
WARNING = GuardsSpec(mode_collapse=GuardsSpec().mode_collapse.model_copy(update={"action": "warn"}))


@cache
def stacks(table: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 8, 8) uint8 and numbers (N,) of a table of `stacked_digits`."""
    with STACKED.examples(lambda done, total: None) as examples:
        found = [(example.content, example.label) for example in examples.read() if example.table == table]
    images, labels = zip(*found, strict=True)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


@cache
def classifier() -> Classifier:
    """Of the numbers."""
    return train_classifier(*stacks("train"), classes=STACKED.classes, seed=0, progress=lambda done, total: None)


@torch.inference_mode()
def scores(images: Tensor) -> list[str]:
    """Modes and divergence of (N, 3, 8, 8) uint8 images."""
    read = torch.cat([classifier()(part).argmax(1) for part in images.split(1_000)])
    frequencies = stacks("train")[1].bincount(minlength=STACKED.classes)
    found = mode_scores(read, frequencies, generator=torch.Generator(), replicates=0)
    return [f"{score.value:.4g}" for score in found.values()]


def trained(loss: str, images: int, seed: int = 0) -> tuple[Samples, list[str]]:
    """A model after so many images shown, ready for evaluation, and the guards that have raised an alarm."""
    config = DCGAN.Config.preset("demo", latent=64, images=images, adversarial_loss=loss).model_dump()
    model = build("dcgan", config, DataInfo(channels=3), seed=seed)
    data = Dataset.from_arrays({"train": {"image@8": stacks("train")[0].numpy()}})
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
    right = accuracy(classifier(), *stacks("test"))
    title = f"{asked.images:,} images shown, {asked.samples:,} samples; numbers read right: {right:.1%}"
    table = Table("loss", f"modes of {STACKED.classes:,}", "KL in nats", "alarms", "seconds", title=title)
    table.add_row("held-out real images", *scores(stacks("test")[0][: asked.samples]), "", "", end_section=True)
    with Progress(console=Console(stderr=True)) as progress:
        for loss in progress.track(asked.losses, description="training"):
            started = time.perf_counter()
            model, alarms = trained(loss, asked.images)
            made = samples(model, asked.samples, resolution=8, labels=None, progress=lambda images: None)
            table.add_row(loss, *scores(made), ", ".join(alarms), f"{time.perf_counter() - started:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
