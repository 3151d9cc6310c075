"""Videos as a server is sent them: the frames without loss, at a rate that puts them where they stand for the policy."""

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


def video_rates(config: Any, record: Record, prompt: Prompt) -> Iterator[Fraction]:
    """Frames a second, for every video of a record, that give it the same positions in vLLM (0.32) as in the policy.

    Args:
        config: of the policy's model.

    Raises DataError where no rate does.
    """
    if record.videos and config.model_type == "qwen3_vl":
        raise DataError(
            f"{record.origin}: has a video, between whose frames a vLLM server writes times of its own for Qwen3-VL; "
            "set rollout_engine to transformers"
        )
    count = len(record.videos)
    places = prompt.places.split([math.prod(grid) for grid in prompt.grids])
    every = prompt.inputs.get("second_per_grid_ts", torch.ones(count)).float().cpu()  # Qwen2-VL knows no seconds
    first = len(prompt.grids) - count  # images come before
    for (t, h, w), where, seconds in zip(prompt.grids[first:], places[first:], every, strict=True):
        own = prompt.position_ids[0, where[:: h * w]].cpu()
        # vLLM rounds times down in float64, transformers in float32, and may need the next number up for the same.
        for sent in (seconds, seconds.nextafter(seconds + 1)):
            times = (torch.arange(t) * (sent.double() * getattr(config.vision_config, "tokens_per_second", 1))).long()
            # Behind a video, vLLM counts on from its largest position in time or space, transformers 5 from space.
            if torch.equal(times, own - own[0]) and times[-1] < max(h, w):
                break
        else:
            raise DataError(
                f"{record.origin}: to a vLLM server this video, or the text behind it, stands at other positions than to "
                f"transformers: it takes {int(own[-1] - own[0]) + 1} in time and {max(h, w)} in space. Take no more in time than "
                "in space (a shorter video, larger frames), or set rollout_engine to transformers"
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
