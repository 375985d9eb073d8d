"""What a run costs beside its training, on a warm stack of its own whose servers stand behind counting lines.

    PYTHONPATH=tests:tests/faults python tests/benchmarks/operations.py [--minutes 10]

Prints, for Progressive GAN on the digits with two workers:
- the seconds from the command to the first optimiser step, and the share of a run of so many minutes that is none of
  its training;
- the requests that Prefect, MLflow and S3 get in each minute of training, at two batch sizes: at the same images/s the
  smaller one makes several times as many steps;
- the seconds of the same command again, when all steps are done.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from private_stack import PrivateStack
from rich.console import Console
from rich.table import Table

from genmodels.spec import TrainReport
from genmodels.steps.reports import load_report
from genmodels.steps.resolve import resolve

MODEL, DATASET, WORKERS, AGAIN = "progressive_gan", "digits", 2, 3
BATCHES = (16, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes = parser.parse_args().minutes
    private = PrivateStack(Path(tempfile.mkdtemp(prefix="genmodels-operations-")))
    say = Console(stderr=True).log
    try:
        private.up()
        say("a short run, after which the stack is warm and the speed of training is known")
        first = Run(private, seed=1)
        table = Table("batch", "steps/s", "Prefect", "MLflow", "S3", title="requests a minute while it trains")
        for batch in BATCHES:
            say(f"a run with a batch of {batch}")
            run = Run(private, f"batch_images={batch}", seed=2)
            requests = [f"{60 * count / run.training:.0f}" for count in run.requests]
            table.add_row(str(batch), f"{run.steps / run.training:.1f}", *requests)
        images = round(first.images_per_second * minutes * 60)
        say(f"a run of {images:,} images in its last stage")
        long = Run(private, f"final_images={images}", seed=3)
        say("the same again")
        again = [f"{Run(private, f'final_images={images}', seed=3).seconds:.1f}" for _ in range(AGAIN)]
    finally:
        private.close()
        shutil.rmtree(private.home, ignore_errors=True)
    console = Console()
    console.print(table)
    share = 1 - long.training / long.seconds
    console.print(
        f"first step after {long.startup:.1f} s; {share:.1%} of {long.seconds / 60:.1f} minutes are no training"
    )
    console.print(f"the same again: {', '.join(again)} s")


class Run:
    """`genmodels retrain` to its end, and what came to the servers from its first step to the end of its training.

    Attributes:
        seconds: from the command to its end.
        startup: of these, those before the first optimiser step.
        training: from that step to the last one.
        steps: of the optimisers.
        requests: to Prefect, MLflow and S3, while it trained.
    """

    def __init__(self, private: PrivateStack, *overrides: str, seed: int):
        command = [sys.executable, "-m", "genmodels", "retrain", MODEL, "--dataset", DATASET, "--json"]
        command += ["--seed", str(seed), "--workers", str(WORKERS)]
        command += [part for override in overrides for part in ("--set", override)]
        lines = private.prefect, private.mlflow, private.s3
        counts: list[tuple[float, list[int]]] = []
        started = time.time()
        flow = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        while flow.poll() is None:
            counts.append((time.time(), [line.requests for line in lines]))
            time.sleep(0.1)
        self.seconds = time.time() - started
        assert flow.stdout
        outcome = json.loads(flow.stdout.read().splitlines()[-1])
        spec = resolve(MODEL, DATASET, overrides=overrides, seed=seed, workers=WORKERS)
        report = load_report("train", spec.with_dataset(outcome["dataset_digest"]), TrainReport)
        assert report
        assert report.first_step_time
        first_step = report.first_step_time.timestamp()
        self.startup, self.training = first_step - started, report.seconds
        self.steps = max(report.updates.values())
        self.images_per_second = report.images_per_second
        trained = [count for moment, count in counts if first_step <= moment <= first_step + report.seconds]
        self.requests = (
            [after - before for before, after in zip(trained[0], trained[-1], strict=True)] if trained else []
        )


if __name__ == "__main__":
    main()
