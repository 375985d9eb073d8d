"""Where the features that are compared come from: extractors by name, each with the digest of its weights.

One that cannot be had is left out and the reason is told; none ever takes another's place.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

from genmodels.data.dataset import Dataset, Table
from genmodels.data.download import LocatedFile, fetch
from genmodels.data.manifest import Manifest
from genmodels.evaluation import reals
from genmodels.evaluation.classifier import IMAGES_SHOWN, LARGEST, Classifier, accuracy, train_classifier
from genmodels.spec import Record, digest
from genmodels.storage.objects import store

RECIPE = 1  # of the classifier; another number asks for a new one
BATCH_IMAGES = 256
INCEPTION = LocatedFile(
    name="weights-inception-2015-12-05-6726825d.pth",
    title="Inception's weights",
    urls=(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    ),
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)


@dataclass(frozen=True)
class Extractor:
    """Images to features. The name goes into the metric's, the rest into its protocol."""

    name: str
    digest: str
    resize: str
    network: Callable[[Tensor], Tensor]
    device: torch.device
    head: Callable[[Tensor], Tensor] | None = None

    @property
    def protocol(self) -> dict[str, str]:
        """All of it that must be equal for two scores to be comparable."""
        return {"weights": self.digest, "resize": self.resize}

    @property
    def knows_classes(self) -> bool:
        """Whether it tells the classes of the data set apart."""
        return self.head is not None

    @torch.inference_mode()
    def __call__(self, images: Tensor, progress: Callable[[int], None] = lambda images: None) -> Tensor:
        """(N, D) on the CPU, of (N, C, R, R) images, uint8 or float in [-1, 1]; `progress` is told how many
        more are done."""
        features = []
        for batch in images.split(BATCH_IMAGES):
            features.append(self.network(batch.to(self.device)).cpu())
            progress(len(batch))
        return torch.cat(features)

    @torch.inference_mode()
    def classes(self, features: Tensor) -> Tensor:
        """The class that it takes each of features (N, D) for: (N,) int64 on the CPU."""
        assert self.head is not None
        return self.head(features.to(self.device)).argmax(dim=1).cpu()


class TrainedClassifier(Record):
    """The classifier of a data set."""

    weights_digest: str
    resolution: int
    channels: int
    classes: int
    accuracy: float = Field(description="on the held-out images")

    @property
    def key(self) -> str:
        """Where its weights lie in the object store."""
        return f"extractors/{self.weights_digest}.safetensors"

    def load(self) -> Classifier:
        """The network, in evaluation mode on the CPU."""
        model = Classifier(self.channels, self.classes, self.resolution)
        model.load_state_dict(safetensors.torch.load(store().get(self.key)))
        return model.eval()


def find_classifier(
    manifest: Manifest, dataset: Dataset, device: torch.device, progress: Callable[[int, int], None]
) -> TrainedClassifier:
    """The classifier of the data set's labels, or of its two domains, trained on the first call and then shared by all
    who evaluate on these data.

    Two who train it at once keep the one that is recorded first.
    """
    if record := classifier_of(manifest.digest):
        return record
    images, labels = _labelled(manifest, dataset, "train", reals.learnt_from)
    classes = manifest.classes or 2
    model = train_classifier(images.to(device), labels.to(device), classes=classes, seed=0, progress=progress).cpu()
    weights = safetensors.torch.save(model.state_dict())
    record = TrainedClassifier(
        weights_digest=hashlib.sha256(weights).hexdigest(),
        resolution=images.shape[-1],
        channels=manifest.channels,
        classes=classes,
        accuracy=accuracy(model, *_labelled(manifest, dataset, "test", reals.judged_by)),
    )
    store().put(record.key, weights)
    store().put_record(_record_key(manifest.digest), record, if_absent=True)
    return classifier_of(manifest.digest) or record


def classifier_of(dataset_digest: str) -> TrainedClassifier | None:
    """The classifier of a data set, if one was trained."""
    return store().get_record(_record_key(dataset_digest), TrainedClassifier)


def classifier_extractor(classifier: TrainedClassifier, device: torch.device) -> Extractor:
    """The features before the last layer, (N, 128)."""
    model = classifier.load().to(device)
    return Extractor(
        name="classifier",
        digest=classifier.weights_digest,
        resize=f"mean of areas to at most {LARGEST}x{LARGEST}",
        network=model.features,
        device=device,
        head=model.head,
    )


def coordinates_extractor(device: torch.device) -> Extractor:
    """Points as they are, (N, C) float64, since neighbours are too near for a float32 difference of squares."""
    return Extractor(
        name="coordinates", digest="identity", resize="none", network=lambda x: x.flatten(1).double(), device=device
    )


def inception_extractor(device: torch.device) -> Extractor:
    """The network of published FIDs, (N, 2048); raises DataError if the weights in the object store are not those."""
    from genmodels.evaluation.inception import INPUT_PIXELS, Inception  # with torchvision's models, which take seconds

    path, _ = fetch(INCEPTION)
    return Extractor(
        name="inception",
        digest=str(INCEPTION.sha256),
        resize=f"bilinear to {INPUT_PIXELS}x{INPUT_PIXELS} with aligned corners, as TensorFlow 1, of unrounded pixels",
        network=Inception(path.read_bytes()).to(device),
        device=device,
    )


def extractors_of(
    manifest: Manifest, dataset: Dataset, device: torch.device, progress: Callable[[int, int], None]
) -> tuple[list[Extractor], dict[str, str]]:
    """Those that can be had for a data set, and why the others cannot; `progress` is of training its classifier."""
    found, not_offered = [], {}
    if manifest.has_points:
        found.append(coordinates_extractor(device))
    if reason := why_no_classifier(manifest):
        not_offered["classifier"] = reason
    else:
        found.append(classifier_extractor(find_classifier(manifest, dataset, device, progress), device))
    if reason := why_no_inception(manifest):
        not_offered["inception"] = reason
    else:
        found.append(inception_extractor(device))
    return found, not_offered


def why_no_classifier(manifest: Manifest) -> str | None:
    """Why the data set has no classifier, in words; None if it has one."""
    if manifest.has_points:
        return "Points are compared by their coordinates."
    if manifest.classes < 2 and "train" in manifest.tables:
        return f"{manifest.name} has no labels to train a classifier on."
    return None


def why_no_inception(manifest: Manifest) -> str | None:
    """Why Inception is not used on the data set, in words; None if it is."""
    if manifest.channels != 3 or manifest.resolution < 32:
        return "Inception is for colour images of at least 32x32."
    if not store().exists(f"raw/{INCEPTION.sha256}"):
        return (
            "Inception's weights are not in the object store; run `python -m genmodels.evaluation.extractors`, or put "
            f"{INCEPTION.name} at {store().uri(f'raw/{INCEPTION.sha256}')}."
        )
    return None


def held_out_features(extractor: Extractor, images: Tensor) -> Tensor:
    """The features of images that many evaluations share, kept in the object store by what they are made of."""
    content = hashlib.sha256(f"{digest(extractor.protocol)} {list(images.shape)} ".encode())
    content.update(images.contiguous().numpy().tobytes())
    key = f"extractors/features/{content.hexdigest()}.safetensors"
    if store().exists(key):
        return safetensors.torch.load(store().get(key))["features"]
    features = extractor(images)
    store().put(key, safetensors.torch.save({"features": features}))
    return features


def _record_key(dataset_digest: str) -> str:
    return f"extractors/classifier-{RECIPE}/{dataset_digest}.json"


def _labelled(
    manifest: Manifest, dataset: Dataset, split: str, rows_of: Callable[[Table, int], np.ndarray]
) -> tuple[Tensor, Tensor]:
    """Images, (N, C, R, R) uint8 of the smallest size that the classifier need not enlarge, and their labels, (N,); the
    labels of two unpaired domains are 0 and 1."""
    images, labels = [], []
    for domain, name in enumerate(name for name in sorted(manifest.tables) if name.startswith(split)):
        sizes = [int(c.removeprefix("image@")) for c in manifest.tables[name].columns if c.startswith("image@")]
        column = f"image@{min([size for size in sizes if size >= LARGEST], default=max(sizes))}"
        table = dataset.tables[name]
        rows = np.sort(rows_of(table, reals.count(manifest))[: IMAGES_SHOWN[1]])
        images.append(table.read(column, rows))
        labels.append(table.read("label", rows) if manifest.classes else np.full(len(rows), domain))
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels).astype(np.int64))


if __name__ == "__main__":
    path, sha256 = fetch(INCEPTION)
    print(f"{INCEPTION.name} is at {store().uri(f'raw/{sha256}')}")
