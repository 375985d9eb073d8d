"""Guards: what each measures where the answer is known, how often they err on real trainings, and what is done then."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from toy import Toy, engine, flat

from genmodels.data.catalogue import CATALOGUE
from genmodels.data.dataset import Dataset
from genmodels.data.loader import Loader
from genmodels.errors import DivergedError
from genmodels.models import conditional_gan, cyclegan, gan
from genmodels.models.adversarial_autoencoder import AdversarialAutoencoder
from genmodels.models.base import DataInfo, GenerativeModel, scaled
from genmodels.nn.normalization import BatchNorm
from genmodels.spec import Alarm, GuardSpec, GuardsSpec, TrainingSpec
from genmodels.storage.objects import store
from genmodels.tracking.promotion import COLLAPSED, collapse
from genmodels.tracking.registry import ModelVersion
from genmodels.training.checkpoints import Checkpoints
from genmodels.training.engine import Engine
from genmodels.training.guards import (
    GUARDS,
    Divergence,
    GradientNorm,
    Look,
    LossAtFloor,
    LostClasses,
    LowDiversity,
    ModeCollapse,
    Oscillation,
    StrongDiscriminator,
    nearest_neighbour_distance,
)
from genmodels.training.looks import Guards, first_of_each, shown
from genmodels.training.loop import Outcome, train
from genmodels.training.workers import Workers

SPEC = GuardSpec(action="warn", threshold=1.0)
BUDGET: dict[str, Any] = {
    "resolution": 8,
    "latent": 16,
    "batch_images": 64,
    "images": 19_200,
    "generator_learning_rate": 2e-3,
    "discriminator_learning_rate": 1e-3,
    "r1_gamma": 1.0,
    "r1_interval_steps": 4,
    "ema_half_life_images": 1_000,
}
CODER: dict[str, Any] = {
    "resolution": 8,
    "latent": 2,
    "hidden": (64, 64),
    "discriminator_hidden": (64, 64),
    "adversarial_learning_rate": 1e-3,
    "batch_images": 64,
    "images": 64_000,
}


class Generator(nn.Sequential):
    def __init__(self, config: gan.GameConfig, channels: int):
        hidden = [nn.Linear(config.latent, 64), BatchNorm(64), nn.ReLU(), nn.Linear(64, 64), BatchNorm(64), nn.ReLU()]
        super().__init__(*hidden, nn.Linear(64, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))


class Discriminator(nn.Sequential):
    def __init__(self, config: gan.GameConfig, channels: int):
        hidden = nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 64), nn.LeakyReLU(0.2)
        super().__init__(nn.Flatten(), *hidden, nn.Linear(64, 1), nn.Flatten(0))


class SmallGAN(gan.GAN):
    """The game of `gan` with players that learn digits in a second."""

    Generator, Discriminator = Generator, Discriminator

    def judge(self, images: Tensor, context: Any) -> Tensor:
        return self.discriminator(images)


@cache
def digits() -> Dataset:
    with CATALOGUE["digits"].examples(lambda done, total: None) as examples:
        found = [(example.content, example.label) for example in examples.read() if example.table == "train"]
    pixels, labels = map(np.stack, zip(*found, strict=True))
    return Dataset.from_arrays({"train": {"image@8": pixels[:, None], "label": labels}})


def small_engine(
    seed: int = 0,
    guards: GuardsSpec | None = None,
    training: Any = None,
    model: type[GenerativeModel] = SmallGAN,
    budget: Mapping[str, Any] = BUDGET,
    **changes: Any,
) -> Engine:
    workers = Workers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = model(model.Config.model_validate({**budget, **changes}), DataInfo(channels=1, classes=10))
    place = {"seed": seed, "rank": workers.rank, "size": workers.size}
    return Engine(
        made,
        lambda stage: Loader(digits(), stage.inputs, stage.batch_images, **place),
        training=TrainingSpec(guards=guards or warning(), **(training or {})),
        seed=seed,
        workers=workers,
    )


def warning(look_images: int = 960, **changes: Mapping[str, Any]) -> GuardsSpec:
    """Guards with their own thresholds that do nothing about alarms but warn, apart from what is changed."""
    settings = GuardsSpec().model_dump() | {"look_images": look_images}
    for guard in GUARDS:
        if guard is not Divergence:
            settings[guard.name] |= {"action": "warn"}
        settings[guard.name] |= dict(changes.get(guard.name, {}))
    return GuardsSpec.model_validate(settings)


def pixels(*values: float) -> Tensor:
    """One image of one pixel for each value."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def test_mode_collapse_compares_the_distances_of_nearest_neighbours():
    """Real ones lie 1 apart; made ones a tenth of that, in one place, or in two places far from each other."""
    guard, real = ModeCollapse(SPEC), pixels(0, 1, 2, 3)
    for made, value in ((real + 7, 1.0), (real / 10, 10.0), (pixels(5, 5, 5, 5), 1e6), (pixels(0, 0, 9, 9), 1e6)):
        assert guard.measure(Look({}, [(real, made)])) == pytest.approx(value)
    assert guard.measure(Look({}, [(real, real), (real, real / 4)])) == pytest.approx(4.0), (
        "the worst of two directions"
    )
    assert guard.measure(Look({}, [(real, real / 10)], reconstructed=real / 5 + 7)) == pytest.approx(2.0)
    assert guard.measure(Look({})) is None


def test_low_diversity_compares_how_much_pairs_differ():
    """Of flat images of luminances 1, 2/3, 1/3 and 0 beside each other, and of their like in half the contrast; the
    similarity of two flat images is that of their luminances (Wang et al. 2003), as C1 is small."""

    def flat(*luminances: float) -> Tensor:
        return (2 * torch.tensor(luminances).view(-1, 1, 1, 1) - 1).expand(-1, 1, 8, 8)

    def unlike(*luminances: float) -> float:
        pairs = zip(luminances, [luminances[-1], *luminances[:-1]], strict=True)
        return 1 - fmean((2 * a * b + 1e-4) / (a * a + b * b + 1e-4) for a, b in pairs)

    guard, real, made = LowDiversity(SPEC), (1.0, 2 / 3, 1 / 3, 0.0), (0.75, 2 / 3, 1 / 3, 0.25)
    expected = unlike(*real) / unlike(*made)
    assert expected > 1.2
    assert guard.measure(Look({}, [(flat(*real), flat(*made))])) == pytest.approx(expected, rel=1e-3)
    assert guard.measure(Look({}, [(flat(*real), flat(*real)), (flat(*real), flat(*made))])) == pytest.approx(
        expected, rel=1e-3
    ), "the worst of two directions"
    collapsed = guard.measure(Look({}, [(flat(*real), flat(0.5, 0.5, 0.5, 0.5))]))
    assert collapsed is not None and collapsed > 1e4
    assert guard.measure(Look({})) is None
    assert guard.measure(Look({}, [(pixels(*real), pixels(*made))])) is None, "points have no structure"


def test_lost_classes_compares_the_entropies_of_the_classes_of_the_nearest_real_images():
    """Four classes, equally often; the made ones are near all of them, near two, and near two unequally; the real ones
    near all of them, and near two."""
    guard, others, labels = LostClasses(SPEC), pixels(0, 1, 2, 3), torch.tensor([7, 5, 2, 0])
    unequal = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    for made, entropy in (
        ((3.1, 2.2, 1.3, 0.4), math.log(4)),
        ((0, 0.1, 1, 1.1), math.log(2)),
        ((0, 0, 0, 1), unequal),
    ):
        for real, entropy_real in (
            (pixels(0.2, 0.8, 2.2, 2.8), math.log(4)),
            (pixels(0.2, 0.8, 0.1, 0.9), math.log(2)),
        ):
            look = Look({}, [(real, pixels(*made))], (others, labels))
            assert guard.measure(look) == pytest.approx(entropy_real - entropy)
    one = guard.measure(Look({}, [(others, pixels(9, 8, 7, 6))], (others, labels)))
    assert one == pytest.approx(math.log(4)), "all of one class"
    assert guard.measure(Look({}, [(others, others)])) is None, "without labels"


def test_lost_classes_counts_a_thousand_modes():
    """Three digits beside each other, as a number. For 2,000 pictures of 100 of them it would be ln(1000 / 100), 2.3,
    if the nearest of 16 pictures of each number were always of the same."""
    table, generator = digits().table("train"), torch.Generator().manual_seed(0)
    images, labels = (torch.from_numpy(table.columns[name][0]) for name in ("image@8", "label"))
    of_digit = [scaled(images[labels == digit, 0]) for digit in range(10)]

    def stacks(count: int, numbers: int) -> tuple[Tensor, Tensor]:
        """Pictures (count, 3, 8, 8) of equally many of each of the first so many numbers, and these."""
        wanted = torch.arange(count) % numbers
        drawn = torch.rand(count, 3, generator=generator).tolist()
        channels = [
            torch.stack(
                [
                    of_digit[int(d)][int(share * len(of_digit[int(d)]))]
                    for d, share in zip(f"{number:03}", shares, strict=True)
                ]
            )
            for number, shares in zip(wanted.tolist(), drawn, strict=True)
        ]
        return torch.stack(channels), wanted

    others, (real, _), (few, _) = stacks(16_000, 1_000), stacks(2_000, 1_000), stacks(2_000, 100)
    again, _ = stacks(2_000, 1_000)
    guard = LostClasses(SPEC)
    assert guard.measure(Look({}, [(real, again)], others)) == pytest.approx(0.0, abs=0.05)
    missing = guard.measure(Look({}, [(real, few)], others))
    assert missing is not None and 1.7 < missing < 2.3


def test_oscillation_is_the_way_that_leads_nowhere():
    """Real pixels are 0 or 2, so their standard deviation is 1; the mean of the made ones goes four steps."""
    real = pixels(0, 2)

    def value(*means: float) -> float | None:
        guard = Oscillation(SPEC)
        return [guard.measure(Look({}, [(real, pixels(mean - 1, mean + 1))])) for mean in means][-1]

    assert value(0, 3, 0, 3) is None
    assert value(0, 3, 0, 3, 0) == pytest.approx(3.0)
    assert value(0, 1, 2, 3, 4) == pytest.approx(0.0)
    assert value(9, 9, 0, 3, 0, 3, 0) == pytest.approx(3.0), "what is long ago is forgotten"
    assert value(0, 3, 0, 3, 6) == pytest.approx((12 - 6) / 4)


def test_divergence_is_a_loss_far_beyond_what_is_usual():
    guard = Divergence(SPEC)
    values = [guard.measure(Look({"g/loss": loss, "g/adversarial": 1e9})) for loss in (8.0, -2.0, 4.0, 5_000.0)]
    assert values == [0.0, 2.0 / 8.0, 4.0 / 5.0, 5_000.0 / 4.0]


def test_a_gradient_is_compared_with_what_is_usual_for_its_update():
    """Means of 4, 2 and 6, so that 40 is 10 times as large as the median; then the other update's vanishes."""
    guard = GradientNorm(SPEC)
    means = [(4.0, 100.0), (2.0, 100.0), (6.0, 100.0), (40.0, 100.0), (5.0, 1.0), (5.0, 0.0)]
    looks = [Look({"gradient_norm/d": d, "gradient_norm/g": g, "d/loss": 1e9}) for d, g in means]
    values = [guard.measure(look) for look in looks]
    assert values[0] is None, "nothing to compare it with"
    assert values[1:5] == pytest.approx([2.0, 6.0 / 3.0, 40.0 / 4.0, 100.0])
    assert values[5] is not None and values[5] > 1e30
    still = GradientNorm(SPEC)
    assert [still.measure(Look({"gradient_norm/d": 0.0})) for _ in range(2)] == [None, 1.0], "what never learns"
    assert still.measure(Look({"d/loss": 1.0})) is None


def test_a_strong_discriminator_is_the_best_of_several():
    look = Look({"discriminators/separation_a": 0.7, "discriminators/separation_b": 0.9, "generator/loss": 3.0})
    assert StrongDiscriminator(SPEC).measure(look) == 0.9


def test_the_loss_at_the_floor_is_that_of_the_surest_of_several():
    look = Look({"discriminators/certainty_a": -0.2, "discriminators/certainty_b": 0.4, "discriminators/loss": 0.9})
    assert LossAtFloor(SPEC).measure(look) == 0.4
    assert LossAtFloor(SPEC).measure(Look({"critic/loss": 0.9})) is None


@pytest.mark.parametrize(("images", "looks"), [(400_000, 40), (24_000, 23), (6_400, 8)])
def test_short_runs_are_looked_at_less_often(images: int, looks: int):
    """Forty times, or after each 1,024 images, or eight times."""
    run = small_engine(0, guards=GuardsSpec(), budget={**BUDGET, "images": images})
    guards, due = Guards(run), 0
    while run.position.images < images:
        before = run.position
        run.position = replace(before, images=before.images + 4)
        due += guards.is_due(before)
    assert due == looks


def test_models_without_a_discriminator_are_watched_for_divergence_and_for_their_gradients_alone():
    run = engine(guards=GuardsSpec(look_images=40))  # the toy neither samples nor translates
    assert set(train(run).values) == {"divergence", "gradient_norm"}


def test_a_model_that_draws_what_is_no_image_repeats_itself():
    """A generator of NaN: all its images are taken for the same grey one."""

    class Broken(Generator):
        def forward(self, input: Tensor) -> Tensor:
            images = super().forward(input)
            return images if self.training else images * math.nan

    class BrokenGAN(SmallGAN):
        Generator = Broken

    run = small_engine(guards=warning(), model=BrokenGAN, images=640)
    outcome = train(run)
    assert {"mode_collapse", "low_diversity"} <= set(outcome.beyond)
    assert outcome.values["lost_classes"] > 2, "of one class"


def stopping() -> GuardsSpec:
    """Guards with their own thresholds that all end the training."""
    return warning(480, **{guard.name: {"action": "stop"} for guard in GUARDS})


def verdict(engine: Engine) -> tuple[bool, bool]:
    """Whether a guard raised an alarm over a training, and whether the gate refuses its model as collapsed."""
    try:
        outcome = train(engine)
    except DivergedError:
        return True, True
    tags = {f"guard.{name}": f"{value:.4g}" for name, value in outcome.values.items()}
    version = ModelVersion("small_gan.digits", 1, model_id="", run_id="", tags=tags, aliases=[])
    return bool(outcome.alarms), collapse(version) is not None


HEALTHY: list[dict[str, Any]] = [
    {},
    {"adversarial_loss": "hinge"},
    {"adversarial_loss": "wgan_gp", "r1_gamma": 0.0},
]


@pytest.mark.parametrize("changes", HEALTHY, ids=["non_saturating", "hinge", "wgan_gp"])
def test_no_guard_and_no_gate_objects_to_a_healthy_training(changes: dict[str, Any]):
    """Twenty-one small models, seven of each loss."""
    assert [verdict(small_engine(seed, stopping(), **changes)) for seed in range(7)] == [(False, False)] * 7


def test_a_line_of_images_is_found_and_refused():
    """Ten small models with a latent of one dimension, all of which the guards stop and the gate refuses."""
    assert [verdict(small_engine(seed, stopping(), latent=1)) for seed in range(10)] == [(True, True)] * 10


def test_most_discriminators_that_learn_too_fast_are_found():
    """Eleven small models whose discriminator learns 100 times too fast: what becomes of each is chaos. When this was
    written, ten raised an alarm and the gate refused eight; the other three still drew all classes, badly."""
    verdicts = [verdict(small_engine(seed, stopping(), discriminator_learning_rate=0.1)) for seed in range(11)]
    alarms, refusals = map(sum, zip(*verdicts, strict=True))
    assert alarms >= 9
    assert refusals >= 7


def test_a_surface_of_images_is_no_collapse_where_it_is_an_autoencoders():
    """Three small adversarial autoencoders with codes of two dimensions. On some processors one of them leaves classes
    out, of which other guards tell."""
    for seed in range(3):
        outcome = train(small_engine(seed, stopping(), model=AdversarialAutoencoder, budget=CODER))
        assert outcome.values["mode_collapse"] < 3 < COLLAPSED["mode_collapse"][0]
        assert "mode_collapse" not in {alarm.guard for alarm in outcome.alarms}


def test_an_autoencoder_whose_codes_lie_far_beyond_its_prior_repeats_itself():
    """Codes that are 1,000 times as large, and a decoder that divides them: what it reconstructs is the same, and what
    it draws is 1,000 times closer together, as its layers are piecewise linear."""
    run = small_engine(guards=warning(), model=AdversarialAutoencoder, budget=CODER)
    before = train(run).values["mode_collapse"]
    model = run.model
    assert isinstance(model, AdversarialAutoencoder)
    with torch.no_grad():
        codes = [module for module in model.encoder.modules() if isinstance(module, nn.Linear)][-1]
        first = next(module for module in model.decoder.modules() if isinstance(module, nn.Linear))
        for parameter in (codes.weight, codes.bias):
            parameter.mul_(1000)
        first.weight.div_(1000)
    guards = Guards(run)
    guards.final_look()
    assert before < 3
    assert guards.values["mode_collapse"] > 100
    assert "mode_collapse" in guards.beyond


ALWAYS = {"threshold": 1e-6, "looks": 2}
OFF = {"action": "off", "threshold": 1e300}
SILENT = {guard.name: OFF for guard in GUARDS if guard not in {Divergence, ModeCollapse}}


class Notes:
    """An observer that likes the weights after 320 images best, and may end the process's work."""

    def __init__(self, checkpoints: Checkpoints, stop_after_images: int | None = None):
        self.checkpoints, self.stop_after_images = checkpoints, stop_after_images
        self.alarms: Sequence[Alarm] = ()
        self.saved = list[int]()

    def progress(self, engine: Engine, losses: Mapping[str, float], images_per_second: float) -> None:
        pass

    def looked(self, engine: Engine, values: Mapping[str, float], alarms: Sequence[Alarm]) -> None:
        self.alarms = list(alarms)
        if self.stop_after_images and engine.position.images >= self.stop_after_images:
            raise KeyboardInterrupt

    def samples(self, engine: Engine) -> None:
        self.checkpoints.wait()

    def score(self, engine: Engine) -> float | None:
        return abs(engine.position.images - 320.0)


@pytest.fixture
def checkpoints(s3: object, request: pytest.FixtureRequest) -> Checkpoints:
    return Checkpoints(store(), f"runs/{request.node.name}", keep=2)


def run_with(guards: GuardsSpec, checkpoints: Checkpoints, **training: Any) -> tuple[Engine, Outcome, Notes]:
    """A short training that writes a checkpoint at every step."""
    settings = {"checkpoint_seconds": 1e-6, "sample_images": 64} | training
    run, notes = small_engine(guards=guards, training=settings, images=1_280), Notes(checkpoints)
    return run, train(run, checkpoints, notes), notes


def test_a_warning_is_raised_once_and_changes_nothing(checkpoints: Checkpoints):
    run, outcome, notes = run_with(warning(64, mode_collapse=ALWAYS, **SILENT), checkpoints)
    other = Checkpoints(store(), "runs/quiet-guards", keep=1)
    quiet, silent, _ = run_with(warning(64, mode_collapse={"action": "off"}, **SILENT), other)
    assert run.position.images == 1_280
    assert [alarm.images for alarm in outcome.alarms] == [384], "a quarter of the stage, and two looks"
    assert "384 images" in outcome.alarms[0].message and "times closer" in outcome.alarms[0].message
    assert notes.alarms == outcome.alarms
    assert (outcome.beyond, silent.alarms) == (["mode_collapse"], [])
    assert silent.values["mode_collapse"] == outcome.values["mode_collapse"], "at the end all guards are asked"
    assert torch.equal(flat(run.model.state_dict()), flat(quiet.model.state_dict()))


def test_a_large_loss_can_be_warned_of():
    guards = warning(320, mode_collapse=OFF, divergence={"action": "warn", "threshold": 1e-6}, **SILENT)
    run = small_engine(guards=guards, images=1_280)
    assert [(alarm.guard, alarm.action) for alarm in train(run).alarms] == [("divergence", "warn")]
    assert run.position.images == 1_280


@pytest.mark.parametrize("checkpoint_seconds", [1e-6, 1e6], ids=["each step", "short run"])
def test_a_stop_keeps_the_best_checkpoint(checkpoints: Checkpoints, checkpoint_seconds: float):
    """Of those after each eighth, which are there also where training takes no minute."""
    guards = warning(64, mode_collapse=ALWAYS | {"action": "stop"}, **SILENT)
    run, outcome, _ = run_with(guards, checkpoints, checkpoint_seconds=checkpoint_seconds)
    assert [(alarm.guard, alarm.images, alarm.action) for alarm in outcome.alarms] == [("mode_collapse", 384, "stop")]
    assert run.position.images == 320
    assert outcome.beyond == ["mode_collapse"], "of the weights that are kept"


def test_a_stop_keeps_no_checkpoint_of_a_model_that_is_not_whole(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
):
    """Such as from the fade-in of Progressive GAN's last level: the one that is liked best is passed over."""
    guards = warning(64, mode_collapse=ALWAYS | {"action": "stop"}, **SILENT)
    monkeypatch.setattr(GenerativeModel, "at", lambda self, stage, images: setattr(self, "images_before", images))
    monkeypatch.setattr(GenerativeModel, "whole", property(lambda self: self.images_before < 256))
    run, _, _ = run_with(guards, checkpoints)
    assert run.position.images == 192
    monkeypatch.setattr(GenerativeModel, "whole", False)
    with pytest.raises(DivergedError, match=r"times closer .* and there is no checkpoint to keep instead"):
        run_with(guards, Checkpoints(store(), "runs/never-whole", keep=1))


def test_a_rollback_goes_to_before_the_guard_objected_and_gives_up_in_the_end(checkpoints: Checkpoints):
    with pytest.raises(DivergedError, match=r"times closer .* falling back .* 2 times \(of at most 2\) did not help"):
        run_with(warning(64, mode_collapse=ALWAYS | {"action": "roll_back"}), checkpoints, max_rollbacks=2)
    found = checkpoints.good()
    assert found is not None
    assert found["engine"]["position"]["images"] < 320, "where the guard began to object"
    assert found["engine"]["position"]["rollbacks"] <= 2


def test_what_is_only_warned_of_decides_no_rollback(checkpoints: Checkpoints):
    """A model that is warned of from 384 images on, and whose loss is not finite once, after 1,088."""

    class PoisonedOnce(SmallGAN):
        def discriminator_loss(self, batch, context):  # type: ignore[no-untyped-def]
            terms = super().discriminator_loss(batch, context)
            hit = run.position.images == 1_088 and run.position.rollbacks == 0
            return type(terms)(terms.total * torch.nan, terms.terms) if hit else terms

    settings = {"checkpoint_seconds": 1e-6, "sample_images": 64}
    guards = warning(64, mode_collapse=ALWAYS, **SILENT)
    run = small_engine(guards=guards, training=settings, model=PoisonedOnce, images=1_280)
    begun = list[int]()
    run.disturb = lambda rollbacks, disturb=run.disturb: begun.append(run.position.images) or disturb(rollbacks)  # type: ignore[method-assign]
    train(run, checkpoints, Notes(checkpoints))
    assert begun[0] > 1_000, "not from before the warning"


def test_a_stop_before_the_last_stage_is_a_failure():
    guards = GuardsSpec.model_validate(GuardsSpec().model_dump() | {"divergence": {"action": "stop", "threshold": 9.0}})
    with pytest.raises(DivergedError, match=r"'penalty' is not finite .* in stage first, and no stage before the last"):
        train(engine(Toy(poisoned={(5, 1)}), guards=guards))


def test_of_equal_images_the_first_is_kept():
    images = pixels(5, 3, 5, 1, 3, 3, 0)
    assert first_of_each(images).tolist() == [0, 1, 3, 6]


def test_real_images_that_tell_classes_are_others_than_those_that_are_compared():
    guards = Guards(small_engine())
    compared = guards._real_images()["image"]
    assert guards._real[2] is not None
    others, labels = guards._real[2]
    assert (len(compared), len(others), len(labels)) == (256, 1_024, 1_024)
    assert len(torch.cat([shown(compared), others]).unique(dim=0)) == 1_280


@pytest.mark.parametrize(("side", "seen"), [(1, 1), (100, 100), (255, 255), (256, 128), (300, 150), (1024, 128)])
def test_of_large_images_guards_see_averages(side: int, seen: int):
    """Of a ramp from -1 to 1 and of one of its squares, whose pixels are not finite."""
    ramp = torch.linspace(-1, 1, side).expand(2, 1, side, side).clone() if side > 1 else torch.zeros(2, 1, 1, 1)
    images = shown((ramp + 1).mul(127.5).round().byte())
    assert images.shape == (2, 1, seen, seen)
    torch.testing.assert_close(
        images[0, 0, 0], torch.linspace(-1, 1, seen) if seen > 1 else torch.zeros(1), atol=0.02, rtol=0
    )
    assert not shown(ramp, lambda images: images * torch.nan).any()


def test_translations_are_looked_at_both_ways():
    """Those of a model that leaves images as they are lie as the images of the other domain do."""
    images = {domain: torch.randint(0, 256, (128, 1, 16, 16)).byte().numpy() for domain in "ab"}
    data = Dataset.from_arrays({f"train_{domain}": {"image@16": array} for domain, array in images.items()})
    model = cyclegan.CycleGAN(cyclegan.Config.preset("demo", resolution=16), DataInfo(channels=1))
    model.translate = lambda images, target: images  # type: ignore[method-assign]
    guards = Guards(Engine(model, lambda stage: Loader(data, stage.inputs, stage.batch_images, seed=0)))
    guards.final_look()
    usual = [nearest_neighbour_distance(torch.from_numpy(array) / 127.5 - 1) for array in images.values()]
    assert guards.values["mode_collapse"] == pytest.approx(max(usual) / min(usual), rel=1e-4)


def test_what_is_told_the_class_is_looked_at_for_the_classes_of_the_real_images():
    """Which are as frequent as in the data: nine tenths of these images are a 0."""
    labels = torch.arange(400) % 10 * (torch.arange(400) >= 360)
    data = Dataset.from_arrays(
        {"train": {"image@8": torch.randint(0, 256, (400, 1, 8, 8)).byte().numpy(), "label": labels.numpy()}}
    )
    config = conditional_gan.Config(resolution=8, channels=4, latent=8, batch_images=40)
    model = conditional_gan.ConditionalGAN(config, DataInfo(channels=1, classes=10))
    asked = list[Tensor]()
    sample = model.sample
    model.sample = lambda n, **given: asked.append(given["labels"]) or sample(n, **given)  # type: ignore[method-assign]
    Guards(Engine(model, lambda stage: Loader(data, stage.inputs, stage.batch_images, seed=0))).final_look()
    assert len(torch.cat(asked)) == 200
    assert 0.8 < (torch.cat(asked) == 0).float().mean() < 0.97


def test_guards_go_on_after_an_interruption_as_if_there_had_been_none(checkpoints: Checkpoints):
    guards = warning(128, oscillation={"threshold": 1e-6, "looks": 3})
    settings = {"checkpoint_seconds": 1e-6, "sample_images": 64}
    quiet = train(small_engine(guards=guards, images=2_560))
    with pytest.raises(KeyboardInterrupt):
        train(small_engine(guards=guards, training=settings, images=2_560), checkpoints, Notes(checkpoints, 1_280))
    checkpoints.wait()
    resumed = train(small_engine(guards=guards, images=2_560), checkpoints)
    assert resumed.restarts == 1
    assert resumed.values == quiet.values
    assert resumed.alarms == quiet.alarms != []


def work(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size, init_method=f"file://{folder}/rendezvous")
    outcome = train(small_engine(guards=warning(128), images=640))
    torch.save(dict(outcome.values), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_see_what_one_sees(tmp_path: Path):
    mp.spawn(work, (2, str(tmp_path)), nprocs=2)  # type: ignore[attr-defined]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second
    assert first == pytest.approx(train(small_engine(guards=warning(128), images=640)).values, rel=1e-2)
