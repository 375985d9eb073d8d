"""How fast the real engine makes the real updates of a model, on random images in memory, with no server."""

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from genmodels.data.dataset import Dataset
from genmodels.data.loader import Loader
from genmodels.models.base import GenerativeModel, Input, Stage
from genmodels.spec import Record, TrainingSpec
from genmodels.training.engine import Engine, Position

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
    """Times the last stage of a model, grown to its end, in blocks of `steps` steps after a warm-up of one block.

    Args:
        name: for the report.
        model: on the device to be measured.
        batch_images: of a step; the stage's own if not given.
        threads: of torch; unchanged if not given.
        training: engine settings.
        say: is told what is going on.
    """
    if threads:
        torch.set_num_threads(threads)
    stage = model.stages[-1]
    engine = endless_engine(model, replace(stage, batch_images=batch_images or stage.batch_images), training)
    say("counting FLOPs")
    flops, forward = _flops(engine)
    shown = engine.stage.batch_images
    blocks = []
    for block in range(BLOCKS + 1):
        say(f"block {block} of {BLOCKS}" if block else "warming up")
        seconds = _seconds(engine, steps)
        if block:
            blocks.append(steps * shown / seconds)
    rate = statistics.median(blocks)
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
        least_flops_per_image=model.least_flops(forward),
        gflops_per_second=flops / shown * rate / 1e9,
        peak_memory_mib=_peak_memory(engine.device) / 2**20,
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


def _flops(engine: Engine) -> tuple[float, dict[str, float]]:
    """FLOPs of one step, averaged over the longest interval of its updates; and of each network's forward, per row."""
    interval = max(update.interval_steps for update in engine.model.updates(engine.stage))
    calls: dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {}
    with ExitStack() as stack:
        for name, network in engine.model.networks().items():

            def note(network: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                calls.setdefault(name, (network, args, kwargs))

            stack.callback(network.register_forward_pre_hook(note, with_kwargs=True).remove)
        with FlopCounterMode(display=False) as counter:
            for _ in range(interval):
                engine.step()
    forward = {}
    for name, (network, args, kwargs) in calls.items():
        with FlopCounterMode(display=False) as one, torch.no_grad():
            network(*args, **kwargs)
        forward[name] = one.get_total_flops() / len(args[0])
    return counter.get_total_flops() / interval, forward


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
