"""Videos for a server: lossless frames, at a rate that gives the policy's positions."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch

from ral.attention import Prompt
from ral.data.record import Record
from ral.errors import DataError
from ral.families import family_of


def video_rates(config: Any, record: Record, prompt: Prompt) -> Iterator[Fraction]:
    """Frames a second, for every video of a record, that give it the same positions in vLLM (0.32) as in the policy.

    Args:
        config: of the policy's model.

    Raises DataError where no rate does.
    """
    count, family = len(record.videos), family_of(config)
    if not count:
        return
    if (per_second := family.positions_per_second(config)) is None:
        raise DataError(
            f"{record.origin}: has a video, of which a vLLM server would make other tokens than the processor of this model "
            "does (Qwen3-VL: times between the frames); set rollout_engine to transformers"
        )
    places = prompt.places.split([math.prod(grid) for grid in prompt.grids])
    every = prompt.inputs.get("second_per_grid_ts", torch.ones(count)).float().cpu()  # Qwen2-VL knows no seconds
    first = len(prompt.grids) - count  # images come before
    for (t, h, w), where, seconds in zip(prompt.grids[first:], places[first:], every, strict=True):
        own = prompt.position_ids[0, where[:: h * w]].cpu()
        # vLLM rounds times down in float64, the policy in float32, and may need the next number up for the same.
        for sent in (seconds, seconds.nextafter(seconds + 1)):
            if torch.equal((torch.arange(t) * (sent.double() * per_second)).long(), own - own[0]):
                break
        else:
            raise DataError(
                f"{record.origin}: no rate of frames gives this video the positions in a vLLM server that it has in the "
                "policy; set rollout_engine to transformers"
            )
        yield Fraction(config.vision_config.temporal_patch_size / sent.item()).limit_denominator(1_000_000)


def lossless_video(frames: np.ndarray, rate: Fraction) -> bytes:
    """`frames` uint8 `[T, H, W, 3]` as a video without loss, which says its rate exactly.

    A single frame is doubled, as the processor doubles it, for the server's decoder (OpenCV) reads no video of one frame.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in frames if len(frames) > 1 else frames.repeat(2, axis=0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
