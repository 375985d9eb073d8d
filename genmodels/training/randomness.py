"""Random draws that depend on the seed, the step, the update, the order of the calls and the global row alone.

Each draw seeds a generator from those numbers, makes the tensor of the whole global batch and keeps the rows of
this worker and micro-batch. Any number of workers or micro-batches therefore trains on the same noise, and a
restart needs no generator's state.
"""

import hashlib
import struct
from typing import Any

import torch
from torch import Tensor

from genmodels.nn.augmentation import Augmentation
from genmodels.training.workers import Workers


def seed_of(*numbers: int) -> int:
    """A 63-bit seed from whole numbers; equal on every machine."""
    return int.from_bytes(hashlib.blake2b(struct.pack(f">{len(numbers)}q", *numbers), digest_size=8).digest()) >> 1


class Draws:
    """The `Context` of the losses for one micro-batch of one step.

    Args:
        seed: of the run.
        step: since the start of training.
        images_in_stage: shown before this step.
        workers: the group.
        micro, micros: this micro-batch and their number.
        device: of the draws.
        augmentation: of what a discriminator sees.
    """

    def __init__(
        self,
        *,
        seed: int,
        step: int,
        images_in_stage: int,
        workers: Workers,
        device: torch.device,
        micro: int = 0,
        micros: int = 1,
        augmentation: Augmentation,
    ):
        self.step, self.images_in_stage, self.workers, self.micros = step, images_in_stage, workers, micros
        self.shared: dict[str, Any] = {}
        self._seed, self._part, self._parts = seed, workers.rank * micros + micro, workers.size * micros
        self._update = self._call = 0
        self._generator = torch.Generator(device)
        self._augmentation = augmentation
        self.signs: list[Tensor] = []  # E sign D(real) of each decision of this update, where it steers something

    def begin(self, update: int) -> "Draws":
        """Starts the calls of an update; -1 is the preprocessing of the batch."""
        self._update, self._call = update, 0
        self.signs.clear()
        return self

    def randn(self, rows: int, *shape: int) -> Tensor:
        """Standard normal, (rows, *shape)."""
        return self._own(torch.randn(rows * self._parts, *shape, generator=self._next(), device=self._generator.device))

    def rand(self, rows: int, *shape: int) -> Tensor:
        """Uniform on [0, 1), (rows, *shape)."""
        return self._own(torch.rand(rows * self._parts, *shape, generator=self._next(), device=self._generator.device))

    def randint(self, high: int, rows: int, *shape: int) -> Tensor:
        """Uniform integers below `high`, int64, (rows, *shape)."""
        size = (rows * self._parts, *shape)
        return self._own(torch.randint(high, size, generator=self._next(), device=self._generator.device))

    def same_rand(self, *shape: int) -> Tensor:
        """Uniform on [0, 1), the same on every worker and micro-batch."""
        return torch.rand(*shape, generator=self._next(), device=self._generator.device)

    def augmented(self, images: Tensor) -> Tensor:
        """Images, (B, C, H, W), as a discriminator gets to see them."""
        return self._augmentation(images, self.rand)

    def decided(self, logits_real: Tensor) -> None:
        """Told what a discriminator makes of real images: positive where it takes one to be real."""
        if self._augmentation.target is not None:
            self.signs.append(logits_real.detach().sign().float().mean())

    def _next(self) -> torch.Generator:
        self._call += 1
        return self._generator.manual_seed(seed_of(self._seed, self.step, self._update, self._call))

    def _own(self, drawn: Tensor) -> Tensor:
        return drawn.chunk(self._parts)[self._part]
