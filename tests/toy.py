"""A small adversarial model with everything that is awkward for an engine: double backward, two updates with
different intervals, shared fakes, a moving average, two stages, a learning-rate schedule and shared random draws."""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from genmodels.data.dataset import Dataset
from genmodels.data.loader import Loader
from genmodels.models.base import (
    Adam,
    Batch,
    Context,
    DataInfo,
    Density,
    Ema,
    GenerativeModel,
    LossTerms,
    ModelConfig,
    Stage,
    Update,
)
from genmodels.spec import TrainingSpec
from genmodels.training.engine import Engine
from genmodels.training.workers import Workers


class ToyConfig(ModelConfig):
    resolution: int = 4
    batch_images: int = 8
    images: int = 160

    def stages(self, data: DataInfo) -> list[Stage]:
        return [Stage(name, self.images, self.batch_images, self.inputs(data), 4) for name in ("first", "second")]


class Toy(GenerativeModel):
    Config = ToyConfig
    density = Density.IMPLICIT
    title = "toy"
    ema = Ema(("generator",), half_life_images=64)

    def __init__(self, config: ToyConfig | None = None, *, poisoned: set[tuple[int, int]] | None = None):
        super().__init__(config or ToyConfig(), DataInfo(channels=1))
        self.poisoned = poisoned or set()
        generator = torch.Generator().manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 16))
        self.critic = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 1))
        self.unused = nn.Linear(2, 2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def updates(self, stage: Stage) -> list[Update]:
        halving = lambda images: 0.5 if images >= stage.images / 2 else 1.0  # noqa: E731
        critic = [*self.critic.parameters(), *self.unused.parameters()]
        return [
            Update("critic", critic, self.critic_loss, Adam(1e-2, betas=(0.0, 0.99)), schedule=halving),
            Update("generator", list(self.generator.parameters()), self.generator_loss, Adam(1e-2), interval_steps=2),
        ]

    def critic_loss(self, batch: Batch, context: Context) -> LossTerms:
        real = batch["image"].flatten(1)
        fake = self.generator(context.randn(len(real), 3))
        context.shared["fake"] = fake
        mixed = torch.lerp(real, fake.detach(), context.rand(len(real), 1)).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(mixed).sum(), mixed, create_graph=True)
        terms = {
            "wasserstein": (self.critic(fake.detach()) - self.critic(real)).mean(),
            "penalty": (slope.norm(dim=1) - 1).square().mean(),
        }
        if (context.step, len(context.shared)) in self.poisoned:
            terms["penalty"] = terms["penalty"] * torch.nan
        return LossTerms(terms["wasserstein"] + 10 * terms["penalty"], terms)

    def generator_loss(self, batch: Batch, context: Context) -> LossTerms:
        adversarial = -self.critic(context.shared["fake"]).mean()
        return LossTerms(adversarial, {"adversarial": adversarial})


def images(rows: int = 50) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 1, 4, 4), dtype=np.uint8)
    return Dataset.from_arrays({"train": {"image@4": pixels}})


def batches(workers: Workers, seed: int = 0):
    """What the engine asks for its batches."""
    data = images()
    return lambda stage: Loader(data, stage.inputs, stage.batch_images, seed=seed, rank=workers.rank, size=workers.size)


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.double().flatten() for value in state.values()])


def engine(model: Toy | None = None, **training: object) -> Engine:
    workers = Workers()
    return Engine(model or Toy(), batches(workers), training=TrainingSpec(**training), workers=workers)  # type: ignore[arg-type]


def run_worker(rank: int, size: int, folder: str, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size, init_method=f"file://{folder}/rendezvous")
    run = engine()
    gradients = []
    for _ in range(steps):
        run.step()
        gradients.append({t.update.name: [p.grad.clone() for p in t.update.parameters] for t in run._trained})
    torch.save({"gradients": gradients, "model": run.model.state_dict(), "losses": run.losses()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
