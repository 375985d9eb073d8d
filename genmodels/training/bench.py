"""How fast the real engine makes the real updates of a model, on random images in memory, with no server."""

import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from genmodels.data.dataset import Dataset
from genmodels.data.loader import Loader
from genmodels.errors import DivergedError
from genmodels.losses import zero_centred_gradient_penalty
from genmodels.models.adversarial import AdversarialConfig
from genmodels.models.base import GenerativeModel, Input, Stage
from genmodels.spec import Record, TrainingSpec
from genmodels.training.engine import Engine, NonFiniteLoss, Position

ROWS = 64
BLOCKS = 5


class BenchReport(Record):
    """What `genmodels bench` prints."""

    model: str
    resolution: int
    batch_images: int
    threads: int
    device: str
    images_per_second: float = Field(description="median over the blocks")
    blocks: list[float] = Field(description="images/s of each timed block")
    parameters: dict[str, int] = Field(description="of each network")
    flops_per_image: float = Field(description="of all updates of a step, counted")
    least_flops_per_image: float | None = Field(description="what the algorithm cannot do without")
    gflops_per_second: float
    peak_memory_mib: float
    losses: dict[str, float] = Field(description="mean of each over all steps")


def bench(
    name: str,
    model: GenerativeModel,
    *,
    batch_images: int | None = None,
    steps: int = 5,
    threads: int | None = None,
    training: TrainingSpec | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> BenchReport:
    """Times the last stage of a model, grown to its end, in blocks after a warm-up of one block.

    Args:
        name: for the report.
        model: on the device to be measured.
        batch_images: of a step; the stage's own if not given.
        steps: of a block; or as many more as give updates and penalties that are not due in every step their share.
        threads: of torch; unchanged if not given.
        training: engine settings.
        say: is told what is going on.

    Raises:
        DivergedError: if a loss was not finite, for then the steps were not the model's.
    """
    if threads:
        torch.set_num_threads(threads)
    stage = model.stages[-1]
    engine = endless_engine(model, replace(stage, batch_images=batch_images or stage.batch_images), training)
    shown = engine.stage.batch_images
    interval = _interval(engine)
    steps = -(-steps // interval) * interval
    blocks = []
    try:
        say("counting FLOPs")
        flops, passes = _flops(engine, interval)
        for block in range(BLOCKS + 1):
            say(f"block {block} of {BLOCKS}" if block else "warming up")
            seconds = _seconds(engine, steps)
            if block:
                blocks.append(steps * shown / seconds)
        losses = engine.losses()
    except NonFiniteLoss as error:
        raise DivergedError(f"{error}; the rate of such steps means nothing, so take other settings.") from error
    rate = statistics.median(blocks)
    peak_memory = _peak_memory(engine.device)  # of training, not of what follows
    return BenchReport(
        model=name,
        resolution=stage.resolution,
        batch_images=shown,
        threads=torch.get_num_threads(),
        device=str(engine.device),
        images_per_second=rate,
        blocks=blocks,
        parameters={n: sum(p.numel() for p in net.parameters()) for n, net in model.networks().items()},
        flops_per_image=flops / shown,
        least_flops_per_image=model.least_flops(passes),
        gflops_per_second=flops / shown * rate / 1e9,
        peak_memory_mib=peak_memory / 2**20,
        losses=losses,
    )


def endless_engine(model: GenerativeModel, stage: Stage, training: TrainingSpec | None = None) -> Engine:
    """An engine that stays for ever in a stage which the model believes to be almost over; on random data."""
    grown = Position(images_in_stage=stage.images - 1, step=0)
    endless = replace(stage, images=2**62)
    model.stages = [endless]
    data = random_data(stage.inputs, model.data.channels, model.data.classes)
    device = next(model.parameters()).device
    engine = Engine(
        model,
        lambda stage: Loader(data, stage.inputs, stage.batch_images, seed=0, device=device),
        training=training,
    )
    engine.position = grown
    return engine


def random_data(inputs: Mapping[str, Input], channels: int, classes: int) -> Dataset:
    """Tables of random bytes and labels with the columns that a stage reads."""
    generator = np.random.default_rng(0)
    tables: dict[str, dict[str, np.ndarray]] = {}
    for wanted in inputs.values():
        table = tables.setdefault("train" if wanted.domain is None else f"train_{wanted.domain}", {})
        if wanted.resolution is None:
            table[wanted.column] = generator.integers(0, max(classes, 1), ROWS)
        else:
            size = (ROWS, channels, wanted.resolution, wanted.resolution)
            table[f"{wanted.column}@{wanted.resolution}"] = generator.integers(0, 256, size, dtype=np.uint8)
    return Dataset.from_arrays(tables)


class _Passes:
    """What the passes of a network take, see `Passes`, each counted when it is asked for: on what the network was first
    called with in a step."""

    def __init__(self, network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]):
        x, *rest = args
        x = x.detach()  # in bf16 only under autocast, in which a layer is given what the one before it made
        self.input = x.float() if x.is_floating_point() else x
        self.network = partial(lambda x, **more: network(x, *rest, **more), **kwargs)
        self.weights = list(network.parameters())

    @property
    def forward(self) -> float:
        with torch.no_grad():
            return self._flops(lambda: self.network(self.input))

    @property
    def to_weights(self) -> float:
        return self._backward(self.input, self.weights)

    @property
    def to_input(self) -> float:
        x = self.input.clone().requires_grad_()
        return self._backward(x, [x])

    @property
    def to_both(self) -> float:
        x = self.input.clone().requires_grad_()
        return self._backward(x, [x, *self.weights])

    @property
    def penalty(self) -> float:
        def learn() -> None:
            penalty = zero_centred_gradient_penalty(lambda x: tree_leaves(self.network(x))[0], self.input)
            penalty.backward(inputs=self.weights)  # a counter does not follow `grad` to a leaf that a layer is given

        return self._flops(learn)

    def _backward(self, x: Tensor, towards: Sequence[Tensor]) -> float:
        total = sum((output.sum() for output in tree_leaves(self.network(x))), start=torch.zeros(()))
        return self._flops(lambda: torch.autograd.grad(total, towards, allow_unused=True))

    def _flops(self, act: Callable[[], Any]) -> float:
        with FlopCounterMode(display=False) as counter:
            act()
        return counter.get_total_flops() / len(self.input)


def _interval(engine: Engine) -> int:
    """In so many steps all updates and penalties have been due as often as in any others."""
    model = engine.model
    penalties = model.config.penalty_interval_steps if isinstance(model.config, AdversarialConfig) else 1
    return math.lcm(penalties, *(update.interval_steps for update in model.updates(engine.stage)))


def _flops(engine: Engine, interval: int) -> tuple[float, dict[str, _Passes]]:
    """FLOPs of one step, averaged over so many; and the passes of each network."""
    passes: dict[str, _Passes] = {}
    with ExitStack() as stack:
        for name, network in engine.model.counted().items():

            def note(network: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                if name not in passes:
                    passes[name] = _Passes(network, args, kwargs)

            stack.callback(network.register_forward_pre_hook(note, with_kwargs=True).remove)
        with FlopCounterMode(display=False) as counter:
            for _ in range(interval):
                engine.step()
    return counter.get_total_flops() / interval, passes


def _seconds(engine: Engine, steps: int) -> float:
    _wait(engine.device)
    started = time.perf_counter()
    for _ in range(steps):
        engine.step()
    _wait(engine.device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
