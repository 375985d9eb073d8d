"""Vector quantisation: nearest codes, averages, codes that start again, and the gradient that goes straight through."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from genmodels.nn.codebook import Codebook, as_rows, perplexity, straight_through
from genmodels.training.workers import Workers

CODES, SIZE = 7, 3


def reals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codebook(*, codes: int = CODES, decay: float = 0.9, restart_below: float = 1e-9) -> Codebook:
    """One that is in use: its vectors are its averages."""
    book = Codebook(codes, SIZE, decay=decay, restart_below=restart_below)
    book.vectors.copy_(reals(codes, SIZE, seed=9))
    book.counts.fill_(1.0)
    book.sums.copy_(book.vectors)
    return book


def uniform(codes: int = CODES) -> Tensor:
    return torch.rand(codes, generator=torch.Generator().manual_seed(5))


def test_codes_are_the_nearest_by_brute_force():
    book, maps = codebook(), reals(2, SIZE, 4, 5)
    codes = book(maps)
    for image, row, column in ((i, r, c) for i in range(2) for r in range(4) for c in range(5)):
        distances = [(maps[image, :, row, column] - vector).square().sum().item() for vector in book.vectors]
        assert codes[image, row, column] == distances.index(min(distances))
        assert torch.equal(book.look_up(codes)[image, :, row, column], book.vectors[codes[image, row, column]])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(book(maps), codes)  # bf16 would confuse codes that are close


def test_vectors_of_codes_are_their_own_codes():
    book = codebook()
    assert torch.equal(book(book.vectors.T[None, :, :, None]), torch.arange(CODES)[None, :, None])


def test_the_gradient_goes_straight_through():
    maps, vectors, weight = reals(2, SIZE, 2, 2).requires_grad_(), reals(2, SIZE, 2, 2, seed=1), reals(2, SIZE, 2, 2)
    quantised = straight_through(maps, vectors)
    torch.testing.assert_close(quantised, vectors)
    slope = 2 * weight * vectors  # of sum(weight * quantised^2) by the quantised
    (gradient,) = torch.autograd.grad((weight * quantised.square()).sum(), maps)
    torch.testing.assert_close(gradient, slope)


def test_with_fixed_assignments_codes_go_to_the_means_of_what_they_stand_for():
    book, maps = codebook(codes=2), reals(4, SIZE, 3, 3)
    codes = (maps[:, 0] > 0).long()
    for _ in range(300):
        book.observe(maps, codes, uniform(2), Workers())
        book.update()
    for code in (0, 1):
        torch.testing.assert_close(book.vectors[code], as_rows(maps)[codes.flatten() == code].mean(0))


def test_one_update_is_that_of_the_paper():
    """N = decay N + (1 - decay) n, m = decay m + (1 - decay) sum, e = m / N (appendix A.1)."""
    book, maps = codebook(), reals(2, SIZE, 4, 5)
    before, codes, rows = book.vectors.clone(), book(maps), as_rows(maps)
    used = book.observe(maps, codes, uniform(), Workers())
    assert torch.equal(book.vectors, before)  # until the step is over
    book.update()
    for code in range(CODES):
        own = rows[codes.flatten() == code]
        assert used[code] == len(own)
        expected = (0.9 * before[code] + 0.1 * own.sum(0)) / (0.9 + 0.1 * len(own))
        torch.testing.assert_close(book.vectors[code], expected)


def test_an_update_without_anything_new_changes_nothing():
    book = codebook()
    book.observe(reals(2, SIZE, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64), uniform(), Workers())
    book.update()
    before = {name: value.clone() for name, value in book.state_dict().items()}
    book.update()
    assert all(torch.equal(value, before[name]) for name, value in book.state_dict().items())


def test_micro_batches_move_it_like_the_whole_batch():
    whole, parts, maps = codebook(), codebook(), reals(4, SIZE, 3, 3)
    whole.observe(maps, whole(maps), uniform(), Workers())
    for micro in maps.chunk(2):
        parts.observe(micro, parts(micro), uniform(), Workers())
    whole.update()
    parts.update()
    torch.testing.assert_close(parts.vectors, whole.vectors)


def vectors_of_training(workers: Workers) -> Tensor:
    """Of the codebook after each of three updates by a worker's share of the maps; three codes are dead at first."""
    book, after = codebook(restart_below=0.1), []
    book.vectors[:3], book.counts[:3] = 100.0, 1e-3
    for step in range(3):
        maps = reals(4, SIZE, 3, 3, seed=step).chunk(workers.size)[workers.rank]
        book.observe(maps, book(maps), uniform(), workers)
        book.update()
        after.append(book.vectors.clone())
    return torch.stack(after)


def work(rank: int, size: int, folder: str) -> None:
    """The body of one spawned worker; leaves its vectors in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size, init_method=f"file://{folder}/rendezvous")
    torch.save(vectors_of_training(Workers()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_train_the_codebook_of_one(tmp_path: Path):
    """Dead codes start again from vectors that the second, the first and the second saw, of 18 each."""
    mp.spawn(work, (2, str(tmp_path)), nprocs=2)  # type: ignore[attr-defined]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone, places = vectors_of_training(Workers()), (uniform()[:3] * 36).long()
    assert places.tolist() == [29, 4, 32]
    torch.testing.assert_close(alone[0, :3], as_rows(reals(4, SIZE, 3, 3))[places])
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-6)


def test_dead_codes_start_again_from_vectors_of_the_encoder():
    """Those that stand for less than their share; with the count of an even use, so that they have time to live."""
    book, maps = codebook(restart_below=0.1), reals(4, SIZE, 3, 3)
    book.counts[:3], book.sums[:3] = 1e-3, 1e-3 * book.vectors[:3]
    everything = torch.full((4, 3, 3), 5)
    book.observe(maps, everything, uniform(), Workers())
    candidates, before = book.candidates.clone(), book.vectors.clone()
    book.update()
    torch.testing.assert_close(book.vectors[:3], candidates[:3])
    assert torch.equal(book.counts[:3], torch.full((3, 1), 36 / CODES))
    torch.testing.assert_close(book.vectors[[3, 4, 6]], before[[3, 4, 6]])  # not used now, but not long ago
    rows = {tuple(row) for row in as_rows(maps).tolist()}
    assert all(tuple(row) in rows for row in candidates.tolist())


def test_the_first_update_fills_the_codebook():
    book, maps = Codebook(CODES, SIZE, decay=0.99, restart_below=0.03), reals(4, SIZE, 3, 3) + 100
    book.observe(maps, book(maps), uniform(), Workers())
    book.update()
    assert (book.vectors > 90).all()


@pytest.mark.parametrize(("counts", "expected"), [([4, 4, 4, 4], 4), ([9, 0, 0, 0], 1), ([5, 5, 0, 0], 2)])
def test_perplexity_is_the_number_of_codes_in_even_use(counts: list[int], expected: int):
    assert perplexity(torch.tensor(counts, dtype=torch.float32)).item() == pytest.approx(expected)
