"""The loop on a real object store: checkpoints that survive, are pruned and passed over, and rollbacks."""

import math
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import Toy, engine, flat

from genmodels.errors import DivergedError
from genmodels.spec import Alarm, GuardsSpec
from genmodels.storage.objects import store
from genmodels.training.checkpoints import Best, Checkpoints
from genmodels.training.engine import Engine
from genmodels.training.loop import _Loop, train
from genmodels.training.workers import Workers

pytestmark = pytest.mark.usefixtures("s3")


class Interrupted(Exception):
    pass


class Notes:
    """An observer that remembers, and can end the process's work in the middle."""

    def __init__(self, stop_after_images: int | None = None, saved_before: Checkpoints | None = None):
        self.saved_before = saved_before  # what must be in the store before the next step
        self.grids: list[int] = []
        self.losses: list[Mapping[str, float]] = []
        self.looks: list[tuple[int, float | None]] = []  # images shown, and how far a loss has diverged
        self.stop_after_images = stop_after_images

    def progress(self, engine: Engine, losses: Mapping[str, float], images_per_second: float) -> None:
        self.losses.append(losses)

    def samples(self, engine: Engine) -> None:
        self.grids.append(engine.position.images)
        if self.saved_before:
            self.saved_before.wait()
        if self.stop_after_images is not None and engine.position.images >= self.stop_after_images:
            raise Interrupted

    def looked(self, engine: Engine, values: Mapping[str, float], alarms: Sequence[Alarm]) -> None:
        self.looks.append((engine.position.images, values.get("divergence")))
        self.alarms = list(alarms)

    def score(self, engine: Engine) -> float | None:
        return abs(engine.position.images - 160.0)


@pytest.fixture
def checkpoints(request: pytest.FixtureRequest) -> Checkpoints:
    return Checkpoints(store(), f"runs/{request.node.name}", keep=2)


def objects(checkpoints: Checkpoints) -> list[str]:
    return [key.rsplit("/", 1)[1] for key in checkpoints._keys()]


def test_an_interrupted_training_ends_bit_for_bit_like_a_quiet_one(checkpoints: Checkpoints):
    quiet = engine()
    train(quiet)
    with pytest.raises(Interrupted):
        train(engine(checkpoint_seconds=1e-6), checkpoints, Notes(stop_after_images=200, saved_before=checkpoints))
    checkpoints.wait()
    with pytest.raises(Interrupted):
        train(engine(), checkpoints, Notes(stop_after_images=200, saved_before=checkpoints))
    resumed, notes, started = engine(), Notes(), datetime.now(UTC)
    outcome = train(resumed, checkpoints, notes)
    assert outcome.restarts == 2, "the first of which came to no new checkpoint"
    assert min(notes.grids) > 160, "it began again instead of continuing"
    assert outcome.first_step_time and outcome.first_step_time >= started
    assert torch.equal(flat(resumed.model.state_dict()), flat(quiet.model.state_dict()))


def test_a_training_that_died_after_its_last_step_has_nothing_left_to_do(checkpoints: Checkpoints):
    train(engine(), checkpoints, Notes(saved_before=checkpoints))
    again, notes = engine(), Notes()
    outcome = train(again, checkpoints, notes)
    assert again.finished
    assert (outcome.restarts, outcome.first_step_time) == (1, None)


def test_the_newest_two_and_the_best_are_kept(checkpoints: Checkpoints):
    """The observer likes the checkpoint after 160 images best."""
    run = engine()
    for images in (100, 160, 200, 240, 320):
        checkpoints.save({"engine": run.state_dict()}, images, abs(images - 160.0))
        checkpoints.wait()
    assert objects(checkpoints) == [f"{images:012d}.pt" for images in (160, 240, 320)]
    assert store().get_record(checkpoints._best_key, Best) == Best(key=f"{checkpoints._folder}{160:012d}.pt", score=0.0)


def test_a_damaged_checkpoint_is_passed_over(checkpoints: Checkpoints):
    run = engine()
    for images in (8, 16):
        checkpoints.save({"images": images, "weight": next(run.model.parameters())}, images)
        checkpoints.wait()
    key = f"{checkpoints._folder}{16:012d}.pt"
    store().put(key, store().get(key)[:-100])
    found = checkpoints.latest()
    assert found is not None and found["images"] == 8


def test_all_workers_go_on_from_the_checkpoint_that_the_first_one_found(checkpoints: Checkpoints):
    """Between the first one's look and the second's another checkpoint has appeared."""

    class Second(Workers):
        def __init__(self) -> None:
            self.rank, self.size = 1, 2

        def broadcast(self, tensors: list[Tensor]) -> None:
            tensors[0].fill_(8)

    run = engine()
    for images in (8, 16):
        checkpoints.save({"images": images}, images)
        checkpoints.wait()
    run.workers = Second()
    assert _Loop(run, checkpoints, None).agreed(checkpoints.latest) == {"images": 8}


def test_a_snapshot_does_not_see_what_training_does_next(checkpoints: Checkpoints):
    weight = torch.ones(3)
    checkpoints.save({"weight": weight}, 8)
    weight.zero_()
    checkpoints.wait()
    found = checkpoints.latest()
    assert found is not None and found["weight"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("action", ["roll_back", "warn", "off"])
def test_a_loss_that_is_not_finite_falls_back_and_meets_other_noise(checkpoints: Checkpoints, action: str):
    """Poisoned at one step only as long as nothing was rolled back: the second try gets past it. It does so whatever
    is asked for where a loss is large."""

    class PoisonedOnce(Toy):
        def critic_loss(self, batch, context):  # type: ignore[no-untyped-def]
            terms = super().critic_loss(batch, context)
            first_try = run.position.rollbacks == 0
            return terms if context.step != 30 or not first_try else type(terms)(terms.total * torch.nan, terms.terms)

    divergence = GuardsSpec().divergence.model_copy(update={"action": action})
    run = engine(PoisonedOnce(), guards=GuardsSpec(look_images=32, divergence=divergence))
    notes = Notes(saved_before=checkpoints)
    outcome = train(run, checkpoints, notes)
    assert run.finished and run.position.rollbacks == 1
    first_try, second_try = [32, 64, 96, 128, 160, 192, 224, 240], [256, 288, 320, 320]
    assert [images for images, _ in notes.looks] == first_try + second_try, "the second from 240 images on"
    assert [images for images, divergence in notes.looks if divergence == math.inf] == [240]
    assert [(alarm.guard, alarm.images, alarm.value) for alarm in notes.alarms] == [("divergence", 240, math.inf)]
    assert math.isfinite(outcome.values["divergence"]), "of the weights that are kept"
    assert flat(run.model.state_dict()).isfinite().all()
    quiet = engine()
    train(quiet)
    assert not torch.equal(flat(run.model.state_dict()), flat(quiet.model.state_dict()))


@pytest.mark.parametrize(("poisoned", "met"), [(30, 248), (38, 312)], ids=["at a look", "at the end"])
def test_where_to_look_means_to_wait_all_workers_meet_it_in_the_same_step(
    checkpoints: Checkpoints, poisoned: int, met: int
):
    """Which is one that the first worker's reports and checkpoints, by its own clock, do not decide."""

    class PoisonedOnce(Toy):
        def critic_loss(self, batch, context):  # type: ignore[no-untyped-def]
            terms = super().critic_loss(batch, context)
            hit = context.step == poisoned and run.position.rollbacks == 0
            return type(terms)(terms.total * torch.nan, terms.terms) if hit else terms

    run, notes = engine(PoisonedOnce(), log_seconds=1e-6, checkpoint_seconds=1e-6), Notes(saved_before=checkpoints)
    run.look_steps = 8
    train(run, checkpoints, notes)
    assert run.finished and run.position.rollbacks == 1
    assert [(alarm.images, alarm.value) for alarm in notes.alarms] == [(met, math.inf)]
    assert flat(run.model.state_dict()).isfinite().all()


def test_a_score_is_asked_for_after_each_eighth_and_not_for_every_checkpoint(checkpoints: Checkpoints):
    """All workers wait for the one that scores."""
    scored = list[int]()

    class Scoring(Notes):
        def score(self, engine: Engine) -> float | None:
            scored.append(engine.position.images)
            return None

    train(engine(checkpoint_seconds=1e-6), checkpoints, Scoring(saved_before=checkpoints))
    assert objects(checkpoints) == [f"{images:012d}.pt" for images in (304, 320)], "one after each step of 16 images"
    assert scored == [48, 80, 128, 160, 208, 240, 288, 320]


def test_while_a_checkpoint_is_on_its_way_no_other_is_scored(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch):
    """The store takes the first one until 200 images are shown; the one that a stage's end asks for comes after it."""
    arrived, scored = threading.Event(), list[int]()
    upload = checkpoints._upload

    def slowly(*given: Any) -> None:
        arrived.wait(60)
        upload(*given)

    class Scoring(Notes):
        def samples(self, engine: Engine) -> None:
            if engine.position.images >= 200:
                arrived.set()
                checkpoints.wait()

        def score(self, engine: Engine) -> float | None:
            scored.append(engine.position.images)
            return None

    monkeypatch.setattr(checkpoints, "_upload", slowly)
    train(engine(checkpoint_seconds=1e6), checkpoints, Scoring())
    assert scored[0] == 208, "neither after an eighth nor at 160, where the stage ended"


def test_a_loss_that_never_becomes_finite_fails_after_the_last_rollback(checkpoints: Checkpoints):
    run = engine(Toy(poisoned={(30, 1)}), max_rollbacks=2)
    with pytest.raises(DivergedError, match=r"critic update's 'penalty' .* stage second .* 2 times \(of at most 2\)"):
        train(run, checkpoints)
