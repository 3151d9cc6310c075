"""A Qwen2.5-VL with about a million parameters, and a Qwen2 with half as many: real classes, small vocabulary."""

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
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from ral.testbed.rings import COLOURS, QUESTIONS

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
    """Byte-level BPE: every word of the testbed and of easy-vqa is one token, all other text falls back to bytes.

    With its chat template it is all that a text model needs.
    """
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    # BPE trained until nothing is left to merge turns every piece of its corpus into one token.
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words.train_from_iterator(_words(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


def build_processor() -> Qwen2_5_VLProcessor:
    """The processor that belongs to `build_model`: a 64×64 image becomes 64 visual tokens, at most 1024 per image."""
    tokenizer = build_tokenizer()
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
    """A freshly initialised model in float32 with `layers` decoder layers of width `hidden`, a multiple of 64."""
    token_id = processor.tokenizer.convert_tokens_to_ids
    decoder = _decoder(processor.tokenizer, layers, hidden)
    vision_hidden = hidden // 2
    pairs = hidden // decoder["num_attention_heads"] // 2  # of a head's channels, for time, height and width
    sections = [pairs // 4, pairs * 3 // 8, pairs * 3 // 8]
    config = Qwen2_5_VLConfig(
        text_config=decoder | {"rope_parameters": decoder["rope_parameters"] | {"mrope_section": sections}},
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
            "initializer_range": decoder["initializer_range"],
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    return _initialised(Qwen2_5_VLForConditionalGeneration, config, decoder, seed)


def build_text_model(
    tokenizer: PreTrainedTokenizerFast, *, layers: int = 2, hidden: int = 128, seed: int = 0
) -> Qwen2ForCausalLM:
    """A freshly initialised text model with the decoder that `build_model` has; it reads `build_tokenizer`'s tokens."""
    decoder = _decoder(tokenizer, layers, hidden)
    return _initialised(Qwen2ForCausalLM, Qwen2Config(**decoder, tie_word_embeddings=True), decoder, seed)


def _decoder(tokenizer: PreTrainedTokenizerFast, layers: int, hidden: int) -> dict[str, Any]:
    """The configuration of a text decoder."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": max(4, hidden // 128),
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        # transformers' default of 0.02 is made for widths in the thousands: at 128 such a model stays at chance.
        "initializer_range": round(hidden**-0.5, 2),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    }


def _initialised(kind: Any, config: Any, decoder: dict[str, Any], seed: int) -> Any:
    """A model of class `kind` whose random weights depend on `seed` alone, and which ends where its decoder says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    model.generation_config = GenerationConfig(
        eos_token_id=decoder["eos_token_id"], pad_token_id=decoder["pad_token_id"]
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
