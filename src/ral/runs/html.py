"""Pieces of HTML for notebooks: tables, pictures and curves. Every text is escaped. Imports nothing heavy."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

#: Longest side of a picture, in pixels.
SIDE = 320


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table; a number is right-aligned, and a text that begins with a picture's tag is one of this module's."""
    head = "".join(f"<th>{escape(str(one))}</th>" for one in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Markup(str):
    """A text that is HTML already."""


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """Names and values, one a line."""
    return table(("", ""), [(Markup(f"<b>{escape(name)}</b>"), value) for name, value in pairs])


def picture(image: Image.Image, boxes: Sequence[tuple[float, float, float, float]] = ()) -> Markup:
    """An image, shrunk, with boxes `(x0, y0, x1, y1)` in its own pixels outlined."""
    from PIL import ImageDraw

    shown = image.convert("RGB")
    draw = ImageDraw.Draw(shown)
    for box in boxes:
        draw.rectangle(box, outline="white", width=max(1, max(shown.size) // 150))
    shown.thumbnail((SIDE, SIDE))
    return png(_bytes(shown))


def png(content: bytes) -> Markup:
    return Markup(
        f'<img alt="" style="max-width:100%" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
    )


def curve(values: Sequence[float], width: int = 240, height: int = 48) -> Markup:
    """A line through `values` from left to right, over their range; empty for fewer than two."""
    if len(values) < 2:
        return Markup("")
    low, high = min(values), max(values)
    points = " ".join(
        f"{i * width / (len(values) - 1):.1f},{height - (value - low) / ((high - low) or 1) * height:.1f}"
        for i, value in enumerate(values)
    )
    line = f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
    return Markup(
        f'<svg width="{width}" height="{height + 2}" role="img" aria-label="{low:.3g} to {high:.3g}">{line}</svg>'
    )


def _cell(value: object) -> str:
    if isinstance(value, Markup):
        return f"<td>{value}</td>"
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f'<td style="text-align:right">{value:,.3f}</td>' if isinstance(value, float) else f"<td>{value:,}</td>"
    return f'<td style="text-align:left;white-space:pre-wrap">{escape("" if value is None else str(value))}</td>'


def _bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
