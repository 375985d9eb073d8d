"""Vector quantisation (van den Oord, Vinyals & Kavukcuoglu, NeurIPS 2017): the nearest of K learnt vectors stands for
each vector of an encoder.

B batch, D dimensions of a vector, H height, W width, N vectors in all.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

COMPARED = 2**16  # vectors compared with the codebook at a time


class Workers(Protocol):
    """The data-parallel group."""

    rank: int
    size: int

    def sum(self, tensor: Tensor) -> Tensor: ...


class Codebook(nn.Module):
    """K vectors, each the exponential moving average of the encoder's vectors that it stands for (appendix A.1).

    A training loss shows it with `observe` what it stood for; `update` moves it, once in a step however many
    micro-batches there were. What was observed is kept in the state in between. A code that stands for next to nothing
    is dead, and starts again from one of the encoder's vectors, drawn from all workers' (Dhariwal et al. 2020, Jukebox,
    section 3.1). So the first update of all fills the codebook.

    Args:
        codes: K.
        dimensions: D.
        decay: of the averages, in a step.
        restart_below: the share of an even use of all codes below which a code is dead.
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor
    seen: Tensor
    candidates: Tensor

    def __init__(self, codes: int, dimensions: int, *, decay: float, restart_below: float):
        super().__init__()
        self.decay, self.restart_below = decay, restart_below
        self.register_buffer("vectors", torch.randn(codes, dimensions))
        self.register_buffer("counts", torch.zeros(codes, 1))
        self.register_buffer("sums", torch.zeros(codes, dimensions))
        self.register_buffer("seen", torch.zeros(codes, 1 + dimensions))  # counts and sums since the last update
        self.register_buffer("candidates", torch.zeros(codes, dimensions))  # what each code would start again from

    def forward(self, maps: Tensor) -> Tensor:
        """(B, D, H, W) -> the nearest codes, (B, H, W) int64. In fp32, whatever autocast says: `cdist` is exempt."""
        rows = as_rows(maps).float()
        nearest = [torch.cdist(part, self.vectors).argmin(1) for part in rows.split(COMPARED)]
        return torch.cat(nearest).view(len(maps), *maps.shape[2:])

    def look_up(self, codes: Tensor) -> Tensor:
        """(B, H, W) -> the vectors, (B, D, H, W)."""
        return F.embedding(codes, self.vectors).permute(0, 3, 1, 2)

    @torch.no_grad()
    def observe(self, maps: Tensor, codes: Tensor, uniform: Tensor, workers: Workers) -> Tensor:
        """Takes note that the codes (B, H, W) stood for the maps (B, D, H, W), and of the vectors that uniform numbers
        on [0, 1), (K,), the same on all workers, choose to start again from -> how often each code was used, (K,)."""
        rows, chosen = as_rows(maps).float(), codes.flatten()
        counts = torch.zeros_like(self.counts).index_add_(0, chosen, rows.new_ones(len(rows), 1))
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, rows)
        place = (uniform * len(rows) * workers.size).long() - workers.rank * len(rows)
        here = (place >= 0) & (place < len(rows))
        candidates = torch.where(here[:, None], rows[place.clamp(0, len(rows) - 1)], 0)
        everyones = workers.sum(torch.cat((counts, sums, candidates), dim=1))
        seen, candidates = everyones.tensor_split([self.seen.shape[1]], dim=1)
        self.seen += seen
        self.candidates.copy_(candidates)
        return seen[:, 0]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the codebook by what was observed since the last time; by nothing if that is nothing."""
        counts, sums = self.seen.tensor_split([1], dim=1)
        even = counts.mean()
        weight = (1 - self.decay) * (even > 0)
        self.counts.lerp_(counts, weight)
        self.sums.lerp_(sums, weight)
        dead = self.counts < self.restart_below * even
        self.counts.copy_(torch.where(dead, even, self.counts))
        self.sums.copy_(torch.where(dead, even * self.candidates, self.sums))
        self.vectors.copy_(torch.where(even > 0, self.sums / self.counts, self.vectors))
        self.seen.zero_()


def as_rows(maps: Tensor) -> Tensor:
    """(B, D, H, W) -> (N, D)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def straight_through(maps: Tensor, vectors: Tensor) -> Tensor:
    """The vectors, with the gradient going to the maps for which they stand as if they were those (section 3.2)."""
    return maps + (vectors - maps).detach()


def perplexity(counts: Tensor) -> Tensor:
    """How many codes, evenly used, would be as hard to guess as codes used so often, (K,): from 1 to K."""
    return torch.special.entr(counts / counts.sum()).sum().exp()
