"""The Fréchet distance of 2048 features: ours beside scipy's matrix square root and torch-fidelity's eigenvalues.

    python tests/benchmarks/frechet_distance.py [ROUNDS]

The three take turns on the same Gaussians; the table has the median seconds, the ratio to ours within a round, and the
difference of the values. The last row is ours from 1,000 images of each set, by singular values.
"""

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch_fidelity.metric_fid import fid_statistics_to_metric

from genmodels.evaluation.frechet import feature_distance, frechet_distance

FEATURES, IMAGES, FEW_IMAGES = 2048, 5_000, 1_000


def main(rounds: int) -> None:
    first, second = features(0), features(1)
    (mean_1, covariance_1), (mean_2, covariance_2) = moments(first), moments(second)
    tensors = [torch.from_numpy(array) for array in (mean_1, covariance_1, mean_2, covariance_2)]
    few = torch.from_numpy(first[:FEW_IMAGES]), torch.from_numpy(second[:FEW_IMAGES])
    ways: dict[str, Callable[[], float]] = {
        "Cholesky and eigvalsh (ours)": lambda: frechet_distance(*tensors),
        "scipy.linalg.sqrtm": lambda: by_square_root(mean_1, covariance_1, mean_2, covariance_2),
        "eigvals (torch-fidelity)": lambda: by_torch_fidelity(mean_1, covariance_1, mean_2, covariance_2),
        f"singular values of {FEW_IMAGES} images (ours)": lambda: feature_distance(*few),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values: dict[str, float] = {}
    for _ in track(range(rounds), "rounds", console=Console(stderr=True)):
        for name, way in ways.items():
            started = time.perf_counter()
            values[name] = way()
            seconds[name].append(time.perf_counter() - started)
    ours = next(iter(ways))
    table = Table("way", "median seconds", "times ours", "value", "relative difference", title=f"{rounds} rounds")
    for name in ways:
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[ours], strict=True))
        difference = abs(values[name] / values[ours] - 1)
        cells = f"{statistics.median(seconds[name]):.2f}", f"{ratio:.2f}", f"{values[name]:.6f}", f"{difference:.1e}"
        table.add_row(name, *cells[:3], cells[3] if str(FEW_IMAGES) not in name else "other images")
    Console().print(table)


def features(seed: int) -> np.ndarray:
    """Rectified and correlated with a decaying spectrum, as a network's are: (images, features), float64."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(IMAGES, FEATURES)) * np.arange(1, FEATURES + 1) ** -0.5
    mixing = np.linalg.qr(np.random.default_rng(2).normal(size=(FEATURES, FEATURES)))[0]
    return np.maximum(latent @ mixing + 0.02 * seed, 0) + 0.01 * rng.normal(size=(IMAGES, FEATURES))


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(axis=0), np.cov(x, rowvar=False)


def by_square_root(mean_1: np.ndarray, covariance_1: np.ndarray, mean_2: np.ndarray, covariance_2: np.ndarray) -> float:
    root = np.real(np.asarray(scipy.linalg.sqrtm(covariance_1 @ covariance_2)))
    return float(((mean_1 - mean_2) ** 2).sum() + np.trace(covariance_1 + covariance_2 - 2 * root))


def by_torch_fidelity(
    mean_1: np.ndarray, covariance_1: np.ndarray, mean_2: np.ndarray, covariance_2: np.ndarray
) -> float:
    first, second = {"mu": mean_1, "sigma": covariance_1}, {"mu": mean_2, "sigma": covariance_2}
    return fid_statistics_to_metric(first, second, verbose=False)["frechet_inception_distance"]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
