"""Two workers with half the batch each make the gradients of one with the whole, for every update of every model,
and come to the same singular vectors."""

import pytest
import torch
import torch.multiprocessing as mp
from replicas import Cases, Replica, Training, gradients, replica, run

from genmodels.losses import ADVERSARIAL

STEPS = 3
SMALL_GROWING = {
    "resolution": 8,
    "latent": 8,
    "fmap_base": 64,
    "fmap_max": 16,
    "batch_images": 8,
    "minibatch_stddev_group": 4,  # a worker's half: the single worker looks across the same halves
    "stable_images": 8,  # so that the second step already fades 8x8 in
    "fade_images": 32,
}
SMALL_CODES = {"resolution": 8, "hidden": (16,), "latent": 4, "batch_images": 8}
SMALL_PENALTIES = {"r1_gamma": 1.0, "r2_gamma": 1.0, "r1_interval_steps": 2, "drift_weight": 0.1}
SMALL_CYCLE = {"resolution": 16, "generator_channels": 4, "residual_blocks": 1, "discriminator_channels": 4}
SMALL_LABELLED = {"resolution": 8, "latent": 8, "batch_images": 8, "discriminator_steps": 2}
SMALL_GAN = {"resolution": 4, "latent": 8, "generator_units": 16, "discriminator_units": 8, "batch_images": 8}
SMALL_DCGAN = {"resolution": 8, "coarsest": 2, "latent": 8, "generator_channels": 4, "discriminator_channels": 4}
SMALL_INFOGAN = {"resolution": 8, "latent": 4, "hidden_units": 16, "channels": 4, "recognition_units": 8}
SMALL_FLOW = {
    "resolution": 8,
    "scales": 2,
    "steps": 2,
    "hidden_channels": 8,
    "batch_images": 8,
    "warm_up_images": 1,
    "learning_rate": 1e-5,  # where data are standardised an actnorm's gradient is rounding alone, and so is Adam's step
}
SMALL_PIXELS = {"resolution": 8, "features": 12, "layers": 2, "head_features": 12, "batch_images": 8}
SMALL_RECURRENT = {"resolution": 4, "features": 4, "layers": 1, "head_features": 12, "batch_images": 8}
SMALL_VQVAE = {
    "resolution": 8,
    "downsampling": 2,
    "width": 8,
    "residual_width": 4,
    "codes": 8,
    "code_dimensions": 4,
    "batch_images": 8,
    "prior_features": 8,
    "prior_layers": 2,
    "prior_kernel": 3,
    "prior_head_features": 8,
    "attention_every": 1,
    "attention_heads": 2,
    "conditioning_blocks": 1,
    "prior_batch_images": 8,
}
CASES: Cases = {
    **{
        f"adversarial_autoencoder-{loss}": (
            "adversarial_autoencoder",
            SMALL_CODES | SMALL_PENALTIES | {"discriminator_hidden": (16,), "adversarial_loss": loss},
        )
        for loss in ADVERSARIAL
    },
    "adversarial_autoencoder-labels": (
        "adversarial_autoencoder",
        SMALL_CODES | {"prior": "mixture_of_gaussians", "conditional": True, "labelled_share": 0.5},
    ),
    "autoencoder": ("autoencoder", {"resolution": 8, "hidden": (16,), "code": 4, "batch_images": 8}),
    "conditional_gan-projection": ("conditional_gan", SMALL_LABELLED | {"channels": 4}),
    "conditional_gan-concatenation-wgan_gp": (
        "conditional_gan",
        SMALL_LABELLED | {"channels": 4, "conditioning": "concatenation", "adversarial_loss": "wgan_gp"},
    ),
    "vae-bernoulli": ("vae", SMALL_CODES),
    "vae-discretised_logistic": (
        "vae",
        SMALL_CODES | {"architecture": "convolutional", "width": 4, "likelihood": "discretised_logistic"},
    ),
    "biggan": ("biggan", SMALL_LABELLED | {"channels": 8, "embedding": 8}),
    "sagan": ("sagan", SMALL_LABELLED | {"channels": 8}),
    "sngan": ("sngan", SMALL_LABELLED | {"generator_channels": 4, "discriminator_channels": 4}),
    "progressive_gan-wgan_gp": ("progressive_gan", SMALL_GROWING),
    "progressive_gan-hinge-r1-labels": (
        "progressive_gan",
        SMALL_GROWING | {"adversarial_loss": "hinge", "r1_gamma": 1.0, "r1_interval_steps": 1, "conditional": True},
    ),
    "progressive_gan-relativistic-r2-consistency": (
        "progressive_gan",
        SMALL_GROWING
        | {
            "adversarial_loss": "relativistic_average",
            "r2_gamma": 1.0,
            "r1_interval_steps": 1,
            "consistency_weight": 1,
        },
    ),
    "cyclegan-pool": ("cyclegan", SMALL_CYCLE | {"discriminator_layers": 1, "batch_images": 4, "pool_images": 6}),
    "cyclegan-wgan_gp": (
        "cyclegan",
        SMALL_CYCLE | {"discriminator_layers": 1, "batch_images": 4, "adversarial_loss": "wgan_gp"},
    ),
    "gan": ("gan", SMALL_GAN),
    "dcgan": ("dcgan", SMALL_DCGAN | {"batch_images": 8}),
    "dcgan-wgan_lp-r1-steps": (
        "dcgan",
        SMALL_DCGAN
        | {"batch_images": 8, "adversarial_loss": "wgan_lp", "r1_gamma": 1.0, "r1_interval_steps": 1}
        | {"discriminator_steps": 2},
    ),
    "dcgan-augmentations": ("dcgan", SMALL_DCGAN | {"batch_images": 8}),
    "infogan": ("infogan", SMALL_INFOGAN | {"batch_images": 8}),
    "flow-glow": ("flow", SMALL_FLOW),
    "flow-realnvp": ("flow", SMALL_FLOW | {"architecture": "realnvp", "residual_blocks": 1, "logit_margin": 0.05}),
    "pixelcnn-labels": ("pixelcnn", SMALL_PIXELS | {"conditional": True}),
    "pixelcnn-logistic_mixture": ("pixelcnn", SMALL_PIXELS | {"likelihood": "logistic_mixture"}),
    "pixelrnn-row_lstm": ("pixelrnn", SMALL_RECURRENT | {"recurrence": "row_lstm"}),
    "vqvae2": ("vqvae2", SMALL_VQVAE),
    "vqvae2-top": ("vqvae2", SMALL_VQVAE | {"images": 8, "conditional": True}),
    "vqvae2-bottom": ("vqvae2", SMALL_VQVAE | {"images": 8, "prior_images": 8}),
    "pixelrnn-diagonal_bilstm": ("pixelrnn", SMALL_RECURRENT | {"likelihood": "logistic_mixture"}),
}
TRAINING: Training = {"dcgan-augmentations": {"augmentations": ("color", "translation", "cutout")}}


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Replica]]:
    """What each of two workers saw, in every case."""
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(run, (2, str(folder), CASES, STEPS, TRAINING), nprocs=2)  # type: ignore[attr-defined]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_workers_make_the_gradients_of_one(case: str, workers: list[dict[str, Replica]]):
    first, second = (worker[case]["gradients"] for worker in workers)
    alone = gradients(*CASES[case], STEPS, **TRAINING.get(case, {}))
    for step in range(STEPS):
        for update, expected in alone[step].items():
            for ours, theirs in zip(first[step][update], second[step][update], strict=True):
                assert torch.equal(ours, theirs), "the workers disagree"
            together, whole = (torch.cat([g.flatten() for g in each]) for each in (first[step][update], expected))
            # Later steps start from weights that rounding has already set apart; Adam turns 1e-7 into more than 1e-5.
            tolerance = 1e-5 if step == 0 else 1e-3
            assert (together - whole).norm() <= tolerance * whole.norm(), f"{update}, step {step}"


@pytest.mark.parametrize(("case", "layers"), [("sngan", 11), ("sagan", 9 + 11), ("biggan", 13 + 11)])
def test_power_iterations_of_two_workers_do_not_drift_apart(case: str, layers: int, workers: list[dict[str, Replica]]):
    """A left and a right singular vector for each layer, of the generator and of the discriminator."""
    first, second = (worker[case]["singular_vectors"] for worker in workers)
    before, alone = (replica(*CASES[case], steps)["singular_vectors"] for steps in (0, STEPS))
    assert len(first) == 2 * layers
    for name, vector in first.items():
        assert torch.equal(vector, second[name]), f"the workers disagree about {name}"
        torch.testing.assert_close(vector, alone[name], rtol=0, atol=1e-4)
        assert len(vector) == 1 or not torch.equal(vector, before[name]), f"{name} stood still"
