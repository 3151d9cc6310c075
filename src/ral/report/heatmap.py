"""Attention heat maps over an image: as a PNG, as a self-contained page, and as tiles of a report."""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ral.report.artefacts import printable
from ral.report.templating import render

#: Pixel boxes `(x0, y0, x1, y1)` of the shown image.
Boxes = Sequence[Sequence[float]]

#: The longest side of an embedded picture, in pixels: enough for a projector, small enough for a page of dozens.
MAX_SIDE = 448


@dataclass(frozen=True)
class Tile:
    """The data of one heat map: `width` × `height` in pixels of the original image, pictures as data URIs.

    `heat` colours what is attended to, `veil` darkens what is not; both are one pixel per visual token and are
    stretched over the image by the page. `boxes` are `(x, y, width, height)` inside the image.
    """

    width: float
    height: float
    photo: str | None
    heat: str | None
    veil: str | None
    boxes: list[tuple[float, float, float, float]]
    pixelated: bool


def shares(values: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """`values` `[h, w]` as non-negative shares `[h, w]` that sum to one; all zero if nothing was attended to.

    Raises ValueError if `values` is not a non-empty matrix or holds a NaN or an infinity.
    """
    grid = np.asarray(values, dtype=np.float64)
    if grid.ndim != 2 or not grid.size or not np.isfinite(grid).all():
        raise ValueError(
            f"values: expected a finite matrix [h, w], got shape {list(grid.shape)} with "
            f"{int((~np.isfinite(grid)).sum())} values that are not finite"
        )
    grid = grid.clip(min=0)
    return grid / (grid.sum() or 1.0)


def tile(
    image: Image.Image | None,
    grid: np.ndarray | None,
    boxes: Boxes,
    *,
    peak: float | None = None,
    size: tuple[float, float] | None = None,
) -> Tile:
    """The tile of `image` under `grid` `[h, w]` (shares). `peak` is the share drawn brightest, so that several tiles
    can have one scale; `size` `(width, height)` is the space of `boxes` where it is not the image's own."""
    width, height = size or (image.size if image else (1.0, 1.0))
    heat = veil = None
    if grid is not None:
        level = (grid / (peak or grid.max() or 1.0)).clip(0, 1)
        heat, veil = data_uri(_heat(level)), data_uri(_veil(level))
    return Tile(
        width=float(width), height=float(height), photo=picture(image) if image else None, heat=heat, veil=veil,
        boxes=[shape for box in boxes if (shape := _inside(box, width, height))],
        pixelated=image is not None and max(image.size) < 200,
    )  # fmt: skip


def under_heat(image: Image.Image, grid: np.ndarray) -> Image.Image:
    """`image` under `grid` `[h, w]` (shares), as one picture; the brightest token is the most attended to."""
    heat = Image.fromarray(_heat(grid / (grid.max() or 1.0)), "RGBA").resize(image.size, Image.Resampling.BILINEAR)
    return Image.alpha_composite(image.convert("RGBA"), heat).convert("RGB")


def picture(image: Image.Image) -> str:
    """`image` as a data URI, shrunk to `MAX_SIDE`, in whichever of PNG and JPEG is smaller."""
    small = image.convert("RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=85)
    png = io.BytesIO()
    small.save(png, "PNG", optimize=True)
    # Flat drawings are as small as PNG and show no ringing; photographs are several times smaller as JPEG.
    if len(png.getvalue()) <= 2 * len(jpeg.getvalue()):
        return _uri(png.getvalue(), "image/png")
    return _uri(jpeg.getvalue(), "image/jpeg")


def data_uri(pixels: np.ndarray) -> str:
    """`pixels` `[h, w, 4]` uint8 RGBA as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG", optimize=True)
    return _uri(buffer.getvalue(), "image/png")


def render_heatmap_png(
    image: np.ndarray,
    values: np.ndarray,
    boxes: Boxes,
    path: Path,
    *,
    title: str = "",
    caption: str = "",
    token_grid: bool = False,
) -> Path:
    """Writes the image beside the image under its attention as a PNG; returns `path`.

    The attention is smoothed between visual tokens; with `token_grid`, each token is a square.

    `image` is `[H, W, 3]` uint8 RGB, `values` `[h, w]` attention per visual token (any positive scale), `boxes` pixels
    of `image`, outlined in both. Raises ValueError as `shares` does.
    """
    grid = shares(values)
    height, width = image.shape[:2]
    side = 4.6
    panel_height = side * min(2.0, max(0.35, height / width))
    top = 0.2 + 0.24 * len(_lines(title, 80))
    bottom = 0.2 + 0.22 * len(_lines(caption, 110))
    total = panel_height + top + bottom
    figure = Figure(figsize=(2 * side + 1.1, total), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    extent = (0.0, float(width), float(height), 0.0)
    share_w, share_h, base = side / (2 * side + 1.1), panel_height / total, bottom / total
    scale = matplotlib.colors.Normalize(0, float(grid.max()) * 100)
    for column in range(2):
        axes = figure.add_axes((0.012 + column * (share_w + 0.012), base, share_w, share_h))
        axes.imshow(image, extent=extent, interpolation="nearest" if max(width, height) < 200 else "antialiased")
        if column:
            level = grid / (grid.max() or 1.0)
            axes.imshow(_heat(level), extent=extent, interpolation="nearest" if token_grid else "bilinear")
        for box in boxes:
            if shape := _inside(box, width, height):
                axes.add_patch(
                    Rectangle(shape[:2], *shape[2:], fill=False, edgecolor="black", linewidth=3.4, clip_on=False)
                )
                axes.add_patch(
                    Rectangle(shape[:2], *shape[2:], fill=False, edgecolor="white", linewidth=1.6, clip_on=False)
                )
        axes.set_axis_off()
    bar_axes = figure.add_axes((0.024 + 2 * (share_w + 0.006), base, 0.012, share_h))
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(scale, "inferno"), cax=bar_axes)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar_axes.tick_params(labelsize=7, length=2, colors="#444")
    bar_axes.set_ylabel("% of visual attention, per token", fontsize=7, color="#444")
    # Dollar signs in a question must not be read as mathematics.
    figure.text(0.012, 1 - 0.12 / total, "\n".join(_lines(title, 80)), fontsize=13, weight="bold", va="top",
                color="#1a1a1a", parse_math=False)  # fmt: skip
    figure.text(0.012, 0.1 / total, "\n".join(_lines(caption, 110)), fontsize=9, va="bottom", color="#444",
                parse_math=False)  # fmt: skip
    figure.savefig(path)
    return path


def render_heatmap_html(
    image: np.ndarray,
    values: np.ndarray,
    boxes: Boxes,
    path: Path,
    *,
    title: str = "",
    question: str = "",
    completion: str = "",
    facts: Sequence[tuple[str, str]] = (),
) -> Path:
    """Writes one self-contained page with the image under its attention and an opacity slider; returns `path`.

    Arrays as for `render_heatmap_png`. `facts` are (name, value) lines below the picture, such as the layer shown.
    """
    grid = shares(values)
    shown = tile(Image.fromarray(image), grid, boxes)
    page = render(
        "heatmap.html.j2", title=printable(title) or "Where the model looks", tile=shown,
        question=printable(question), completion=printable(completion), facts=printable(list(facts)),
        peak=float(grid.max()), tokens=grid.shape,
    )  # fmt: skip
    path.write_text(page, encoding="utf-8")
    return path


def _heat(level: np.ndarray) -> np.ndarray:
    """`level` `[h, w]` in 0..1 as RGBA: inferno, dim where nothing is attended to; the image stays visible below."""
    pixels = matplotlib.colormaps["inferno"](level)
    pixels[..., 3] = 0.45 + 0.35 * level
    return (pixels * 255).round().astype(np.uint8)


def _veil(level: np.ndarray) -> np.ndarray:
    """`level` `[h, w]` in 0..1 as RGBA: black, lifted where the model looks, so that the image keeps its colours."""
    pixels = np.zeros((*level.shape, 4), dtype=np.uint8)
    pixels[..., 3] = (255 * 0.9 * (1 - np.sqrt(level))).round()
    return pixels


def _inside(box: Sequence[float], width: float, height: float) -> tuple[float, float, float, float] | None:
    """`box` cut to the image as `(x, y, width, height)`; None if nothing of it is inside or it is not a box."""
    if len(box) != 4 or not all(isinstance(edge, int | float) and math.isfinite(edge) for edge in box):
        return None
    x0, x1 = (min(max(edge, 0.0), width) for edge in (box[0], box[2]))
    y0, y1 = (min(max(edge, 0.0), height) for edge in (box[1], box[3]))
    return (float(x0), float(y0), float(x1 - x0), float(y1 - y0)) if x1 > x0 and y1 > y0 else None


def _lines(text: str, width: int, limit: int = 6) -> list[str]:
    lines = [line for part in printable(text).splitlines() for line in textwrap.wrap(part, width)]
    return lines if len(lines) <= limit else [*lines[: limit - 1], lines[limit - 1][: width - 1] + "…"]


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
