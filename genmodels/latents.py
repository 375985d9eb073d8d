"""Walks through the latent space of a registered model: interpolation, arithmetic on averages, one number at a time.

A latent is the list of what the model draws for one image, as its `draws` gives them: standard normal numbers or
uniform ones on [0, 1), and at the end the label if it knows classes, which stays that of the image a walk begins with.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from genmodels.errors import SpecError
from genmodels.tracking import registry

if TYPE_CHECKING:
    from genmodels.tracking.exported_model import ExportedModel

Latent = list[Tensor]


def model_with_latents(model_uri: str) -> "ExportedModel":
    """The registered model at that address; SpecError if it does not draw images from latents."""
    model = registry.load(model_uri)
    if model.facts["kind"] != "samples":
        raise SpecError(f"{model_uri} does not draw images, so it has no latents; take a model that can `sample`.")
    return model


def numbers(text: str) -> list[int]:
    """The whole numbers in a text such as 3,14,15; SpecError if it holds anything else."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise SpecError(f"{text!r} is no list of numbers of images; write them as 3,14,15.")
    return [int(part) for part in parts]


def latents_of(model: "ExportedModel", images: Iterable[int], *, seed: int) -> list[Latent]:
    """The latents of images by their number in what `sample` gives for a seed."""
    wanted = list(images)
    seeds = registry.seeds_of(seed, max(wanted) + 1)
    return [model.draws(seeds[number]) for number in wanted]


def interpolation(
    model: "ExportedModel", latents: Sequence[Latent], *, steps: int, path: Literal["spherical", "linear"]
) -> np.ndarray:
    """Images from each latent to the next, both included, in equal steps: ((latents - 1) * steps, H, W, C)."""
    if len(latents) < 2:
        raise SpecError("A walk needs at least two images; give the number of another one.")
    walk = {"spherical": spherical, "linear": linear}[path]
    rows = []
    for start, end in pairwise(latents):
        rows += [_mapped(model, walk, start, end, share=step / (steps - 1)) for step in range(steps)]
    return model.of_draws(rows)


def traversal(model: "ExportedModel", latents: Sequence[Latent], coordinate: int, *, steps: int) -> np.ndarray:
    """Images of each latent with one of its numbers at equally likely values: (latents * steps, H, W, C)."""
    sizes = [math.prod(draw["shape"]) for draw in model.facts["draws"]]
    if coordinate >= sum(sizes):
        raise SpecError(f"This model draws {sum(sizes)} numbers for an image; there is no number {coordinate}.")
    index = 0
    while coordinate >= sizes[index]:
        coordinate -= sizes[index]
        index += 1
    values = (torch.arange(steps) + 0.5) / steps
    if model.facts["draws"][index]["kind"] == "randn":
        values = math.sqrt(2) * torch.erfinv(2 * values - 1)
    rows = []
    for latent in latents:
        for value in values:
            changed = latent[index].clone()
            changed.view(-1)[coordinate] = value
            rows.append([*latent[:index], changed, *latent[index + 1 :]])
    return model.of_draws(rows)


def arithmetic(model: "ExportedModel", a: Sequence[Latent], b: Sequence[Latent], c: Sequence[Latent]) -> np.ndarray:
    """A row for each concept, its images and that of its average; then a row that ends with A - B + C of the averages
    (Radford et al. 2016, section 6.3.2), before it the same with a little noise."""
    if not len(a) == len(b) == len(c):
        raise SpecError(f"The concepts have {len(a)}, {len(b)} and {len(c)} images; give each as many.")
    averages = [_mapped(model, lambda *draws: torch.stack(draws).mean(0), *concept) for concept in (a, b, c)]
    result = _mapped(model, lambda a, b, c: a - b + c, *averages)
    generator = torch.Generator().manual_seed(0)

    def nearby(draw: Tensor) -> Tensor:
        return draw + 0.5 * torch.rand(draw.shape, generator=generator) - 0.25

    rows = [[*concept, average] for concept, average in zip((a, b, c), averages, strict=True)]
    rows.append([*(_mapped(model, nearby, result) for _ in a), result])
    return model.of_draws([latent for row in rows for latent in row])


def linear(start: Tensor, end: Tensor, *, share: float) -> Tensor:
    """The straight line from start to end."""
    return torch.lerp(start, end, share)


def spherical(start: Tensor, end: Tensor, *, share: float) -> Tensor:
    """The great circle from start to end, with the length changing on the way: in many dimensions latents lie near a
    sphere, and the middle of a straight line does not (Shoemake 1985; White 2016)."""
    lengths = start.norm() * end.norm()
    angle = torch.acos(((start * end).sum() / lengths.clamp(min=1e-12)).clamp(-1, 1))
    if angle.sin() < 1e-4:
        return linear(start, end, share=share)
    return (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / angle.sin()


def _mapped(model: "ExportedModel", function: Callable[..., Tensor], *latents: Latent, **settings: float) -> Latent:
    """The function of the latents, number by number drawn. Uniform numbers are centred for it, as [-1, 1), and what
    would leave that range is put at its edge."""
    mapped: Latent = []
    for index, draw in enumerate(model.facts["draws"]):
        drawn = [latent[index] for latent in latents]
        if draw["kind"] == "randn":
            mapped.append(function(*drawn, **settings))
        else:
            centred = function(*(2 * each - 1 for each in drawn), **settings)
            mapped.append(((centred + 1) / 2).clamp(0, 1 - 1e-6))
    return mapped + latents[0][len(mapped) :]
