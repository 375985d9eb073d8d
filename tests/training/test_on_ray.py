"""How workers are laid on the nodes of a cluster; that they run there, the tests of faults show."""

import subprocess
import sys

import pytest

from genmodels.training.on_ray import largest_share

ON_ONE_GPU = """
import logging, ray
from genmodels.settings import settings
from genmodels.spec import TrainingSpec
from genmodels.training.on_ray import _scaling
logging.basicConfig(level=logging.WARNING)
ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
for workers in (1, 2):
    print(_scaling(workers, TrainingSpec(), settings()).resources_per_worker)
"""


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


def test_workers_have_a_gpu_each_or_all_cpus_which_is_told():
    done = subprocess.run([sys.executable, "-c", ON_ONE_GPU], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["{'GPU': 1}", "{'CPU': 2}"]
    assert "It trains on CPUs: of 2 workers each needs a GPU, and the cluster has 1." in done.stderr
