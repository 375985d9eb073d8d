"""Real models stepped by the engine on random images, alone or in one of several spawned workers."""

from typing import Any, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genmodels.data.loader import Loader
from genmodels.models import build
from genmodels.models.base import DataInfo
from genmodels.nn.spectral_norm import SpectralNorm
from genmodels.spec import TrainingSpec
from genmodels.training.bench import random_data
from genmodels.training.engine import Engine
from genmodels.training.workers import Workers

Gradients = dict[str, list[Tensor]]
Cases = dict[str, tuple[str, dict[str, Any]]]
"""Model and config, by name."""
Training = dict[str, dict[str, Any]]
"""Settings of the engine for some of the cases."""


class Replica(TypedDict):
    """What one worker saw of a model's first steps."""

    gradients: list[Gradients]
    singular_vectors: dict[str, Tensor]  # that power iterations have come to, by buffer
    augmentation: dict[str, Tensor]  # the state of the engine's


def gradients(model: str, config: dict[str, Any], steps: int, **training: Any) -> list[Gradients]:
    """The gradient that each update of each of the first steps stepped along, by update."""
    return replica(model, config, steps, **training)["gradients"]


def replica(model: str, config: dict[str, Any], steps: int, **training: Any) -> Replica:
    """Steps one worker's copy of the model, which is drawn from a seed of its own."""
    workers, data = Workers(), DataInfo(channels=3, classes=4)
    network = build(model, config, data, seed=workers.rank)
    place = {"seed": 0, "rank": workers.rank, "size": workers.size}
    engine = Engine(
        network,
        lambda stage: Loader(
            random_data(stage.inputs, data.channels, data.classes), stage.inputs, stage.batch_images, **place
        ),
        training=TrainingSpec(**training),
        workers=workers,
    )
    seen = []
    for _ in range(steps):
        engine.step()
        seen.append(
            {
                trained.update.name: [
                    torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained.update.parameters
                ]
                for trained in engine._trained
            }
        )
    return {
        "gradients": seen,
        "singular_vectors": singular_vectors(network),
        "augmentation": dict(engine.augmentation.state_dict()),
    }


def singular_vectors(network: nn.Module) -> dict[str, Tensor]:
    """The buffers of all spectral normalisations."""
    norms = [(name, module) for name, module in network.named_modules() if isinstance(module, SpectralNorm)]
    return {f"{name}.{vector}": buffer for name, norm in norms for vector, buffer in norm.named_buffers()}


def run(rank: int, size: int, folder: str, cases: Cases, steps: int, training: Training) -> None:
    """The body of one spawned worker; leaves what it saw in `folder`, by case."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size, init_method=f"file://{folder}/rendezvous")
    torch.save({case: replica(*cases[case], steps, **training.get(case, {})) for case in cases}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
