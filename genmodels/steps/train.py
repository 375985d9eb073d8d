"""Train: from a spec and its prepared data to the weights, in this process or over the workers of a Ray cluster."""

import hashlib
import io
import logging
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import permutations
from pathlib import Path
from socket import gethostname
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from pydantic import ValidationError
from torch.distributed import DistError

from genmodels.data.dataset import Dataset
from genmodels.data.loader import Loader
from genmodels.data.manifest import Manifest, open_dataset
from genmodels.errors import GenmodelsError, SpecError
from genmodels.evaluation.bootstrap import mean
from genmodels.evaluation.images import as_stored
from genmodels.evaluation.pictures import SHEET_COLUMNS, grid, samples_shown, sheet_columns
from genmodels.evaluation.sliced_wasserstein import sliced_wasserstein
from genmodels.models import build
from genmodels.models.base import DataInfo, Encodes, GenerativeModel, Samples, Stage, Translates, scaled
from genmodels.settings import settings
from genmodels.spec import Alarm, Progress, RunSpec, TrainReport, is_points
from genmodels.steps.costs import metered
from genmodels.steps.jobs import started_by, this_job
from genmodels.steps.reports import (
    ProgressWriter,
    clear_failure,
    folder,
    load_report,
    progress_key,
    read_failure,
    save_failure,
    save_report,
)
from genmodels.storage.objects import store
from genmodels.tracking.runs import MetricsQueue, RunStatus, open_run, queue_folder, queue_prefix
from genmodels.training.checkpoints import Checkpoints
from genmodels.training.engine import NORM, Engine
from genmodels.training.loop import train as train_engine
from genmodels.training.workers import Workers

log = logging.getLogger(__name__)

FEWEST_SCORED, MOST_SCORED = 32, 256
SHOWN_BY_SCORED = 256  # images shown in the run for one that is scored: eight scores take about a hundredth of it
SCORED_VALUES = 2**26  # of pixels, which a GPU holds beside what it trains


def train(spec: RunSpec, *, ray: bool = False) -> TrainReport:
    """Trains the spec's model, or continues where an earlier attempt stopped; returns the report if it is done.

    Args:
        ray: over `spec.workers` processes of the Ray cluster that this job runs on, instead of in this process.
    """
    if report := load_report("train", spec, TrainReport):
        return report
    task = {
        "name": f"train-{spec.run_key[:16]}",
        "folder": folder("train", spec),
        "spec": spec.model_dump_json(),
        "started": time.time(),
        "links": this_job(),
        "started_by": started_by(),
    }
    clear_failure("train", spec)
    if ray:
        from genmodels.training.on_ray import run_workers

        run_workers(work, task, workers=spec.workers, training=spec.training, settings=settings())
    else:
        work(task)
    if report := load_report("train", spec, TrainReport):
        return report
    failure = read_failure("train", spec)
    assert failure, "the first worker leaves a report, or the worker that cannot go on its error"
    raise failure.error()


def work(task: dict[str, Any]) -> None:
    """One worker's part. An error that a restart cannot mend is left for the job to raise, once."""
    spec = RunSpec.model_validate_json(task["spec"])
    failure = read_failure("train", spec)
    if failure and not failure.transient:
        return
    try:
        with metered("train", spec, task["started_by"]):
            _work(spec, task)
    except Exception as error:
        if told := _told(error):
            workers = Workers()
            told.where = f"worker {workers.rank} of {workers.size}, {gethostname()}"
            save_failure("train", spec, told)
        raise


def _told(error: Exception) -> GenmodelsError | None:
    """The error for people; None if it comes from a worker, a machine or a wire that is gone, which the next start of
    the workers may mend."""
    if isinstance(error, GenmodelsError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return SpecError("The GPU has too little memory; raise training.accumulation, or take a smaller model.")
    if isinstance(error, OSError | DistError | torch.AcceleratorError) or "gloo" in str(error):
        return None
    what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return GenmodelsError(f"A fault of the program or of its settings: {what}; its traceback is in the worker's log.")


def load_trained(spec: RunSpec) -> GenerativeModel:
    """The trained model, in evaluation mode on the CPU.

    Raises:
        MissingObject: before it is trained.
        SpecError: if it was by other code, whose settings this one does not take.
    """
    model = _built(spec)
    model.load_state_dict(safetensors.torch.load(store().get(_weights_key(spec))))
    return model.eval()


def untrained(spec: RunSpec) -> GenerativeModel:
    """The model as it is before training, in evaluation mode on the CPU."""
    model = _built(spec).eval()
    model.prepare_evaluation()
    return model


def _built(spec: RunSpec) -> GenerativeModel:
    manifest, _ = open_dataset(spec.dataset_name, str(spec.dataset_digest))
    try:
        return build(spec.model, spec.config, _data_info(manifest), spec.seed)
    except ValidationError as error:
        names = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise SpecError(
            f"The run {spec.run_key[:8]} is of other code, and {spec.model} no longer takes its settings {names}; "
            "train it again."
        ) from None


def _work(spec: RunSpec, task: dict[str, Any]) -> None:
    workers = Workers()
    manifest, dataset = open_dataset(spec.dataset_name, str(spec.dataset_digest))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(spec.model, spec.config, _data_info(manifest), spec.seed).to(device)

    def batches(stage: Stage) -> Loader:
        order = {"seed": spec.seed, "balanced": spec.training.balanced_classes}
        place = {"rank": workers.rank, "size": workers.size, "device": device}
        return Loader(dataset, stage.inputs, stage.batch_images, **order, **place)

    engine = Engine(model, batches, training=spec.training, seed=spec.seed, workers=workers)
    checkpoints = Checkpoints(store(), task["folder"], spec.training.keep_checkpoints)
    tags = {**task["links"], "processor": _processor(device)}
    watch = Watch(spec, dataset, engine, tags) if workers.rank == 0 else None
    try:
        outcome = train_engine(engine, checkpoints, watch)
    except BaseException:
        if watch:
            watch.close("FAILED")
        raise
    if watch is None:
        return
    with engine.evaluating():
        weights = safetensors.torch.save({n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()})
    store().put(_weights_key(spec), weights)
    watch.close("FINISHED")
    report = TrainReport(
        run_key=spec.run_key,
        weights_uri=store().uri(_weights_key(spec)),
        weights_digest=hashlib.sha256(weights).hexdigest(),
        images_shown=engine.position.images,
        updates=engine.update_counts,
        losses=watch.losses,
        images_per_second=engine.position.images / outcome.seconds,
        seconds=outcome.seconds,
        startup_seconds=(outcome.first_step_time or datetime.now(UTC)).timestamp() - task["started"],
        first_step_time=outcome.first_step_time,
        restarts=outcome.restarts,
        rollbacks=engine.position.rollbacks,
        mlflow_run_id=watch.run_id,
        alarms=list(outcome.alarms),
        guards=dict(outcome.values),
        objections=list(outcome.beyond),
    )
    save_report("train", spec, report)


def _processor(device: torch.device) -> str:
    """Of what kind it is: another kind rounds otherwise, and the same run then ends with other weights."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        facts = dict(re.findall(r"^([\w ]+?)\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
        return "{model name} (family {cpu family}, model {model}, stepping {stepping})".format(**facts)
    except (OSError, KeyError):  # not Linux, or not x86
        return platform.processor() or platform.machine()


class Watch:
    """What the first worker tells others: progress for whoever follows, metrics and grids for MLflow.

    Nothing here makes training wait for a server: the run is opened and pictures are stored in the background.
    """

    def __init__(self, spec: RunSpec, dataset: Dataset, engine: Engine, tags: Mapping[str, str]):
        self.spec, self.losses = spec, dict[str, float]()
        self._dataset = dataset
        self._progress = ProgressWriter(progress_key("train", spec))
        self._latest: Progress | None = None
        self._alarms: list[Alarm] = []
        self._background = ThreadPoolExecutor(1, thread_name_prefix="watch")
        counts = {
            name: sum(p.numel() for p in network.parameters()) for name, network in engine.model.networks().items()
        }
        opening = partial(open_run, spec, tags=tags, parameters=counts)
        self._queue = MetricsQueue(opening, queue_folder(spec), prefix=queue_prefix(spec))

    @property
    def run_id(self) -> str | None:
        """The MLflow run's, if MLflow has answered."""
        return self._queue.run_id

    def progress(self, engine: Engine, losses: Mapping[str, float], images_per_second: float) -> None:
        """To the object store for the one who follows, and to MLflow."""
        self.losses.update(losses)
        resolution = engine.stage.resolution
        self._latest = Progress(
            step="train",
            stage=engine.stage.name,
            done=engine.position.images,
            total=engine.total_images,
            per_second=images_per_second,
            values=self.losses,
            message="" if f"{resolution}x" in engine.stage.name else f"{resolution}x{resolution}",
            alarms=self._alarms,
        )
        self._progress(self._latest)
        rates = {
            "train/images_per_second": images_per_second,
            "train/stage": float(engine.position.stage),
            "train/workers": float(engine.workers.size),
        }
        values = {name if name.startswith(NORM) else f"loss/{name}": value for name, value in losses.items()}
        self._queue.log(values | rates, engine.position.images)

    def looked(self, engine: Engine, values: Mapping[str, float], alarms: Sequence[Alarm]) -> None:
        """To MLflow; alarms go with the progress to the one who follows."""
        self._queue.log({f"guard/{name}": value for name, value in values.items()}, engine.position.images)
        self._alarms = list(alarms)
        latest = self._latest or Progress(step="train", done=engine.position.images, total=engine.total_images)
        self._latest = latest.model_copy(update={"alarms": self._alarms})

    def samples(self, engine: Engine) -> None:
        """A grid from the same latents, or of the same held-out images, every time."""
        with engine.previewing() as model:
            sheet = _sheet(model, self._held_out(engine, SHEET_COLUMNS**2 // 2))
        images = engine.position.images
        self._queue.image("samples", sheet, images)
        self._background.submit(self._store_grid, sheet, images)

    def score(self, engine: Engine) -> float | None:
        """Sliced Wasserstein distance of a few images to held-out ones: of translations with their colours, of points
        where they lie. Meanwhile all workers wait for this one."""
        generator = torch.Generator().manual_seed(0)
        room = SCORED_VALUES // (engine.model.data.channels * engine.stage.resolution**2)
        count = min(max(FEWEST_SCORED, engine.total_images // SHOWN_BY_SCORED), MOST_SCORED, room)
        scores = []
        with engine.previewing() as model:
            for real, made in _made(model, self._held_out(engine, count)):
                sets = real[: len(made)].cpu(), made.cpu()
                absolute = isinstance(model, Translates) or is_points(real.shape[-1])
                distances = sliced_wasserstein(*sets, absolute=absolute, generator=generator, replicates=0)
                scores.append(mean(list(distances.values())).value)
        return sum(scores) / len(scores) if scores else None

    def close(self, status: RunStatus) -> None:
        """Delivers what is on its way."""
        self._background.shutdown(wait=True)
        self._progress.close(self._latest)
        self._queue.close(status)

    def _store_grid(self, sheet: np.ndarray, images: int) -> None:
        png = io.BytesIO()
        Image.fromarray(sheet.squeeze()).save(png, "PNG")
        key = f"{folder('train', self.spec)}/samples/{images:012d}.png"
        try:
            store().put(key, png.getvalue(), content_type="image/png")
        except GenmodelsError as error:
            log.warning("The samples after %s images are in MLflow alone: %s", f"{images:,}", error)

    def _held_out(self, engine: Engine, count: int) -> dict[str, torch.Tensor]:
        """The first held-out images by domain, at the present resolution, in [-1, 1]; the only domain of an image set
        is ''."""
        column = f"image@{engine.stage.resolution}"
        tables = {d: self._dataset.table("test", d or None) for d in getattr(engine.model, "domains", ("",))}
        rows = {domain: np.arange(min(count, table.rows)) for domain, table in tables.items()}
        images = {domain: torch.from_numpy(table.read(column, rows[domain])) for domain, table in tables.items()}
        return {domain: scaled(value.to(engine.device)) for domain, value in images.items()}


def _made(model: GenerativeModel, held_out: Mapping[str, torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Held-out images, and what the model makes that should look like them."""
    if isinstance(model, Samples):
        real = held_out[""]
        generator = torch.Generator(real.device).manual_seed(0)
        yield real, model.sample(len(real), generator=generator)
    elif isinstance(model, Translates):
        for source, target in permutations(model.domains, 2):
            sources = held_out[source][: len(held_out[target])]
            yield held_out[target], model.translate(sources, target)
    elif isinstance(model, Encodes):
        real = held_out[""]
        yield real, model.decode(model.encode(real))


def _sheet(model: GenerativeModel, held_out: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Samples from fixed latents; or held-out images, each row above their translations or reconstructions."""
    [resolution] = {images.shape[-1] for images in held_out.values()}
    columns = sheet_columns(resolution)
    if isinstance(model, Samples):
        generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
        images = model.sample(samples_shown(resolution), generator=generator)
    elif isinstance(model, Translates):
        rows = []
        for source, target in permutations(model.domains, 2):
            sources = held_out[source][:columns]
            rows += [sources, model.translate(sources, target)]
        images = torch.cat(rows)
    else:
        assert isinstance(model, Encodes)
        rows = held_out[""][: columns**2 // 2].split(columns)
        images = torch.cat([torch.cat((row, model.decode(model.encode(row)))) for row in rows])
    return grid(as_stored(images).permute(0, 2, 3, 1).cpu().numpy(), columns)


def _weights_key(spec: RunSpec) -> str:
    return f"{folder('train', spec)}/weights.safetensors"


def _data_info(manifest: Manifest) -> DataInfo:
    return DataInfo(channels=manifest.channels, classes=manifest.classes)
