"""Known answers, and the definition written once more with scipy's filters and one loop over the patches."""

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch

from genmodels.evaluation import sliced_wasserstein as swd


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(n: int, channels: int = 3, resolution: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth random images, uint8."""
    noise = np.random.default_rng(seed).normal(size=(n, channels, resolution, resolution))
    smooth = scipy.ndimage.gaussian_filter(noise, (0, 0, 1.5, 1.5))
    return torch.from_numpy(np.clip(128 + 200 * smooth, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("resolution", "expected"),
    [(1024, [1024, 512, 256, 128, 64, 32, 16]), (48, [48, 24]), (16, [16]), (8, [8]), (28, [28])],
)
def test_the_levels_are_the_papers(resolution, expected):
    assert swd.levels(resolution) == expected


def test_the_pyramid_equals_scipys_mirrored_convolutions():
    images = photos(2, resolution=32).float()
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])[None, None] / 256
    expected, image = [], images.double().numpy()
    for _ in range(1):
        small = scipy.ndimage.convolve(image, kernel, mode="mirror")[:, :, ::2, ::2]
        spread = np.zeros_like(image)
        spread[:, :, ::2, ::2] = small
        expected.append(image - scipy.ndimage.convolve(spread, 4 * kernel, mode="mirror"))
        image = small
    for level, wanted in zip(swd.laplacian_pyramid(images, [32, 16]), [*expected, image], strict=True):
        np.testing.assert_allclose(level.numpy(), wanted, atol=2e-4)


def test_a_constant_image_has_no_detail():
    fine, coarse = swd.laplacian_pyramid(torch.full((1, 1, 32, 32), 100.0), [32, 16])
    assert fine.abs().max() < 1e-4
    torch.testing.assert_close(coarse, torch.full((1, 1, 16, 16), 100.0))


def test_the_distance_of_a_set_to_itself_is_zero():
    images = photos(20)
    for level in swd.sliced_wasserstein(images, images, generator=generator()).values():
        assert level.value == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_mean_wasserstein_distance_of_standardised_patches(channels):
    """At 8x8 there is one level and no filter: cut, standardise, project and let scipy measure each direction."""
    real, fake = photos(12, channels, 8), photos(12, channels, 8, seed=1)
    value = swd.sliced_wasserstein(real, fake, generator=generator(3))[8].value

    rng = generator(3)
    y, x = torch.randint(2, (2, 12, 128), generator=rng)
    directions = torch.randn(512, channels * 49, generator=rng).numpy()
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def patches(images):
        cut = [
            images[i, :, y[i, p] : y[i, p] + 7, x[i, p] : x[i, p] + 7].numpy() for i in range(12) for p in range(128)
        ]
        cut = np.stack(cut).astype(float)
        return ((cut - cut.mean((0, 2, 3), keepdims=True)) / cut.std((0, 2, 3), keepdims=True)).reshape(len(cut), -1)

    a, b = patches(real) @ directions.T, patches(fake) @ directions.T
    expected = np.mean([scipy.stats.wasserstein_distance(a[:, d], b[:, d]) for d in range(512)])
    assert value == pytest.approx(1e3 * expected, rel=1e-4)


def test_brightness_and_contrast_do_not_count_but_structure_does():
    """Each set is standardised, so an affine change of all its pixels is invisible."""
    images = photos(20).float() / 127.5 - 1
    same = swd.sliced_wasserstein(images, 0.5 * images + 0.1, generator=generator())
    noise = swd.sliced_wasserstein(images, torch.rand(20, 3, 32, 32, generator=generator()), generator=generator())
    for size in (32, 16):
        assert same[size].value < 0.01
        assert noise[size].value > 50


def test_gaussian_noise_is_at_the_distance_the_projections_say():
    """White noise against noise that is constant in a patch: along a unit direction u the first projects to
    N(0, 1), the second to N(0, (sum u)^2), so the distance is E| 1 - |sum u| | sqrt(2/pi), u uniform in 49 dimensions.
    """
    rng = np.random.default_rng(0)
    white = torch.from_numpy(rng.normal(size=(1000, 1, 8, 8))).float() / 8
    flat = torch.from_numpy(rng.normal(size=(1000, 1, 1, 1))).float().expand(-1, -1, 8, 8) / 8
    u = rng.normal(size=(200_000, 49))
    expected = np.abs(1 - np.abs((u / np.linalg.norm(u, axis=1, keepdims=True)).sum(1))).mean() * np.sqrt(2 / np.pi)
    value = swd.sliced_wasserstein(white, flat, generator=generator())[8].value
    assert value == pytest.approx(1e3 * expected, rel=0.05)


def test_points_are_compared_as_they_are():
    """Points whose two coordinates are independent against points where they correlate by r: along the angle a the
    variances are 1 and 1 + r sin 2a, and two normal distributions lie sqrt(2/pi) times their deviations apart."""
    correlation = 0.9
    normal = np.random.default_rng(0).normal(size=(2, 5_000, 2))
    independent, correlated = normal[0], normal[1] @ np.linalg.cholesky([[1, correlation], [correlation, 1]]).T
    angles = np.linspace(0, 2 * np.pi, 10_000)
    apart = np.abs(1 - np.sqrt(1 + correlation * np.sin(2 * angles))).mean()
    points = [torch.from_numpy(points).float()[:, :, None, None] / 10 for points in (independent, correlated)]
    level = swd.sliced_wasserstein(*points, generator=generator())[1]
    assert level.value == pytest.approx(1e3 * math.sqrt(2 / math.pi) * apart, rel=0.05)
    assert abs(float(level.replicates.mean()) - level.value) < 4 * level.standard_error + 10


def test_another_brightness_counts_only_in_the_absolute_distance():
    """A shift by c moves every projection by c / sigma times the sum of a unit vector of d components, whose mean size
    is sqrt(d) Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2))."""
    images = photos(200, 1, 8).float() / 255 - 0.5
    brighter = images + 0.25
    own = swd.sliced_wasserstein(images, brighter, generator=generator(), replicates=0)[8]
    assert own.value < 0.01
    size = 7 * math.gamma(24.5) / (math.sqrt(math.pi) * math.gamma(25))
    absolute = swd.sliced_wasserstein(images, brighter, absolute=True, generator=generator(), replicates=0)[8]
    assert absolute.value == pytest.approx(1e3 * 0.25 / float(images.std()) * size, rel=0.1)


def test_constant_images_are_measured_not_divided_by_zero():
    level = swd.sliced_wasserstein(photos(10), torch.zeros(10, 3, 32, 32), generator=generator())[16]
    assert np.isfinite(level.value)
    assert level.value > 100


def test_the_standard_error_is_the_spread_of_repeated_experiments(monkeypatch):
    """Twenty pairs of fresh samples scatter as much as the bootstrap of one pair says."""
    monkeypatch.setattr(swd, "REPEATS", 1)

    def brighter(images: torch.Tensor, seed: int) -> torch.Tensor:
        light = 60 * torch.randn(len(images), 1, 1, 1, generator=generator(seed))
        return (0.4 * images + 77 + light).clamp(0, 255).byte()

    scores = []
    for i in range(20):
        real, fake = photos(150, 1, 8, seed=2 * i), brighter(photos(150, 1, 8, seed=2 * i + 1), i)
        scores.append(swd.sliced_wasserstein(real, fake, generator=generator(i))[8])
    spread = np.std([score.value for score in scores], ddof=1)
    assert np.mean([score.standard_error for score in scores]) == pytest.approx(spread, rel=0.45)


def test_the_distance_does_not_depend_on_the_bootstrap():
    real, fake = photos(10), photos(10, seed=1)
    with_interval = swd.sliced_wasserstein(real, fake, generator=generator())
    bare = swd.sliced_wasserstein(real, fake, generator=generator(), replicates=0)
    assert {k: e.value for k, e in bare.items()} == {k: e.value for k, e in with_interval.items()}


def test_sets_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        swd.sliced_wasserstein(photos(4), photos(5), generator=generator())
