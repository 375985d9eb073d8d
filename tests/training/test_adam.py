"""Adam against torch's own, and what it spares."""

import subprocess
import sys

import torch
from torch import nn

from genmodels.models import base
from genmodels.training.adam import Adam


def networks(count: int) -> list[nn.Sequential]:
    torch.manual_seed(0)
    made = [nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)) for _ in range(count)]
    for network in made[1:]:
        network.load_state_dict(made[0].state_dict())
    return made


def differentiate(network: nn.Sequential, step: int) -> None:
    """As `step` asks: the first layer has no gradient in the first two steps."""
    network.zero_grad()
    network(torch.randn(4, 5, generator=torch.Generator().manual_seed(step))).square().mean().backward()
    if step < 2:
        network[0].weight.grad = network[0].bias.grad = None


def test_it_steps_as_torchs_adam_bit_for_bit():
    ours, theirs = networks(2)
    adam = Adam([*ours.parameters()], base.Adam(1.0, betas=(0.3, 0.95), eps=1e-6, weight_decay=0.1))
    torchs = torch.optim.Adam(theirs.parameters(), 1.0, betas=(0.3, 0.95), eps=1e-6, weight_decay=0.1, fused=True)
    for step in range(6):
        rate = torchs.param_groups[0]["lr"] = 0.1 / (step + 1)
        for network in (ours, theirs):
            differentiate(network, step)
        adam.step(rate)
        torchs.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.equal(other)
    state = torchs.state_dict()["state"]
    assert adam.state_dict()["state"].keys() == state.keys()
    for place, moments in adam.state_dict()["state"].items():
        assert all(moments[name].equal(state[place][name]) for name in state[place])


def test_it_goes_on_from_torchs_moments():
    """A training that another version of the engine began."""
    theirs, ours = networks(2)
    torchs = torch.optim.Adam(theirs.parameters(), 0.1, fused=True)
    for step in range(4):
        differentiate(theirs, step)
        torchs.step()
    ours.load_state_dict(theirs.state_dict())
    adam = Adam([*ours.parameters()], base.Adam(0.1))
    adam.load_state_dict(torchs.state_dict())
    for network in (ours, theirs):
        differentiate(network, 4)
    adam.step(0.1)
    torchs.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.equal(other)


def test_training_imports_no_compiler():
    """Which takes seconds, in every worker, before its first step."""
    code = "import sys, toy; toy.engine().step(); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
