"""Rendered episodes as videos: an agent picks things up. Questions ask what, where and in which order.

The room, its rules and its pictures are MiniGrid's (PyPI `minigrid`, Farama). A pick-up takes two seconds of the video:
at the start of each the agent stands before the thing, an eighth of a second later the thing is gone, and the rest of the
time it walks to the next one. The last frame comes a second before the end, and stays. At one frame a second every temporal
patch of two frames therefore shows one pick-up, before and after; at more frames the same is seen in finer steps.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from os import environ
from pathlib import Path
from typing import Any

import av
import numpy as np

from ral.data.record import Box, Record
from ral.errors import DataError, MissingPackageError
from ral.files import atomic_write_bytes

#: Cells of the room's side, and pixels of a cell's: a 64×64 frame, the ring search's board.
SIDE, TILE = 4, 16
#: Frames a second, and frames from one pick-up to the next.
FPS, LEG = 8, 16
#: What lies in the room; the agent is red.
KINDS = ("ball", "key", "box")
COLOURS = ("green", "blue", "purple", "yellow")
#: The words for "picked up as the i-th of n".
ORDINALS = {2: ("first", "last"), 3: ("first", "second", "last")}

#: (row, column, direction): cells count from 1, directions are MiniGrid's: right, down, left, up.
Pose = tuple[int, int, int]
_STEP = ((0, 1), (1, 0), (0, -1), (-1, 0))
#: MiniGrid's numbers of the actions used; `_WAIT` is its `done`, which changes nothing.
_LEFT, _RIGHT, _FORWARD, _PICK_UP, _WAIT = 0, 1, 2, 3, 6


@dataclass(frozen=True)
class Thing:
    """One thing on the floor; `row` and `col` count from 1, from the top left corner."""

    row: int
    col: int
    kind: str
    colour: str

    @property
    def place(self) -> str:
        return f"row {self.row} col {self.col}"

    def box(self, frame: int) -> Box:
        """The thing's cell in one frame, in pixels."""
        x, y = (self.col - 1) * TILE, (self.row - 1) * TILE
        return Box(x, y, x + TILE, y + TILE, frame=frame)


@dataclass(frozen=True)
class Episode:
    """The things in the room, the numbers of the `picked` ones in order, the agent's start, and its actions.

    Frame t of the video is what is seen after t of the `actions`.
    """

    id: str
    things: tuple[Thing, ...]
    picked: tuple[int, ...]
    start: Pose
    actions: tuple[int, ...]

    @cached_property
    def taken(self) -> tuple[Thing, ...]:
        """The picked things, in order."""
        return tuple(self.things[number] for number in self.picked)

    def boxes(self, place: int) -> tuple[Box, ...]:
        """The cell of the thing picked up at `place` in the order, in the frames of its pick-up: before it, and after."""
        first = place * LEG
        return tuple(self.taken[place].box(frame) for frame in range(first, min(first + LEG, len(self.actions) + 1)))

    def frames(self) -> np.ndarray:
        """The video: uint8 `[T, 64, 64, 3]`, T = `LEG` · picked − `FPS` + 1. Raises ImportError without `minigrid`."""
        room = _room(self)
        room.reset(seed=0)
        pictures = [_picture(room)]
        for action in self.actions:
            room.step(action)
            pictures.append(_picture(room))
        return np.stack(pictures)

    def video(self, cache: Path) -> Path:
        """The video's file in `cache`, rendered if it is not there; the name changes with all that it depends on."""
        made_with = (TILE, FPS, LEG, _CODEC, version("minigrid"), av.__version__)
        content = repr((self.things, self.start, self.actions, made_with)).encode()
        path = cache / f"{self.id}-{hashlib.blake2b(content, digest_size=6).hexdigest()}.mp4"
        if not path.exists():
            atomic_write_bytes(path, encode_video(self.frames()))
        return path


@dataclass(frozen=True)
class Question:
    """A question about an episode: its answer, what to think first, and the places in the order that hold the evidence."""

    text: str
    answer: str
    trace: str
    evidence: tuple[int, ...]


def _ask_colour(episode: Episode, rng: random.Random) -> Question:
    place, word, thing = _one(episode, rng)
    return Question(f"what colour was picked up {word}?", thing.colour, _told(episode, "place", "colour"), (place,))


def _ask_kind(episode: Episode, rng: random.Random) -> Question:
    place, word, thing = _one(episode, rng)
    return Question(f"what was picked up {word}?", thing.kind, _told(episode, "place", "kind"), (place,))


def _ask_place(episode: Episode, rng: random.Random) -> Question:
    place, _, thing = _one(episode, rng)
    trace = _told(episode, "place", "colour")
    return Question(f"where was the {thing.colour} thing picked up?", thing.place, trace, (place,))


def _ask_order(episode: Episode, rng: random.Random) -> Question:
    everything = tuple(range(len(episode.taken)))
    answer, trace = _told(episode, "colour"), _told(episode, "place", "colour")
    return Question("in which order were the colours picked up?", answer, trace, everything)


def _one(episode: Episode, rng: random.Random) -> tuple[int, str, Thing]:
    """A place in the order, the word for it, and the thing picked up there."""
    place = rng.randrange(len(episode.taken))
    return place, ORDINALS[len(episode.taken)][place], episode.taken[place]


def _told(episode: Episode, *what: str) -> str:
    """These properties of all that is picked up, in order; so much of the episode is worth a thought."""
    return " ".join(getattr(thing, name) for thing in episode.taken for name in what)


#: What can be asked.
QUESTIONS: dict[str, Callable[[Episode, random.Random], Question]] = {
    "colour": _ask_colour,
    "kind": _ask_kind,
    "place": _ask_place,
    "order": _ask_order,
}


def episode_records(
    n: int,
    seed: int,
    *,
    questions: Sequence[str] = ("colour",),
    picks: Sequence[int] = (2, 3),
    cache: Path | None = None,
) -> list[Record]:
    """`n` episodes with one question each: the question first, then the video, whose file lies in `cache`.

    Episode i depends on `seed`, `picks` and i alone, so a longer list starts with a shorter one. Boxes are the cells of
    what is asked about in the frames of its pick-up.

    Args:
        questions: kinds of questions, by name in `QUESTIONS`, drawn evenly.
        picks: how many of the four things are picked up, drawn evenly: videos of 4 and of 6 seconds.
        cache: folder of the videos; `cache_folder()` if not given.

    Raises:
        DataError: settings that cannot be asked or shown. ImportError: `minigrid` is missing.
    """
    cache = cache_folder() if cache is None else cache
    return [_shown(*asked, cache) for asked in _asked(n, seed, questions, picks)]


def told_records(
    n: int, seed: int, *, questions: Sequence[str] = ("colour",), picks: Sequence[int] = (2, 3)
) -> list[Record]:
    """The same episodes and questions in words, without a video: text for mixed batches. Arguments as `episode_records`."""
    return [_in_words(*asked) for asked in _asked(n, seed, questions, picks)]


def cache_folder() -> Path:
    """The folder that keeps videos between runs: `ral/episodes` in the user's cache folder."""
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ral" / "episodes"


def _asked(n: int, seed: int, questions: Sequence[str], picks: Sequence[int]) -> list[tuple[Episode, Question]]:
    if n < 1:
        raise DataError(f"n={n}: ask for at least one record")
    if not questions or not set(questions) <= QUESTIONS.keys():
        raise DataError(f"questions={list(questions)}: choose from {', '.join(QUESTIONS)}")
    if not picks or not set(picks) <= ORDINALS.keys():
        raise DataError(f"picks={list(picks)}: choose from {', '.join(map(str, ORDINALS))}")
    asked = []
    for index in range(n):
        episode = make_episode(f"episodes-{seed}-{index}", picks)
        rng = random.Random(f"{episode.id} question")
        asked.append((episode, QUESTIONS[rng.choice(list(questions))](episode, rng)))
    return asked


def _shown(episode: Episode, question: Question, cache: Path) -> Record:
    return Record(
        id=episode.id,
        problem=f"{question.text} <video>",
        solution=question.answer,
        videos=(episode.video(cache),),
        boxes=tuple(box for place in question.evidence for box in episode.boxes(place)),
        trace=question.trace,
        origin=episode.id,
    )


def _in_words(episode: Episode, question: Question) -> Record:
    words = ORDINALS[len(episode.taken)]
    story = " ".join(f"{w} {t.colour} {t.kind} {t.place}" for w, t in zip(words, episode.taken, strict=True))
    return Record(
        id=f"told-{episode.id}",
        problem=f"{question.text} {story}",
        solution=question.answer,
        trace=question.trace,
        origin=f"told {episode.id}",
    )


# ------------------------------------------------------------------------------------------------ what happens


def make_episode(id: str, picks: Sequence[int] = (2, 3)) -> Episode:
    """The episode of this name: four things, of which some are picked up on the shortest ways."""
    rng = random.Random(id)  # seeded by text: the same on every platform and Python version
    while True:  # a thing can be walled in by the others, or too far away for one leg
        cells = rng.sample([(row, col) for row in range(1, SIDE + 1) for col in range(1, SIDE + 1)], len(COLOURS))
        colours = rng.sample(COLOURS, len(COLOURS))
        things = tuple(Thing(*cell, rng.choice(KINDS), colour) for cell, colour in zip(cells, colours, strict=True))
        picked = tuple(rng.sample(range(len(things)), rng.choice(list(picks))))
        starts = [pose for pose in _poses(things) if _before(pose) == cells[picked[0]]]
        if not starts:
            continue
        start = rng.choice(starts)
        actions = _plan(things, picked, start)
        if actions is not None:
            return Episode(id, things, picked, start, actions)


def _plan(things: Sequence[Thing], picked: Sequence[int], start: Pose) -> tuple[int, ...] | None:
    """Pick up, walk to the next thing, wait until its time has come; None if a way does not exist or takes too long."""
    actions: list[int] = []
    lying, pose = list(things), start
    for place, number in enumerate(picked):
        lying.remove(things[number])
        leg = [_PICK_UP]
        if place + 1 < len(picked):
            found = _way(lying, pose, things[picked[place + 1]])
            if found is None or len(found[0]) > LEG - 1:
                return None
            leg += found[0]
            pose = found[1]
        actions += leg + [_WAIT] * (LEG - len(leg))
    return tuple(actions[:-FPS])  # nothing happens in the last second


def _way(lying: Sequence[Thing], start: Pose, target: Thing) -> tuple[list[int], Pose] | None:
    """The shortest actions to a pose before `target`, and that pose."""
    free = set(_poses(lying))
    came: dict[Pose, tuple[Pose, int]] = {}
    queue = deque([start])
    while queue:
        pose = queue.popleft()
        if _before(pose) == (target.row, target.col):
            actions, end = [], pose
            while pose != start:
                pose, action = came[pose]
                actions.append(action)
            return actions[::-1], end
        row, col, facing = pose
        steps = {_LEFT: (row, col, (facing - 1) % 4), _RIGHT: (row, col, (facing + 1) % 4)}
        steps[_FORWARD] = (*_before(pose), facing)
        for action, after in steps.items():
            if after in free and after not in came and after != start:
                came[after] = pose, action
                queue.append(after)
    return None


def _poses(lying: Sequence[Thing]) -> list[Pose]:
    """Cells on which the agent can stand."""
    full = {(thing.row, thing.col) for thing in lying}
    cells = [(row, col) for row in range(1, SIDE + 1) for col in range(1, SIDE + 1) if (row, col) not in full]
    return [(row, col, facing) for row, col in cells for facing in range(4)]


def _before(pose: Pose) -> tuple[int, int]:
    """The cell that the agent faces."""
    row, col, facing = pose
    return row + _STEP[facing][0], col + _STEP[facing][1]


# -------------------------------------------------------------------------------------------------- what is seen


def _room(episode: Episode) -> Any:
    """The episode's room as a MiniGrid environment, in which the agent has a bag for what it picks up."""
    environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        from minigrid.core.grid import Grid
        from minigrid.core.mission import MissionSpace
        from minigrid.core.world_object import Ball, Box, Key
        from minigrid.minigrid_env import MiniGridEnv
    except ImportError as error:
        raise MissingPackageError("minigrid is not installed; run: pip install -e '.[testbed]'") from error
    classes = {"ball": Ball, "key": Key, "box": Box}

    class Room(MiniGridEnv):
        def _gen_grid(self, width: int, height: int) -> None:
            self.grid = Grid(width, height)
            self.grid.wall_rect(0, 0, width, height)
            for thing in episode.things:
                self.grid.set(thing.col, thing.row, classes[thing.kind](thing.colour))
            row, col, self.agent_dir = episode.start
            self.agent_pos = (col, row)

        def step(self, action: Any) -> Any:
            result = super().step(action)
            self.carrying = None
            return result

    mission = MissionSpace(mission_func=lambda: "pick things up")
    return Room(mission, grid_size=SIDE + 2, max_steps=len(episode.actions) + 1)


def _picture(room: Any) -> np.ndarray:
    """The room without its walls, `[64, 64, 3]`."""
    whole = room.grid.render(TILE, room.agent_pos, room.agent_dir)
    return whole[TILE:-TILE, TILE:-TILE]


#: Nearly lossless; in order and in one thread, so that the same pictures give the same bytes.
_CODEC = {"crf": "8", "preset": "veryfast", "threads": "1", "bf": "0"}


def encode_video(frames: np.ndarray) -> bytes:
    """`frames` uint8 `[T, H, W, 3]` as an mp4 file of `FPS` frames a second; the last one stays until a second is full."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options=_CODEC)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        packets = [
            packet
            for frame in (*frames, None)
            for packet in stream.encode(
                None if frame is None else av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            )
        ]
        packets[-1].duration = 1 + -len(frames) % FPS  # in frames
        container.mux(packets)
    return buffer.getvalue()
