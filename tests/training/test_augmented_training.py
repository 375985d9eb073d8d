"""The engine's augmentation: on all that discriminators see, and steered alike however a batch is cut up."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from replicas import Replica, replica, run
from torch import Tensor, nn

from genmodels.data.loader import Loader
from genmodels.errors import SpecError
from genmodels.models import MODELS, build
from genmodels.models.base import DataInfo
from genmodels.nn.augmentation import BATCHES_BETWEEN_CHANGES
from genmodels.spec import TrainingSpec
from genmodels.training.bench import random_data
from genmodels.training.engine import Engine

LABELLED = {"resolution": 8, "latent": 8, "batch_images": 4, "discriminator_steps": 1}
SMALL: dict[str, dict[str, Any]] = {
    "biggan": LABELLED | {"channels": 8, "embedding": 8},
    "conditional_gan": LABELLED | {"channels": 4},
    "cyclegan": {"resolution": 16, "generator_channels": 4, "residual_blocks": 1, "discriminator_channels": 4}
    | {"discriminator_layers": 1, "batch_images": 4},
    "dcgan": {"resolution": 8, "coarsest": 2, "generator_channels": 4, "discriminator_channels": 4, "batch_images": 4},
    "gan": {"resolution": 8, "generator_units": 16, "discriminator_units": 8, "batch_images": 4},
    "infogan": {"resolution": 8, "hidden_units": 16, "channels": 4, "recognition_units": 8, "batch_images": 4},
    "progressive_gan": {"resolution": 8, "latent": 8, "fmap_base": 64, "fmap_max": 16, "batch_images": 4},
    "sagan": LABELLED | {"channels": 8},
    "sngan": LABELLED | {"generator_channels": 4, "discriminator_channels": 4},
}
ADAPTIVE = {"augmentations": ("translation", "color"), "augmentation_target": 0.7, "augmentation_ramp_images": 160}
LEARNING = {"resolution": 4, "latent": 4, "generator_units": 8, "discriminator_units": 16, "batch_images": 8} | {
    "input_dropout": 0.0,
    "hidden_dropout": 0.0,
    "discriminator_learning_rate": 0.02,
}
STEPS = 26


def started(name: str, config: dict[str, Any], **training: Any) -> Engine:
    model = build(name, config, DataInfo(channels=3, classes=4), seed=0)
    return Engine(
        model,
        lambda stage: Loader(random_data(stage.inputs, 3, 4), stage.inputs, stage.batch_images, seed=0),
        training=TrainingSpec(**training),
    )


@pytest.mark.parametrize("name", SMALL)
def test_every_image_that_a_discriminator_sees_is_augmented(name: str):
    """Each has a hole, real images in the relativistic generator's update too; no pixel is 0 otherwise."""
    engine = started(name, SMALL[name] | {"adversarial_loss": "relativistic_average"}, augmentations=("cutout",))
    seen: list[Tensor] = []

    def note(network: nn.Module, images: tuple[Tensor, ...]) -> None:
        seen.append((images[0] == 0).all(1).flatten(1).any(1))

    for network, module in engine.model.networks().items():
        if network.startswith("discriminator"):
            module.register_forward_pre_hook(note)
    engine.step()
    assert sum(map(len, seen)) == 16 * (2 if name == "cyclegan" else 1), "real and fake in both updates"
    assert torch.cat(seen).all()


@pytest.mark.parametrize("name", SMALL)
def test_a_clipped_critic_keeps_its_bound_wherever_it_judges(name: str):
    """From its first update on, in the generator's of the same step too (Arjovsky et al. 2017, algorithm 1). InfoGAN's
    Q shares its trunk, but judges nothing."""
    engine = started(name, SMALL[name] | {"adversarial_loss": "wgan", "weight_clip": 0.001})
    largest: dict[bool, list[float]] = {False: [], True: []}

    def note(network: nn.Module, images: tuple[Tensor, ...]) -> None:
        updated = any(update.startswith("discriminator") for update in engine.update_counts)
        judging = [weights for name, weights in network.named_parameters() if not name.startswith("recognition.")]
        largest[updated].append(max(weights.abs().max().item() for weights in judging))

    for network, module in engine.model.networks().items():
        if network.startswith("discriminator"):
            module.register_forward_pre_hook(note)
    for _ in range(2):
        engine.step()
    assert max(largest[False]) > 0.001, "as it was drawn"
    assert max(largest[True]) <= 0.001 * (1 + 1e-6)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in SMALL])
def test_models_whose_discriminator_sees_no_images_refuse(name: str):
    """Nothing but the config is looked at; the engine refuses as `resolve` does."""
    config = MODELS[name].Config.preset("demo", resolution=8)
    with pytest.raises(SpecError, match=r"training\.augmentations needs a discriminator that sees images"):
        config.check(TrainingSpec(augmentations=("color",)))
    config.check(TrainingSpec())


def test_the_engine_refuses_what_would_steer_by_a_critic():
    config = SMALL["gan"] | {"adversarial_loss": "wgan"}
    with pytest.raises(SpecError, match="discriminator that decides, which wgan has not"):
        started("gan", config, **ADAPTIVE)
    assert started("gan", config, augmentations=("color",)).augmentation.names == ("color",)


def test_the_probability_follows_what_is_logged():
    """Every four batches of 8 images it moves by 32 of the 160 images that the whole way takes."""
    engine = started("gan", LEARNING, **ADAPTIVE)
    probability, signs, moves = 0.0, list[float](), list[float]()
    for _ in range(STEPS):
        engine.step()
        told = engine.losses()
        assert told["discriminator/augmentation_probability"] == pytest.approx(probability)
        signs.append(told["discriminator/real_sign"])
        if len(signs) == BATCHES_BETWEEN_CHANGES:
            moves.append(0.2 if sum(signs) / len(signs) > 0.7 else -0.2)
            probability, signs = min(max(probability + moves[-1], 0.0), 1.0), []
    assert len(set(moves)) == 2, "both ways"


@pytest.mark.parametrize("accumulation", [2, 4])
def test_micro_batches_steer_as_the_whole_batch_does(accumulation: int):
    whole, parts = (started("gan", LEARNING, accumulation=micros, **ADAPTIVE) for micros in (1, accumulation))
    for _ in range(STEPS):
        whole.step()
        parts.step()
        assert torch.equal(whole.augmentation.probability, parts.augmentation.probability)
    assert 0 < whole.augmentation.probability < 1


def test_a_resumed_run_goes_on_with_the_same_augmentation(tmp_path: Path):
    """Interrupted between two changes of the probability."""
    whole, first, second = (started("gan", LEARNING, **ADAPTIVE) for _ in range(3))
    for _ in range(STEPS):
        whole.step()
    for _ in range(10):
        first.step()
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert 0 < second.augmentation.probability < 1
    for _ in range(STEPS - 10):
        second.step()
    for ours, theirs in ((whole.model, second.model), (whole.augmentation, second.augmentation)):
        state = ours.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())


def test_two_workers_steer_as_one_does(tmp_path: Path):
    mp.spawn(run, (2, str(tmp_path), {"gan": ("gan", LEARNING)}, STEPS, {"gan": ADAPTIVE}), nprocs=2)  # type: ignore[attr-defined]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True)["gan"] for rank in range(2))
    alone: Replica = replica("gan", LEARNING, STEPS, **ADAPTIVE)
    assert 0 < alone["augmentation"]["probability"] < 1
    for name, value in alone["augmentation"].items():
        assert torch.equal(first["augmentation"][name], second["augmentation"][name]), "the workers disagree"
        torch.testing.assert_close(first["augmentation"][name], value)
