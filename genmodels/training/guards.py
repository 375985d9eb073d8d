"""Guards: what a training is watched for, measured every so many images on samples that are always the same.

Each has a name, a value that is logged, and a threshold; the loop does what the settings say when the value has been
beyond it for so many looks in a row. Every model is watched for divergence, adversarial ones for the rest too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor

from genmodels.models.base import Density, Input, Samples, Translates, scaled
from genmodels.spec import Alarm, GuardSpec
from genmodels.training.engine import Engine, NonFiniteLoss, Position, Totals, means

LOOKS_PER_RUN = 40
IMAGES = 256
BATCH_PIXELS = 2**18


@dataclass(frozen=True)
class Look:
    """What guards see: the mean of each loss term since the last look, and sets of real images, each (N, C, H, W), with
    as many that the model makes to look like them, from the same latents or sources every time; and the class of each
    real one, (N,), if the data have classes."""

    losses: Mapping[str, float]
    images: Sequence[tuple[Tensor, Tensor]] = ()
    labels: Tensor | None = None


@dataclass
class Guard:
    """One guard with what it remembers. `sentence` takes its value and its threshold."""

    name: ClassVar[str]
    sentence: ClassVar[str]
    spec: GuardSpec
    value: float | None = None
    looks_beyond: int = 0
    memory: list[Any] = field(default_factory=list)

    def measure(self, look: Look) -> float | None:
        """The value, None where there is nothing to measure."""
        raise NotImplementedError

    @property
    def is_beyond(self) -> bool:
        """Whether the last value is worse than the threshold."""
        return self.value is not None and not self.value <= self.spec.threshold

    def alarm(self, images: int) -> Alarm:
        """The alarm that it raises after so many images."""
        assert self.value is not None
        message = self.sentence.format(value=self.value, threshold=self.spec.threshold)
        facts = {"value": self.value, "threshold": self.spec.threshold, "action": self.spec.action}
        return Alarm.model_validate(
            {"guard": self.name, "images": images, "message": f"After {images:,} images {message}", **facts}
        )


class Divergence(Guard):
    """The largest loss, in units of what is usual for it: the median of the looks before, at least 1. Of 30 healthy
    GANs none was above 2.5; a critic without a bound is at 5 to 13, and one that learns 100 times too fast at up to
    1e9."""

    name = "divergence"
    sentence = "a loss is {value:.3g} times as large as it was before (alarm above {threshold:.3g})"

    def measure(self, look: Look) -> float | None:
        losses = [abs(value) for name, value in look.losses.items() if name.endswith("/loss")]
        if not losses:
            return None
        usual = max(1.0, median(self.memory)) if self.memory else math.inf
        self.memory.append(max(losses))
        return max(losses) / usual


class ModeCollapse(Guard):
    """How much closer images that the model makes lie to their nearest neighbour than real ones do.

    The median distance of a real image, among as many, over that of a made one: about 1 if the model is as diverse as
    the data, large if it repeats itself (the birthday paradox test of Arora & Zhang 2017, in degrees). On digits
    healthy models of six kinds ended at 0.5 to 3.0, and those with a latent of one dimension at 92 and more.
    """

    name = "mode_collapse"
    sentence = (
        "images are {value:.3g} times closer to their nearest neighbours than real ones are (alarm above "
        "{threshold:.3g}): the model repeats itself"
    )

    def measure(self, look: Look) -> float | None:
        ratios = [
            nearest_neighbour_distance(real) / max(nearest_neighbour_distance(made), 1e-6) for real, made in look.images
        ]
        return max(ratios, default=None)


class MissingClasses(Guard):
    """How many times fewer classes are made than real ones are of, on data with labels: e to the entropy of the class
    histograms, where a made image is of the class of the nearest real one. On digits 8 healthy models ended at 1.03
    to 1.11, and 12 that had collapsed were at 2 and more for a while; on Fashion-MNIST 10 were never above 1.5, and the
    two with the worst images at 2.0 and 2.2. One that learns slowly is as high at first, and so may a healthy one be
    where the nearest pixels tell little of the class, so that by default it is a warning."""

    name = "missing_classes"
    sentence = "the images made are of {value:.3g} times fewer classes than the real ones (alarm above {threshold:.3g})"

    def measure(self, look: Look) -> float | None:
        if look.labels is None:
            return None
        [(real, made)] = look.images
        nearest = torch.cdist(made.flatten(1), real.flatten(1)).argmin(dim=1)
        return effective_classes(look.labels) / effective_classes(look.labels[nearest])


class StrongDiscriminator(Guard):
    """Share of pairs of a real image and a made one of which the discriminator takes the right one to be more real. One
    that never errs has its loss at the floor, and the generator learns little from it. On digits that is 0.999 at 100
    times a healthy one's learning rate, which has 0.64 to 0.74; but a conditional GAN that knows its images by heart
    has 0.998, a DCGAN of Fashion-MNIST 1.0, and both make good ones, so that by default it is a warning. A critic
    (WGAN) ought to be as strong as can be and is not watched."""

    name = "strong_discriminator"
    sentence = "the discriminator tells {value:.2%} of all made images from real ones (alarm above {threshold:.2%})"

    def measure(self, look: Look) -> float | None:
        return max((value for name, value in look.losses.items() if "/separation" in name), default=None)


class Oscillation(Guard):
    """How far the mean of what the model makes moves between two looks beyond what brings it anywhere: the way it has
    gone in the last looks, less the distance, in units of the real images' standard deviation. Of 30 healthy GANs none
    was above 0.27; a generator that learns 100 times too fast is at up to 0.7 until it collapses."""

    name = "oscillation"
    sentence = (
        "the mean image moves to and fro by {value:.3g} standard deviations of the real ones at each look (alarm above "
        "{threshold:.3g})"
    )
    steps = 4

    def measure(self, look: Look) -> float | None:
        if not look.images:
            return None
        self.memory.append([made.mean(dim=0).cpu() / spread(real) for real, made in look.images])
        self.memory = self.memory[-self.steps - 1 :]
        if len(self.memory) <= self.steps:
            return None
        return max(to_and_fro(path) for path in zip(*self.memory, strict=True))


GUARDS: tuple[type[Guard], ...] = (Divergence, ModeCollapse, MissingClasses, StrongDiscriminator, Oscillation)


def nearest_neighbour_distance(images: Tensor) -> float:
    """Median over (N, C, H, W) images of the Euclidean distance to the nearest other one."""
    flat = images.flatten(1)
    return float(torch.cdist(flat, flat).fill_diagonal_(torch.inf).amin(dim=1).median())


def effective_classes(labels: Tensor) -> float:
    """As many equally frequent classes would have the entropy of these (N,) labels."""
    shares = labels.unique(return_counts=True)[1] / len(labels)
    return float(shares.log().mul(shares).sum().neg().exp())


def spread(images: Tensor) -> float:
    """Root mean square distance of (N, C, H, W) images from their mean."""
    return float((images - images.mean(dim=0)).flatten(1).square().sum(dim=1).mean().sqrt())


def to_and_fro(path: Sequence[Tensor]) -> float:
    """Length of a path through the points, less the distance of its ends, for each step."""
    length = sum(float((after - before).norm()) for before, after in pairwise(path))
    return (length - float((path[-1] - path[0]).norm())) / (len(path) - 1)


class Guards:
    """All guards of one training. Every worker holds them alike: the first one measures and tells the others."""

    def __init__(self, engine: Engine):
        self._engine, self.spec = engine, engine.training.guards
        self._every = self.spec.look_images or max(engine.total_images // LOOKS_PER_RUN, 1)
        settings = {guard.name: getattr(self.spec, guard.name) for guard in GUARDS}
        self._guards = [guard(settings[guard.name]) for guard in GUARDS if settings[guard.name].action != "off"]
        self._since: Totals = {}
        self._stage = engine.stage.name
        self._real: tuple[str, dict[str, Tensor]] = "", {}

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
        """Whether no guard objects to the present weights."""
        return not any(guard.looks_beyond for guard in self._guards)

    def is_due(self, before: Position) -> bool:
        """Whether the step that has just been made led to the next look."""
        return before.images // self._every < self._engine.position.images // self._every

    def look(self) -> list[Alarm]:
        """Measures, and gives the alarms that this raises; every worker calls it.

        Raises:
            NonFiniteLoss: if a loss since the last look was not finite.
        """
        engine, stage = self._engine, self._engine.stage
        if self._stage != stage.name:
            self._begin_stage(stage.name)
        self._measure()
        armed = engine.position.images_in_stage >= self.spec.warm_up * stage.images
        alarms = []
        for guard in self._guards:
            guard.looks_beyond = guard.looks_beyond + 1 if armed and guard.is_beyond else 0
            if guard.looks_beyond == guard.spec.looks:
                alarms.append(guard.alarm(engine.position.images))
        return alarms

    def final_look(self) -> None:
        """Measures the weights that are kept, which may be another checkpoint's than those of the last look."""
        self._measure()

    def not_finite(self, error: NonFiniteLoss) -> Alarm:
        """The alarm that a loss raises which is not finite: one infinitely many times as large as it was."""
        [divergence] = (guard for guard in self._guards if isinstance(guard, Divergence))
        divergence.value = math.inf
        return divergence.alarm(error.images).model_copy(update={"message": str(error)})

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

    def _measure(self) -> None:
        engine, totals = self._engine, self._engine.totals()
        images = self._images()
        if engine.workers.rank == 0:
            look = Look(means(totals, self._since), images, self._real[1].get("label") if images else None)
            measured = [guard.measure(look) for guard in self._guards]
        else:
            measured = [0.0] * len(self._guards)
        values = [math.nan if value is None else value for value in measured]
        together = engine.workers.sum(torch.tensor(values, dtype=torch.float64, device=engine.device)).tolist()
        self._since = totals
        for guard, value in zip(self._guards, together, strict=True):
            if not math.isnan(value):
                guard.value = value

    def _images(self) -> list[tuple[Tensor, Tensor]]:
        """Real images beside made ones, for models that learn from a discriminator; nothing on the other workers."""
        model = self._engine.model
        watched = any(isinstance(guard, ModeCollapse | Oscillation) for guard in self._guards)
        if model.density is not Density.IMPLICIT or not isinstance(model, Samples | Translates) or not watched:
            return []
        real = self._real_images()
        if self._engine.workers.rank:
            return []
        with self._engine.previewing() as model:
            if isinstance(model, Samples):
                made = _sampled(model, real["image"])
                return [(real["image"], made)]
            assert isinstance(model, Translates)
            return [
                (real[target], torch.cat([model.translate(part, target) for part in _parts(real[source])]))
                for source in model.domains
                for target in model.domains
                if source != target
            ]

    def _real_images(self) -> dict[str, Tensor]:
        """The first training images of the stage, each once, by their name in a batch, and their labels."""
        engine, stage = self._engine, self._engine.stage
        if self._real[0] != stage.name:
            labels = {"label": Input(column="label")} if engine.model.data.classes else {}
            batches = engine.batches_of(replace(stage, inputs={**stage.inputs, **labels}))
            parts = [batches.batch(start) for start in range(0, IMAGES, stage.batch_images)]
            whole = {
                name: torch.cat([engine.workers.gather(part[name]) for part in parts])[:IMAGES] for name in parts[0]
            }
            found = {}
            for name, wanted in stage.inputs.items():
                if wanted.resolution is not None:
                    images, places = whole[name].unique(dim=0, return_inverse=True)
                    found[name] = scaled(images) if images.dtype == torch.uint8 else images
                    if labels:
                        found["label"] = whole["label"].new_empty(len(images)).scatter_(0, places, whole["label"])
            self._real = stage.name, found
        return self._real[1]


def _sampled(model: Samples, real: Tensor) -> Tensor:
    """As many samples as real images, from one seed."""
    generator = torch.Generator(real.device).manual_seed(0)
    return torch.cat([model.sample(len(part), generator=generator) for part in _parts(real)])


def _parts(images: Tensor) -> tuple[Tensor, ...]:
    """Images in batches that are small where they are large."""
    return images.split(max(8, BATCH_PIXELS // images.shape[-1] ** 2))


def _without_spec(guard: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in guard.items() if name != "spec"}
