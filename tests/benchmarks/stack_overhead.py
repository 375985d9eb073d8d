"""What Prefect, Ray, MLflow and S3 cost a training: the flow's beside the bare engine's on the same data.

    genmodels up && python tests/benchmarks/stack_overhead.py [--rounds 3] [--dataset digits] [--workers 2] [--set …]

Both train Progressive GAN, the engine in as many processes as the flow has workers, in turns of a few seconds: while
one trains, all processes of the other are stopped, so that a machine that is slower at some times than at others is so
to both. The servers run beside both; where training leaves them no processor, they stop it whenever they work. The
workers have all processors, unless `--set training.cpus_per_worker=1` leaves some to the servers. Prints the seconds
that each trained, their ratio in each round, and the seconds that the flow took before its first optimiser step.
"""

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing.synchronize import Barrier, Event
from tempfile import TemporaryDirectory

import psutil
import torch
import torch.distributed as dist

from genmodels.data.loader import Loader
from genmodels.data.manifest import open_dataset
from genmodels.models import build
from genmodels.models.base import DataInfo
from genmodels.spec import RunSpec, TrainReport
from genmodels.steps.prepare import prepare
from genmodels.steps.reports import load_report, read_progress
from genmodels.steps.resolve import resolve
from genmodels.training.engine import Engine
from genmodels.training.loop import train
from genmodels.training.workers import Workers

MODEL = "progressive_gan"
TURN_SECONDS = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    settings = [f"training.cpus_per_worker={(os.cpu_count() or 1) // arguments.workers}", *arguments.set]
    ratios = []
    for _ in range(arguments.rounds):
        seed = int.from_bytes(os.urandom(3))  # one that the stack has not trained yet
        spec = resolve(MODEL, arguments.dataset, overrides=settings, workers=arguments.workers, seed=seed)
        spec = spec.with_dataset(prepare(spec).dataset_digest)
        command = f"genmodels retrain {MODEL} --dataset {spec.dataset} --seed {seed} --workers {spec.workers} --json"
        given = [f"--set={setting}" for setting in settings]
        with TemporaryDirectory() as folder:
            stack, engine, startup = in_turns(spec, [*command.split(), *given], f"file://{folder}/rendezvous")
        ratios.append(stack / engine)
        print(f"engine {engine:.1f} s · stack {stack:.1f} s · {ratios[-1]:.3f} · first step after {startup:.1f} s")
    print(f"stack / engine = {statistics.median(ratios):.3f} (median of {arguments.rounds} rounds)")


def in_turns(spec: RunSpec, command: Sequence[str], rendezvous: str) -> tuple[float, float, float]:
    """Seconds that the flow's training and the engine's took, each without those in which it was stopped; and those
    from the command to the flow's first step."""
    spawning = multiprocessing.get_context("spawn")
    ready, go = spawning.Barrier(spec.workers + 1), spawning.Event()
    engines = [
        spawning.Process(target=bare, args=(spec, rank, rendezvous, ready, go), daemon=True)
        for rank in range(spec.workers)
    ]
    for engine in engines:
        engine.start()
    ready.wait()
    engine_pids = [engine.pid for engine in engines]
    there_before = set(psutil.pids())
    flow = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while not ((progress := read_progress("train", spec)) and progress.done):
        time.sleep(0.2)
    go.set()
    engine_seconds, flow_stopped = 0.0, 0.0
    while engines[0].is_alive():
        report = load_report("train", spec, TrainReport)
        others = processes_of_the_flow(there_before)
        signal_all(signal.SIGSTOP, others)
        signal_all(signal.SIGCONT, engine_pids)
        started = time.monotonic()
        engines[0].join(None if report else TURN_SECONDS)
        engine_seconds += time.monotonic() - started
        signal_all(signal.SIGSTOP, engine_pids)
        signal_all(signal.SIGCONT, others)
        flow_stopped += 0.0 if report else time.monotonic() - started
        time.sleep(TURN_SECONDS)
    signal_all(signal.SIGCONT, engine_pids)
    answer = json.loads(flow.communicate()[0].splitlines()[-1])
    report = load_report("train", spec, TrainReport)
    assert report
    return report.seconds - flow_stopped, engine_seconds, answer["startup_seconds"]


def bare(spec: RunSpec, rank: int, rendezvous: str, ready: Barrier, go: Event) -> None:
    """The engine alone, in one process of its group, from `go` on."""
    torch.set_num_threads(spec.training.cpus_per_worker or 1)
    if spec.workers > 1:
        dist.init_process_group("gloo", rank=rank, world_size=spec.workers, init_method=rendezvous)
    place = {"rank": rank, "size": spec.workers}
    manifest, dataset = open_dataset(spec.dataset_name, str(spec.dataset_digest))
    model = build(spec.model, spec.config, DataInfo(manifest.channels, manifest.classes), spec.seed)
    engine = Engine(
        model,
        lambda stage: Loader(dataset, stage.inputs, stage.batch_images, seed=spec.seed, **place),
        training=spec.training,
        seed=spec.seed,
        workers=Workers(),
    )
    ready.wait()
    go.wait()
    train(engine)


def processes_of_the_flow(there_before: set[int]) -> set[int]:
    """All that were started since, in Ray too; kernel threads have no command line."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        if process.pid not in there_before and process.info["cmdline"]:
            found.add(process.pid)
    return found


def signal_all(number: signal.Signals, pids: Iterable[int | None]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid or 0, number)


if __name__ == "__main__":
    main()
