"""What a model makes beside what is real, and where its codes lie, as PNG."""

import io
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genmodels.spec import is_points

SHEET_COLUMNS, SHEET_PIXELS = 8, 2048  # the most side by side, and the most that a person looks at
SHEET_POINTS = 2_500
TILE_PIXELS = 64
LINE_PIXELS = 2
MARGIN = 12
CAPTION_PIXELS = 30
TRAVERSED = 10  # code dimensions, those of the largest variance
STEPS = 9
MANIFOLD_STEPS = 16
PLOT_PIXELS = 640
DOT_PIXELS = 2
GREY = (200, 200, 200)
COLOURS = (  # of Tableau 10
    *((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)),
    *((140, 86, 75), (227, 119, 194), (90, 90, 90), (188, 189, 34), (23, 190, 207)),
)


def contact_sheet(
    columns: Mapping[str, Tensor], *, images_per_row: int | None = None, rows_apart: bool = False
) -> bytes:
    """Grids of images side by side under captions, as `grid` draws them: (rows, columns, C, R, R), or (N, C, R, R) with
    so many in a row."""
    grids = {
        caption: grid(
            images.flatten(0, -4).permute(0, 2, 3, 1).numpy(), images_per_row or images.shape[1], rows_apart=rows_apart
        )
        for caption, images in columns.items()
    }
    return _captioned({caption: Image.fromarray(drawn.squeeze()) for caption, drawn in grids.items()})


def grid(images: np.ndarray, columns: int, *, rows_apart: bool = False) -> np.ndarray:
    """(N, H, W, C) uint8 as one picture with white lines between them; small images are enlarged by whole pixels. Of
    points, float32 (N, 1, 1, 2), it is a plot from -1 to 1, with a colour for each row if these are to be told apart.
    """
    if is_points(images.shape[1]):
        plot = Image.new("RGB", (PLOT_PIXELS, PLOT_PIXELS), "white")
        colours = [COLOURS[i // columns % len(COLOURS) if rows_apart else 0] for i in range(len(images))]
        _dots(ImageDraw.Draw(plot), torch.from_numpy(images).flatten(1) / 2, colours)
        return np.asarray(plot)
    zoom = math.ceil(TILE_PIXELS / images.shape[2])
    tiles = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    tiles = np.pad(tiles, ((0, 0), (0, LINE_PIXELS), (0, LINE_PIXELS), (0, 0)), constant_values=255)
    columns = min(columns, len(tiles))
    blank = np.full((-len(tiles) % columns, *tiles.shape[1:]), 255, np.uint8)
    rows = np.concatenate((tiles, blank)).reshape(-1, columns, *tiles.shape[1:])
    sheet = np.concatenate(np.concatenate(rows, axis=1), axis=1)
    return np.pad(sheet, ((LINE_PIXELS, 0), (LINE_PIXELS, 0), (0, 0)), constant_values=255)


def sheet_columns(resolution: int) -> int:
    """How many images a sheet has in a row, and rows."""
    return max(2, min(SHEET_COLUMNS, SHEET_PIXELS // resolution))


def samples_shown(resolution: int) -> int:
    """How many samples a picture shows."""
    return SHEET_POINTS if is_points(resolution) else sheet_columns(resolution) ** 2


def traversals(decode: Callable[[Tensor], Tensor], codes: Tensor) -> bytes:
    """A row for each of the ten dimensions of largest variance: one code, (N, D), with that dimension moved from its
    1st to its 99th percentile and the others as they were; for two of the codes."""
    dimensions = codes.var(dim=0).topk(min(TRAVERSED, codes.shape[1])).indices
    steps = torch.linspace(0.01, 0.99, STEPS)
    columns = {}
    for which in range(2):
        moved = codes[which].repeat(len(dimensions), STEPS, 1)
        for row, dimension in enumerate(dimensions):
            moved[row, :, dimension] = codes[:, dimension].quantile(steps)
        columns[f"image {which + 1}, a code dimension a row"] = decode(moved.flatten(0, 1))
    return contact_sheet(columns, images_per_row=STEPS)


def manifold(decode: Callable[[Tensor], Tensor], prior: Tensor) -> bytes:
    """What is decoded from a square of two-dimensional codes, at even quantiles of draws from the prior, (N, 2)
    (Kingma & Welling 2014, figure 4)."""
    steps = (torch.arange(MANIFOLD_STEPS) + 0.5) / MANIFOLD_STEPS
    rows, columns = (prior[:, dimension].quantile(steps) for dimension in (1, 0))
    codes = torch.cartesian_prod(rows.flip(0), columns).flip(1)
    return contact_sheet({"decoded from a square of the prior": decode(codes)}, images_per_row=MANIFOLD_STEPS)


def scattered(prior: Tensor, codes: Tensor, labels: Tensor | None, *, in_pairs: bool) -> bytes:
    """Codes (M, D), coloured by class where there are labels (M,), over draws from their prior (N, D): the two
    dimensions of largest variance, those of one pair where the prior is in pairs."""
    variances = codes.var(dim=0)
    if in_pairs:
        shown = 2 * variances.view(-1, 2).sum(dim=1).argmax() + torch.arange(2)
    else:
        shown = variances.topk(2).indices.sort().values
    prior, codes = prior[:, shown], codes[:, shown]
    everything = torch.cat((prior, codes))
    low, high = everything.quantile(torch.tensor([0.001, 0.999]), dim=0)
    centre, side = (low + high) / 2, float((high - low).max()) * 1.1
    captions = {"prior": None, "codes of held-out images": codes}
    plots = {}
    for caption, over in captions.items():
        plot = Image.new("RGB", (PLOT_PIXELS, PLOT_PIXELS), "white")
        draw = ImageDraw.Draw(plot)
        _dots(draw, (prior - centre) / side, [GREY] * len(prior))
        if over is not None:
            colours = [COLOURS[0]] * len(over)
            if labels is not None:
                colours = [COLOURS[label % len(COLOURS)] for label in labels.tolist()]
            _dots(draw, (over - centre) / side, colours)
        plots[caption] = plot
    return _captioned(plots)


def _dots(draw: ImageDraw.ImageDraw, points: Tensor, colours: list[tuple[int, int, int]]) -> None:
    """Points (N, 2) of the square from -1/2 to 1/2, the second dimension upwards."""
    for (x, y), colour in zip(points.tolist(), colours, strict=True):
        left, top = (0.5 + x) * PLOT_PIXELS, (0.5 - y) * PLOT_PIXELS
        draw.ellipse((left - DOT_PIXELS, top - DOT_PIXELS, left + DOT_PIXELS, top + DOT_PIXELS), fill=colour)


def _captioned(pictures: Mapping[str, Image.Image]) -> bytes:
    width = sum(each.width + MARGIN for each in pictures.values()) + MARGIN
    height = max(each.height for each in pictures.values()) + CAPTION_PIXELS + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    left = MARGIN
    for caption, each in pictures.items():
        ImageDraw.Draw(sheet).text((left, 6), caption, fill="black", font=ImageFont.load_default(16))
        sheet.paste(each, (left, CAPTION_PIXELS))
        left += each.width + MARGIN
    png = io.BytesIO()
    sheet.save(png, "PNG")
    return png.getvalue()
