"""What models that are known are told by the tasks that judge them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genmodels.data.dataset import Dataset
from genmodels.data.manifest import Manifest, Table
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.pictures import CAPTION_PIXELS, LINE_PIXELS, MARGIN, TILE_PIXELS
from genmodels.evaluation.tasks.representation import INTERPOLATIONS, Interpolation, Representation
from genmodels.models import build
from genmodels.models.adversarial_autoencoder import AdversarialAutoencoder
from genmodels.models.base import DataInfo
from genmodels.models.infogan import InfoGAN


def images_of_classes(labels: np.ndarray, classes: int) -> tuple[Manifest, Dataset]:
    """4x4 pixels of noise beside the first, which is the class; as many for training as are held out."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 1, 4, 4), dtype=np.uint8)
    images[:, 0, 0, 0] = labels
    table = {"image@4": images, "label": labels}
    manifest = Manifest(
        name="classes",
        digest="",
        resolution=4,
        channels=1,
        classes=classes,
        class_names=[],
        licence="",
        tables={split: Table(rows=len(labels), columns={}) for split in ("train", "test")},
        set_aside={},
    )
    return manifest, Dataset.from_arrays({"train": table, "test": table})


def test_codes_that_follow_the_prior_of_their_rare_and_frequent_classes_are_taken_to(monkeypatch):
    """Seven in ten images are of one class, so that its petal has most of the codes."""
    config = {"resolution": 4, "hidden": (8,), "latent": 2, "prior": "mixture_of_gaussians", "conditional": True}
    model = build("adversarial_autoencoder", config, DataInfo(channels=1, classes=4), seed=0)
    assert isinstance(model, AdversarialAutoencoder)

    def perfect(images: Tensor, *, generator: torch.Generator) -> Tensor:
        labels = images[:, 0, 0, 0].add(1).mul(127.5).round().long()
        return model.prior(len(images), labels=labels, generator=generator)

    monkeypatch.setattr(model, "posterior", perfect)
    labels = np.random.default_rng(1).choice(4, 400, p=[0.7, 0.1, 0.1, 0.1])
    task = Representation(model, *images_of_classes(labels, 4), extractors=[])
    score = task.judge(model, replicates=20, progress=lambda what, images: None).scores["prior_mmd"]
    assert score.low < 0.01
    assert float(score.note.removeprefix("p = ").split()[0]) > 0.1


PIXELS = Extractor("pixels", "", "none", lambda images: images.flatten(1), torch.device("cpu"))


def infogan(**codes) -> InfoGAN:
    config = {"resolution": 8, "latent": 4, "hidden_units": 8, "channels": 4, "recognition_units": 4} | codes
    model = build("infogan", config, DataInfo(channels=1), seed=0)
    assert isinstance(model, InfoGAN)
    return model


def test_each_code_of_an_infogan_is_moved_alone_through_its_values(monkeypatch):
    """A generator that paints its codes, 4 x the first category + 16 x the second + 20 x the continuous code + 100."""
    model = infogan(categorical_codes=[2, 3], continuous_codes=1)
    weights = torch.tensor([0.0, 4, 0, 16, 32, 20])
    paint = lambda latents: ((latents[:, :6] @ weights + 100) / 127.5 - 1).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)  # noqa: E731
    monkeypatch.setattr(model, "decode", paint)
    task = Interpolation(model, *images_of_classes(np.zeros(10, int), 1), extractors=[PIXELS])
    drawn = task.judge(model, replicates=0, progress=lambda what, images: None).pictures()["code_traversals"]
    sheet = np.asarray(Image.open(io.BytesIO(drawn)))[..., 0].astype(int)
    tile, left, panels = TILE_PIXELS + LINE_PIXELS, MARGIN, []
    for columns in (2, 3, 9):
        middles = [LINE_PIXELS + TILE_PIXELS // 2 + tile * np.arange(count) for count in (INTERPOLATIONS, columns)]
        panels.append(sheet[np.ix_(CAPTION_PIXELS + middles[0], left + middles[1])])
        left += MARGIN + LINE_PIXELS + tile * columns
    codes = model.prior(INTERPOLATIONS, generator=torch.Generator().manual_seed(0))[:, :6]
    first, second, third = (
        (codes[:, part] @ weights[part]).numpy()[:, None] for part in map(slice, (0, 2, 5), (2, 5, 6))
    )
    for panel, rest, values in zip(
        panels,
        (second + third, first + third, first + second),
        ([0, 4], [0, 16, 32], np.linspace(-40, 40, 9)),
        strict=True,
    ):
        np.testing.assert_allclose(panel, 100 + rest + values, atol=0.51)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_an_infogan_without_codes_is_drawn_without_them():
    model = infogan(categorical_codes=[], continuous_codes=0).eval()
    task = Interpolation(model, *images_of_classes(np.zeros(10, int), 1), extractors=[PIXELS])
    pictures = task.judge(model, replicates=0, progress=lambda what, images: None).pictures()
    assert set(pictures) == {"interpolations", "linear_interpolations"}
