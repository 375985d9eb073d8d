"""The engine: any model's stages and updates, one step at a time.

A step shows one global batch. Each due update differentiates its loss with respect to its own parameters alone,
averages the gradient over the workers, and steps its optimiser. Everything a step depends on is the state below
and the run's seed, so a restored engine continues bit for bit (on the CPU, with the same number of workers).

What bounds a step is the networks' arithmetic; the rest is kept to a few fused passes over the parameters and
waits for nothing: losses stay on the device until `losses()` asks for them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from genmodels.errors import SpecError
from genmodels.models.base import Batch, GenerativeModel, LossTerms, Stage, Update
from genmodels.nn.augmentation import Augmentation
from genmodels.nn.batch_norm import normalising_by_batch
from genmodels.spec import TrainingSpec
from genmodels.training.adam import Adam
from genmodels.training.average import WeightAverage
from genmodels.training.gradients import GradientAverager
from genmodels.training.memory import keep_freed_memory
from genmodels.training.randomness import Draws, seed_of
from genmodels.training.workers import Workers

MAX_TERMS = 32
PREPROCESSING = -1
REAL_SIGN = "real_sign"  # the term that augmentation adapts to: E sign D(real) over the global batch

LOOK_STEPS = 32
NORM = "gradient_norm"
NORM_UPDATES = 5  # lazy penalties are due every 4 or 16 steps, so that each of these is as likely to meet one

Totals = dict[str, tuple[float, int]]
"""Sum and number of the values of each loss term, as update/term, and of each gradient's norm, as NORM/update."""


def means(totals: Totals, since: Totals) -> dict[str, float]:
    """Mean of each loss term over the steps between two looks at the totals of a stage."""
    changes = {name: (total, count, *since.get(name, (0.0, 0))) for name, (total, count) in totals.items()}
    return {name: (total - t) / (count - c) for name, (total, count, t, c) in changes.items() if count > c}


class Batches(Protocol):
    """Where a stage's batches come from: the loader, or memory."""

    def batch(self, position: int) -> Batch: ...


@dataclass(frozen=True)
class Position:
    """How far training is."""

    stage: int = 0
    images_in_stage: int = 0
    images: int = 0
    step: int = 0
    rollbacks: int = 0


class NonFiniteLoss(ArithmeticError):
    """A loss, its gradient or what that made of the weights became NaN or infinite; on the CPU the update was not
    applied, but where a gradient alone was so that is not measured in every one."""

    def __init__(self, stage: str, update: str, terms: list[str], images: int):
        self.stage, self.update, self.terms, self.images = stage, update, terms, images
        named = " and ".join(repr(term) for term in terms)
        super().__init__(f"The {update} update's {named} is not finite in stage {stage} after {images:,} images")


def check_batch(stage: Stage, workers: int, micro_batches: int) -> None:
    """Raises SpecError if the batch of a stage does not divide over workers and micro-batches."""
    parts = workers * micro_batches
    if stage.batch_images % parts:
        raise SpecError(
            f"The batch of {stage.batch_images} images in stage {stage.name} does not divide over "
            f"{workers} workers x {micro_batches} micro-batches; take a multiple of {parts}."
        )


class _Trained:
    """An update with what the engine keeps for it during a stage."""

    def __init__(self, update: Update, workers: int):
        self.update = update
        self.optimizer = Adam(update.parameters, update.optimizer)
        self.gradients = GradientAverager(update.parameters, workers, scalars=1 + MAX_TERMS)
        self.sums: dict[str, Tensor] = {}  # of the terms over all steps of the stage, in fp64
        self.counts: dict[str, int] = {}

    @property
    def finite(self) -> bool:
        return not self.sums or bool(torch.stack(list(self.sums.values())).isfinite().all())

    @property
    def finite_weights(self) -> bool:
        return bool(get_total_norm(self.update.parameters).isfinite())


class Engine:
    """Trains a model.

    Args:
        model: on its device already; the same weights on every worker (the first worker's are broadcast).
        batches: makes the source of a stage's batches.
        training: precision, memory layout, accumulation, clipping, augmentation.
        seed: of all noise.
        workers: the data-parallel group.

    Raises:
        SpecError: if a stage's batch does not divide over workers and micro-batches, or the settings are not for this
            model.
    """

    def __init__(
        self,
        model: GenerativeModel,
        batches: Callable[[Stage], Batches],
        *,
        training: TrainingSpec | None = None,
        seed: int = 0,
        workers: Workers | None = None,
    ):
        self.training = training or TrainingSpec()
        model.config.check(self.training)
        self.workers = workers or Workers()
        self.seed = seed
        self.device = next(model.parameters()).device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.model = model.train()
        if self.training.channels_last:
            model.to(memory_format=torch.channels_last)
        self.workers.broadcast([*model.parameters(), *model.buffers()])
        self.stages = model.stages
        for stage in self.stages:
            check_batch(stage, self.workers.size, self.training.accumulation)
        self.average = WeightAverage(model, model.ema) if model.ema else None
        steering = {"target": self.training.augmentation_target, "ramp_images": self.training.augmentation_ramp_images}
        self.augmentation = Augmentation(self.training.augmentations, **steering).to(self.device)
        # To look waits for the device, which is free on the host alone: there every update is looked at before it is
        # applied, elsewhere all workers look after so many steps.
        self.look_steps = 0 if self.device.type == "cpu" else LOOK_STEPS
        self.update_counts: dict[str, int] = {}
        self.batches_of = batches
        self._begin_stage(Position())

    @property
    def stage(self) -> Stage:
        """The present stage; the last one when training is finished."""
        return self.stages[min(self.position.stage, len(self.stages) - 1)]

    @property
    def finished(self) -> bool:
        """Whether all stages are done."""
        return self.position.stage == len(self.stages)

    @property
    def total_images(self) -> int:
        """Images that all stages together show, whole batches counted."""
        return sum(-(-stage.images // stage.batch_images) * stage.batch_images for stage in self.stages)

    def step(self) -> None:
        """Shows one global batch and makes every due update; moves on to the next stage at the end of one.

        Raises:
            NonFiniteLoss: on every worker alike, and before a stage is left.
        """
        position, stage = self.position, self.stage
        self.model.at(stage, position.images_in_stage)
        whole = self.batches.batch(position.images)
        micros = self.training.accumulation
        parts = [self._preprocess(whole, micro, micros) for micro in range(micros)]
        for index, trained in enumerate(self._trained):
            if position.step % trained.update.interval_steps == 0:
                self._update(index, trained, parts)
        if self.average:
            self.average.update(stage.batch_images, position.images + stage.batch_images)
        if self.look_steps and (position.step + 1) % self.look_steps == 0:
            self._check_finite()
        self._advance(stage)

    def losses(self) -> dict[str, float]:
        """Mean of every loss term since the last call, over steps and workers, as update/term, and of the norm of each
        update's gradient before it is clipped (of all that are, else of every fifth), as gradient_norm/update; waits
        for the device.

        Raises:
            NonFiniteLoss: if one of them was not finite.
        """
        before, self._told = self._told, self.totals()
        return means(self._told, before)

    @property
    def finite(self) -> bool:
        """Whether all losses of this stage were, and all weights are; waits for the device."""
        return all(trained.finite and trained.finite_weights for trained in self._trained)

    def totals(self) -> Totals:
        """Sum and number of every loss term's values in this stage, in the mean over workers; waits for the device.

        Raises:
            NonFiniteLoss: if one of them was not finite.
        """
        self._check_finite()
        totals: Totals = {}
        for trained in self._trained:
            update = trained.update.name
            for term, total in trained.sums.items():
                name = f"{NORM}/{update}" if term == NORM else f"{update}/{term}"
                totals[name] = float(total), trained.counts[term]
        return totals

    @contextmanager
    def previewing(self) -> Iterator[GenerativeModel]:
        """The model as one looks at it in passing: in evaluation mode, with averaged weights where it keeps an average,
        and with batch norms that look at the batch alone; to measure what evaluation normalises by takes thousands of
        samples."""
        with self._averaged() as model, normalising_by_batch(model), torch.no_grad():
            yield model

    @contextmanager
    def evaluating(self) -> Iterator[GenerativeModel]:
        """The model in evaluation mode, prepared for it, with averaged weights where it keeps an average."""
        with self._averaged() as model:
            model.prepare_evaluation()
            yield model

    @contextmanager
    def _averaged(self) -> Iterator[GenerativeModel]:
        self.model.eval()
        try:
            with self.average.in_place() if self.average else nullcontext():
                yield self.model
        finally:
            self.model.train()

    def state_dict(self) -> dict[str, Any]:
        """All that a continuation needs; tensors are the live ones. Waits for the device.

        Raises:
            NonFiniteLoss: if a loss since the last look was not finite, or a weight; such a state is never worth
                keeping.
        """
        self._check_finite(weights=True)
        return {
            "position": asdict(self.position),
            "update_counts": dict(self.update_counts),
            "model": self.model.state_dict(),
            "average": self.average.average if self.average else {},
            "augmentation": self.augmentation.state_dict(),
            "optimizers": {t.update.name: t.optimizer.state_dict() for t in self._trained},
            "sums": {t.update.name: dict(t.sums) for t in self._trained},
            "counts": {t.update.name: dict(t.counts) for t in self._trained},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state of the same run."""
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load(state["average"])
        self.augmentation.load_state_dict(state["augmentation"])
        self.update_counts = dict(state["update_counts"])
        self._begin_stage(Position(**state["position"]))
        for trained in self._trained:
            name = trained.update.name
            trained.optimizer.load_state_dict(state["optimizers"][name])
            trained.sums = {term: total.to(self.device) for term, total in state["sums"][name].items()}
            trained.counts = dict(state["counts"][name])
        self._told = self.totals()

    def disturb(self, rollbacks: int) -> None:
        """Changes all noise from here on: the same step must not meet the same non-finite loss again."""
        self.position = replace(self.position, rollbacks=rollbacks)

    def _begin_stage(self, position: Position) -> None:
        self.position = position
        self.model.at(self.stage, position.images_in_stage)
        self.batches = self.batches_of(self.stage)
        self._trained = [_Trained(update, self.workers.size) for update in self.model.updates(self.stage)]
        self._told: Totals = {}

    def _advance(self, stage: Stage) -> None:
        shown = stage.batch_images
        position = replace(
            self.position,
            images_in_stage=self.position.images_in_stage + shown,
            images=self.position.images + shown,
            step=self.position.step + 1,
        )
        if position.images_in_stage < stage.images:
            self.position = position
            return
        self._check_finite(weights=True)
        if position.stage + 1 < len(self.stages):
            self._begin_stage(replace(position, stage=position.stage + 1, images_in_stage=0))
        else:
            self.position = replace(position, stage=position.stage + 1)

    def _preprocess(self, whole: Batch, micro: int, micros: int) -> tuple[Batch, Draws]:
        position = self.position
        draws = Draws(
            # The undisturbed seed is the run's own, whatever the number of rollbacks before.
            seed=seed_of(self.seed, position.rollbacks),
            step=position.step,
            images_in_stage=position.images_in_stage,
            workers=self.workers,
            device=self.device,
            micro=micro,
            micros=micros,
            augmentation=self.augmentation,
        )
        part = {name: value.chunk(micros)[micro] for name, value in whole.items()} if micros > 1 else whole
        with torch.no_grad():
            part = self.model.preprocess(part, draws.begin(PREPROCESSING))
        if self.training.channels_last:
            part = {
                name: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
                for name, value in part.items()
            }
        return part, draws

    def _update(self, index: int, trained: _Trained, parts: list[tuple[Batch, Draws]]) -> None:
        update, gradients = trained.update, trained.gradients
        gradients.zero()
        sums: dict[str, Tensor] = {}
        for micro, (batch, draws) in enumerate(parts):
            terms = self._loss(update, batch, draws.begin(index))
            share = 1.0 / len(parts)
            named = {"loss": terms.total, **terms.terms}
            if draws.signs:
                named[REAL_SIGN] = torch.stack(draws.signs).mean()
                named["augmentation_probability"] = self.augmentation.probability
            for name, value in named.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() * share
            total = terms.total * share if len(parts) > 1 else terms.total
            if micro + 1 < len(parts):
                total.backward(inputs=update.parameters)
            else:
                with gradients.reducing(list(sums.values())):
                    total.backward(inputs=update.parameters)
        values = dict(zip(sums, gradients.scalars[: len(sums)].clone().unbind(), strict=True))
        clip = self.training.gradient_clip
        # To read all gradients once more takes 2 % of a step where layers are dense and batches small.
        if clip is not None or self.update_counts.get(update.name, 0) % NORM_UPDATES == 0:
            values[NORM] = get_total_norm([p.grad for p in update.parameters if p.grad is not None])
        for name, value in values.items():
            trained.sums[name] = trained.sums[name] + value if name in trained.sums else value.double()
            trained.counts[name] = trained.counts.get(name, 0) + 1
        if not self.look_steps:
            self._check_finite()
        if REAL_SIGN in values:
            self.augmentation.adapt(values[REAL_SIGN], self.stage.batch_images)
        if clip is not None:
            clip_grads_with_norm_(update.parameters, clip, values[NORM])
        rate = update.optimizer.learning_rate * update.schedule(self.position.images_in_stage)
        trained.optimizer.step(rate)
        update.after()
        self.update_counts[update.name] = self.update_counts.get(update.name, 0) + 1

    def _loss(self, update: Update, batch: Batch, draws: Draws) -> LossTerms:
        bf16 = self.training.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            return update.loss(batch, draws)

    def _check_finite(self, *, weights: bool = False) -> None:
        for trained in self._trained:
            if not trained.finite:
                bad = [name for name, value in trained.sums.items() if not value.isfinite()]
                named = [name for name in bad if name not in {"loss", NORM}] or bad[:1]
                raise NonFiniteLoss(self.stage.name, trained.update.name, named, self.position.images)
            if weights and not trained.finite_weights:
                raise NonFiniteLoss(self.stage.name, trained.update.name, ["weights"], self.position.images)
