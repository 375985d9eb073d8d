"""Exponential moving average of weights, counted in images so that batch and worker count do not change it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from genmodels.models.base import Ema, GenerativeModel


class WeightAverage:
    """The averaged copy of the parameters (and a plain copy of the buffers) of some submodules.

    Args:
        model: whose weights are averaged; the copy starts equal to them.
        ema: which submodules, and how fast.
    """

    def __init__(self, model: GenerativeModel, ema: Ema):
        self._ema = ema
        modules = [(name, model.get_submodule(name)) for name in ema.modules]
        self._live = {f"{m}.{n}": p for m, module in modules for n, p in module.named_parameters()}
        self._live_buffers = {f"{m}.{n}": b for m, module in modules for n, b in module.named_buffers()}
        self.average = {name: live.detach().clone() for name, live in (self._live | self._live_buffers).items()}

    @torch.no_grad()
    def update(self, batch_images: int, images: int) -> None:
        """Moves towards the live weights by one step that showed `batch_images`, after `images` in all."""
        half_life = min(self._ema.half_life_images, max(self._ema.ramp_up * images, 1e-8))
        decay = 0.5 ** (batch_images / half_life)
        averages = [self.average[name] for name in self._live]
        torch._foreach_lerp_(averages, list(self._live.values()), 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for name, live in self._live_buffers.items():
            self.average[name].copy_(live)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the averaged weights inside, its own again afterwards; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes over a checkpointed average."""
        for name, tensor in self.average.items():
            tensor.copy_(state[name])

    def _swap(self) -> None:
        for name, live in (self._live | self._live_buffers).items():
            live.data, self.average[name].data = self.average[name].data, live.data
