"""What models that are known are told by the tasks that judge them."""

import numpy as np
import torch
from torch import Tensor

from genmodels.data.dataset import Dataset
from genmodels.data.manifest import Manifest, Table
from genmodels.evaluation.tasks.representation import Representation
from genmodels.models import build
from genmodels.models.adversarial_autoencoder import AdversarialAutoencoder
from genmodels.models.base import DataInfo


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
