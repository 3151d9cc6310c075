"""Tiny random models of every supported class and prompts for them, without a processor."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

IMAGE, VIDEO, VISION_START, VISION_END, EOS, PAD = 90, 91, 92, 93, 94, 95
VOCABULARY = 100
PATCH_VALUES = 3 * 2 * 4 * 4  # channels × temporal patch × patch²

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "tie_word_embeddings": False,
}
VISION = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "in_channels": 3,
}

VISION_KINDS = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl")
TEXT_KINDS = ("qwen2", "qwen3", "llama")


def tiny_model(
    kind: str = "qwen2_5_vl", attn_implementation: str = "sdpa", seed: int = 0, **text: Any
) -> PreTrainedModel:
    torch.manual_seed(seed)
    text = TEXT | text
    if kind == "qwen2_5_vl":
        vision = VISION | {
            "hidden_size": 32,
            "intermediate_size": 32,
            "out_hidden_size": 32,
            "window_size": 16,
        }
        vision |= {"fullatt_block_indexes": [1], "tokens_per_second": 2}
        config = Qwen2_5_VLConfig(text_config=text | MROPE, vision_config=vision, **TOKENS)
        model = Qwen2_5_VLForConditionalGeneration(config)
    elif kind == "qwen2_vl":
        vision = VISION | {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text | MROPE, vision_config=vision, **TOKENS))
    elif kind == "qwen3_vl":
        vision = VISION | {"hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 32}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        model = Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config=text | MROPE | {"head_dim": 8}, vision_config=vision, **TOKENS)
        )
    else:
        config_class, model_class = {
            "qwen2": (Qwen2Config, Qwen2ForCausalLM),
            "qwen3": (Qwen3Config, Qwen3ForCausalLM),
            "llama": (LlamaConfig, LlamaForCausalLM),
        }[kind]
        model = model_class(config_class(**text, **({"head_dim": 8} if kind == "qwen3" else {})))
    model.set_attn_implementation(attn_implementation)
    return model.eval()


def twin(model: PreTrainedModel, attn_implementation: str = "eager") -> PreTrainedModel:
    """The same weights with another attention implementation: the reference of the parity tests."""
    other = copy.deepcopy(model)
    other.set_attn_implementation(attn_implementation)
    return other


def _vision_block(token: int, grid: tuple[int, int, int]) -> list[int]:
    t, h, w = grid
    return [VISION_START, *[token] * (t * h * w // 4), VISION_END]


def prompt(
    kind: str = "image", seed: int = 0, words: int = 6, model: str = "qwen2_5_vl", patches: int | None = None
) -> dict[str, Tensor]:
    """A processor-like dict for one prompt: `image`, `images` (two sizes), `video`, `mixed` or `text`.

    A video has `patches` temporal patches, two frames each. It is written as the processor of `model` does: Qwen3-VL's
    writes a block for every temporal patch, behind its time in words, all inside a further pair of start and end; the
    others write one block.
    """
    generator = torch.Generator().manual_seed(seed)

    def text(n: int) -> list[int]:
        return torch.randint(0, 90, (n,), generator=generator).tolist()

    images = {"image": [(1, 4, 6)], "images": [(1, 4, 6), (1, 6, 4)], "mixed": [(1, 4, 4)]}.get(kind, [])
    videos = {"video": [(patches or 3, 4, 4)], "mixed": [(patches or 2, 4, 6)]}.get(kind, [])
    ids = text(words)
    for token, grids in ((IMAGE, images), (VIDEO, videos)):
        for t, h, w in grids:
            if token == VIDEO and model == "qwen3_vl":
                ids += [VISION_START]
                for _ in range(t):
                    ids += text(3) + _vision_block(token, (1, h, w))
                ids += [VISION_END]
            else:
                ids += _vision_block(token, (t, h, w))
            ids += text(2)
    inputs: dict[str, Tensor] = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
    }
    for name, pixels, grids in (("image", "pixel_values", images), ("video", "pixel_values_videos", videos)):
        if grids:
            cells = sum(t * h * w for t, h, w in grids)
            inputs[pixels] = torch.randn(cells, PATCH_VALUES, generator=generator)
            inputs[f"{name}_grid_thw"] = torch.tensor(grids)
    if videos and model != "qwen3_vl":
        inputs["second_per_grid_ts"] = torch.tensor([1.5] * len(videos))
    if images or videos:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int() + 2 * (inputs["input_ids"] == VIDEO).int()
    return inputs


def completions(lengths: tuple[int, ...] = (5, 3, 7), seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 90, (n,), generator=generator) for n in lengths]
