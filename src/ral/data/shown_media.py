"""The media of a record as the model sees them: one picture for each grid of visual tokens, with its boxes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from ral.data.boxes import Size, place_on_patches
from ral.data.media import load_image, load_video
from ral.data.record import Box, Record
from ral.families import family_of_processor


@dataclass(frozen=True)
class ShownMedia:
    """The media of a record as the model was shown them.

    pictures: one for each attention map, in the original size, because boxes count its pixels: every image, then the first
    frame of each temporal patch of every video. boxes: `medium` is the number of a picture. media: the numbers of each medium's
    pictures. times: seconds of each picture in its video, None for an image.
    """

    pictures: tuple[Image.Image, ...]
    boxes: tuple[Box, ...]
    media: tuple[range, ...]
    times: tuple[float | None, ...]

    @property
    def sizes(self) -> list[Size]:
        """(width, height) of every picture."""
        return [picture.size for picture in self.pictures]

    def medium_of(self, picture: int) -> range:
        """The numbers of the pictures that are of one medium with this one."""
        return next(numbers for numbers in self.media if picture in numbers)


def shown_media(record: Record, processor: Any, num_frames: int | None = None, fps: float | None = None) -> ShownMedia:
    """The pictures of `record`, at the frames that the prompt has. Raises DataError as `load_image` and `load_video` do."""
    pictures = [load_image(image, record.origin) for image in record.images]
    boxes = [box for box in record.boxes if box.medium < len(pictures)]
    media = [range(number, number + 1) for number in range(len(pictures))]
    times: list[float | None] = [None] * len(pictures)
    for number, path in enumerate(record.videos, start=len(record.images)):
        video = load_video(path, num_frames=num_frames, fps=fps, origin=record.origin)
        patch, first = family_of_processor(processor).frames_per_picture(processor), len(pictures)
        own = [box for box in record.boxes if box.medium == number]
        placed = dict.fromkeys(place_on_patches(own, video.indices, patch))  # once for the frames of one patch
        boxes += [replace(box, medium=box.medium + first) for box in placed]
        pictures += [Image.fromarray(frame) for frame in video.frames[::patch]]
        times += video.times[::patch].tolist()
        media.append(range(first, len(pictures)))
    return ShownMedia(tuple(pictures), tuple(boxes), tuple(media), tuple(times))
