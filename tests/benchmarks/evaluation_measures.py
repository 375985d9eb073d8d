"""What each measure of the evaluation costs, in seconds of one process's CPU time.

    python tests/benchmarks/evaluation_measures.py [IMAGES] [FEATURES] [SIDE]

By default 180 images of 8x8 and 128 features, as for the digits; 5000 2048 32 are those of CIFAR-10 under Inception.
With the intervals of the bootstrap. Training images are ten times as many as those judged.
"""

import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from genmodels.data import dataset
from genmodels.data.images import pyramid
from genmodels.evaluation import disentanglement, memorisation, ms_ssim
from genmodels.evaluation.bootstrap import REPLICATES
from genmodels.evaluation.frechet import fid
from genmodels.evaluation.kernel import kid
from genmodels.evaluation.manifold import manifold_scores
from genmodels.evaluation.sliced_wasserstein import sliced_wasserstein

FACTORS = {"class": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
CODE = 10


def main(images: int, features: int, side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, images, features, generator=generator)
    pixels = torch.randint(0, 256, (10 * images, 1, side, side), dtype=torch.uint8, generator=generator)
    pictures, others = pixels[:images], pixels[images : 2 * images]
    train = dataset.Table({name: [level] for name, level in pyramid(pixels.numpy()).items()})
    coded = disentanglement.Coded(
        torch.randn(images, CODE, generator=generator),
        {name: torch.randint(size, (images,), generator=generator) for name, size in FACTORS.items()},
    )
    measures: dict[str, Callable[[], object]] = {
        "sliced Wasserstein": lambda: sliced_wasserstein(pictures, others, generator=generator),
        "MS-SSIM": lambda: ms_ssim.diversity(pictures, generator=generator),
        "FID": lambda: fid(real, fake, generator=generator),
        "KID": lambda: kid(real, fake, generator=generator),
        "precision, recall, density, coverage": lambda: manifold_scores(real, fake, generator=generator),
        "nearest training images": lambda: memorisation.nearest_training_images(
            pictures[: memorisation.MOST_IMAGES], train
        ),
        "MIG, SAP, FactorVAE, DCI": lambda: disentanglement.disentanglement(
            coded, coded, unordered="class", generator=generator
        ),
    }
    title = f"{images} images of {side}x{side}, {features} features, {REPLICATES} replicates"
    table = Table("measure", "CPU seconds", title=title)
    for name, measure in track(measures.items(), "measures", console=Console(stderr=True)):
        started = time.process_time()
        measure()
        table.add_row(name, f"{time.process_time() - started:.2f}")
    Console().print(table)


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*given, *(180, 128, 8)[len(given) :])
