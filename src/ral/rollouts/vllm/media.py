"""Media as a server takes them: encoded by the policy where the server can take that, images as PNG elsewhere.

What the policy has encoded is exactly what it trains on: the server neither decodes nor resizes, counts the policy's positions, and needs no
pixel limits. Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5 take it (`Family.served`).
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import torch
from PIL import Image
from torch import Tensor

from ral.attention import Prompt
from ral.data.media import load_image
from ral.data.prompt import build_messages
from ral.data.record import Record
from ral.errors import DataError
from ral.families import family_of
from ral.families.family import MODALITIES

#: The code that vLLM gives to the bytes of a tensor (`vllm.v1.serial_utils`, CUSTOM_TYPE_RAW_VIEW).
RAW_VIEW = 3


@dataclass(frozen=True)
class Item:
    """One image, one video or one frame, encoded.

    Attributes:
        modality: `image` or `video`, as the server has it.
        start, length: where its visual tokens stand in the prompt.
        fields: by the server's name, the tensor and how items are batched there: `flat` (concatenated) or `batched` (stacked).
    """

    modality: str
    start: int
    length: int
    fields: Mapping[str, tuple[str, Tensor]]

    def encoded(self) -> bytes:
        """As vLLM's `MsgpackEncoder` writes a `MultiModalKwargsItem`."""
        return bytes(msgpack.packb({name: _element(kind, tensor) for name, (kind, tensor) in self.fields.items()}))


def request_media(config: Any, record: Record, prompt: Prompt) -> dict[str, Any]:
    """The part of a `/inference/v1/generate` request that holds the prompt and its media.

    Args:
        config: of the policy's model.

    Raises DataError for a video that the server cannot take.
    """
    ids = prompt.input_ids.tolist()
    if not len(prompt.places):
        return {"token_ids": ids}
    if family_of(config).served is not None:
        return {"token_ids": ids, "features": _features(list(encoded_items(config, record, prompt)))}
    if record.videos:
        raise DataError(
            f"{record.origin}: has a video, and a vLLM server takes videos of Qwen's models alone as the policy has encoded "
            "them; set rollout_engine to transformers"
        )
    return {"token_ids": _without_repeats(ids, prompt.visual.tolist()), "content_parts": _images(record)}


def encoded_items(config: Any, record: Record, prompt: Prompt) -> Iterator[Item]:
    """The media of a prompt, images before videos; every frame of a video is an image where text stands between frames."""
    family, merge = family_of(config), config.vision_config.spatial_merge_size
    places = prompt.places
    for modality in MODALITIES:
        done = 0  # tokens of this modality
        for number, (t, h, w) in enumerate(family.token_grids(config, modality, prompt.inputs) or ()):
            apart = modality == "video" and family.served == "frames"
            kind = "image" if apart else modality
            for patches in [1] * t if apart else [t]:
                count = patches * h * w
                here = places[done : done + count]
                if int(here[-1] - here[0]) + 1 != count:
                    raise DataError(
                        f"{record.origin}: text stands between the visual tokens of {modality} {number + 1}"
                    )
                name, tensor = _encoding(prompt, modality, kind, slice(done, done + count), merge**2)
                fields = {
                    name: ("flat", tensor),
                    f"{kind}_grid_thw": ("batched", torch.tensor([patches, h * merge, w * merge])),
                }
                if kind == "video":
                    fields["second_per_grid_ts"] = ("batched", _seconds(config, record, prompt, here[:: h * w]))
                yield Item(kind, int(here[0]), count, fields)
                done += count
        places = places[done:]


def _encoding(prompt: Prompt, modality: str, kind: str, tokens: slice, patches: int) -> tuple[str, Tensor]:
    """The server's name for what stands for these visual tokens, and the tensor.

    Features, of all levels side by side; the processor's `patches` per token where the tower is trained and nothing is encoded yet.
    """
    if prompt.features is None:
        names = {"image": "pixel_values", "video": "pixel_values_videos"}
        return names[kind], prompt.inputs[names[modality]][tokens.start * patches : tokens.stop * patches]
    output = prompt.features[modality]
    levels = [output["pooler_output"], *(output.get("deepstack_features") or ())]
    parts = [level if isinstance(level, Tensor) else torch.cat(list(level)) for level in levels]
    return f"{kind}_embeds", torch.cat([part[tokens] for part in parts], dim=-1)


def _seconds(config: Any, record: Record, prompt: Prompt, firsts: Tensor) -> Tensor:
    """Seconds per temporal patch for which the server counts the policy's own positions in time.

    The server rounds k · seconds · tokens per second down, in float64. Every value of an interval gives the policy's positions, which were
    rounded in float32; its middle is sent.
    """
    own = prompt.position_ids[0, firsts].cpu().double()
    own = own - own[0]
    k = torch.arange(1, len(own), dtype=torch.float64)
    low, high = (own[1:] / k).tolist(), ((own[1:] + 1) / k).tolist()
    least, most = max(low, default=1.0), min(high, default=1.0)
    if least > most or (least == most and len(own) > 1):
        raise DataError(
            f"{record.origin}: its frames stand at positions in time that no even distance gives, and a vLLM server knows no "
            "others; set rollout_engine to transformers"
        )
    return torch.tensor((least + most) / 2 / getattr(config.vision_config, "tokens_per_second", 1), dtype=torch.float64)


def _features(items: list[Item]) -> dict[str, Any]:
    found: dict[str, Any] = {"mm_hashes": {}, "mm_placeholders": {}, "kwargs_data": {}}
    for item in sorted(items, key=lambda item: item.start):
        data = item.encoded()
        for name, value in (
            ("mm_hashes", hashlib.sha256(data).hexdigest()),
            ("mm_placeholders", {"offset": item.start, "length": item.length}),
            ("kwargs_data", base64.b64encode(data).decode()),
        ):
            found[name].setdefault(item.modality, []).append(value)
    return found


def _element(kind: str, tensor: Tensor) -> dict[str, Any]:
    """As vLLM's encoder writes one field of an item."""
    tensor = tensor.detach().cpu().contiguous()
    data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    how: dict[str, Any] = {"keep_on_cpu": kind == "batched"}
    if kind == "flat":
        how |= {"slices": [[0, len(tensor), None]], "dim": 0}
    shape = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), msgpack.ExtType(RAW_VIEW, data)]
    return {"data": shape, "field": [kind, how]}


def _images(record: Record) -> list[dict[str, str]]:
    """The images in the order of their places in the prompt, without loss."""
    parts = (part for message in build_messages(record) for part in message["content"])
    return [
        {"type": "image_url", "url": f"data:image/png;base64,{_png(load_image(part['image'], record.origin))}"}
        for part in parts
        if part["type"] == "image"
    ]


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _without_repeats(ids: list[int], visual: list[bool]) -> list[int]:
    """One placeholder for every image: the server repeats it for each of its visual tokens."""
    before = [False, *visual[:-1]]
    return [token for token, here, last in zip(ids, visual, before, strict=True) if not (here and last)]
