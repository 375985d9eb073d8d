"""The same random weights in torch-fidelity's network and in ours, and its resize against ours."""

import io

import pytest
import torch
from inception_weights import random_weights
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from genmodels.evaluation import inception


@pytest.mark.parametrize("size", [32, 64, 299, 400])
def test_the_resize_is_tensorflows(size):
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    torch.testing.assert_close(inception._prepared(images), (expected - 128) / 128, rtol=0, atol=5e-5)


def test_the_features_are_torch_fidelitys(tmp_path):
    weights = random_weights()
    path = tmp_path / "weights.pth"
    path.write_bytes(weights)
    reference = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    images = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    (expected,) = reference(images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(
        inception.Inception(weights)(images), expected, rtol=1e-3, atol=1e-3 * float(expected.std())
    )


def test_pixels_between_two_bytes_stay_there():
    """The images on a path of latents, which are hardly apart."""
    model = inception.Inception(random_weights())
    model.network = torch.nn.Identity()  # type: ignore[assignment]
    images = torch.randint(0, 255, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    between = (images.float() + 0.25) / 127.5 - 1
    torch.testing.assert_close(model(between), model(images) + 0.25 / 128, rtol=0, atol=1e-5)


def test_a_file_that_runs_code_is_not_read():
    class Trap:
        def __reduce__(self):
            return print, ("this was run",)

    file = io.BytesIO()
    torch.save({"fc.weight": Trap()}, file)
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
        inception.Inception(file.getvalue())
