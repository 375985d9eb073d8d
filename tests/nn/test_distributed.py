"""Means over two workers, and batch norm over their batches, against torch's on the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from genmodels.nn.distributed import mean_over_workers
from genmodels.nn.normalization import BatchNorm

WHOLE = 3 + 2 * torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def normalised(norm: nn.Module, images: Tensor, share: float) -> dict[str, Tensor]:
    """What two passes through the layer give: output, statistics, and gradients of a loss with double backward."""
    images = images.clone().requires_grad_()
    for _ in range(2):
        output = norm(images)
    loss = output.pow(3).mean()
    (slope,) = torch.autograd.grad(loss, images, create_graph=True)
    (loss + (slope * share).square().sum((1, 2, 3)).mean()).backward()
    grads = {name: parameter.grad for name, parameter in norm.named_parameters()}
    return {"output": output.detach(), "images": images.grad * share, **norm.state_dict(), **grads}


def layer(kind: type[nn.Module]) -> nn.Module:
    norm = kind(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    return norm


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/rendezvous")
    mean = mean_over_workers(torch.tensor([1.0, 10.0]) * (rank + 1))
    results = normalised(layer(BatchNorm), WHOLE.chunk(2)[rank], share=0.5)
    torch.save({"mean": mean} | results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_normalise_the_whole_batch(tmp_path: Path):
    mp.spawn(work, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    expected = normalised(layer(nn.BatchNorm2d), WHOLE, share=1.0)
    for worker in both:
        assert worker["mean"].tolist() == [1.5, 15.0]
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(worker[name], expected[name])
    for name in ("output", "images"):
        torch.testing.assert_close(torch.cat([worker[name] for worker in both]), expected[name])
    for name in ("weight", "bias"):
        mean_gradient = sum(worker[name] for worker in both) / 2
        torch.testing.assert_close(mean_gradient, expected[name])


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 4, 4)])
def test_alone_it_is_torchs(shape: tuple[int, ...]):
    x = torch.randn(shape)
    theirs = nn.BatchNorm2d(3) if len(shape) == 4 else nn.BatchNorm1d(3)
    assert torch.equal(BatchNorm(3)(x), theirs(x))
