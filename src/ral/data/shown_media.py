"""The media of a record as the model sees them: one picture for each grid of visual tokens, with its boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from ral.data.boxes import Size, place_on_patches, seen_boxes
from ral.data.media import load_image, load_video
from ral.data.record import Box, Record
from ral.errors import DataError
from ral.families import family_of_processor
from ral.families.tiles import Tile


@dataclass(frozen=True)
class ShownMedia:
    """The media of a record as the model was shown them.

    pictures: one for each attention map: every image, then the first frame of each temporal patch of every video. sizes: (width,
    height) of each of them in its file, whose pixels boxes count; frames of large videos are scaled down to less. boxes: those
    that the model saw, `medium` is the number of a picture. media: the numbers of each medium's pictures. times: seconds of each
    picture in its video, None for an image.
    """

    pictures: tuple[Image.Image, ...]
    boxes: tuple[Box, ...]
    media: tuple[range, ...]
    times: tuple[float | None, ...]
    sizes: tuple[Size, ...]

    def medium_of(self, picture: int) -> range:
        """The numbers of the pictures that are of one medium with this one."""
        return next(numbers for numbers in self.media if picture in numbers)


def shown_media(
    record: Record,
    processor: Any,
    num_frames: int | None = None,
    fps: float | None = None,
    tiles: Sequence[Tile] = (),
) -> ShownMedia:
    """The pictures of `record`, at the frames that the prompt has, and the boxes that the model saw on them.

    A box on a frame that was not sampled is left out, and so is what `tiles`, of the prompt's visual tokens, do not show: the part of
    a box, or all of it, that the processor crops. Without tiles every picture is taken to be shown whole.

    Raises DataError as `load_image` and `load_video` do, and for boxes that do not fit.
    """
    pictures = [load_image(image, record.origin) for image in record.images]
    boxes = [box for box in record.boxes if box.medium < len(pictures)]
    media = [range(number, number + 1) for number in range(len(pictures))]
    times: list[float | None] = [None] * len(pictures)
    sizes: list[Size] = [picture.size for picture in pictures]
    for number, path in enumerate(record.videos, start=len(record.images)):
        video = load_video(path, num_frames=num_frames, fps=fps, origin=record.origin)
        patch, first = family_of_processor(processor).frames_per_picture(processor), len(pictures)
        own = [box for box in record.boxes if box.medium == number]
        placed = dict.fromkeys(place_on_patches(own, video.indices, patch))  # once for the frames of one patch
        boxes += [replace(box, medium=box.medium + first) for box in placed]
        pictures += [Image.fromarray(frame) for frame in video.frames[::patch]]
        times += video.times[::patch].tolist()
        media.append(range(first, len(pictures)))
        sizes += [video.size] * len(media[-1])
    if tiles and boxes:
        try:
            boxes = seen_boxes(tiles, boxes, sizes)
        except DataError as error:
            raise DataError(f"{record.origin}: {error}") from error
    return ShownMedia(tuple(pictures), tuple(boxes), tuple(media), tuple(times), tuple(sizes))
