"""A Qwen2.5-VL of about a million parameters: the real classes, small sizes, a small vocabulary."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from .rings import COLOURS, QUESTIONS

PATCH_SIZE, MERGE_SIZE, TEMPORAL_PATCH_SIZE = 4, 2, 2
CONTEXT = 4096  # positions

#: Control tokens, spelt as Qwen2.5-VL's are. `skip_special_tokens` drops them.
CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
#: Single tokens, but part of the answer's text: rewards must see them after decoding.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

#: Qwen2.5-VL's template without its default system turn, which would make prompts of the testbed a third longer.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content -%}
{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>
{%- else %}{{ part.text }}{% endif -%}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: every word of the testbed and of easy-vqa is one token, all other text falls back to bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # BPE trained until nothing is left to merge turns every piece of its corpus into one token.
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_words(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> Qwen2_5_VLProcessor:
    """The processor that belongs to `build_model`: a 64×64 image becomes 64 visual tokens, at most 1024 per image."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    patches: dict[str, Any] = {
        "patch_size": PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": 32 * 32, "longest_edge": 256 * 256}, **patches),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(
            size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128},
            min_frames=TEMPORAL_PATCH_SIZE,
            max_frames=16,
            cap_pixels_per_frame=False,
            **patches,
        ),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    processor: Qwen2_5_VLProcessor, *, layers: int = 2, hidden: int = 128, seed: int = 0
) -> Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised model in float32 with `layers` decoder layers of width `hidden`."""
    token_id = processor.tokenizer.convert_tokens_to_ids
    # transformers' default of 0.02 is made for widths in the thousands: at 128 such a model stays at chance.
    initializer_range = round(hidden**-0.5, 2)
    vision_hidden = hidden // 2
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 4 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
            "initializer_range": initializer_range,
            # Sections are in pairs of a head's channels: time, height, width.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": token_id("<|endoftext|>"),
        },
        vision_config={
            "depth": 2,
            "hidden_size": vision_hidden,
            "intermediate_size": 2 * vision_hidden,
            "num_heads": 2,
            "out_hidden_size": hidden,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": TEMPORAL_PATCH_SIZE,
            "window_size": 4 * PATCH_SIZE * MERGE_SIZE,
            "fullatt_block_indexes": [1],
            "initializer_range": initializer_range,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=token_id("<|im_end|>"), pad_token_id=token_id("<|endoftext|>")
    )
    return model


def _words() -> list[str]:
    """One text a word, each also with the space that precedes it inside a sentence."""
    sentences = [
        *QUESTIONS,
        "describe the image: row col ring, user system assistant think answer True False A B C D",
        "is there a shape in the image? does the image not contain a circle? no yes triangle rectangle of present "
        "color teal black gray brown white",
        "what is to the left right above below and first second last frame video where when how many",
    ]
    words = set(itertools.chain.from_iterable(sentence.replace("{}", "").split() for sentence in sentences))
    words |= {word.strip("?:,") for word in words} | set(COLOURS) | {str(digit) for digit in range(10)}
    return sorted(words | {f" {word}" for word in words})
