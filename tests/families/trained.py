"""The positions that Qwen2-VL and Qwen2.5-VL were trained with: `get_rope_index` of transformers 4.49 in other words.

Compared with the code of transformers 4.49.0 by `python -m experiments.positions`: 600 prompts with random mixes of images and
videos, 2.0 million tokens, none different.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: Model types that transformers 5 gives other positions behind a video.
CHANGED = ("qwen2_vl", "qwen2_5_vl")


def trained_positions(config: Any, input_ids: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """`[3, 1, T]` of a sequence `[T]` without padding: a prompt, or a prompt with its completion."""
    merge = config.vision_config.spatial_merge_size
    tokens, seconds = input_ids.tolist(), inputs.get("second_per_grid_ts")
    images = [] if inputs.get("image_grid_thw") is None else inputs["image_grid_thw"].tolist()
    videos = [] if inputs.get("video_grid_thw") is None else inputs["video_grid_thw"].tolist()
    image, video, done = 0, 0, 0
    columns: list[tuple[int, int, int]] = []
    while image < len(images) or video < len(videos):
        next_image = tokens.index(config.image_token_id, done) if image < len(images) else len(tokens)
        next_video = tokens.index(config.video_token_id, done) if video < len(videos) else len(tokens)
        begin, is_video = min(next_image, next_video), next_video < next_image
        t, h, w = videos[video] if is_video else images[image]
        start = max(map(max, columns), default=-1) + 1
        columns += [(start + i,) * 3 for i in range(begin - done)]
        start += begin - done
        for index in range(t):
            time = index
            if config.model_type == "qwen2_5_vl":
                every = 0.0 if not is_video else 1.0 if seconds is None else seconds[video]
                # Of integers and a number in float32, as torch multiplies them there.
                time = int((torch.tensor([index]) * every * config.vision_config.tokens_per_second).long())
            columns += [(start + time, start + y, start + x) for y in range(h // merge) for x in range(w // merge)]
        done = begin + t * (h // merge) * (w // merge)
        video, image = video + is_video, image + (not is_video)
    start = max(map(max, columns), default=-1) + 1
    columns += [(start + i,) * 3 for i in range(len(tokens) - done)]
    return torch.tensor(columns).T[:, None]


def as_trained(config: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`inputs` for transformers' own forward or `generate`, with the trained positions where it would take others."""
    if config.model_type not in CHANGED:
        return dict(inputs)
    return {**inputs, "position_ids": trained_positions(config, inputs["input_ids"][0], inputs)}
