"""How smoothly images change with their latents: perceptual path length (Karras, Laine & Aila 2019, section 4.1).

Along the great circle between two latents, the squared distance of the features of two images that are a small step
apart, over the square of the step, in the mean over places and pairs. A detour or a jump on the way costs more than
going straight; a model that always makes the same image goes nowhere at all.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.generation import batches, device_of
from genmodels.evaluation.images import as_stored
from genmodels.models.base import FromLatents, HasLatentCodes

SEED = 0
MOST_PATHS = 1_000
STEP = 1e-3
WALK_IMAGES = 9
CONCEPT_POOL, CONCEPT_IMAGES = 256, 3

Path = Callable[[Tensor, Tensor, Tensor], Tensor]  # starts and ends (N, Z) and shares of the way (N, 1) -> (N, Z)


@torch.inference_mode()
def path_lengths(
    model: FromLatents,
    extractors: Sequence[Extractor],
    paths: int,
    *,
    resolution: int,
    labels: Tensor | None,
    progress: Callable[[int], None],
) -> list[Tensor]:
    """By extractor the length of each path, (paths,), at one place of it; of the classes `labels` (paths,) where the
    model takes any. `progress` is told how many more are done. The images are not rounded to bytes."""
    generator = torch.Generator(device_of(model)).manual_seed(SEED)
    lengths: list[list[Tensor]] = [[] for _ in extractors]
    for rows in batches(paths, resolution):
        count = rows.stop - rows.start
        start, end = (model.prior(count, generator=generator) for _ in range(2))
        place = torch.rand(count, 1, generator=generator, device=start.device, dtype=start.dtype) * (1 - STEP)
        given = {} if labels is None else {"labels": labels[rows].to(start.device)}
        images = [model.decode(spherical(start, end, share), **given) for share in (place, place + STEP)]
        for extractor, found in zip(extractors, lengths, strict=True):
            here, there = (extractor(each) for each in images)
            found.append((here - there).square().sum(dim=1) / STEP**2)
        progress(count)
    return [torch.cat(found) for found in lengths]


@torch.inference_mode()
def walks(model: FromLatents, count: int, path: Path, *, labels: Tensor | None) -> Tensor:
    """Images on the way between the first pairs of latents, (count, 9, C, R, R) uint8, points float32; of the
    classes `labels`, (count,), where the model takes any."""
    generator = torch.Generator(device_of(model)).manual_seed(SEED)
    start, end = (model.prior(count, generator=generator) for _ in range(2))
    latents = on_the_way(start, end, path)
    given = {} if labels is None else {"labels": labels.repeat_interleave(WALK_IMAGES).to(latents.device)}
    return as_stored(model.decode(latents, **given)).cpu().unflatten(0, (count, WALK_IMAGES))


@torch.inference_mode()
def code_traversals(model: HasLatentCodes, count: int) -> dict[str, Tensor]:
    """For each code the images of the first latents with that code moved and all else as it was, (count, values, C, R,
    R) uint8: through its categories, or from -2 to 2, twice as far as it was learnt (Chen et al. 2016, figure 2)."""
    latents = model.prior(count, generator=torch.Generator(device_of(model)).manual_seed(SEED))
    values = {f"code {i + 1}": torch.eye(kinds) for i, kinds in enumerate(model.categorical_codes)}
    for i in range(len(values), len(values) + model.continuous_codes):
        values[f"code {i + 1} from -2 to 2"] = torch.linspace(-2, 2, WALK_IMAGES)[:, None]
    images, first = {}, 0
    for code, each in values.items():
        moved = latents[:, None].repeat(1, len(each), 1)
        moved[:, :, first : first + each.shape[1]] = each.to(latents)
        images[code] = as_stored(model.decode(moved.flatten(0, 1))).cpu().unflatten(0, (count, len(each)))
        first += each.shape[1]
    return images


def on_the_way(start: Tensor, end: Tensor, path: Path) -> Tensor:
    """Nine latents from each start (N, Z) to its end, both included, in equal steps: (9 N, Z), one walk after the
    other."""
    shares = torch.linspace(0, 1, WALK_IMAGES, device=start.device).repeat(len(start))[:, None]
    start, end = (latent.repeat_interleave(WALK_IMAGES, dim=0) for latent in (start, end))
    return path(start, end, shares)


@torch.inference_mode()
def arithmetic(model: FromLatents, extractor: Extractor) -> Tensor | None:
    """A row for each of the three classes of which the model makes most, A, B and C: a few images, and that of their
    latents' average; then a row that ends with A - B + C of the averages, before it the same with a little noise
    (Radford et al. 2016, section 6.3.2). (4, 4, C, R, R) uint8; None if it makes fewer than three classes.

    The extractor must know classes, and the model's latents say which class an image is of.
    """
    generator = torch.Generator(device_of(model)).manual_seed(SEED)
    latents = model.prior(CONCEPT_POOL, generator=generator)
    classes = extractor.classes(extractor(model.decode(latents))).to(latents.device)
    found = [rows for each in classes.unique() if len(rows := (classes == each).nonzero().flatten()) >= CONCEPT_IMAGES]
    if len(found) < 3:
        return None
    concepts = [latents[rows[:CONCEPT_IMAGES]] for rows in sorted(found, key=len, reverse=True)[:3]]
    a, b, c = (concept.mean(dim=0, keepdim=True) for concept in concepts)
    noise = torch.rand(CONCEPT_IMAGES, *a.shape[1:], generator=generator, device=a.device) / 2 - 0.25
    rows = [torch.cat((concept, average)) for concept, average in zip(concepts, (a, b, c), strict=True)]
    shown = torch.cat((*rows, a - b + c + noise, a - b + c))
    return as_stored(model.decode(shown)).cpu().unflatten(0, (4, CONCEPT_IMAGES + 1))


def spherical(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """The share (N, 1) of the way from each start (N, Z) to its end along a great circle, with the length changing on
    the way (Shoemake 1985)."""
    cosine = torch.cosine_similarity(start, end, dim=1).clamp(-1, 1)[:, None]
    angle = cosine.acos()
    around = (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / angle.sin()
    return torch.where(angle.sin() < 1e-4, torch.lerp(start, end, share), around)
