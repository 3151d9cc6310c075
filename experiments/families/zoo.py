"""Tiny random models of many architectures of transformers, and a prompt for each as its processor would write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

VOCABULARY, IMAGE, VIDEO, START, END, EOS, PAD = 100, 90, 91, 92, 93, 94, 95
WORDS = 80  # text is drawn from the tokens below

Sizes = dict[str, Any]
Prompt = dict[str, Any]

TEXT: Sizes = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096, "eos_token_id": EOS, "pad_token_id": PAD,
    "bos_token_id": None, "tie_word_embeddings": False, "initializer_range": 0.2,
}  # fmt: skip
MOE: Sizes = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_local_experts": 4, "n_routed_experts": 4,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "shared_expert_intermediate_size": 24, "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
}  # fmt: skip
DELTA: Sizes = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
MLA: Sizes = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
MAMBA: Sizes = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}
WINDOW: Sizes = {"sliding_window": 6}
GEMMA: Sizes = {"query_pre_attn_scalar": 8}
MROPE: Sizes = {
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0,
    }
}  # fmt: skip


def layers(kinds: str) -> Sizes:
    """`layer_types`, a letter each: sliding, full, linear, chunked, conv, mamba attention."""
    names = {"s": "sliding_attention", "f": "full_attention", "l": "linear_attention", "c": "chunked_attention"}
    names |= {"v": "conv", "m": "mamba", "a": "attention"}
    return {"layer_types": [names[kind] for kind in kinds]}


ALTERNATING = layers("sfsf") | WINDOW
THREE_TO_ONE = layers("lllf") | DELTA

#: Text models: what is different from `TEXT`.
TEXTS: dict[str, Sizes] = {
    "llama": {},
    "qwen2": WINDOW | {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3": WINDOW | {"use_sliding_window": True, "max_window_layers": 2},
    "mistral": WINDOW,
    "ministral": ALTERNATING,
    "ministral3": {},
    "mixtral": WINDOW | MOE,
    "qwen2_moe": MOE,
    "qwen3_moe": MOE,
    "gemma2": ALTERNATING | GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "gemma3_text": ALTERNATING | GEMMA,
    "gemma4_text": ALTERNATING | {
        "global_head_dim": 8, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 2, "num_global_key_value_heads": 2, "final_logit_softcapping": 5.0,
    },
    "phi3": WINDOW,
    "olmo2": {},
    "olmo3": ALTERNATING,
    "smollm3": ALTERNATING | {"use_sliding_window": True},
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.3},
    "cohere2": ALTERNATING | {"logit_scale": 0.3},
    "glm4": {},
    "glm4_moe": MOE,
    "deepseek_v2": MOE | MLA,
    "deepseek_v3": MOE | MLA,
    "exaone4": ALTERNATING,
    "seed_oss": {},
    "ernie4_5": {},
    "hunyuan_v1_dense": {},
    "starcoder2": WINDOW,
    "minimax_m2": MOE,
    "gpt_oss": ALTERNATING | MOE,
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4},
    "llama4_text": layers("cccf") | MOE | {
        "attention_chunk_size": 8, "no_rope_layers": [1, 1, 1, 0], "intermediate_size_mlp": 48,
        "attn_temperature_tuning": True, "floor_scale": 4, "moe_layers": [1],
    },
    "qwen3_next": THREE_TO_ONE | MOE,
    "qwen3_5_text": THREE_TO_ONE | MROPE,
    "olmo_hybrid": THREE_TO_ONE,
    "lfm2": layers("vvfv") | {"conv_L_cache": 3},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 32, "mamba_n_heads": 4},
    "bamba": MAMBA | {"attn_layer_indices": [2]},
    "nemotron_h": {name: value for name, value in MOE.items() if name != "num_experts"} | {
        "layers_block_type": ["mamba", "attention", "moe", "mamba"], "mamba_num_heads": 8, "mamba_head_dim": 8,
        "ssm_state_size": 8, "n_groups": 1, "chunk_size": 4,
    },
    "granitemoehybrid": layers("mama") | MAMBA | {
        "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24,
    },
    "kimi_linear": MLA | MOE | layers("lllf") | {
        "linear_attn_config": {
            "num_heads": 4, "head_dim": 8, "short_conv_kernel_size": 4, "kda_layers": [1, 2, 3], "full_attn_layers": [4],
        },
    },
}  # fmt: skip

TOWER: Sizes = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4, "num_channels": 3,
}  # fmt: skip
QWEN_TOWER: Sizes = {
    "depth": 2, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3,
    "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 32,
}  # fmt: skip
UNTIED: Sizes = {"image_token_id": IMAGE, "tie_word_embeddings": False}
BOTH: Sizes = UNTIED | {"video_token_id": VIDEO}
QWEN: Sizes = BOTH | {"vision_start_token_id": START, "vision_end_token_id": END}
GLM: Sizes = QWEN | {
    "image_start_token_id": START, "image_end_token_id": END, "video_start_token_id": 88, "video_end_token_id": 87,
}  # fmt: skip
SIGLIP = TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}
CLIP = TOWER | {"model_type": "clip_vision_model"}


class Written:
    """Prompts as processors write them; every one is drawn from the same stream."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def words(self, count: int) -> list[int]:
        return torch.randint(0, WORDS, (count,), generator=self.generator).tolist()

    def values(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def text(self, length: int = 12) -> Prompt:
        return self.prompt(self.words(length))

    def prompt(self, ids: list[int], **media: Any) -> Prompt:
        tokens = torch.tensor([ids])
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **media}

    def tiles(self, counts: tuple[int, ...], per_tile: int, **more: Any) -> Prompt:
        """Pictures of so many tiles of 16×16 pixels and `per_tile` tokens."""
        ids = self.words(6)
        for count in counts:
            ids += [88, *[IMAGE] * per_tile * count, 87, *self.words(2)]
        return self.prompt(ids, pixel_values=self.values(sum(counts), 3, 16, 16), **more)

    def grids(self, values: int = 96, **more: Any) -> Prompt:
        """Two pictures of 4×6 and 6×4 patches, four of which make a token."""
        shapes, ids = ((1, 4, 6), (1, 6, 4)), self.words(6)
        for _ in shapes:
            ids += [START, *[IMAGE] * 6, END, *self.words(2)]
        media = {"pixel_values": self.values(48, values), "image_grid_thw": torch.tensor(shapes)}
        return self.kinds(self.prompt(ids, **media, **more), "mm_token_type_ids")

    def kinds(self, prompt: Prompt, name: str) -> Prompt:
        return prompt | {name: (prompt["input_ids"] == IMAGE).int()}

    def unpadded(self) -> Prompt:
        """A picture of 20×28 pixels on a canvas of 2×2 tiles: all of it, then six rows of eight tokens and a newline."""
        ids = self.words(6) + [IMAGE] * (16 + 6 * (8 + 1)) + self.words(3)
        return self.prompt(ids, pixel_values=self.values(1, 5, 3, 16, 16), image_sizes=torch.tensor([[20, 28]]))

    def nested(self) -> Prompt:
        prompt = self.tiles((3, 1), 4)
        return prompt | {"pixel_values": prompt["pixel_values"][None]}

    def patches_of_gemma4(self) -> Prompt:
        place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy"), -1).reshape(1, 16, 2)
        ids = self.words(6)
        for _ in range(2):
            ids += [START, *[IMAGE] * 4, END, *self.words(2)]
        pixels = torch.rand(2, 16, 48, generator=self.generator)
        prompt = self.prompt(ids, pixel_values=pixels, image_position_ids=place.repeat(2, 1, 1))
        return self.kinds(prompt, "mm_token_type_ids")

    def sizes_of_lfm2(self) -> Prompt:
        ids = self.words(6) + [IMAGE] * 4 + self.words(2) + [IMAGE] * 6 + self.words(2)
        return self.prompt(
            ids,
            pixel_values=self.values(2, 24, 48),
            spatial_shapes=torch.tensor([[4, 4], [4, 6]]),
            pixel_attention_mask=torch.tensor([[1] * 16 + [0] * 8, [1] * 24]),
        )

    def strip_of_minicpm(self) -> Prompt:
        ids = self.words(6) + [IMAGE] + self.words(2) + [IMAGE] * 2 + self.words(2)
        return self.prompt(ids, pixel_values=self.values(1, 3, 4, 192), target_sizes=torch.tensor([[4, 4], [4, 8]]))


def _text(kind: str, *more: Sizes) -> Sizes:
    sizes = TEXT | {"model_type": kind}
    for part in more:
        sizes |= part
    return sizes


#: Vision models: their configuration, and their prompt.
VISION: dict[str, tuple[Sizes, Callable[[Written], Prompt]]] = {
    "qwen2_vl": (
        QWEN | {"text_config": TEXT | MROPE, "vision_config": {
            name: value for name, value in QWEN_TOWER.items() if name not in ("intermediate_size", "out_hidden_size")
        } | {"embed_dim": 32, "mlp_ratio": 2}},
        Written.grids,
    ),
    "qwen2_5_vl": (
        QWEN | {"text_config": TEXT | MROPE, "vision_config": QWEN_TOWER | {"window_size": 16, "fullatt_block_indexes": [1]}},
        Written.grids,
    ),
    "qwen3_vl": (
        QWEN | {"text_config": TEXT | MROPE, "vision_config": QWEN_TOWER | {
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}},
        Written.grids,
    ),
    "qwen3_vl_moe": (
        QWEN | {"text_config": TEXT | MROPE | MOE, "vision_config": QWEN_TOWER | {
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}},
        Written.grids,
    ),
    "qwen3_5": (
        QWEN | {"text_config": TEXT | MROPE | THREE_TO_ONE, "vision_config": QWEN_TOWER | {"num_position_embeddings": 64}},
        Written.grids,
    ),
    "qwen3_5_moe": (
        QWEN | {"text_config": TEXT | MROPE | THREE_TO_ONE | MOE,
                "vision_config": QWEN_TOWER | {"num_position_embeddings": 64}},
        Written.grids,
    ),
    "glm4v": (GLM | {"text_config": TEXT | MROPE, "vision_config": QWEN_TOWER | {"image_size": 32}}, Written.grids),
    "glm46v": (
        GLM | {"text_config": _text("glm4v_text", MROPE),
               "vision_config": QWEN_TOWER | {"image_size": 32, "model_type": "glm4v_vision"}},
        Written.grids,
    ),
    "glm4v_moe": (GLM | {"text_config": TEXT | MROPE | MOE, "vision_config": QWEN_TOWER | {"image_size": 32}}, Written.grids),
    "internvl": (
        UNTIED | {"text_config": _text("qwen2"), "downsample_ratio": 0.5,
                  "vision_config": TOWER | {"image_size": [16, 16], "patch_size": [4, 4]}},
        lambda w: w.tiles((3, 1), 4),
    ),
    "llava": (
        UNTIED | {"text_config": _text("llama"), "vision_config": CLIP, "vision_feature_layer": -1},
        lambda w: w.tiles((1, 1), 16),
    ),
    "llava_next": (
        UNTIED | {"text_config": _text("llama"), "vision_config": CLIP, "vision_feature_layer": -1,
                  "image_grid_pinpoints": [[16, 16], [32, 32]]},
        Written.unpadded,
    ),
    "llava_onevision": (
        BOTH | {"text_config": _text("qwen2"), "vision_config": SIGLIP, "vision_feature_layer": -1,
                "image_grid_pinpoints": [[16, 16], [32, 32]], "vision_aspect_ratio": "anyres_max_9",
                "vision_feature_select_strategy": "full"},
        Written.unpadded,
    ),
    "gemma3": (
        UNTIED | {"text_config": _text("gemma3_text", ALTERNATING, GEMMA), "vision_config": SIGLIP | {"vision_use_head": True},
                  "mm_tokens_per_image": 4, "boi_token_id": START, "eoi_token_id": END},
        lambda w: w.kinds(w.tiles((1, 1), 4), "token_type_ids"),
    ),
    "gemma4": (
        BOTH | {"text_config": _text("gemma4_text", TEXTS["gemma4_text"], {"use_bidirectional_attention": "vision"}),
                "vision_config": {**{k: v for k, v in TOWER.items() if k not in ("image_size", "num_channels")},
                                  "num_key_value_heads": 2, "head_dim": 16, "pooling_kernel_size": 2,
                                  "position_embedding_size": 16},
                "audio_config": None, "audio_token_id": 89, "boi_token_id": START, "eoi_token_id": END,
                "boa_token_id": None, "eoa_token_id": None},
        Written.patches_of_gemma4,
    ),
    "paligemma": (
        UNTIED | {"hidden_size": 32, "projection_dim": 32, "text_config": _text("gemma"), "vision_config": SIGLIP},
        lambda w: (p := w.tiles((1,), 16)) | {"token_type_ids": torch.zeros_like(p["input_ids"])},
    ),
    "smolvlm": (UNTIED | {"text_config": _text("llama"), "vision_config": TOWER, "scale_factor": 2}, Written.nested),
    "idefics3": (UNTIED | {"text_config": _text("llama"), "vision_config": TOWER, "scale_factor": 2}, Written.nested),
    "mistral3": (
        UNTIED | {"text_config": _text("mistral"), "spatial_merge_size": 2, "vision_feature_layer": -1,
                  "vision_config": TOWER | {"model_type": "pixtral", "image_size": 32, "head_dim": 16}},
        lambda w: w.tiles((1, 1), 4, image_sizes=torch.tensor([[16, 16], [16, 16]])),
    ),
    "cohere2_vision": (
        UNTIED | {"text_config": _text("cohere2", ALTERNATING, {"logit_scale": 0.3}), "vision_config": SIGLIP,
                  "downsample_factor": 2, "alignment_intermediate_size": 32},
        lambda w: w.tiles((3, 1), 4),
    ),
    "aya_vision": (
        UNTIED | {"text_config": _text("cohere2", ALTERNATING, {"logit_scale": 0.3}), "vision_config": SIGLIP,
                  "downsample_factor": 2, "adapter_layer_norm_eps": 1e-6, "vision_feature_layer": -1},
        lambda w: w.tiles((3, 1), 4),
    ),
    "ovis2": (
        UNTIED | {"text_config": _text("qwen2"), "hidden_size": 32, "vocab_size": VOCABULARY,
                  "vision_config": TOWER | {"vocab_size": 20, "hidden_stride": 2, "num_visual_indicator_tokens": 3},
                  "visual_indicator_token_ids": [85, 86, 87]},
        lambda w: w.tiles((1,), 4),
    ),
    "deepseek_vl": (UNTIED | {"text_config": _text("llama"), "vision_config": SIGLIP}, lambda w: w.tiles((1, 1), 16)),
    "lfm2_vl": (
        UNTIED | {"text_config": _text("lfm2", TEXTS["lfm2"]), "downsample_factor": 2, "projector_hidden_size": 32,
                  "vision_config": SIGLIP | {"model_type": "siglip2_vision_model", "num_patches": 16}},
        Written.sizes_of_lfm2,
    ),
    "llama4": (
        {"image_token_index": IMAGE, "boi_token_index": START, "eoi_token_index": END, "tie_word_embeddings": False,
         "text_config": _text("llama4_text", TEXTS["llama4_text"], {"attn_temperature_tuning": False}),
         "vision_config": TOWER | {"intermediate_size": 128, "vision_output_dim": 32, "projector_input_dim": 32,
                                   "projector_output_dim": 32, "pixel_shuffle_ratio": 0.5}},
        lambda w: w.tiles((3, 1), 4),
    ),
    "video_llama_3": (
        BOTH | {"text_config": _text("qwen2"), "vision_config": {k: v for k, v in TOWER.items() if k != "image_size"}},
        lambda w: w.grids(48, image_merge_sizes=torch.tensor([2, 2])),
    ),
    "janus": (
        UNTIED | {"text_config": _text("llama"),
                  "vision_config": TOWER | {"projection_dim": 32, "mlp_ratio": 1.0, "num_image_tokens": 16, "depth": 2},
                  "vq_config": {"embed_dim": 8, "num_embeddings": 16, "double_latent": False, "base_channels": 32,
                                "channel_multiplier": [1, 1], "num_res_blocks": 1, "projection_dim": 32,
                                "image_token_embed_dim": 32, "num_patches": 4}},
        lambda w: w.tiles((1, 1), 16),
    ),
    "ernie4_5_vl_moe": (
        BOTH | {"text_config": TEXT | MOE | {
                    "moe_intermediate_size": [24, 24], "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
                    "mlp_layer_types": ["dense"] + ["sparse"] * 3},
                "vision_config": {k: v for k, v in QWEN_TOWER.items() if k != "out_hidden_size"},
                "image_start_token_id": START, "image_end_token_id": END, "video_start_token_id": 88, "video_end_token_id": 87},
        lambda w: w.kinds(w.grids(48), "moe_mm_token_type_ids"),
    ),
    "exaone4_5": (
        BOTH | {"text_config": _text("exaone4", ALTERNATING),
                "vision_config": QWEN_TOWER | {"window_size": 16, "fullatt_block_indexes": [1], "num_key_value_heads": 2}},
        Written.grids,
    ),
    "kimi_k25": (
        QWEN | {"text_config": _text("deepseek_v3", MLA, MOE), "projection_hidden_size": 32,
                "vision_config": {**{k: v for k, v in TOWER.items() if k not in ("image_size", "num_channels")},
                                  "pos_emb_height": 8, "pos_emb_width": 8}},
        lambda w: w.grids() | {"pixel_values": w.values(48, 3, 4, 4)},
    ),
    "minicpmv4_6": (
        BOTH | {"text_config": _text("qwen3_5_text", MROPE, THREE_TO_ONE), "insert_layer_id": 0, "image_size": 32,
                "vision_config": TOWER | {"image_size": 32, "insert_layer_id": 0, "window_kernel_size": (2, 2)}},
        Written.strip_of_minicpm,
    ),
}  # fmt: skip

KINDS = (*TEXTS, *VISION)


def tiny(kind: str, seed: int = 0, **changes: Any) -> tuple[PreTrainedModel, Prompt]:
    """A model in evaluation mode, and a prompt for it; `changes` are those of the (text) configuration."""
    torch.manual_seed(seed)
    written = Written()
    if kind in TEXTS:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TEXT | TEXTS[kind] | changes))
        return model.eval().float(), written.text()
    sizes, prompt = VISION[kind]
    sizes = sizes | {"text_config": sizes["text_config"] | changes}
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **sizes)).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():  # such as Gemma's projector: it would hide all behind it
                parameter.normal_(0, 0.2)
    return model, prompt(written)
