"""A loop that torch can export without writing out its rounds."""

from collections.abc import Callable

import torch
from torch import Tensor


def loop(rounds: int, body: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """`state = body(index, *state)` that many times, with the index as an int64 scalar. `body` gives tensors of the
    shapes that it was given, and changes none of them in place. In a program that torch exports it is one node."""
    device = state[0].device
    if torch.compiler.is_exporting():
        from torch._higher_order_ops.while_loop import while_loop  # a second of sympy for every command otherwise

        counter = torch.zeros((), dtype=torch.int64, device=device)
        return while_loop(
            lambda index, *_: index < rounds,
            lambda index, *inner: (index + 1, *body(index, *inner)),
            (counter, *state),
        )[1:]
    for index in torch.arange(rounds, device=device):
        state = body(index, *state)
    return state
