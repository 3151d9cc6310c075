"""Models that vLLM is tried with: `python -m tests.rollouts.vllm.served FOLDER [KIND]` writes one for a server to start on.

KIND is qwen2_5_vl, the embedded model, or qwen3_vl, a random one with the embedded tokenizer.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from ral.testbed import load_start
from tests.attention.test_video import as_qwen3


def qwen3_vl() -> tuple[Any, Any]:
    """Three layers, features of the tower at two levels, tied embeddings."""
    start, processor = load_start()
    own = start.config
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096, "eos_token_id": 500}
    vision = {"depth": 3, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 128}
    vision |= {"patch_size": own.vision_config.patch_size, "num_position_embeddings": 64}
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen3VLConfig(
        text_config={"vocab_size": own.text_config.vocab_size, "rope_parameters": rope, **sizes},
        vision_config={"deepstack_visual_indexes": [0, 1], **vision},
        tie_word_embeddings=True,
        **{name: getattr(own, name) for name in tokens},
    )
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.generation_config.eos_token_id = 500
    return model, as_qwen3(processor)


KINDS = {"qwen2_5_vl": load_start, "qwen3_vl": qwen3_vl}

if __name__ == "__main__":
    for part in KINDS[sys.argv[2] if len(sys.argv) > 2 else "qwen2_5_vl"]():
        part.save_pretrained(sys.argv[1])
