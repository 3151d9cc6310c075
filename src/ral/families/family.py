"""The base class `Family`. Its defaults use transformers' uniform interfaces and fit most models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ral.errors import ConfigError
from ral.families.tiles import Tile

#: In what a model was taught to write boxes: pixels of the original image, pixels of the image as the processor resizes it,
#: thousandths of its width and height, thousandths with y before x, shares of them from 0 to 1, or location tokens: y before x, in
#: 1024ths.
BoxSpace = Literal["image", "resized", "thousandths", "thousandths_yx", "unit", "loc"]

#: How a vLLM server takes media that the policy has encoded.
Served = Literal["whole", "frames"]

#: The kinds of media, in the order of their features.
MODALITIES = ("image", "video")
#: Names under which models take the kind of every token.
TOKEN_KINDS = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")

Grid = tuple[int, int, int]
#: (width, height) in pixels of every image of a prompt.
Sizes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class VisualToken:
    """The input of one visual token: pixels of a frame, frames of a video, patches of the tower, numbers of the processor's output."""

    pixels: int
    frames: int
    patches: int
    values: int


class Family:
    """A kind of model. A subclass overrides what differs from these defaults.

    Attributes:
        types: its model types (`config.model_type`).
        processors: class names of its processors, where transformers' table of processors does not have them.
        box_space: the coordinates in which it writes boxes, as its makers publish them; None where they do not.
        has_geometry: whether the pixels of each visual token are known. reads_video: whether videos are read.
        served: how a vLLM server takes media that the policy has encoded: every image and video `whole`, or every frame of a
            video as an image (`frames`); None where it takes the images themselves, and no videos.
        video_times: the processor's tensor of seconds that positions in a video follow, if they do.
        never_adapted: a pattern for the modules that cannot have an adapter, if there are any.
        mixes_media: whether images and videos can stand in one prompt. Not where a video's frames are written as images are.
    """

    types: ClassVar[tuple[str, ...]] = ()
    processors: ClassVar[tuple[str, ...]] = ()
    box_space: ClassVar[BoxSpace | None] = None
    has_geometry: ClassVar[bool] = False
    reads_video: ClassVar[bool] = False
    served: ClassVar[Served | None] = None
    video_times: ClassVar[str | None] = None
    never_adapted: ClassVar[str | None] = None
    mixes_media: ClassVar[bool] = True

    # Tokens

    def placeholders(self, config: Any) -> dict[str, int]:
        """Modality → the token that stands for its features in a prompt; empty for a text model."""
        if not hasattr(config, "vision_config"):
            return {}
        found = {kind: getattr(config, f"{kind}_token_id", None) for kind in MODALITIES}
        return {kind: token for kind, token in found.items() if token is not None}

    def banned(self, config: Any) -> set[int]:
        """Every token with a visual meaning. None may be sampled: the next forward would expect features for it."""
        names = ("vision_start_token_id", "vision_end_token_id", "vision_token_id", "boi_token_id", "eoi_token_id")
        further = (getattr(config, name, None) for name in names)
        return {*self.placeholders(config).values(), *(token for token in further if isinstance(token, int))}

    def kinds(self, config: Any, ids: Tensor) -> Tensor:
        """1 on the placeholders of images, 2 on those of videos, 0 elsewhere; of the shape of `ids`."""
        kinds = torch.zeros_like(ids)
        for modality, token in self.placeholders(config).items():
            kinds.masked_fill_(ids == token, 1 + MODALITIES.index(modality))
        return kinds

    def token_grids(self, config: Any, modality: str, inputs: Mapping[str, Any]) -> list[Grid] | None:
        """(t, h, w) of every image or video in *tokens*; None where the processor's tensors do not say."""
        return None

    # Vision

    def tower(self, base: Any) -> nn.ModuleList:
        """The modules that compute visual features, with projectors: all of the model except its decoder."""
        if not self.placeholders(base.config):
            return nn.ModuleList()
        decoder = base.get_decoder()
        parts = base.base_model.children()
        return nn.ModuleList(part for part in parts if not any(module is decoder for module in part.modules()))

    def features(self, model: Any, base: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Modality → the tower's output, as `mm_encoder_outputs` takes it.

        Args:
            model: has `get_image_features` and `get_video_features`: `base`, or what shards it.
            inputs: the processor's tensors; what these methods name is taken from them.
        """
        found = {}
        for modality in self.placeholders(base.config):
            encode: Any = getattr(base.base_model, name := f"get_{modality}_features", None)
            named = inspect.signature(encode).parameters if encode is not None else ()
            given = {key: inputs[key] for key in named if inputs.get(key) is not None}
            if any(key.startswith("pixel_values") for key in given):
                here = {key: v.to(base.device) if isinstance(v, Tensor) else v for key, v in given.items()}
                found[modality] = getattr(model, name, encode)(**here, return_dict=True)
        return found

    def patches_per_token(self, config: Any) -> int:
        """Patches of the tower, of one frame, behind a visual token."""
        return int(getattr(config.vision_config, "spatial_merge_size", 1)) ** 2

    def merged(self, base: Any, ids: Tensor, places: Tensor, features: Sequence[Tensor]) -> Tensor | None:
        """The input embeddings `[B, T, d]` of `ids [B, T]` with `features`, `[N, d]` together, at `places [N]` (of the flattened ids).

        None where this is left to the model, which asks the device in every pass whether there are as many places as features.
        """
        return None

    def visual_token(self, config: Any) -> VisualToken:
        """The cost of one visual token, for plans."""
        sizes, patches = config.vision_config, self.patches_per_token(config)
        pixels, frames = side_of(sizes.patch_size) ** 2 * patches, getattr(sizes, "temporal_patch_size", 1)
        return VisualToken(pixels, frames, patches, pixels * frames * getattr(sizes, "in_channels", 3))

    def most_tokens(self, config: Any, max_pixels: int | None) -> int | None:
        """The most visual tokens of one image of at most so many pixels, for plans; None: there is no bound."""
        return None if max_pixels is None else max_pixels // self.visual_token(config).pixels

    def patch_values(self, config: Any) -> int | None:
        """Numbers in one row of `pixel_values`, where every row is one patch; None where the tower takes whole images."""
        return None

    def blank(self, config: Any) -> dict[str, Tensor]:
        """The processor's tensors of the smallest black image."""
        side = config.vision_config.image_size
        height, width = side if isinstance(side, Sequence) else (side, side)
        return {"pixel_values": torch.zeros(1, 3, height, width)}

    # Positions

    def positions(self, base: Any, input_ids: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Positions of an unpadded prompt `[P]`: `[3, P]` (M-RoPE) by the model's own `get_rope_index`, or `[P]`."""
        count = torch.arange(len(input_ids), device=input_ids.device)
        index = getattr(base.base_model, "get_rope_index", None)
        if index is None:
            return count
        named = inspect.signature(index).parameters
        given = {name: inputs[name] for name in named if inputs.get(name) is not None}
        if not any(name.endswith("grid_thw") for name in given):
            return count.expand(3, -1)
        given |= {"input_ids": input_ids[None], "attention_mask": None}
        if "mm_token_type_ids" in named:
            given["mm_token_type_ids"] = self.kinds(base.config, input_ids)[None].int()
        positions, _ = index(**given)
        return positions[-3:, 0]

    def batch_positions(self, config: Any, inputs: Mapping[str, Any]) -> Tensor | None:
        """Positions `[3, B, T]` of examples `input_ids [B, T]`, padded on the right, with all their media in order.

        None where those that the model's own forward counts are the ones it was trained with.
        """
        return None

    # The decoder

    def together(self, base: Any, input_ids: Tensor) -> Tensor | None:
        """`[P]` numbers of the sets of prompt tokens that see each other, -1 for tokens that see what is before them alone."""
        return None

    def per_token(self, base: Any, ids: Tensor, in_prompt: Tensor) -> dict[str, Tensor]:
        """Further inputs of the model for every token of `ids [B, T]`, besides positions; `in_prompt [B, T]` is false on completions."""
        if not self.placeholders(base.config):
            return {}
        named = inspect.signature(base.forward).parameters
        return {name: self.kinds(base.config, ids) for name in TOKEN_KINDS if name in named}

    def final(self, config: Any) -> Callable[[Tensor], Tensor] | None:
        """The model's function on logits after the output embedding; None: none."""
        text = config.get_text_config()
        if cap := getattr(text, "final_logit_softcapping", None):
            return lambda logits: (logits / cap).tanh() * cap
        if (divisor := getattr(text, "logits_scaling", 1)) != 1:
            return lambda logits: logits / divisor
        if (factor := getattr(config, "logit_scale", None)) is not None:
            return lambda logits: logits * factor
        return None

    def unshareable(self, config: Any) -> str | None:
        """Why a model of this family cannot share a prompt among its completions; None where it can."""
        if not self.types:
            return "its architecture is not among the known ones"
        if getattr(config.get_text_config(), "attn_logit_softcapping", None):
            return "its attention caps its scores"
        return None

    # The processor

    def placeholder(self, processor: Any) -> int:
        """The token that stands for an image's features."""
        return processor.image_token_id  # type: ignore[no-any-return]

    def runs(self, processor: Any, ids: Tensor) -> list[int]:
        """Lengths of the runs of image tokens in `ids [P]`."""
        return runs(ids == self.placeholder(processor))

    def tiles(self, processor: Any, ids: Tensor, sizes: Sizes, inputs: Mapping[str, Any]) -> list[Tile] | None:
        """What each image token of a prompt `ids [P]` shows, in order; None where it is not known, or `token_grids` says it.

        `inputs` are the processor's tensors.
        """
        return None

    def video_tiles(self, processor: Any, frames: Sequence[int], inputs: Mapping[str, Any]) -> list[Tile] | None:
        """The same of the video tokens of videos with so many frames; every `frames_per_picture` of them are a picture."""
        return None

    def filler(self, name: str) -> float:
        """What fills up a tensor of media beside a larger one in a batch; `name` is the processor's."""
        return 0.0

    def frames_per_picture(self, processor: Any) -> int:
        """Frames of a video in one grid of visual tokens."""
        return getattr(processor.video_processor, "temporal_patch_size", 1)

    def image_size(self, image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """Arguments that bound the pixels of an image for the image processor; empty to keep its own bounds.

        Raises ConfigError where it has no such bound.
        """
        return self._unbounded(min_pixels, max_pixels)

    def video_size(
        self, video_processor: Any, min_pixels: int | None, max_pixels: int | None, frames: int
    ) -> dict[str, Any]:
        """Arguments that bound the pixels of one frame of a video with `frames` frames."""
        return self._unbounded(min_pixels, max_pixels)

    def _unbounded(self, *bounds: int | None) -> dict[str, Any]:
        if any(bound is not None for bound in bounds):
            raise ConfigError(
                "min_pixels, max_pixels and video_pixels do nothing here: the processor of this model has no bound on pixels; "
                "leave them out, and set the size in the processor's own files"
            )
        return {}


def joined(features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Features of several prompts as one, in order; always a new object, as models write into what they are given."""
    together: dict[str, Any] = {}
    for modality in MODALITIES:
        outputs = [found[modality] for found in features if modality in found]
        if not outputs:
            continue
        main = "pooler_output" if outputs[0].get("pooler_output") is not None else "last_hidden_state"
        # What else has a name of its own (Ovis2: the features of its indicators) is the same for every prompt.
        parts = {name: value for name, value in outputs[0].items() if name.endswith("_features")}
        parts |= {main: _one_behind_the_other([output[main] for output in outputs])}
        if outputs[0].get("deepstack_features") is not None:  # one list (or tensor) per level
            levels = zip(*(output["deepstack_features"] for output in outputs), strict=True)
            parts["deepstack_features"] = [_one_behind_the_other(level) for level in levels]
        together[modality] = type(outputs[0])(**parts)
    return together


def _one_behind_the_other(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return tuple(piece for part in parts for piece in part)


def side_of(size: int | Sequence[int]) -> int:
    """The side of a square that a configuration gives as one number or as two."""
    return size if isinstance(size, int) else size[0]


def runs(mask: Tensor) -> list[int]:
    """Lengths of the runs of true in `[P]`."""
    edges = torch.nn.functional.pad(mask.int(), (1, 1)).diff()
    return ((edges == -1).nonzero() - (edges == 1).nonzero())[:, 0].tolist()


def grids_of(inputs: Mapping[str, Any], modality: str, merge: int) -> list[Grid]:
    """The grids of a processor that writes `image_grid_thw` and `video_grid_thw` in patches, `merge`² of which make a token."""
    grid = inputs.get(f"{modality}_grid_thw")
    return [] if grid is None else [(int(t), int(h) // merge, int(w) // merge) for t, h, w in grid.tolist()]
