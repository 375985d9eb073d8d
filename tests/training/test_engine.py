"""The engine against hand-written loops, other worker counts, interruptions and poisoned losses."""

import copy
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from toy import Toy, ToyConfig, batches, engine, flat, run_worker

from genmodels.errors import DivergedError, SpecError
from genmodels.training.engine import Engine, NonFiniteLoss
from genmodels.training.loop import train
from genmodels.training.randomness import seed_of
from genmodels.training.workers import Workers


def trained(engine: Engine) -> Engine:
    while not engine.finished:
        engine.step()
    return engine


def test_a_step_equals_the_plain_pytorch_loop():
    """The first four steps of the toy, written out by hand with `requires_grad` toggled and zero_grad."""
    ours, model = engine(), Toy()
    critic = torch.optim.Adam(model.critic.parameters(), 1e-2, (0.0, 0.99), fused=True)
    generator = torch.optim.Adam(model.generator.parameters(), 1e-2, fused=True)
    source = batches(Workers())(model.stages[0])
    draw = torch.Generator()
    for step in range(4):
        ours.step()
        real = source.batch(8 * step)["image"].float().flatten(1) / 127.5 - 1
        draw.manual_seed(seed_of(seed_of(0, 0), step, 0, 1))
        fake = model.generator(torch.randn(8, 3, generator=draw))
        draw.manual_seed(seed_of(seed_of(0, 0), step, 0, 2))
        mixed = torch.lerp(real, fake.detach(), torch.rand(8, 1, generator=draw)).requires_grad_()
        (slope,) = torch.autograd.grad(model.critic(mixed).sum(), mixed, create_graph=True)
        loss = (model.critic(fake.detach()) - model.critic(real)).mean()
        loss = loss + 10 * (slope.norm(dim=1) - 1).square().mean()
        critic.zero_grad()
        loss.backward()
        critic.step()
        if step % 2 == 0:
            for parameter in model.critic.parameters():
                parameter.requires_grad = False
            generator.zero_grad()
            (-model.critic(fake).mean()).backward()
            generator.step()
            for parameter in model.critic.parameters():
                parameter.requires_grad = True
    torch.testing.assert_close(flat(ours.model.state_dict()), flat(model.state_dict()), rtol=1e-6, atol=1e-8)


def test_the_generators_update_computes_no_weight_gradients_of_the_critic():
    """With pruning, backward through the critic costs one product a layer (the input's), not two."""
    model = Toy()
    fake = torch.randn(8, 16, requires_grad=True)
    loss = model.critic(fake).sum()
    with FlopCounterMode(display=False) as flops:
        loss.backward(inputs=[fake])
    assert flops.get_total_flops() == 2 * 8 * (32 * 1 + 16 * 32)


def test_schedule_and_intervals_count_images_and_steps(monkeypatch):
    run = engine()
    critic, rates = run._trained[0].optimizer, []
    step = critic.step
    monkeypatch.setattr(critic, "step", lambda rate: rates.append(rate) or step(rate))
    while run.position.stage == 0:
        run.step()
    assert rates == [1e-2] * 10 + [5e-3] * 10
    assert trained(run).update_counts == {"critic": 40, "generator": 20}
    assert run.position.images == run.total_images == 320


def test_the_average_follows_its_closed_form():
    """EMA of weights w_1..w_n from w_0: each step keeps 0.5^(batch / half life) of what was."""
    run = engine()
    expected = copy.deepcopy(run.model.generator.state_dict())
    for images in range(8, 81, 8):
        run.step()
        decay = 0.5 ** (8 / min(64, 0.05 * images))
        for name, live in run.model.generator.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * live
    assert run.average
    torch.testing.assert_close(flat(run.average.average), flat(expected))
    live = flat(run.model.generator.state_dict())
    with run.evaluating() as model:
        torch.testing.assert_close(flat(model.generator.state_dict()), flat(expected))
    assert torch.equal(flat(run.model.generator.state_dict()), live)


@pytest.mark.parametrize("steps", [1, 7, 20, 33])
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(steps: int, tmp_path: Path):
    whole = trained(engine())
    first = engine()
    for _ in range(steps):
        first.step()
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second = engine()
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    trained(second)
    assert second.position == whole.position and second.update_counts == whole.update_counts
    assert torch.equal(flat(second.model.state_dict()), flat(whole.model.state_dict()))
    assert second.average and whole.average
    assert torch.equal(flat(second.average.average), flat(whole.average.average))


@pytest.mark.parametrize("accumulation", [2, 4])
def test_micro_batches_make_the_gradient_of_the_whole_batch(accumulation: int):
    whole, parts = engine(), engine(accumulation=accumulation)
    for _ in range(6):
        whole.step()
        parts.step()
    torch.testing.assert_close(flat(parts.model.state_dict()), flat(whole.model.state_dict()), rtol=1e-5, atol=1e-7)
    for name, value in whole.losses().items():
        assert parts.losses().get(name, value) == pytest.approx(value, rel=1e-4)


def test_a_batch_that_does_not_divide_is_refused_by_name():
    with pytest.raises(SpecError, match=r"batch of 8 images in stage first .* multiple of 3"):
        engine(accumulation=3)


def norm(network: nn.Module) -> float:
    """Of the gradient that was stepped along."""
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).norm().item()


def test_clipping_bounds_the_norm_and_what_it_was_before_is_told():
    run, free = engine(gradient_clip=1e-3), engine()
    run.step()
    free.step()
    assert norm(run.model.critic) == pytest.approx(1e-3, rel=1e-4)
    told, expected = run.losses()["gradient_norm/critic"], free.losses()["gradient_norm/critic"]
    assert told == expected == pytest.approx(norm(free.model.critic))


def test_of_every_fifth_gradient_the_norm_is_told():
    """The generator's update is due in every second step, so that its fifth after the first comes in the tenth."""
    run, critic, generator = engine(), [], []
    for step in range(11):
        run.step()
        if step % 5 == 0:
            critic.append(norm(run.model.critic))
        if step % 10 == 0:
            generator.append(norm(run.model.generator))
    means = run.losses()
    assert means["gradient_norm/critic"] == pytest.approx(sum(critic) / 3)
    assert means["gradient_norm/generator"] == pytest.approx(sum(generator) / 2)


def test_a_gradient_that_is_not_finite_is_named_and_not_applied():
    """The square root of 0 is finite, and its derivative is not."""

    class Kinked(Toy):
        def critic_loss(self, batch, context):  # type: ignore[no-untyped-def]
            terms = super().critic_loss(batch, context)
            kink = (0 * next(self.critic.parameters()).sum()).sqrt()
            return terms if context.step != 5 else type(terms)(terms.total + kink, terms.terms)

    run = engine(Kinked())
    for _ in range(5):
        run.step()
    before = flat(run.model.state_dict())
    with pytest.raises(NonFiniteLoss, match=r"critic update's 'gradient_norm' is not finite .* after 40 images"):
        run.step()
    assert torch.equal(flat(run.model.state_dict()), before)


@pytest.mark.parametrize("poisoned", [7, 19], ids=["between", "at a stage's end"])
def test_a_gradient_that_nobody_measured_leaves_no_state_that_is_kept(poisoned: int):
    """Of every fifth update the norm is measured; what another one does to the weights is found before they are saved,
    and before a stage ends with them."""

    class Kinked(Toy):
        def critic_loss(self, batch, context):  # type: ignore[no-untyped-def]
            terms = super().critic_loss(batch, context)
            kink = (0 * next(self.critic.parameters()).sum()).sqrt()
            return terms if context.step != poisoned else type(terms)(terms.total + kink, terms.terms)

    run = engine(Kinked())

    def step_and_keep() -> None:
        run.step()
        run.state_dict()

    for _ in range(poisoned):
        step_and_keep()
    with pytest.raises(NonFiniteLoss, match=r"critic update's 'weights' is not finite in stage first"):
        step_and_keep()
    assert not run.finite


def test_a_loss_that_is_not_finite_is_named_and_not_applied():
    run = engine(Toy(poisoned={(5, 1)}))
    for _ in range(5):
        run.step()
    before = flat(run.model.state_dict())
    with pytest.raises(NonFiniteLoss, match=r"critic update's 'penalty' is not finite in stage first after 40 images"):
        run.step()
    assert torch.equal(flat(run.model.state_dict()), before)


def test_without_checkpoints_a_poisoned_run_fails_with_that_sentence():
    with pytest.raises(DivergedError, match="critic update's 'penalty' is not finite"):
        train(engine(Toy(poisoned={(5, 1)})))


def test_two_workers_make_the_gradients_of_one(tmp_path: Path):
    """Half the batch each, double backward and shared draws included."""
    mp.spawn(run_worker, (2, str(tmp_path), 6), nprocs=2)  # type: ignore[attr-defined]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(flat(first["model"]), flat(second["model"])), "replicas differ"
    alone = engine()
    for step in range(6):
        alone.step()
        for trained_update in alone._trained:
            together = first["gradients"][step][trained_update.update.name]
            for parameter, gradient in zip(trained_update.update.parameters, together, strict=True):
                expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    for name, value in alone.losses().items():
        assert first["losses"][name] == second["losses"][name] == pytest.approx(value, rel=1e-5)


def test_more_images_than_a_batch_divides_round_up():
    run = engine(Toy(ToyConfig(images=12)))
    assert run.total_images == 32
    assert trained(run).position.images == 32
