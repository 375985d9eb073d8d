"""Walks through latent space: by hand, on a model that shows its latent, and on InfoGAN's codes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from genmodels.errors import SpecError
from genmodels.latents import arithmetic, interpolation, latents_of, linear, numbers, spherical, traversal
from genmodels.models import build
from genmodels.models.base import DataInfo
from genmodels.models.infogan import Config
from genmodels.spec import RunSpec
from genmodels.tracking import packaging
from genmodels.tracking.exported_model import ExportedModel


def transparent(kind: str, *, classes: int = 0) -> ExportedModel:
    """A model whose image is a row of pixels: what it drew, two numbers, and its label; 127.5 (v / 10 + 1) for each."""
    model = ExportedModel()
    model.facts = {"kind": "samples", "draws": [{"kind": kind, "shape": [2]}], "classes": classes, "batch": 4}
    model.device = torch.device("cpu")

    def image(drawn: Tensor, label: Tensor | None = None) -> Tensor:
        shown = [drawn / 10, *([] if label is None else [label.unsqueeze(1) / 10])]
        return torch.cat(shown, dim=1)[:, None, None, :]

    model.programs = {"sample": image}  # type: ignore[dict-item]
    return model


def shown(images: np.ndarray) -> np.ndarray:
    """The numbers back from the pixels, within 0.04."""
    return (images.reshape(len(images), -1) / 127.5 - 1) * 10


def latent(*values: float, label: int | None = None) -> list[Tensor]:
    return [torch.tensor([values], dtype=torch.float32), *([] if label is None else [torch.tensor([label])])]


def test_the_middle_of_a_quarter_circle():
    """Between e1 and e2 lies (e1 + e2) / sqrt 2 on the sphere, and (e1 + e2) / 2 on the line."""
    start, end = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(spherical(start, end, share=0.5), torch.full((2,), math.sqrt(0.5)))
    torch.testing.assert_close(linear(start, end, share=0.5), torch.full((2,), 0.5))


def test_a_great_circle_is_walked_at_constant_speed():
    start, end = F.normalize(torch.randn(2, 100, generator=torch.Generator().manual_seed(0))).unbind()
    walk = torch.stack([spherical(start, end, share=step / 10) for step in range(11)])
    torch.testing.assert_close(walk.norm(dim=1), torch.ones(11))
    angles = torch.acos((walk[1:] * walk[:-1]).sum(1))
    torch.testing.assert_close(angles, torch.full((10,), (torch.acos(start @ end) / 10).item()), atol=1e-4, rtol=0)


def test_parallel_latents_have_no_great_circle():
    x = torch.tensor([1.0, 2.0])
    for other in (x, -x):
        torch.testing.assert_close(spherical(x, other, share=0.25), linear(x, other, share=0.25))


@pytest.mark.parametrize(("path", "middle"), [("linear", 1.0), ("spherical", math.sqrt(2))])
def test_a_row_leads_from_each_latent_to_the_next_and_keeps_the_first_label(path, middle):
    model = transparent("randn", classes=5)
    stops = [latent(2, 0, label=4), latent(0, 2, label=1), latent(-2, 0, label=3)]
    walked = shown(interpolation(model, stops, steps=3, path=path))
    expected = [[2, 0, 4], [middle, middle, 4], [0, 2, 4], [0, 2, 1], [-middle, middle, 1], [-2, 0, 1]]
    np.testing.assert_allclose(walked, expected, atol=0.05)


def test_uniform_numbers_are_centred_and_stay_in_their_range():
    """In [-1, 1) these are (0.6, -0.2) and (-0.2, 0.6): the middle is as long as both."""
    walked = shown(interpolation(transparent("rand"), [latent(0.8, 0.4), latent(0.4, 0.8)], steps=3, path="spherical"))
    along = math.sqrt(0.2)
    np.testing.assert_allclose(walked[1], [(along + 1) / 2] * 2, atol=0.05)
    far = shown(arithmetic(transparent("rand"), [latent(1, 0)], [latent(0, 0)], [latent(1, 1)]))
    np.testing.assert_allclose(far[-1], [1, 1], atol=0.05)


def test_arithmetic_is_on_the_averages():
    """(2, 2) - (1, 0) + (0, 3) of the averages; beside it the same with noise of at most 1/4."""
    a, b, c = ([latent(1, 1), latent(3, 3)], [latent(1, 1), latent(1, -1)], [latent(0, 2), latent(0, 4)])
    sheet = shown(arithmetic(transparent("randn"), a, b, c)).reshape(4, 3, 2)
    np.testing.assert_allclose(sheet[0], [[1, 1], [3, 3], [2, 2]], atol=0.05)
    np.testing.assert_allclose(sheet[3, 2], [1, 5], atol=0.05)
    assert (abs(sheet[3, :2] - [1, 5]) < 0.3).all() and (sheet[3, 0] != sheet[3, 1]).any()


def test_a_traversal_takes_equally_likely_values():
    rows = shown(traversal(transparent("rand"), [latent(0.5, 0.1), latent(0.5, 0.9)], 1, steps=4)).reshape(2, 4, 2)
    np.testing.assert_allclose(rows[:, :, 1], [[1 / 8, 3 / 8, 5 / 8, 7 / 8]] * 2, atol=0.05)
    np.testing.assert_allclose(rows[:, :, 0], 0.5, atol=0.05)
    normal = shown(traversal(transparent("randn"), [latent(0, 0)], 0, steps=2))
    np.testing.assert_allclose(normal[:, 0], [-0.6745, 0.6745], atol=0.05)  # the quartiles


def test_latents_are_those_of_the_images_that_sampling_gives():
    from genmodels.tracking.registry import seeds_of

    model = transparent("randn")
    drawn = shown(model.of_draws(latents_of(model, [7, 2], seed=3)))
    assert np.array_equal(drawn, shown(model.sample(seeds_of(3, 8)))[[7, 2]])


def test_infogans_first_number_is_its_category(tmp_path: Path):
    config = Config.preset("demo", channels=4, hidden_units=16)
    what = {"model": "infogan", "dataset": "digits", "config": config.model_dump(mode="json")}
    spec = RunSpec(**what, code_version="0", dataset_digest="0" * 64)
    model = build("infogan", spec.config, DataInfo(channels=1), seed=0).eval()
    packaging.export(model, spec, channels=1, classes=10, folder=tmp_path)
    exported = ExportedModel().open(tmp_path)
    walked = traversal(exported, [exported.draws(5)], 0, steps=10)
    for category, image in enumerate(walked):
        generator = torch.Generator().manual_seed(5)
        own = model.sample(1, labels=torch.tensor([category]), generator=generator)  # type: ignore[operator]
        own = own.add(1).mul(127.5).round().clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(image.astype(int), own, atol=1)


def test_what_cannot_be_walked_is_refused():
    model = transparent("randn")
    with pytest.raises(SpecError, match="at least two images"):
        interpolation(model, [latent(0, 0)], steps=3, path="linear")
    with pytest.raises(SpecError, match="draws 2 numbers"):
        traversal(model, [latent(0, 0)], 2, steps=3)
    with pytest.raises(SpecError, match="2, 1 and 1 images"):
        arithmetic(model, [latent(0, 0)] * 2, [latent(0, 0)], [latent(0, 0)])
    for text in ("3,", "a", "-1", "1.5"):
        with pytest.raises(SpecError, match="no list of numbers"):
            numbers(text)
