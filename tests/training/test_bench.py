"""What `bench` counts, and what it says that an algorithm cannot do without."""

from typing import Any

import pytest

from genmodels.errors import DivergedError
from genmodels.models import build
from genmodels.models.base import DataInfo
from genmodels.spec import TrainingSpec
from genmodels.training.bench import BenchReport, bench
from genmodels.training.engine import Engine

LABELLED = {"resolution": 8, "latent": 8, "batch_images": 4, "discriminator_steps": 1}
PIXELS = {"resolution": 4, "features": 6, "layers": 1, "head_features": 6, "batch_images": 2}
SMALL: dict[str, dict[str, Any]] = {
    "biggan": LABELLED | {"channels": 8, "embedding": 8},
    "conditional_gan": LABELLED | {"channels": 4},
    "cyclegan": {"resolution": 16, "generator_channels": 4, "residual_blocks": 1, "discriminator_channels": 4}
    | {"discriminator_layers": 1, "batch_images": 2},
    "dcgan": {"resolution": 8, "coarsest": 2, "generator_channels": 4, "discriminator_channels": 4, "batch_images": 4},
    "flow": {"resolution": 8, "scales": 2, "steps": 1, "hidden_channels": 8, "batch_images": 4},
    "gan": {"resolution": 4, "latent": 8, "generator_units": 16, "discriminator_units": 8, "batch_images": 4},
    "infogan": {"resolution": 8, "hidden_units": 16, "channels": 4, "recognition_units": 8, "batch_images": 4},
    "pixelcnn": PIXELS,
    "pixelrnn": PIXELS,
    "progressive_gan": {"resolution": 8, "latent": 8, "fmap_base": 64, "fmap_max": 16, "batch_images": 4},
    "sagan": LABELLED | {"channels": 8},
    "sngan": LABELLED | {"generator_channels": 4, "discriminator_channels": 4},
}


def benched(name: str, **config: Any) -> BenchReport:
    return bench(name, build(name, SMALL[name] | config, DataInfo(channels=3, classes=4), seed=0), steps=1)


PENALISED = ("cyclegan", "dcgan", "gan", "progressive_gan", "sngan")


@pytest.mark.parametrize(
    ("name", "config"), [(n, {}) for n in SMALL] + [(n, {"adversarial_loss": "wgan_gp"}) for n in PENALISED]
)
def test_what_was_counted_is_never_less_than_the_least(name: str, config: dict[str, Any]):
    report = benched(name, **config)
    assert report.least_flops_per_image is not None
    assert 0 < report.least_flops_per_image <= report.flops_per_image


def test_a_precision_changes_no_count():
    """InfoGAN's Q is a part of the discriminator whose passes are counted alone, and which is given bf16."""
    model = build("infogan", SMALL["infogan"], DataInfo(channels=3), seed=0)
    bf16, fp32 = (bench("infogan", model, steps=1, training=TrainingSpec(precision=p)) for p in ("bf16", "fp32"))
    assert bf16.flops_per_image == fp32.flops_per_image
    assert bf16.least_flops_per_image == fp32.least_flops_per_image


def test_losses_are_told_and_have_to_be_finite():
    losses = benched("gan").losses
    assert 0 < losses["discriminator/loss"] < 3, "2 ln 2 of one that cannot tell"
    with pytest.raises(DivergedError, match="update's 'adversarial' is not finite"):
        benched("gan", discriminator_learning_rate=1e38)


@pytest.mark.parametrize("steps", [1, 4])
def test_dense_networks_do_no_more_than_the_least(steps: int):
    """A layer of m x n weights takes 2mn FLOPs forward and as many towards its weights and its input. The first layer's
    input is asked for in the generator's update of the discriminator alone: 8-16-16-48 against 48-40, 8-40, 8-1."""
    report = benched("gan", discriminator_steps=steps)
    generator, discriminator = 2 * (8 * 16 + 16 * 16 + 16 * 48), 2 * (48 * 40 + 8 * 40 + 8)
    judging = 2 * (3 * discriminator - 2 * 48 * 40) + 2 * discriminator / steps
    making = generator + (2 * generator - 2 * 8 * 16) / steps
    assert report.least_flops_per_image == report.flops_per_image == judging + making


@pytest.mark.parametrize(
    ("penalty", "interval"),
    [
        ({"r1_gamma": 1.0}, "r1_interval_steps"),
        ({"r2_gamma": 1.0}, "r1_interval_steps"),
        ({"adversarial_loss": "wgan_lp"}, "gradient_penalty_interval_steps"),
    ],
)
def test_a_lazy_penalty_takes_its_share_of_a_step(penalty: dict[str, Any], interval: str):
    config = {"adversarial_loss": "wgan", "discriminator_steps": 2} | penalty
    never = benched("dcgan", adversarial_loss="wgan", discriminator_steps=2)
    always, lazy = (benched("dcgan", **config, **{interval: steps}) for steps in (1, 3))
    for name in ("flops_per_image", "least_flops_per_image"):
        without, each, some = (getattr(report, name) for report in (never, always, lazy))
        assert some == pytest.approx(without + (each - without) / 3)


def test_blocks_are_timed_in_whole_intervals(monkeypatch):
    """Of six steps, where a step of four images takes a second; a penalty that is off has none."""
    seen = []

    def seconds(engine: Engine, steps: int) -> float:
        seen.append(steps)
        for _ in range(steps):
            engine.step()
        return float(steps)

    monkeypatch.setattr("genmodels.training.bench._seconds", seconds)
    settings = {"discriminator_steps": 2, "r1_interval_steps": 3, "gradient_penalty_interval_steps": 5}
    report = bench(
        "gan", build("gan", SMALL["gan"] | settings | {"r1_gamma": 1.0}, DataInfo(channels=3), seed=0), steps=7
    )
    assert set(seen) == {12}
    assert report.images_per_second == 4
    bench("gan", build("gan", SMALL["gan"] | settings, DataInfo(channels=3), seed=0), steps=7)
    assert set(seen) == {12, 8}
