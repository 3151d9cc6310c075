"""Qwen's vision models: M-RoPE, and one grid of merged patches for every image and video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.utils.generic import is_flash_attention_requested
from transformers.vision_utils import get_vision_position_ids

from ral.families.family import MODALITIES, BoxSpace, Family, Grid, Served, grids_of


class Qwen3VL(Family):
    """Positions are transformers' own: every frame of a video is its own block, after its time in words."""

    types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
    box_space: ClassVar[BoxSpace | None] = "thousandths"
    has_geometry = True
    reads_video: ClassVar[bool] = True
    served: ClassVar[Served | None] = "frames"

    def token_grids(self, config: Any, modality: str, inputs: Mapping[str, Any]) -> list[Grid]:
        return grids_of(inputs, modality, config.vision_config.spatial_merge_size)

    def patch_values(self, config: Any) -> int:
        return self.visual_token(config).values // config.vision_config.spatial_merge_size**2

    def blank(self, config: Any) -> dict[str, Tensor]:
        side = config.vision_config.spatial_merge_size
        return {
            "pixel_values": torch.zeros(side**2, self.patch_values(config)),
            "image_grid_thw": torch.tensor([[1, side, side]]),
        }

    def image_size(self, image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        return _area(image_processor, min_pixels, max_pixels)

    def video_size(
        self, video_processor: Any, min_pixels: int | None, max_pixels: int | None, frames: int
    ) -> dict[str, Any]:
        """The video processor bounds the whole clip."""
        return _area(video_processor, *(bound and bound * frames for bound in (min_pixels, max_pixels)))


class GLM4V(Qwen3VL):
    """The same grids; an image counts as a video of two frames where its pixels are bounded. A prompt has images or videos."""

    types = ("glm46v", "glm4v", "glm4v_moe")
    served = None
    mixes_media = False

    def banned(self, config: Any) -> set[int]:
        names = (f"{kind}_{end}_token_id" for kind in MODALITIES for end in ("start", "end"))
        return super().banned(config) | {getattr(config, name) for name in names}

    def kinds(self, config: Any, ids: Tensor) -> Tensor:
        """Frames of a video are written with the token of images, between the marks of a video."""
        opened, closed = (
            (ids == token).cumsum(-1) for token in (config.video_start_token_id, config.video_end_token_id)
        )
        return (ids == config.image_token_id).to(ids.dtype) * (1 + (opened > closed).to(ids.dtype))

    def features(self, model: Any, base: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The model puts both kinds at the token of images."""
        found = super().features(model, base, inputs)
        return {"image": next(iter(found.values()))} if found else {}

    def image_size(self, image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        frames = image_processor.temporal_patch_size
        return _area(image_processor, *(bound and bound * frames for bound in (min_pixels, max_pixels)))


class Qwen2VL(Qwen3VL):
    """Positions as in training: text starts after the *largest* position so far (transformers 4.49, `get_rope_index`).

    transformers 5 starts it after a frame's longer side, which a long video exceeds in time.
    """

    types = ("qwen2_vl",)
    served = "whole"

    def video_size(
        self, video_processor: Any, min_pixels: int | None, max_pixels: int | None, frames: int
    ) -> dict[str, Any]:
        """The video processor bounds one frame."""
        return _area(video_processor, min_pixels, max_pixels)

    def features(self, model: Any, base: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """As by default, but sizes stay on the host: the tower of a grid on the device waits for it in every layer."""
        if is_flash_attention_requested(base.config.vision_config):  # which takes them on the device
            return super().features(model, base, inputs)
        found = {}
        for modality, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if inputs.get(pixels) is None:
                continue
            grid = inputs[f"{modality}_grid_thw"].cpu()
            places = get_vision_position_ids(grid, base.config.vision_config.spatial_merge_size).to(base.device)
            encode = getattr(model, f"get_{modality}_features")
            found[modality] = encode(inputs[pixels].to(base.device), grid, position_ids=places, return_dict=True)
        return found

    def merged(self, base: Any, ids: Tensor, places: Tensor, features: Sequence[Tensor]) -> Tensor:
        embedded = base.get_input_embeddings()(ids)
        return (
            embedded.flatten(0, 1).index_copy(0, places, torch.cat(list(features)).to(embedded.dtype)).view_as(embedded)
        )

    def positions(self, base: Any, input_ids: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        return self.batch_positions(base.config, {**inputs, "input_ids": input_ids[None]})[:, 0]

    def batch_positions(self, config: Any, inputs: Mapping[str, Any]) -> Tensor:
        images, videos = (self.token_grids(config, modality, inputs) for modality in MODALITIES)
        blocks = {
            1: iter([(torch.arange(t), h, w) for t, h, w in images]),
            2: iter([(self.times(config, t, inputs, number), h, w) for number, (t, h, w) in enumerate(videos)]),
        }
        rows = [positions_of_blocks(kinds, blocks) for kinds in self.kinds(config, inputs["input_ids"])]
        return torch.stack(rows, dim=1)

    def times(self, config: Any, patches: int, inputs: Mapping[str, Any], video: int) -> Tensor:
        """Positions `[patches]` of a video's temporal patches, from 0: they are counted."""
        return torch.arange(patches)


class Qwen2_5VL(Qwen2VL):
    """As Qwen2-VL, but the positions of a video's patches follow their times in seconds."""

    types = ("qwen2_5_vl",)
    box_space = "resized"
    video_times = "second_per_grid_ts"

    def times(self, config: Any, patches: int, inputs: Mapping[str, Any], video: int) -> Tensor:
        """floor(index · seconds per patch · tokens per second): the product is a float, rounded down once."""
        every = inputs.get(self.video_times)
        seconds = torch.tensor(1.0) if every is None else torch.as_tensor(every)[video].cpu()
        return (torch.arange(patches) * seconds * config.vision_config.tokens_per_second).long()


def positions_of_blocks(kinds: Tensor, blocks: Mapping[int, Iterator[tuple[Tensor, int, int]]]) -> Tensor:
    """`[3, P]` for time, row and column: each stretch of text and each block starts at the largest position so far + 1.

    Args:
        kinds: `[P]`, 0 on text. blocks: of each other kind, in order, what a block's positions in time are, its rows and columns.
    """
    places = kinds.nonzero()[:, 0].tolist()
    parts, at, start = [], 0, 0  # tokens done, and the next position
    while len(places) > 0:
        text = places[0] - at
        times, rows, columns = next(blocks[int(kinds[places[0]])])
        block = torch.stack(torch.meshgrid(times, torch.arange(rows), torch.arange(columns), indexing="ij"))
        parts += [torch.arange(text).expand(3, -1) + start, block.reshape(3, -1) + start + text]
        at, start = places[0] + block[0].numel(), int(parts[-1].max()) + 1
        places = places[block[0].numel() :]
    parts.append(torch.arange(len(kinds) - at).expand(3, -1) + start)
    return torch.cat(parts, dim=1).to(kinds.device)


def _area(processor: Any, low: int | None, high: int | None) -> dict[str, Any]:
    """Bounds on the area, under the names transformers has for edges."""
    if low is None and high is None:
        return {}
    low = processor.size["shortest_edge"] if low is None else low
    high = processor.size["longest_edge"] if high is None else high
    return {"size": {"shortest_edge": min(low, high), "longest_edge": high}}
