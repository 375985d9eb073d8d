"""What Prefect, Ray, MLflow and S3 cost a training: the flow's against the bare engine's on the same data, in turns.

    genmodels up && python tests/benchmarks/stack_overhead.py [ROUNDS]

Both train Progressive GAN on the digits, with one worker and all cores. Prints the seconds that each trained, their
ratio in each round, and the seconds that the flow took before its first optimiser step.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from genmodels.data.loader import Loader
from genmodels.data.manifest import open_dataset
from genmodels.models import build
from genmodels.models.base import DataInfo
from genmodels.spec import RunSpec, TrainReport
from genmodels.steps.prepare import prepare
from genmodels.steps.reports import load_report
from genmodels.steps.resolve import resolve
from genmodels.training.engine import Engine
from genmodels.training.loop import train

MODEL, DATASET = "progressive_gan", "digits"


def main(rounds: int) -> None:
    ratios = []
    for _ in range(rounds):
        spec = resolve(MODEL, DATASET, seed=int.from_bytes(os.urandom(3)))  # one that the stack has not trained yet
        spec = spec.with_dataset(prepare(spec).dataset_digest)
        engine, (stack, startup) = engine_seconds(spec), stack_seconds(spec)
        ratios.append(stack / engine)
        print(f"engine {engine:.1f} s · stack {stack:.1f} s · {ratios[-1]:.3f} · first step after {startup:.1f} s")
    print(f"stack / engine = {statistics.median(ratios):.3f} (median of {rounds} rounds)")


def engine_seconds(spec: RunSpec) -> float:
    manifest, dataset = open_dataset(spec.dataset_name, str(spec.dataset_digest))
    model = build(spec.model, spec.config, DataInfo(manifest.channels, manifest.classes), spec.seed)
    engine = Engine(
        model,
        lambda stage: Loader(dataset, stage.inputs, stage.batch_images, seed=spec.seed),
        training=spec.training,
        seed=spec.seed,
    )
    started = time.perf_counter()
    train(engine)
    return time.perf_counter() - started


def stack_seconds(spec: RunSpec) -> tuple[float, float]:
    command = [
        "genmodels",
        "retrain",
        MODEL,
        "--dataset",
        DATASET,
        "--seed",
        str(spec.seed),
        "--workers",
        "1",
        "--json",
    ]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
    report = load_report("train", spec, TrainReport)
    assert report
    return report.seconds, json.loads(answer.stdout.splitlines()[-1])["startup_seconds"]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
