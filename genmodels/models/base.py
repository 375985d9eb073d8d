"""What every model is: a module that says which stages and which updates it has, and the engine does the rest.

Shape letters used in the models: B batch, C channels, H height, W width, Z latent.
Images are float tensors in [-1, 1], NCHW.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from genmodels.errors import SpecError
from genmodels.spec import TrainingSpec

Batch = dict[str, Tensor]


class Density(StrEnum):
    """How a model defines its density (Goodfellow, NIPS 2016 tutorial, figure 9)."""

    TRACTABLE = "explicit, tractable"
    APPROXIMATE = "explicit, approximate"
    IMPLICIT = "implicit"
    NONE = "none"


@dataclass(frozen=True)
class DataInfo:
    """The facts about a data set that shape a network."""

    channels: int
    classes: int = 0


@dataclass(frozen=True)
class Input:
    """Which column of the data set fills one name of the batch. Inputs of one domain are rows of one table and
    stay aligned; those of different domains are drawn independently (CycleGAN's two sets)."""

    column: str = "image"
    domain: str | None = None
    resolution: int | None = None


@dataclass(frozen=True)
class Stage:
    """A stretch of training, measured in images shown."""

    name: str
    images: int
    batch_images: int
    inputs: Mapping[str, Input]
    resolution: int


class ModelConfig(BaseModel):
    """Base of the models' configs: the defaults are the paper's, `presets` are named departures from them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}
    learns_points: ClassVar[bool] = False  # which are images of one pixel, of floats that are not to be rounded

    resolution: int

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The preset of that name with some of its values replaced."""
        return cls.model_validate({**cls.presets[name], **overrides})

    def stages(self, data: DataInfo) -> list[Stage]:
        """The stages in order. Raises SpecError if there is nothing to learn here from such data."""
        raise NotImplementedError

    def inputs(self, data: DataInfo) -> dict[str, Input]:
        """What a batch holds."""
        return {"image": Input(resolution=self.resolution)}

    def check(self, training: TrainingSpec) -> None:
        """Raises SpecError if a model of this config cannot be trained with these settings of the engine."""
        if training.augmentations:
            raise SpecError(
                "training.augmentations needs a discriminator that sees images, which this model has not; leave it out."
            )


class OneStageConfig(ModelConfig):
    """Base of the configs of models that have one stage, of the name `stage`."""

    stage: ClassVar[str]

    batch_images: int
    images: int

    def stages(self, data: DataInfo) -> list[Stage]:
        return [Stage(self.stage, self.images, self.batch_images, self.inputs(data), self.resolution)]


class DecayConfig(OneStageConfig):
    """Base of the configs of models that may learn less and less."""

    linear_decay: bool = Field(False, description="learning rates fall linearly to zero at the end")

    def learning_rate_factor(self, images_in_stage: int) -> float:
        """The share of its learning rate that an update has, from 1 to 0."""
        return max(0.0, 1 - images_in_stage / self.images) if self.linear_decay else 1.0


class ConditionalConfig(ModelConfig):
    """Base of the configs of models that can be told the class."""

    conditional: bool = False

    def classes(self, data: DataInfo) -> int:
        """How many classes it is told of; 0: of none. Raises SpecError if it should be and the data have none."""
        if self.conditional and not data.classes:
            raise SpecError("conditional=true needs a data set with labels; take another or set it to false.")
        return data.classes if self.conditional else 0

    def inputs(self, data: DataInfo) -> dict[str, Input]:
        return super().inputs(data) | ({"label": Input(column="label")} if self.classes(data) else {})


@dataclass(frozen=True)
class LossTerms:
    """A loss and the named terms to log, each a scalar tensor on the device."""

    total: Tensor
    terms: Mapping[str, Tensor]

    @classmethod
    def weighted(cls, terms: Mapping[str, tuple[float, Tensor]]) -> Self:
        """The sum of weight x term; what is logged is the term without its weight."""
        total = sum((weight * term for weight, term in terms.values()), start=torch.zeros(()))
        return cls(total=total, terms={name: term for name, (_, term) in terms.items()})


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015), the optimiser of all models so far."""

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


class Workers(Protocol):
    """The data-parallel group as a model sees it; alone, `sum` and `gather` are the identity."""

    rank: int
    size: int

    def sum(self, tensor: Tensor) -> Tensor:
        """Element-wise sum over the workers."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """The workers' tensors concatenated along the first dimension, in rank order."""
        ...


class Context(Protocol):
    """What a loss may know besides its batch. Random draws depend only on the seed, the step, the update, the
    order of the calls and the row in the *global* batch: not on the number of workers or micro-batches."""

    images_in_stage: int
    step: int
    micros: int  # micro-batches of a step; with several, graphs are not to be shared, for all would be kept at once
    shared: dict[str, Any]  # from one update of a step to the next, one dict for each micro-batch

    @property
    def workers(self) -> Workers:
        """The data-parallel group."""
        ...

    def randn(self, rows: int, *shape: int) -> Tensor:
        """Standard normal, (rows, *shape), on the device."""
        ...

    def rand(self, rows: int, *shape: int) -> Tensor:
        """Uniform on [0, 1), (rows, *shape), on the device."""
        ...

    def randint(self, high: int, rows: int, *shape: int) -> Tensor:
        """Uniform integers below `high`, int64, (rows, *shape), on the device."""
        ...

    def same_rand(self, *shape: int) -> Tensor:
        """Uniform on [0, 1), the same on every worker: for decisions about what the workers share."""
        ...

    def augmented(self, images: Tensor) -> Tensor:
        """Images, (B, C, H, W), as a discriminator gets to see them."""
        ...

    def decided(self, logits_real: Tensor) -> None:
        """Told what a discriminator makes of real images: positive where it takes one to be real."""
        ...


@dataclass(frozen=True)
class Update:
    """One optimiser step on one named group of parameters by one loss.

    The engine differentiates the loss with respect to `parameters` alone, so nothing that only another
    group needs is computed; a loss detaches only where the algorithm says so. `after` is called when the step is made.
    """

    name: str
    parameters: list[nn.Parameter]
    loss: Callable[[Batch, Context], LossTerms]
    optimizer: Adam
    interval_steps: int = 1
    schedule: Callable[[int], float] = field(default=lambda images_in_stage: 1.0)
    after: Callable[[], None] = field(default=lambda: None)


class Passes(Protocol):
    """FLOPs per image of the passes of one network: forward; backward towards the weights, the input, or both; and all
    those of a penalty on the gradient of its output, to learn from it."""

    @property
    def forward(self) -> float: ...

    @property
    def to_weights(self) -> float: ...

    @property
    def to_input(self) -> float: ...

    @property
    def to_both(self) -> float: ...

    @property
    def penalty(self) -> float: ...


@dataclass(frozen=True)
class Ema:
    """Exponential moving average of some submodules' weights, for sampling and for the registry.

    `half_life_images` after a ramp-up in which it is `ramp_up` times the images shown so far.
    """

    modules: tuple[str, ...]
    half_life_images: float
    ramp_up: float = 0.05


class GenerativeModel(nn.Module):
    """Base of all models. A subclass writes its networks and losses, and nothing else."""

    Config: ClassVar[type[ModelConfig]]
    density: ClassVar[Density]
    title: ClassVar[str]
    unpaired: ClassVar[bool] = False  # learns from two domains, `a` and `b`, instead of one set of images
    ema: Ema | None = None

    def __init__(self, config: ModelConfig, data: DataInfo):
        super().__init__()
        self.config = config
        self.data = data
        self.stages = config.stages(data)

    def updates(self, stage: Stage) -> list[Update]:
        """The updates of one step, in order."""
        raise NotImplementedError

    def networks(self) -> dict[str, nn.Module]:
        """The networks by name, for parameter counts."""
        return {name: module for name, module in self.named_children() if any(True for _ in module.parameters())}

    def counted(self) -> dict[str, nn.Module]:
        """The networks whose passes `least_flops` is told, and parts of them where it needs those."""
        return self.networks()

    def least_flops(self, passes: Mapping[str, Passes]) -> float | None:
        """FLOPs per image that a step's updates cannot do without, given what the passes of each network take; None if
        the model does not say. `bench` prints it beside what was counted."""
        return None

    def at(self, stage: Stage, images_in_stage: int) -> None:
        """Told before every step and after every restore where training is; a growing model grows here."""

    @property
    def whole(self) -> bool:
        """Whether its weights, at the present place in training, are a model that can be kept."""
        return True

    def prepare_evaluation(self) -> None:
        """Told before images are asked of it, in evaluation mode and with averaged weights in place: what belongs to
        these weights alone, such as the statistics of batch norms, is made here."""

    def preprocess(self, batch: Batch, context: Context) -> Batch:
        """From the shards' bytes on the device to what the losses take; uint8 images become [-1, 1]."""
        return {name: scaled(value) for name, value in batch.items()}


def scaled(images: Tensor) -> Tensor:
    """uint8 in 0..255 to float32 in [-1, 1]; points, which are float32, as they are."""
    if images.dtype != torch.uint8:
        return images
    return images.float().div_(127.5).sub_(1.0)


@runtime_checkable
class Samples(Protocol):
    """Draws images, (n, C, H, W) in [-1, 1]. `labels` (n,) int64 where the model is conditional."""

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator) -> Tensor: ...


@runtime_checkable
class FromLatents(Samples, Protocol):
    """A sample is a latent, (n, Z), that is drawn from a prior and decoded: near latents make images that are alike.
    `decode` is also given `labels`, (n,) int64, where the model is conditional."""

    def prior(self, n: int, *, generator: torch.Generator) -> Tensor: ...

    def decode(self, codes: Tensor) -> Tensor: ...


@runtime_checkable
class HasLatentCodes(FromLatents, Protocol):
    """Its latents begin with codes that should mean something: each of `categorical_codes` one-hot, of so many
    categories, then `continuous_codes` numbers on [-1, 1)."""

    @property
    def categorical_codes(self) -> tuple[int, ...]: ...

    @property
    def continuous_codes(self) -> int: ...


@runtime_checkable
class Translates(Protocol):
    """Carries images, (n, C, H, W) in [-1, 1], to the domain `target`, one of `domains`."""

    domains: tuple[str, ...]

    def translate(self, images: Tensor, target: str) -> Tensor: ...


@runtime_checkable
class Encodes(Protocol):
    """Carries images, (n, C, H, W) in [-1, 1], to codes, (n, D), and codes back to images."""

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, codes: Tensor) -> Tensor: ...


@runtime_checkable
class HasPrior(Encodes, Protocol):
    """Its codes should be distributed like those of a prior: (n, D) drawn from it, and one drawn for each image.
    `prior` is also given `labels`, (n,) int64, where the model is conditional. If it is `prior_in_pairs`, each two of
    its dimensions, the first and the second and so on, are of one shape."""

    @property
    def prior_in_pairs(self) -> bool: ...

    def prior(self, n: int, *, generator: torch.Generator) -> Tensor: ...

    def posterior(self, images: Tensor, *, generator: torch.Generator) -> Tensor: ...


@runtime_checkable
class Clusters(Protocol):
    """Sorts images, (n, C, H, W) in [-1, 1], by themselves into `clusters` kinds, (n,) int64; into none if it is 0."""

    @property
    def clusters(self) -> int: ...

    def cluster(self, images: Tensor) -> Tensor: ...


@runtime_checkable
class ScoresDensity(Protocol):
    """Log-likelihood of images, (n, C, H, W) in [-1, 1], in nats, (n,): ln P of the pixels rounded to `levels` values.

    `likelihood` says whether it is exact or a lower bound; `generator` is for what is drawn to find it (latents,
    dequantisation noise). A conditional model, one whose stages have the input `label`, is also given `labels`, (n,)
    int64, for ln P given the class.
    """

    levels: int
    likelihood: str

    def log_likelihood(self, images: Tensor, *, generator: torch.Generator) -> Tensor: ...
