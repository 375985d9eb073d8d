"""The loop around the engine: reports, samples, checkpoints, guards, and what is done when a guard raises an alarm.

Only the first worker reports, samples and saves; the others meet it again in the next gradient average. What it alone
finds to be not finite it leaves alone, until all find it in the same step.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

import torch

from genmodels.errors import DivergedError, GenmodelsError
from genmodels.spec import Alarm
from genmodels.training.checkpoints import Checkpoints
from genmodels.training.engine import Engine, NonFiniteLoss
from genmodels.training.looks import Guards

GRIDS_PER_RUN = 20
SCORES_PER_RUN = 8  # each of a checkpoint, so that a short run has weights to keep when a guard stops it
log = logging.getLogger(__name__)


class Observer(Protocol):
    """Who wants to know how training goes."""

    def progress(self, engine: Engine, losses: Mapping[str, float], images_per_second: float) -> None:
        """Called every `log_seconds` with the means of all loss terms since the last call."""
        ...

    def samples(self, engine: Engine) -> None:
        """Called before the first step and then whenever another share of the images has been shown."""
        ...

    def score(self, engine: Engine) -> float | None:
        """Called for the checkpoint after each eighth of the run and for the first of each stage but the run's first;
        of a stage's the one with the lowest score is kept as the best."""
        ...

    def looked(self, engine: Engine, values: Mapping[str, float], alarms: Sequence[Alarm]) -> None:
        """Called after every look with what the guards measured, and with all alarms of the training so far; and when
        a loss was not finite."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What the loop knows of a finished training. `first_step_time` is that of this process, None if nothing was left
    to do; `values` and `beyond` are what the guards measured of the weights that it ends with, and which of them
    object."""

    seconds: float
    restarts: int
    first_step_time: datetime | None
    alarms: Sequence[Alarm]
    values: Mapping[str, float]
    beyond: Sequence[str]


def train(engine: Engine, checkpoints: Checkpoints | None = None, observer: Observer | None = None) -> Outcome:
    """Trains to the end, or until a guard stops it, from the newest checkpoint if there is one.

    Raises:
        DivergedError: if alarms asked for more than `max_rollbacks` returns to a checkpoint, or for a stop before the
            last stage.
    """
    loop = _Loop(engine, checkpoints, observer if engine.workers.rank == 0 else None)
    loop.restore()
    if loop.observer and engine.position.images == 0:
        loop.observer.samples(engine)
    while not engine.finished and not loop.stopped:
        try:
            loop.step()
        except NonFiniteLoss as error:
            loop.heed([loop.guards.not_finite(error)], cause=error)
    return loop.finish()


class _Loop:
    def __init__(self, engine: Engine, checkpoints: Checkpoints | None, observer: Observer | None):
        self.engine, self.checkpoints, self.observer = engine, checkpoints, observer
        self.sample_every = engine.training.sample_images or max(engine.total_images // GRIDS_PER_RUN, 1)
        self.seconds_before, self.started = 0.0, time.monotonic()
        self.saved = self.logged = time.monotonic()
        self.score_every, self.score_is_due = max(engine.total_images // SCORES_PER_RUN, 1), False
        self.images_logged = self.restarts = 0
        self.first_step_time: datetime | None = None
        self.guards, self.alarms, self.stopped = Guards(engine), list[Alarm](), False

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def restore(self) -> None:
        state = self.agreed(self.checkpoints.latest) if self.checkpoints else None
        if state is not None:
            self._load(state)
            self.alarms = [Alarm.model_validate(alarm) for alarm in state["alarms"]]
            self.seconds_before, self.started = state["seconds"], time.monotonic()
            self.restarts = state["restarts"] + 1
        if self.checkpoints:
            self.engine.workers.sum(torch.zeros(1, device=self.engine.device))  # all have read what is written anew
            self.save()  # after a restart the same once more, so that the next one counts this one
        self.images_logged = self.engine.position.images

    def agreed(self, find: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
        """The checkpoint that the first worker finds, all that are on their way counted. The others do not look for
        themselves: what is newest, or whole, may have changed a moment later, and workers that go on from different
        places would average what does not belong together."""
        assert self.checkpoints
        workers, state = self.engine.workers, None
        if workers.rank == 0:
            self.checkpoints.wait()
            state = find()
        found = torch.tensor([state["engine"]["position"]["images"] if state else -1], device=self.engine.device)
        workers.broadcast([found])
        images = int(found)
        return self.checkpoints.at(images) if workers.rank != 0 and images >= 0 else state

    def step(self) -> None:
        engine, before = self.engine, self.engine.position
        engine.step()
        self.first_step_time = self.first_step_time or datetime.now(UTC)
        now = time.monotonic()
        if self.observer and now - self.logged >= engine.training.log_seconds:
            self.report(now)
        if self.observer and before.images // self.sample_every < engine.position.images // self.sample_every:
            self.observer.samples(engine)
        if self.guards.is_due(before):
            self.heed(self.guards.look())
        another_eighth = before.images // self.score_every < engine.position.images // self.score_every
        if another_eighth or before.stage != engine.position.stage:
            self.saved, self.score_is_due = -math.inf, True
        if now - self.saved >= engine.training.checkpoint_seconds:
            self.save()

    def report(self, now: float) -> None:
        assert self.observer
        if not self.engine.finite:
            return
        shown = self.engine.position.images - self.images_logged
        self.observer.progress(self.engine, self.engine.losses(), shown / max(now - self.logged, 1e-9))
        self.logged, self.images_logged = now, self.engine.position.images

    def save(self) -> None:
        engine = self.engine
        if self.checkpoints and engine.workers.rank == 0 and not self.checkpoints.busy and engine.finite:
            scored = self.observer if self.score_is_due and engine.model.whole else None
            score = scored.score(engine) if scored else None
            state = {
                "engine": engine.state_dict(),
                "guards": self.guards.state_dict(),
                "alarms": [alarm.model_dump() for alarm in self.alarms],
                "seconds": self.seconds,
                "restarts": self.restarts,
            }
            named = {"stage": engine.stage.name, "good": self.guards.calm}
            self.checkpoints.save(state, engine.position.images, score, **named)
            self.saved, self.score_is_due = time.monotonic(), False

    def heed(self, alarms: Sequence[Alarm], cause: Exception | None = None) -> None:
        """Tells of the alarms, and does what the most drastic of them asks for."""
        self.alarms += alarms
        for alarm in alarms:
            log.warning("%s; %s", alarm.message, alarm.action.replace("_", " "))
        if self.observer:
            self.observer.looked(self.engine, self.guards.values, self.alarms)
        for action, act in (("stop", self.stop), ("roll_back", self.roll_back)):
            if asking := next((alarm for alarm in alarms if alarm.action == action), None):
                act(asking, cause)
                break

    def stop(self, alarm: Alarm, cause: Exception | None) -> None:
        """Ends training with the best weights of the stage, if that is the last one."""
        if self.engine.stage is not self.engine.stages[-1]:
            raise DivergedError(
                f"{alarm.message} in stage {self.engine.stage.name}, and no stage before the last makes a whole model; "
                "change the settings, or let the guard warn or roll back."
            ) from cause
        stage = self.engine.stage.name
        if state := self.agreed(partial(self.checkpoints.best, stage)) if self.checkpoints else None:
            self._load(state)
        elif cause or not self.engine.model.whole:
            raise DivergedError(f"{alarm.message}, and there is no checkpoint to keep instead.") from cause
        self.stopped = True

    def roll_back(self, alarm: Alarm, cause: Exception | None) -> None:
        """Goes back to the last weights that no guard which acts objected to, and on with other noise."""
        rollbacks = self.engine.position.rollbacks + 1
        limit = self.engine.training.max_rollbacks
        if self.checkpoints is None or rollbacks > limit:
            raise DivergedError(
                f"{alarm.message}, and falling back to the last good checkpoint {rollbacks - 1} times (of at most "
                f"{limit}) did not help; lower the learning rate or look at the data."
            ) from cause
        state = self.agreed(self.checkpoints.good)
        if state is None:
            raise GenmodelsError(f"{alarm.message}, and there is no checkpoint to fall back to.") from cause
        self._load(state)
        if self.engine.workers.rank == 0:
            self.checkpoints.drop_after(self.engine.position.images)
        self.engine.disturb(rollbacks)

    def _load(self, state: Mapping[str, Any]) -> None:
        self.engine.load_state_dict(state["engine"])
        self.guards.load_state_dict(state["guards"])

    def finish(self) -> Outcome:
        if self.observer:
            self.report(time.monotonic())
        self.guards.final_look()
        if self.observer:
            self.observer.looked(self.engine, self.guards.values, self.alarms)
        if self.checkpoints and self.engine.workers.rank == 0:
            self.checkpoints.wait()
        return Outcome(
            seconds=self.seconds,
            restarts=self.restarts,
            first_step_time=self.first_step_time,
            alarms=self.alarms,
            values=self.guards.values,
            beyond=self.guards.beyond,
        )
