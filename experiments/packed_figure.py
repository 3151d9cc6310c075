"""Draws docs/assets/packed-{light,dark}.svg: `python -m experiments.packed_figure`.

The matrix is `GroupLayout`'s own mask, so the picture shows what the code does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ral.attention.layout import GroupLayout
from ral.files import atomic_write_text

ASSETS = Path(__file__).parents[1] / "docs/assets"
WIDTH, HEIGHT = 1040, 500
CELL, LEFT, TOP = 19, 120, 84
#: A prompt of two words, four visual tokens and two words, and three completions.
GROUP, VISUAL = GroupLayout(8, (3, 4, 3)), range(2, 6)


@dataclass(frozen=True)
class Colours:
    """Of one theme: text, faint text, lines, unseen cells, prompt, visual tokens, and each completion."""

    text: str
    faint: str
    line: str
    unseen: str
    prompt: str
    visual: str
    completions: tuple[str, str, str]
    loss: str


THEMES = {
    "light": Colours(
        "#1b1b1f", "#5c5c66", "#8a8a94", "#f1f0ee", "#a9a8b0", "#6f7fae", ("#d1590f", "#0072a8", "#0d9a70"), "#b3261e"
    ),
    "dark": Colours(
        "#ececf1", "#a8a8b3", "#7c7c88", "#2b2c35", "#777884", "#8fa3dc", ("#f08a4b", "#4db1e2", "#3fc99a"), "#ff8a80"
    ),
}


def text(x: float, y: float, content: str, fill: str, anchor: str = "start", size: int = 14, weight: int = 400) -> str:
    return f'<text x="{x}" y="{y}" fill="{fill}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}">{content}</text>'


def rectangle(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", radius: int = 2) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'


def arrow(x0: float, y0: float, x1: float, y1: float, colour: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="M{x0} {y0}L{x1} {y1}" stroke="{colour}" stroke-width="1.5" fill="none" marker-end="url(#head-{colour[1:]})"{dash}/>'


def seen() -> torch.Tensor:
    """`[T, T]` bool: which token of the packed row (down) sees which (across)."""
    prompt, total = GROUP.prompt_length, GROUP.total
    sees = torch.zeros(total, total, dtype=torch.bool)
    sees[:prompt, :prompt] = torch.ones(prompt, prompt, dtype=torch.bool).tril()
    every = slice(0, len(GROUP.lengths))
    sees[prompt:] = GROUP.block_mask(every, None, torch.device("cpu"), torch.float32) == 0
    return sees


def owners() -> list[int]:
    """Of every token of the row: the number of its completion, or -1 for the prompt."""
    return [-1] * GROUP.prompt_length + [g for g, length in enumerate(GROUP.lengths) for _ in range(length)]


def matrix(colours: Colours) -> list[str]:
    """The mask, with its rows and columns named."""
    owner, sees = owners(), seen().tolist()

    def colour(token: int) -> str:
        if owner[token] >= 0:
            return colours.completions[owner[token]]
        return colours.visual if token in VISUAL else colours.prompt

    parts = []
    for row, line in enumerate(sees):
        for column, visible in enumerate(line):
            fill = colour(column) if visible else colours.unseen
            parts.append(rectangle(LEFT + column * CELL, TOP + row * CELL, CELL - 2, CELL - 2, fill))
    names = ["prompt", "y₁", "y₂", "y₃"]
    for g, name in enumerate(names):
        where = [i for i, who in enumerate(owner) if who == g - 1]
        middle = (where[0] + where[-1] + 1) / 2 * CELL
        fill = colours.completions[g - 1] if g else colours.faint
        parts.append(text(LEFT - 12, TOP + middle + 4, name, fill, "end", weight=600))
        parts.append(text(LEFT + middle, TOP - 10, name, fill, "middle", weight=600))
    size = GROUP.total * CELL
    first = GROUP.prompt_length * CELL
    parts.append(rectangle(LEFT - 3, TOP + first - 2, size + 4, size - first + 2, "none", colours.text, 4))
    parts.append(text(LEFT - 12, TOP - 44, "A token (down) sees (across)", colours.text, size=15, weight=600))
    parts.append(rectangle(LEFT, TOP + size + 16, 12, 12, colours.visual))
    parts.append(text(LEFT + 18, TOP + size + 27, "visual tokens", colours.faint, size=13))
    parts.append(rectangle(LEFT + 128, TOP + size + 16, 12, 12, "none", colours.text, 3))
    parts.append(text(LEFT + 146, TOP + size + 27, "the rows that are captured", colours.faint, size=13))
    return parts


def flow(colours: Colours) -> list[str]:
    """From the packed row to the two losses."""
    left, right, width = 530, 790, 230
    boxes = [
        (
            left,
            60,
            right + width - left,
            "packed row through the layers below",
            "SDPA; vision features come precomputed",
        ),
        (left, 150, width, "the trained layer", "SDPA, and hands on q and k"),
        (left, 240, width, "layers above, head", "log-probabilities"),
        (right, 240, width, "softmax(q kᵀ), head mean", "completion rows only, in chunks"),
        (right, 330, width, "pᵗ", "without the token itself"),
    ]
    parts = [text(left, 40, "One forward and backward pass", colours.text, size=15, weight=600)]
    for x, y, wide, title, note in boxes:
        parts.append(rectangle(x, y, wide, 56, colours.unseen, colours.line, 8))
        parts.append(text(x + wide / 2, y + 24, title, colours.text, "middle", weight=600))
        parts.append(text(x + wide / 2, y + 43, note, colours.faint, "middle", 12))
    middle_left, middle_right = left + width / 2, right + width / 2
    parts += [
        arrow(middle_left, 116, middle_left, 148, colours.line),
        arrow(middle_left, 206, middle_left, 238, colours.line),
        f'<path d="M{left + width} 178H{middle_right}V234" stroke="{colours.line}" stroke-width="1.5" fill="none" '
        f'marker-end="url(#head-{colours.line[1:]})"/>',
        text(middle_right - 8, 170, "q, k", colours.faint, "end", 13),
        arrow(middle_right, 296, middle_right, 328, colours.line),
        arrow(middle_left, 296, middle_left, 418, colours.line),
        arrow(middle_right, 386, middle_right, 418, colours.line),
        text(middle_left, 444, "A · token loss (GRPO)", colours.loss, "middle", 15, 600),
        text(middle_right, 444, "λ · A · JSD(pᵗ ‖ anchor)", colours.loss, "middle", 15, 600),
        arrow(middle_right + 100, 424, middle_right + 100, 390, colours.loss, dashed=True),
        arrow(middle_right + 100, 328, middle_right + 100, 300, colours.loss, dashed=True),
        arrow(middle_left - 90, 424, middle_left - 90, 300, colours.loss, dashed=True),
        text(left, 480, "dashed: gradient; chunks of rows are recomputed on the way back", colours.faint, size=13),
    ]  # fmt: skip
    return parts


def figure(colours: Colours) -> str:
    """The whole picture."""
    heads = "".join(
        f'<marker id="head-{colour[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
        for colour in (colours.line, colours.loss)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="system-ui, sans-serif">\n<defs>{heads}</defs>\n'
        + "\n".join(matrix(colours) + flow(colours))
        + "\n</svg>\n"
    )


def main() -> None:
    for theme, colours in THEMES.items():
        atomic_write_text(ASSETS / f"packed-{theme}.svg", figure(colours))


if __name__ == "__main__":
    main()
