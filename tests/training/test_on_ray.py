"""How workers are laid on the nodes of a cluster; that they run there, the tests of faults show."""

import pytest

from genmodels.training.on_ray import largest_share


@pytest.mark.parametrize(
    ("cpus", "workers", "share"),
    [
        ([4, 4], 1, 4),  # not 8, which no node has
        ([5, 5], 3, 2),  # not 10 // 3, of which each node has room for one
        ([8, 4], 2, 4),
        ([4] * 8, 4, 4),
        ([0, 2], 2, 1),
        ([2], 3, 1),
        ([], 1, 1),
    ],
)
def test_all_workers_find_room_with_the_largest_share(cpus: list[int], workers: int, share: int):
    assert largest_share(cpus, workers) == share
