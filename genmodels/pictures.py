"""Picture files in and out of the command: sample grids, and images to be translated."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from genmodels.data.images import Unusable, square
from genmodels.errors import AccessError, DataError
from genmodels.settings import settings
from genmodels.storage.objects import store
from genmodels.tracking import registry


def save(image: np.ndarray, path: Path) -> None:
    """Write (H, W, C) uint8 as the kind of picture that the path's ending says; AccessError if that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(path)
    except (OSError, ValueError) as error:
        raise AccessError(
            f"The picture {path} cannot be written: {error}; take another path, such as out.png."
        ) from error


def kept(pictures: Mapping[str, str], model_uri: str) -> list[Path]:
    """Copy pictures, given by name and s3:// address, to HOME/pictures/MODEL/VERSION; returns where they are."""
    folder = settings().home / "pictures" / model_uri.removeprefix("models:/")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, uri in pictures.items():
        paths.append(folder / f"{name}{Path(uri).suffix}")
        paths[-1].write_bytes(store().read(uri))
    return paths


def translated(model_uri: str, source: Path, to: str) -> dict[str, np.ndarray]:
    """The image at `source`, or all images of that folder, in the domain `to`, each (H, W, C) uint8, by file stem,
    or all by their whole file names if two share a stem.

    Raises:
        SpecError: for an unknown address, or a model that does not translate to `to`; no image is read then.
        DataError: for an empty folder, or an image that cannot be used.
    """
    model = registry.translator(model_uri, to)
    paths = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else [source]
    if not paths:
        raise DataError(f"The folder {source} is empty; it should hold the images to translate.")
    images = np.stack([_read(path, model.facts["resolution"], model.facts["channels"]) for path in paths])
    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else [path.name for path in paths]
    return dict(zip(names, model.translate(images, to), strict=True))


def _read(path: Path, resolution: int, channels: int) -> np.ndarray:
    try:
        return square(path.read_bytes(), resolution, channels).transpose(1, 2, 0)
    except OSError as error:
        raise DataError(f"The image {path} cannot be read: {error.strerror}.") from None
    except Unusable as error:
        raise DataError(
            f"The image {path} cannot be used: {error}; take one of at least {resolution} pixels."
        ) from None
