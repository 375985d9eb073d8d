"""What each guard measures in small trainings that go well and in some that are made to fail: where thresholds lie.

    PYTHONPATH=tests:tests/training python tests/benchmarks/guards.py [--seeds 6]

Prints the lowest and the highest value over the seeds that would have raised an alarm: the largest that was reached at
as many looks in a row as the guard asks for, after the warm-up; and, where the gate of promotion asks for it, the value
at the end.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from test_guards import small_engine

from genmodels.errors import DivergedError
from genmodels.spec import Alarm, GuardsSpec
from genmodels.tracking.promotion import COLLAPSED
from genmodels.training.engine import Engine
from genmodels.training.guards import GUARDS
from genmodels.training.loop import train

KINDS: dict[str, dict[str, Any]] = {
    "healthy, non-saturating": {},
    "healthy, hinge": {"adversarial_loss": "hinge"},
    "healthy, WGAN-GP": {"adversarial_loss": "wgan_gp", "r1_gamma": 0.0},
    "healthy, latent of two dimensions": {"latent": 2},
    "latent of one dimension": {"latent": 1},
    "discriminator 100 times as fast": {"discriminator_learning_rate": 0.1},
    "generator 100 times as fast": {"generator_learning_rate": 0.2},
    "both 100 times as fast": {"discriminator_learning_rate": 0.1, "generator_learning_rate": 0.2},
    "both 100 times as fast, with momentum": {
        "discriminator_learning_rate": 0.1,
        "generator_learning_rate": 0.2,
        "adam_betas": (0.95, 0.999),
    },
    "critic without a bound": {"adversarial_loss": "wgan", "weight_clip": 1e6, "r1_gamma": 0.0},
    "critic without a bound, 100 times as fast": {
        "adversarial_loss": "wgan",
        "weight_clip": 1e6,
        "r1_gamma": 0.0,
        "discriminator_learning_rate": 0.1,
    },
}


class Looks:
    """An observer that keeps what guards measured after the warm-up."""

    def __init__(self, spec: GuardsSpec):
        self.warm_up = spec.warm_up
        self.values: dict[str, list[float]] = defaultdict(list)

    def looked(self, engine: Engine, values: Mapping[str, float], alarms: Sequence[Alarm]) -> None:
        if engine.position.images_in_stage >= self.warm_up * engine.stages[0].images or engine.finished:
            for name, value in values.items():
                self.values[name].append(value)

    def progress(self, engine: Engine, losses: Mapping[str, float], images_per_second: float) -> None: ...

    def samples(self, engine: Engine) -> None: ...

    def score(self, engine: Engine) -> float | None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    seeds = parser.parse_args().seeds
    usual = GuardsSpec().model_dump()
    out_of_reach = {guard.name: usual[guard.name] | {"action": "warn", "threshold": 1e300} for guard in GUARDS}
    guards = GuardsSpec.model_validate(out_of_reach | {"look_images": 480})
    table = Table("training", *(guard.name for guard in GUARDS), *(f"{name}, end" for name in COLLAPSED), "not finite")
    thresholds = [f"{usual[guard.name]['threshold']:g}, {usual[guard.name]['looks']} looks" for guard in GUARDS]
    table.add_row("threshold", *thresholds, *(f"{limit:g}" for limit, _ in COLLAPSED.values()), end_section=True)
    for kind, changes in KINDS.items():
        reached: dict[str, list[float]] = defaultdict(list)
        not_finite = 0
        for seed in track(range(seeds), kind, console=Console(stderr=True)):
            seen = Looks(guards)
            try:
                train(small_engine(seed, guards, **changes), observer=seen)
            except DivergedError:
                not_finite += 1
            for guard in GUARDS:
                reached[guard.name].append(sustained(seen.values[guard.name], usual[guard.name]["looks"]))
            for name in COLLAPSED:
                reached[f"{name}, end"].append(sustained(seen.values[name][-1:], 1))
        table.add_row(kind, *map(span, reached.values()), f"{not_finite} of {seeds}")
    Console(width=250).print(table)


def sustained(values: Sequence[float], looks: int) -> float:
    """The largest value that so many looks in a row are not below; NaN if there were too few."""
    windows = zip(*(values[start:] for start in range(looks)), strict=False)
    return max((min(window) for window in windows), default=math.nan)


def span(values: Sequence[float]) -> str:
    """The lowest and the highest; nothing where nothing was measured."""
    known = [value for value in values if not math.isnan(value)]
    return f"{min(known):.3g} to {max(known):.3g}" if known else ""


if __name__ == "__main__":
    main()
