"""What the engine costs beside a plain PyTorch loop of the same updates, in blocks that take turns.

    python tests/benchmarks/engine_overhead.py

Prints the median ratio of seconds (engine / plain); 1.02 would be two per cent.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genmodels.models import build
from genmodels.models.base import DataInfo, GenerativeModel
from genmodels.training.bench import endless_engine, random_data
from genmodels.training.workers import Workers

BLOCKS, STEPS = 30, 10
CONFIGS: dict[str, dict[str, Any]] = {
    "progressive_gan": {"resolution": 16, "latent": 64, "fmap_base": 1024, "fmap_max": 64, "batch_images": 16},
    "cyclegan": {"resolution": 32, "generator_channels": 16, "residual_blocks": 2, "discriminator_layers": 2},
}


@dataclass
class PlainContext:
    """Draws from torch's own generator."""

    images_in_stage: int = 0
    step: int = 0
    micros: int = 1
    workers: Workers = field(default_factory=Workers)
    shared: dict[str, Any] = field(default_factory=dict)

    def randn(self, rows: int, *shape: int) -> Tensor:
        return torch.randn(rows, *shape)

    def rand(self, rows: int, *shape: int) -> Tensor:
        return torch.rand(rows, *shape)

    def randint(self, high: int, rows: int, *shape: int) -> Tensor:
        return torch.randint(high, (rows, *shape))

    def same_rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape)

    def augmented(self, images: Tensor) -> Tensor:
        return images

    def decided(self, logits_real: Tensor) -> None:
        pass


def model_of(name: str) -> GenerativeModel:
    return build(name, CONFIGS[name], DataInfo(channels=3), seed=0)


def plain_loop(name: str) -> Callable[[], None]:
    """One step, as one would write it in a notebook."""
    model = model_of(name)
    stage = model.stages[-1]
    model.at(stage, stage.images - 1)
    updates = model.updates(stage)
    optimizers = [
        torch.optim.Adam(u.parameters, u.optimizer.learning_rate, u.optimizer.betas, u.optimizer.eps, fused=True)
        for u in updates
    ]
    averaged = [
        p.detach().clone()
        for m in (model.ema.modules if model.ema else ())
        for p in model.get_submodule(m).parameters()
    ]
    live = [p for m in (model.ema.modules if model.ema else ()) for p in model.get_submodule(m).parameters()]
    data = random_data(stage.inputs, 3, 0)
    arrays = {
        n: torch.from_numpy(data.table("train", i.domain).columns[f"image@{i.resolution}"][0])
        for n, i in stage.inputs.items()
    }

    def step() -> None:
        context = PlainContext()
        rows = torch.randint(64, (stage.batch_images,))
        batch = model.preprocess({n: array[rows] for n, array in arrays.items()}, context)
        for update, optimizer in zip(updates, optimizers, strict=True):
            optimizer.zero_grad()
            update.loss(batch, context).total.backward(inputs=update.parameters)
            optimizer.step()
        if averaged:
            with torch.no_grad():
                torch._foreach_lerp_(averaged, live, 0.001)

    return step


def engine_loop(name: str) -> Callable[[], None]:
    model = model_of(name)
    return endless_engine(model, model.stages[-1]).step


def seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    return time.perf_counter() - started


def main() -> None:
    torch.manual_seed(0)
    for name in CONFIGS:
        engine, plain = engine_loop(name), plain_loop(name)
        seconds(engine), seconds(plain)
        pairs = [(seconds(engine), seconds(plain)) for _ in range(BLOCKS)]
        ratio = statistics.median(e / p for e, p in pairs)
        step_ms = statistics.median(p for _, p in pairs) / STEPS * 1e3
        print(
            f"{name}: engine / plain = {ratio:.3f} at {step_ms:.1f} ms a step ({BLOCKS} interleaved blocks of {STEPS})"
        )


if __name__ == "__main__":
    main()
