"""The looks that guards take at a training: every so many images, at samples from the same latents, and at its end."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.models.base import Density, Encodes, Input, Samples, Translates, scaled
from genmodels.spec import Alarm
from genmodels.training.engine import Engine, NonFiniteLoss, Position, Totals, means
from genmodels.training.guards import GUARDS, Divergence, Guard, Look, parts

MOST_LOOKS, FEWEST_LOOKS = 40, 8  # in a run
IMAGES = 256  # made at a look
IMAGES_BETWEEN = 4 * IMAGES  # shown, or more looks than the fewest would cost much of a short run
LABELLED_VALUES = 2**22  # of the pixels of the images that tell classes
SHOWN_PIXELS = 128  # on a side, and less than twice as many: copies and classes show without more detail


class Guards:
    """All guards of one training. Every worker holds them alike: the first one measures and tells the others."""

    def __init__(self, engine: Engine):
        self._engine, self.spec = engine, engine.training.guards
        total = engine.total_images
        self._every = self.spec.look_images or max(total // MOST_LOOKS, min(total // FEWEST_LOOKS, IMAGES_BETWEEN), 1)
        self._guards = [guard(getattr(self.spec, guard.name)) for guard in GUARDS]
        self._since: Totals = {}
        self._stage = engine.stage.name
        self._real: tuple[str, dict[str, Tensor], tuple[Tensor, Tensor] | None] = "", {}, None

    @property
    def values(self) -> dict[str, float]:
        """What the last look measured, by guard."""
        return {guard.name: guard.value for guard in self._guards if guard.value is not None}

    @property
    def beyond(self) -> list[str]:
        """The guards whose last value is worse than their threshold."""
        return [guard.name for guard in self._guards if guard.is_beyond]

    @property
    def calm(self) -> bool:
        """Whether no guard that would act on it objects to the present weights."""
        return not any(guard.looks_beyond for guard in self._guards if guard.spec.acts)

    def is_due(self, before: Position) -> bool:
        """Whether the step that has just been made led to the next look."""
        return before.images // self._every < self._engine.position.images // self._every

    def look(self) -> list[Alarm]:
        """Measures, and gives the alarms that this raises; every worker calls it.

        Raises:
            NonFiniteLoss: if a loss since the last look was not finite.
        """
        engine = self._engine
        self._measure([guard for guard in self._guards if guard.watches or not guard.looks_at_images])
        armed = engine.position.images_in_stage >= self.spec.warm_up * engine.stage.images
        alarms = []
        for guard in self._guards:
            guard.looks_beyond = guard.looks_beyond + 1 if guard.watches and armed and guard.is_beyond else 0
            if guard.looks_beyond == guard.spec.looks:
                alarms.append(guard.alarm(engine.position.images))
        return alarms

    def final_look(self) -> None:
        """Measures the weights that are kept, which may be another checkpoint's than those of the last look, by every
        guard: the gate of promotion asks for what nobody watched as well."""
        self._measure(self._guards)

    def not_finite(self, error: NonFiniteLoss) -> Alarm:
        """The alarm that a loss raises which is not finite: one infinitely many times as large as it was. No training
        can go on from it, so that what would only be warned of, or not be watched, is rolled back."""
        [divergence] = (guard for guard in self._guards if isinstance(guard, Divergence))
        divergence.value = math.inf
        spec = divergence.spec
        return Alarm(
            guard=divergence.name,
            value=math.inf,
            threshold=spec.threshold,
            images=error.images,
            action="stop" if spec.action == "stop" else "roll_back",
            message=str(error),
        )

    def state_dict(self) -> dict[str, Any]:
        """All that later looks depend on."""
        guards = {guard.name: asdict(guard) for guard in self._guards}
        return {"stage": self._stage, "since": self._since, "guards": {n: _without_spec(g) for n, g in guards.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of the same run."""
        self._stage, self._since = state["stage"], dict(state["since"])
        for guard in self._guards:
            for name, value in state["guards"][guard.name].items():
                setattr(guard, name, value)

    def _begin_stage(self, name: str) -> None:
        self._stage, self._since = name, {}
        for guard in self._guards:
            guard.value, guard.memory = None, []

    def _measure(self, guards: Sequence[Guard]) -> None:
        engine = self._engine
        if self._stage != engine.stage.name:
            self._begin_stage(engine.stage.name)
        totals = engine.totals()
        look = Look(means(totals, self._since))
        if any(guard.looks_at_images for guard in guards):
            look = self._with_images(look)
        first = engine.workers.rank == 0
        measured = [guard.measure(look) if first else 0.0 for guard in guards]
        values = [math.nan if value is None else value for value in measured]
        together = engine.workers.sum(torch.tensor(values, dtype=torch.float64, device=engine.device)).tolist()
        self._since = totals
        for guard, value in zip(guards, together, strict=True):
            if not math.isnan(value):
                guard.value = value

    def _with_images(self, look: Look) -> Look:
        """The look with real images beside made ones, for models that learn from a discriminator; with nothing on the
        other workers."""
        model = self._engine.model
        if model.density is not Density.IMPLICIT or not isinstance(model, Samples | Translates):
            return look
        real, reconstructed = self._real_images(), None
        if self._engine.workers.rank:
            return look
        with self._engine.previewing() as model:
            if isinstance(model, Samples):
                told = real["label"] if "label" in self._engine.stage.inputs else None
                pairs = [(shown(real["image"]), _sampled(model, real["image"], told))]
                if isinstance(model, Encodes):
                    reconstructed = shown(real["image"], lambda images: model.decode(model.encode(images)))
            else:
                assert isinstance(model, Translates)
                pairs = [
                    (shown(real[target]), shown(real[source], partial(model.translate, target=target)))
                    for source in model.domains
                    for target in model.domains
                    if source != target
                ]
        return replace(look, images=pairs, labelled=self._real[2], reconstructed=reconstructed)

    def _real_images(self) -> dict[str, Tensor]:
        """The first training images of the stage, each once, as they are stored, by their name in a batch. Where the
        data have classes, their labels too; and those after them, with their labels, are kept to tell classes by."""
        engine, stage = self._engine, self._engine.stage
        if self._real[0] == stage.name:
            return self._real[1]
        data = engine.model.data
        inputs = {name: wanted for name, wanted in stage.inputs.items() if wanted.resolution is not None}
        compared, labelled = IMAGES // len(inputs), 0
        if data.classes:
            most = LABELLED_VALUES // (data.channels * stage.resolution**2)
            labelled = max(IMAGES, min(max(4 * IMAGES, 16 * data.classes), most))
            compared = max(IMAGES, min(2 * data.classes, labelled // 8))
        labels = {"label": Input(column="label")} if data.classes else {}
        batches = engine.batches_of(replace(stage, inputs=inputs | labels))
        read = [batches.batch(start) for start in range(0, compared + labelled, stage.batch_images)]
        whole = {name: torch.cat([engine.workers.gather(part[name]) for part in read]) for name in read[0]}
        found, others = {}, None
        for name in inputs:
            rows = first_of_each(whole[name])[: compared + labelled]
            images = whole[name][rows]
            if data.classes:
                compared = min(compared, len(rows) // 2)
                found["label"], others_labels = whole["label"][rows].tensor_split([compared])
                others = shown(images[compared:]), others_labels
            found[name] = images[:compared]
        self._real = stage.name, found, others
        return found


def first_of_each(images: Tensor) -> Tensor:
    """The rows (M,), in their order, of (N, C, H, W) images that none before them equals."""
    _, places = images.unique(dim=0, return_inverse=True)
    rows = torch.arange(len(images), device=images.device)
    return rows.new_full((int(places.max()) + 1,), len(images)).scatter_reduce(0, places, rows, "amin").sort().values


def shown(images: Tensor, make: Callable[[Tensor], Tensor] = lambda images: images) -> Tensor:
    """Stored images, or what a model makes of them, as guards see them; see `seen`."""
    return torch.cat([seen(make(scaled(part))) for part in parts(images)])


def seen(images: Tensor) -> Tensor:
    """Images in which what is not finite is grey, and large ones are averaged over squares."""
    images = images.float().nan_to_num(0.0, 0.0, 0.0)
    side = images.shape[-1] // SHOWN_PIXELS
    return F.avg_pool2d(images, side) if side > 1 else images


def _sampled(model: Samples, real: Tensor, labels: Tensor | None) -> Tensor:
    """As many samples as real images, of the same classes if the model is told any, from one seed."""
    generator = torch.Generator(real.device).manual_seed(0)
    sizes = [len(part) for part in parts(real)]
    told = [None] * len(sizes) if labels is None else labels.split(sizes)
    drawn = (model.sample(size, labels=each, generator=generator) for size, each in zip(sizes, told, strict=True))
    return torch.cat([seen(images) for images in drawn])


def _without_spec(guard: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in guard.items() if name != "spec"}
