"""The loop around the engine: reports, samples, checkpoints, and what happens when a loss is not finite.

Only the first worker reports, samples and saves; the others meet it again in the next gradient average.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from genmodels.errors import DivergedError, GenmodelsError
from genmodels.training.checkpoints import Checkpoints
from genmodels.training.engine import Engine, NonFiniteLoss

GRIDS_PER_RUN = 20


class Observer(Protocol):
    """Who wants to know how training goes."""

    def progress(self, engine: Engine, losses: Mapping[str, float], images_per_second: float) -> None:
        """Called every `log_seconds` with the means of all loss terms since the last call."""
        ...

    def samples(self, engine: Engine) -> None:
        """Called before the first step and then whenever another share of the images has been shown."""
        ...

    def score(self, engine: Engine) -> float | None:
        """Called at every checkpoint; of all checkpoints the one with the lowest score is kept as the best."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What the loop knows of a finished training. `first_step_time` is in seconds since the epoch."""

    seconds: float
    restarts: int
    first_step_time: float


def train(engine: Engine, checkpoints: Checkpoints | None = None, observer: Observer | None = None) -> Outcome:
    """Trains to the end, from the newest checkpoint if there is one.

    Raises:
        DivergedError: if a loss was not finite more than `max_rollbacks` times.
    """
    loop = _Loop(engine, checkpoints, observer if engine.workers.rank == 0 else None)
    loop.restore()
    if loop.observer and engine.position.images == 0:
        loop.observer.samples(engine)
    while not engine.finished:
        try:
            loop.step()
        except NonFiniteLoss as error:
            loop.roll_back(error)
    loop.finish()
    return Outcome(loop.seconds, loop.restarts, loop.first_step_time)


class _Loop:
    def __init__(self, engine: Engine, checkpoints: Checkpoints | None, observer: Observer | None):
        self.engine, self.checkpoints, self.observer = engine, checkpoints, observer
        self.sample_every = engine.training.sample_images or max(engine.total_images // GRIDS_PER_RUN, 1)
        self.seconds_before, self.started = 0.0, time.monotonic()
        self.saved = self.logged = time.monotonic()
        self.images_logged = self.restarts = 0
        self.first_step_time = 0.0

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def restore(self) -> None:
        state = self.newest_checkpoint()
        if state is not None:
            self.engine.load_state_dict(state["engine"])
            self.seconds_before, self.started = state["seconds"], time.monotonic()
            self.restarts = state["restarts"] + 1
        elif self.checkpoints:
            self.save()
        self.images_logged = self.engine.position.images

    def newest_checkpoint(self) -> dict[str, Any] | None:
        """The one that the first worker finds. The others do not look for themselves: what is newest, or whole, may
        have changed a moment later, and workers that go on from different places would average what does not belong
        together."""
        if self.checkpoints is None:
            return None
        workers = self.engine.workers
        state = self.checkpoints.latest() if workers.rank == 0 else None
        found = torch.tensor([state["engine"]["position"]["images"] if state else -1], device=self.engine.device)
        workers.broadcast([found])
        images = int(found)
        return self.checkpoints.at(images) if workers.rank != 0 and images >= 0 else state

    def step(self) -> None:
        engine, before = self.engine, self.engine.position
        engine.step()
        self.first_step_time = self.first_step_time or time.time()
        now = time.monotonic()
        if self.observer and now - self.logged >= engine.training.log_seconds:
            self.report(now)
        if self.observer and before.images // self.sample_every < engine.position.images // self.sample_every:
            self.observer.samples(engine)
        if now - self.saved >= engine.training.checkpoint_seconds or before.stage != engine.position.stage:
            self.save()

    def report(self, now: float) -> None:
        assert self.observer
        shown = self.engine.position.images - self.images_logged
        self.observer.progress(self.engine, self.engine.losses(), shown / max(now - self.logged, 1e-9))
        self.logged, self.images_logged = now, self.engine.position.images

    def save(self) -> None:
        if self.checkpoints and self.engine.workers.rank == 0:
            score = self.observer.score(self.engine) if self.observer else None
            state = {"engine": self.engine.state_dict(), "seconds": self.seconds, "restarts": self.restarts}
            if self.checkpoints.save(state, self.engine.position.images, score):
                self.saved = time.monotonic()

    def roll_back(self, error: NonFiniteLoss) -> None:
        rollbacks = self.engine.position.rollbacks + 1
        limit = self.engine.training.max_rollbacks
        if self.checkpoints is None or rollbacks > limit:
            raise DivergedError(
                f"{error}, and falling back to the last good checkpoint {rollbacks - 1} times (of at most {limit}) "
                "did not help; lower the learning rate or look at the data."
            ) from error
        if self.engine.workers.rank == 0:
            self.checkpoints.wait()
        state = self.newest_checkpoint()
        if state is None:
            raise GenmodelsError(f"{error}, and there is no checkpoint to fall back to.") from error
        self.engine.load_state_dict(state["engine"])
        self.engine.disturb(rollbacks)

    def finish(self) -> None:
        if self.observer:
            self.report(time.monotonic())
        if self.checkpoints and self.engine.workers.rank == 0:
            self.checkpoints.wait()
