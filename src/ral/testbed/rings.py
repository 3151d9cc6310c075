"""The ring search: coloured rings on a grid, "what colour is inside the red ring?", with the exact box of the target."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from ral.data.record import Box, Record
from ral.errors import DataError

#: Colour names of rings and discs, in RGB; far enough apart for a model with a handful of vision layers.
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 225),
    "yellow": (240, 220, 60),
    "purple": (140, 50, 170),
    "orange": (245, 140, 30),
    "pink": (250, 160, 200),
    "cyan": (70, 215, 225),
}
BACKGROUND = (24, 24, 24)

#: Ways to ask. The question stands before the image, so that the rows that look are those of the completion.
QUESTIONS = (
    "what colour is inside the {} ring?",
    "which colour does the {} ring hold?",
    "the {} ring has which colour in it?",
)

_SMALLEST_CELL = 8  # pixels; below this a ring has no visible disc


@dataclass(frozen=True)
class Ring:
    """One ring and the disc in it. `row` and `col` count cells from 1, from the top left corner."""

    row: int
    col: int
    colour: str
    inside: str


@dataclass(frozen=True)
class Scene:
    """One image and its question: `rings` in reading order, the index of the one asked for, and the wording."""

    id: str
    rings: tuple[Ring, ...]
    target: int
    question: str
    image_size: int
    grid: int

    def box(self, ring: Ring) -> Box:
        """The smallest box, in pixels, that holds the ring as `draw` paints it."""
        cell = self.image_size // self.grid
        margin = max(1, cell // 16)
        x, y = (ring.col - 1) * cell, (ring.row - 1) * cell
        return Box(x + margin, y + margin, x + cell - margin, y + cell - margin)

    def draw(self) -> Image.Image:
        """The RGB image, `image_size` pixels square."""
        image = Image.new("RGB", (self.image_size, self.image_size), BACKGROUND)
        pen = ImageDraw.Draw(image)
        for ring in self.rings:
            box = self.box(ring)
            inset = round(0.22 * (box.x1 - box.x0))
            for shrink, colour in ((0, ring.colour), (inset, ring.inside)):
                corners = (box.x0 + shrink, box.y0 + shrink, box.x1 - 1 - shrink, box.y1 - 1 - shrink)
                pen.ellipse(corners, fill=COLOURS[colour])
        return image

    def record(self) -> Record:
        """The scene as a question: the answer is the disc's colour, the trace is the ring's place."""
        ring = self.rings[self.target]
        return Record(
            id=self.id,
            problem=f"{self.question} <image>",
            solution=ring.inside,
            images=(self.draw(),),
            boxes=(self.box(ring),),
            trace=f"row {ring.row} col {ring.col}",
            origin=self.id,
        )


def ring_scenes(n: int, seed: int, *, image_size: int = 64, rings: int = 6, grid: int = 4) -> list[Scene]:
    """`n` scenes with `rings` rings of distinct colours on distinct cells of a `grid` × `grid` board.

    Scene i depends on `seed` and i alone, so a longer list starts with a shorter one.
    `image_size` is the side in pixels: a multiple of 8 (the testbed model's merged patch) or of 28 (Qwen2.5-VL's), so
    that no processor resizes the image and boxes stay exact. Discs may repeat colours but differ from their own ring.

    Raises `DataError` for settings that cannot be drawn.
    """
    _check(n, image_size, rings, grid)
    return [_scene(f"rings-{seed}-{index}", image_size, rings, grid) for index in range(n)]


def ring_records(n: int, seed: int, *, image_size: int = 64, rings: int = 6, grid: int = 4) -> list[Record]:
    """`ring_scenes` as records: question first, then the image; one box, the target ring's."""
    return [scene.record() for scene in ring_scenes(n, seed, image_size=image_size, rings=rings, grid=grid)]


def pointing_records(n: int, seed: int) -> list[Record]:
    """`ring_records` whose trace states the target's box, in pixels, where theirs names its cell: for models that say where they look."""
    records = ring_records(n, seed)
    stated = ([round(value) for value in (box.x0, box.y0, box.x1, box.y1)] for (box,) in (r.boxes for r in records))
    return [replace(record, trace=str(box)) for record, box in zip(records, stated, strict=True)]


def _scene(id: str, image_size: int, rings: int, grid: int) -> Scene:
    rng = random.Random(id)  # seeded by text: the same on every platform and Python version
    cells = sorted(rng.sample(range(grid * grid), rings))
    drawn = tuple(
        Ring(cell // grid + 1, cell % grid + 1, colour, rng.choice([name for name in COLOURS if name != colour]))
        for cell, colour in zip(cells, rng.sample(list(COLOURS), rings), strict=True)
    )
    target = rng.randrange(rings)
    question = rng.choice(QUESTIONS).format(drawn[target].colour)
    return Scene(id, drawn, target, question, image_size, grid)


def _check(n: int, image_size: int, rings: int, grid: int) -> None:
    if n < 1:
        raise DataError(f"n={n}: ask for at least one record")
    if grid < 1:
        raise DataError(f"grid={grid}: the board needs at least one row of cells")
    most = min(len(COLOURS), grid * grid)
    if not 1 <= rings <= most:
        raise DataError(
            f"rings={rings}: a {grid}×{grid} grid takes 1 to {most} rings, "
            f"each with one of {len(COLOURS)} colours to itself; change rings or grid"
        )
    if image_size % 8 and image_size % 28:
        raise DataError(
            f"image_size={image_size}: take a multiple of 8 or 28 pixels, so that no processor resizes the image"
        )
    if image_size // grid < _SMALLEST_CELL:
        raise DataError(
            f"image_size={image_size}, grid={grid}: cells of {image_size // grid} pixels are too small to draw a ring; "
            f"take image_size ≥ {_SMALLEST_CELL * grid} or a smaller grid"
        )
