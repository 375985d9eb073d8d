"""What a run is: the spec that goes into every step and the reports that come out. Pydantic, JSON, no torch.

`RunSpec` is complete once `prepare` has told it the digest of its data set; from then on `run_key`
names the run, its folder in the object store, its Ray jobs and its MLflow run.
"""

import hashlib
import json
import math
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from genmodels.errors import SpecError


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value in its canonical form: sorted keys, no spaces."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def name_of_dataset(dataset: str) -> str:
    """What a person typed to name a data set, as it may stand in a key, a tag or a registered model's name."""
    return "".join(c if c.isalnum() or c in "_-" else "_" for c in dataset.lower()).strip("_")


def is_points(resolution: int) -> bool:
    """Whether data of that resolution are points: float32 images of one pixel, whose channels are the coordinates."""
    return resolution == 1


class Record(BaseModel):
    """Base of everything that travels between processes: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")  # a NaN comes back as one


class GuardSpec(Record, allow_inf_nan=False):
    """One guard: when it raises an alarm, and what is done then."""

    action: Literal["off", "warn", "stop", "roll_back"] = Field(
        description="off raises no alarm, stop keeps the best checkpoint, roll_back goes on from the last one that no "
        "guard objected to; all are measured at the end"
    )
    threshold: float = Field(gt=0, description="the guard's value must not be beyond it")
    looks: int = Field(default=3, ge=1, description="in a row that must be beyond the threshold")

    @property
    def acts(self) -> bool:
        """Whether it can change the weights."""
        return self.action in {"stop", "roll_back"}


class GuardsSpec(Record, allow_inf_nan=False):
    """What training is watched for; each guard's threshold is told in `genmodels.training.guards`."""

    look_images: int = Field(default=0, ge=0, description="images shown between two looks; 0 looks 8 to 40 times a run")
    warm_up: float = Field(default=0.25, ge=0, lt=1, description="share of a stage in which guards only measure")
    divergence: GuardSpec = Field(
        default=GuardSpec(action="roll_back", threshold=100.0, looks=1),
        description="of a loss; one that is not finite is rolled back even where this is off or warn",
    )
    gradient_norm: GuardSpec = GuardSpec(action="warn", threshold=30.0)
    mode_collapse: GuardSpec = GuardSpec(action="stop", threshold=10.0, looks=5)
    low_diversity: GuardSpec = GuardSpec(action="warn", threshold=10.0, looks=5)
    lost_classes: GuardSpec = GuardSpec(action="warn", threshold=1.7)
    strong_discriminator: GuardSpec = GuardSpec(action="warn", threshold=0.99)
    loss_at_floor: GuardSpec = GuardSpec(action="warn", threshold=0.9)
    oscillation: GuardSpec = GuardSpec(action="warn", threshold=0.5)

    def numerics(self) -> dict[str, Any]:
        """The settings of what can change the weights."""
        unacted = {name for name, value in self if isinstance(value, GuardSpec) and not value.acts}
        return self.model_dump(exclude=unacted)


class Alarm(Record):
    """What a guard found wrong with a training, and what was done about it."""

    guard: str
    value: float
    threshold: float
    images: int = Field(description="shown when it was found")
    action: Literal["warn", "stop", "roll_back"]
    message: str


AugmentationName = Literal["color", "translation", "cutout"]


class TrainingSpec(Record, allow_inf_nan=False):
    """How the engine runs a model; the model's own numbers (networks, losses, budget) are in its config."""

    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="of the losses; penalties stay fp32")
    channels_last: bool = Field(default=False, description="memory layout of images and convolution weights")
    accumulation: int = Field(default=1, ge=1, description="micro-batches per update; the batch is unchanged")
    balanced_classes: bool = Field(default=False, description="show every class equally often; needs labels")
    gradient_clip: float | None = Field(default=None, gt=0, description="largest norm of an update's gradient")
    augmentations: tuple[AugmentationName, ...] = Field(default=(), description="of all images a discriminator sees")
    augmentation_target: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="E sign D(real) that their probability is steered to; none given: always applied",
    )
    augmentation_ramp_images: int = Field(
        default=500_000, ge=1, description="in which that probability could go from 0 to 1"
    )
    guards: GuardsSpec = GuardsSpec()
    max_rollbacks: int = Field(default=3, ge=0, description="returns to a checkpoint before an alarm fails the run")
    checkpoint_seconds: float = Field(
        default=60.0, gt=0, description="between checkpoints; stage ends and each eighth of a run write one too"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="checkpoints kept besides the best")
    log_seconds: float = Field(default=2.0, gt=0, description="time between progress reports")
    sample_images: int = Field(default=0, ge=0, description="images shown between sample grids; 0 makes 20 grids a run")
    min_workers: int | None = Field(
        default=None, ge=1, description="go on with as few as these while machines are missing; else all are waited for"
    )
    cpus_per_worker: int | None = Field(
        default=None, ge=1, description="where there are no GPUs; none given: equal shares of what the cluster has"
    )
    silence_seconds: float = Field(
        default=120.0, gt=0, description="a worker that the others have waited for so long is taken for lost"
    )

    def numerics(self) -> dict[str, Any]:
        """The fields that change the weights, and so belong to the run's key."""
        plain = {"precision", "channels_last", "accumulation", "gradient_clip", "max_rollbacks", "balanced_classes"}
        plain |= {"augmentations", "augmentation_target", "augmentation_ramp_images"}
        return self.model_dump(include=plain) | {"guards": self.guards.numerics()}

    @model_validator(mode="after")
    def _target_has_augmentations(self) -> Self:
        if self.augmentation_target is not None and not self.augmentations:
            raise ValueError(
                "training.augmentation_target has nothing to steer; name some training.augmentations or leave it out."
            )
        return self


class EvaluationSpec(Record, allow_inf_nan=False):
    """How a trained model is judged. Nothing here changes the weights, so it is no part of the run's key."""

    iwae_samples: int = Field(
        default=500,
        ge=1,
        le=100_000,
        description="latents by which an image's likelihood is bounded where only a bound is known; 1: the ELBO",
    )


class RunSpec(Record):
    """One run: which model learns what from which data. `genmodels.steps.resolve` makes it from what a person typed."""

    model: str = Field(pattern=r"^[a-z0-9_]+$")
    dataset: str = Field(description="catalogue name, folder:PATH or s3://bucket/prefix")
    preset: str = "demo"
    config: dict[str, Any] = Field(description="the model's whole config, presets and overrides applied")
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    seed: int = Field(default=0, ge=0, lt=2**31)
    workers: int = Field(default=1, ge=1, description="data-parallel; they change the result by rounding only")
    code_version: str = Field(pattern=r"^\w+$", description="digest of the sources that make the weights")
    dataset_digest: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="set once the data are prepared; it names folders"
    )
    judged_on: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="digest of the data that judge it, if not its own"
    )

    @property
    def dataset_name(self) -> str:
        """The data set's name as it may stand in a key, a tag or a registered model's name."""
        return name_of_dataset(self.dataset)

    @property
    def registered_name(self) -> str:
        """The name of its registered model in MLflow, MODEL.DATASET."""
        return f"{self.model}.{self.dataset_name}"

    @property
    def run_key(self) -> str:
        """Digest of all that decides the weights; raises SpecError before the data are prepared."""
        if self.dataset_digest is None:
            raise SpecError(f"The run of {self.model} on {self.dataset} has no key yet: run `prepare` first.")
        return digest(
            {
                "model": self.model,
                "config": self.config,
                "dataset_digest": self.dataset_digest,
                "seed": self.seed,
                "code_version": self.code_version,
                "training": self.training.numerics(),
            }
        )

    def with_dataset(self, dataset_digest: str) -> Self:
        """The same spec, bound to prepared data."""
        return self.model_copy(update={"dataset_digest": dataset_digest})


class PrepareReport(Record):
    """What `prepare` leaves behind: a data set that is named by its content."""

    dataset: str
    dataset_digest: str
    manifest_uri: str
    rows: dict[str, int] = Field(description="examples per table, e.g. train, test, train_a")
    set_aside: dict[str, int] = Field(description="inputs left out, counted by reason")
    images_per_second: float
    seconds: float
    sources: dict[str, str] = Field(default_factory=dict, description="SHA-256 of each file it was made from, by name")


class TrainReport(Record):
    """What `train` leaves behind."""

    run_key: str
    weights_uri: str = Field(description="safetensors of the trained model, averaged weights where it keeps an average")
    weights_digest: str
    images_shown: int
    updates: dict[str, int] = Field(description="optimiser steps taken, by update")
    losses: dict[str, float] = Field(
        description="last logged mean of each term, update/term, and gradient's norm, gradient_norm/update"
    )
    images_per_second: float
    seconds: float = Field(description="time spent training, over all attempts")
    startup_seconds: float = Field(
        description="from the step's start to its first optimiser step, or to its end if none was left to do"
    )
    first_step_time: datetime | None = Field(None, description="when that was")
    restarts: int
    rollbacks: int
    mlflow_run_id: str | None = None
    alarms: list[Alarm] = Field(default_factory=list, description="that guards raised, in order")
    guards: dict[str, float] = Field(default_factory=dict, description="value of each guard for these weights")
    objections: list[str] = Field(default_factory=list, description="guards whose value is beyond its threshold")


class Metric(Record):
    """One number with what is needed to read it."""

    name: str = Field(description="the protocol is in the name: sliced_wasserstein_16, fid_classifier")
    value: float
    low: float = Field(description="lower end of the bootstrap interval")
    high: float
    floor: float | None = Field(None, description="the same of real against held-out real images, or of perfect codes")
    untrained: float | None = Field(None, description="the same measure of the untrained model")
    better: Literal["lower", "higher"] = "lower"
    note: str = Field("", description="what must be known to read it: of a likelihood, exact or a lower bound")

    @property
    def title(self) -> str:
        """The name, with the note behind it."""
        return f"{self.name} ({self.note})" if self.note else self.name

    @property
    def with_interval(self) -> str:
        """The value with its interval: `0.0123 [0.012, 0.0126]`."""
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    @property
    def is_finite(self) -> bool:
        """Whether the value and both ends of its interval are finite."""
        return all(map(math.isfinite, (self.value, self.low, self.high)))

    @property
    def gap_closed(self) -> float | None:
        """(untrained - model) / (untrained - floor): 0 is the untrained model, 1 is real data.

        None where there is no gap: MS-SSIM, say, finds an untrained model's noise more diverse than real images.
        """
        if self.floor is None or self.untrained is None:
            return None
        gap = self.untrained - self.floor
        has_gap = gap > 0 if self.better == "lower" else gap < 0
        return (self.untrained - self.value) / gap if has_gap else None

    @property
    def cells(self) -> dict[str, str]:
        """What a table says of it, by heading; a dash for what is not there."""
        gap = self.gap_closed
        return {
            "value": f"{self.value:.4g}",
            "interval": f"{self.low:.4g} to {self.high:.4g}",
            "floor (real data)": "–" if self.floor is None else f"{self.floor:.4g}",
            "untrained": "–" if self.untrained is None else f"{self.untrained:.4g}",
            "gap closed": "–" if gap is None or not math.isfinite(gap) else f"{gap:.1%}",
        }


class Judgement(Record):
    """Base of the reports that hold for one way of judging; another one asks for them again."""

    evaluation: EvaluationSpec = EvaluationSpec()


class EvaluationReport(Judgement):
    """What `evaluate` leaves behind. Of the metrics there are those that the model, by what it can, and the data allow;
    E is the name of a feature extractor, `classifier`, `inception` or `coordinates`, R the side of images, D a domain.

    - density: `bits_per_dim` and `nats`, whose note says exact or of which bound; both also `_of_independent_pixels`;
      `elbo_nats` where there is a tighter bound.
    - generation: `sliced_wasserstein`, `sliced_wasserstein_R`, `fid_E`, `kid_E`, `precision_E`, `recall_E`,
      `density_E`, `coverage_E`, `ms_ssim_N_scales`, `training_distance_ratio`; of labelled data `modes_E`, how many
      classes are among the samples, and `mode_divergence_E`, of their histogram from the real one in nats; of points
      instead `modes` and `high_quality`, the share of samples near a class's centre, and no MS-SSIM;
      `label_agreement_E` of a model that is told the class. Of points and of translations
      `sliced_wasserstein_absolute`; of translations also `_untranslated`, with the ending `_to_D` that of each R and
      what is named after E, and `cycle_error_D`.
    - representation: `reconstruction_psnr`, `reconstruction_ssim` and `reconstruction_fid_E`, of the held-out images
      against these; `linear_probe_accuracy` and `nearest_neighbour_accuracy`, both also `_of_pixels`, `prior_mmd`,
      `active_units`, `perceptual_path_length_E`; where factors are known `mig`, `sap`, `factor_vae_score`,
      `dci_disentanglement`, `dci_completeness` and `dci_informativeness`; `cluster_accuracy`, also `_of_pixels`.
    """

    run_key: str
    primary: str = Field(description="name of the metric that decides a promotion")
    metrics: list[Metric]
    protocol: dict[str, Any] = Field(description="all that must be equal for two scores to be comparable")
    pictures: dict[str, str] = Field(description="address of each picture, by name")
    not_offered: dict[str, str] = Field(
        default_factory=dict,
        description="why an axis was not judged, a measure not taken or a feature extractor not used",
    )
    seconds: float

    def metric(self, name: str) -> Metric:
        """The metric of that name; KeyError if it was not measured."""
        return {metric.name: metric for metric in self.metrics}[name]


class RegisterReport(Judgement):
    """What `register` leaves behind."""

    run_key: str
    name: str
    version: int
    model_uri: str
    mlflow_run_id: str
    seconds: float


class Promotion(Record):
    """The decision on a challenger, with its numbers."""

    name: str
    version: int
    promoted: bool
    reason: str
    metric: str
    challenger: float
    champion: float | None = None
    champion_version: int | None = None
    decided_by: str | None = Field(default=None, description="the name a person claimed who was asked")
    decided: datetime | None = Field(default=None, description="when that person answered")


class Answer(Record):
    """A person's answer to whether a challenger becomes champion."""

    approve: bool
    name: str = Field(description="as claimed")
    reason: str
    time: datetime
    champion_version: int | None = Field(description="the champion that the challenger was shown beside")


class PruneReport(Record):
    """What retention took away, or in a dry run would."""

    dry_run: bool
    older_than_days: int
    objects: dict[str, list[str]] = Field(description="keys by kind: checkpoints, raw, data sets, artifacts, uploads")
    bytes: dict[str, int] = Field(description="by kind")


class Progress(Record):
    """Where a running step is; the last one is kept beside its report for whoever follows it."""

    step: Literal["prepare", "train", "evaluate", "register"]
    stage: str = ""
    done: int = Field(description="of `total`, in `unit`")
    total: int
    unit: str = "images"
    per_second: float = 0.0
    values: dict[str, float] = Field(default_factory=dict, description="losses and the like, by name")
    message: str = ""
    alarms: list[Alarm] = Field(default_factory=list, description="all that guards have raised in this run")
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def eta_seconds(self) -> float | None:
        """Time to the end at the present rate; None before there is a rate."""
        return (self.total - self.done) / self.per_second if self.per_second > 0 else None
