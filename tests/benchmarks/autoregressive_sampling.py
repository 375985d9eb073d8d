"""Sampling a PixelCNN or a PixelRNN with a memory beside sampling it without: the whole network for each pixel.

    PYTHONPATH=tests python tests/benchmarks/autoregressive_sampling.py [RESOLUTION IMAGES]

Both draw the same images from the same numbers; the table has the seconds, and whether the images are equal.
"""

import sys
import time
from typing import Any

import naive_sampling
import torch
from rich.console import Console
from rich.table import Table

from genmodels.models import build
from genmodels.models.base import DataInfo
from genmodels.models.pixelcnn import PixelCNN
from genmodels.models.pixelrnn import PixelRNN

CASES = {
    "PixelCNN, 2 levels, 1 channel": (PixelCNN, 1, {"levels": 2}),
    "PixelCNN, 256 levels, 3 channels": (PixelCNN, 3, {"levels": 256, "features": 33, "head_features": 66}),
    "PixelCNN, logistic mixture, 3 channels": (PixelCNN, 3, {"levels": 256, "likelihood": "logistic_mixture"}),
    "Row LSTM, 2 levels, 1 channel": (PixelRNN, 1, {"levels": 2, "recurrence": "row_lstm"}),
    "Diagonal BiLSTM, 2 levels, 1 channel": (PixelRNN, 1, {"levels": 2, "recurrence": "diagonal_bilstm"}),
}


@torch.no_grad()
def main(resolution: int, images: int) -> None:
    table = Table(
        "model",
        "with memory",
        "without",
        "times",
        "equal",
        title=f"{images} of {resolution}x{resolution}, seconds",
    )
    for name, (kind, channels, changes) in CASES.items():
        config = kind.Config.presets["demo"] | {"resolution": resolution} | changes
        model: Any = build(kind.__name__.lower(), config, DataInfo(channels), seed=0).eval()
        likelihood = model.distribution
        uniform = torch.rand(images, likelihood.draws, resolution, resolution)
        started = time.perf_counter()
        ours = model.network.sample(uniform)
        between = time.perf_counter()
        naive = naive_sampling.sample(model.network, likelihood, ours, uniform)
        fast, slow = between - started, time.perf_counter() - between
        table.add_row(name, f"{fast:.2f}", f"{slow:.1f}", f"{slow / fast:.0f}", str(torch.equal(ours, naive)))
    Console().print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] or (16, 4)))
