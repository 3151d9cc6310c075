"""Real processors around a tiny tokenizer, and the tiny model of the zoo that each belongs to.

They read the media of a record as the processors of published checkpoints do. Only the tokenizer, the sizes and the chat template
are small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForImageTextToText,
    AyaVisionProcessor,
    CLIPImageProcessor,
    Cohere2VisionImageProcessor,
    Cohere2VisionProcessor,
    DeepseekVLImageProcessor,
    DeepseekVLProcessor,
    Ernie4_5_VLMoeImageProcessor,
    Ernie4_5_VLMoeProcessor,
    Ernie4_5_VLMoeVideoProcessor,
    Exaone4_5_Processor,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma4AudioFeatureExtractor,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    GenerationConfig,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    Glm46VImageProcessor,
    Glm46VProcessor,
    Glm46VVideoProcessor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLProcessor,
    InternVLVideoProcessor,
    JanusImageProcessor,
    JanusProcessor,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    Llama4ImageProcessor,
    Llama4Processor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    Ovis2ImageProcessor,
    Ovis2Processor,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)

from experiments.families.zoo import VISION
from ral.testbed.model import build_tokenizer

#: A processor, and what the configuration of its model says of its tokens.
Made = tuple[Any, dict[str, Any]]

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'image' %}IMAGE{% elif p.type == "
    "'video' %}VIDEO{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
SQUARE = {"height": 16, "width": 16}
CANVASES = [[16 * a, 16 * b] for a in range(1, 4) for b in range(1, 4)]


def turns(image: str, video: str = "") -> str:
    """A chat template with these marks."""
    return TURNS.replace("IMAGE", image).replace("VIDEO", video)


def tokenizer(more: tuple[str, ...] = (), **named: str) -> Any:
    made = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer().backend_tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens=named, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in more])
    return made


def _ids(words: Any, **tokens: str) -> dict[str, Any]:
    return {name: words.convert_tokens_to_ids(token) for name, token in tokens.items()}


def internvl() -> Made:
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    images = GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=12)
    processor = InternVLProcessor(
        images, tokenizer(video_token="<video>", **names), InternVLVideoProcessor(size=SQUARE), image_seq_length=4,
        chat_template=turns("<IMG_CONTEXT>", "<video>"),
    )  # fmt: skip
    return processor, {"image_token_id": processor.image_token_id}


def gemma3() -> Made:
    words = tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>")
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size=SQUARE), words, image_seq_length=4, chat_template=turns("<boi>")
    )
    return processor, {name: getattr(words, name) for name in ("image_token_id", "boi_token_id", "eoi_token_id")}


def gemma4() -> Made:
    names = {"image": "<soft>", "boi": "<boi>", "eoi": "<eoi>", "audio": "<audio>", "boa": "<boa>", "eoa": "<eoa>"}
    words = tokenizer(**{f"{name}_token": token for name, token in names.items()})
    sizes = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    images, videos = Gemma4ImageProcessor(**sizes), Gemma4VideoProcessor(**sizes)
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(), images, words, videos, chat_template=turns("<soft>", "<|video|>")
    )
    tokens = {f"{name}_token_id": token for name, token in (names | {"video": "<|video|>"}).items()}
    return processor, _ids(words, **tokens) | {"vision_config": {"position_embedding_size": 256}}


_PLACES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))


def idefics3() -> Made:
    words = tokenizer(("<image>", "<fake_token_around_image>", "<global-img>", *_PLACES))
    images = Idefics3ImageProcessor(size={"longest_edge": 48}, max_image_size={"longest_edge": 16})
    processor = Idefics3Processor(images, words, image_seq_len=4, chat_template=turns("<image>"))
    return processor, {"image_token_id": processor.image_token_id}


def smolvlm() -> Made:
    words = tokenizer(("<image>", "<video>", "<fake_token_around_image>", "<global-img>", *_PLACES))
    sizes: dict[str, Any] = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 16}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes), words, SmolVLMVideoProcessor(**sizes), image_seq_len=4,
        chat_template=turns("<image>", "<video>"),
    )  # fmt: skip
    return processor, {"image_token_id": processor.image_token_id}


def mistral3() -> Made:
    images = PixtralImageProcessor(size={"longest_edge": 32}, patch_size={"height": 4, "width": 4})
    processor = PixtralProcessor(
        images, tokenizer(("[IMG]", "[IMG_BREAK]", "[IMG_END]")), patch_size=4, spatial_merge_size=2,
        chat_template=turns("[IMG]"),
    )  # fmt: skip
    return processor, {"image_token_id": processor.image_token_id}


def llava() -> Made:
    words = tokenizer(("<image>",))
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SQUARE)
    processor = LlavaProcessor(
        images, words, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=turns("<image>"),
    )  # fmt: skip
    return processor, {"image_token_id": processor.image_token_id}


def deepseek_vl() -> Made:
    words = tokenizer(image_token="<image_placeholder>")
    images = DeepseekVLImageProcessor(size=SQUARE, min_size=2)
    processor = DeepseekVLProcessor(images, words, num_image_tokens=16, chat_template=turns("<image_placeholder>"))
    return processor, {"image_token_id": processor.image_token_id}


def janus() -> Made:
    words = tokenizer(image_token="<image_placeholder>", boi_token="<begin_of_image>", eoi_token="<end_of_image>")
    images = JanusImageProcessor(size=SQUARE, min_size=2)
    processor = JanusProcessor(images, words, num_image_tokens=16, chat_template=turns("<image_placeholder>"))
    return processor, _ids(words, image_token_id="<image_placeholder>")


def llava_onevision() -> Made:
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=CANVASES), tokenizer(("<image>", "<video>")),
        LlavaOnevisionVideoProcessor(size=SQUARE), num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=turns("<image>", "<video>"),
    )  # fmt: skip
    names = ("image_token_id", "video_token_id")
    return processor, {name: getattr(processor, name) for name in names} | {"image_grid_pinpoints": CANVASES}


def llava_next() -> Made:
    edge = {"shortest_edge": 16}
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(size=edge, crop_size=SQUARE, image_grid_pinpoints=CANVASES), tokenizer(("<image>",)),
        patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=turns("<image>"),
    )  # fmt: skip
    return processor, {"image_token_id": processor.image_token_id, "image_grid_pinpoints": CANVASES}


def aya_vision() -> Made:
    marks = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL")
    words = tokenizer(("<image>", *marks, *(f"TILE_{n}" for n in range(1, 13))))
    images = GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=12)
    processor = AyaVisionProcessor(
        images, words, patch_size=4, img_size=16, downsample_factor=2, chat_template=turns("<image>")
    )
    return processor, {"image_token_id": processor.image_token_id}


def cohere2_vision() -> Made:
    words = tokenizer(image_token="<|IMG_PATCH|>", boi_token="<|START_OF_IMG|>", eoi_token="<|END_OF_IMG|>",
                      img_line_break_token="<|IMG_LINE_BREAK|>")  # fmt: skip
    images = Cohere2VisionImageProcessor(size=SQUARE, patch_size=4, max_patches=12)
    processor = Cohere2VisionProcessor(images, words, chat_template=turns("<|IMG_PATCH|>"))
    processor.patch_size = 2
    return processor, {"image_token_id": processor.image_token_id}


def ovis2() -> Made:
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    words = tokenizer(("<image>", "<IMG_ATOM>", *marks))
    images = Ovis2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=9)
    processor = Ovis2Processor(images, words, image_seq_length=4, chat_template=turns("<image>"))
    indicators = {"visual_indicator_token_ids": words.convert_tokens_to_ids(marks)}
    own = {"vision_config": {"num_visual_indicator_tokens": len(marks)}}
    return processor, _ids(words, image_token_id="<IMG_ATOM>") | indicators | own


def llama4() -> Made:
    marks = ("<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>")
    words = tokenizer(("<|image|>", *marks))
    processor = Llama4Processor(
        Llama4ImageProcessor(size=SQUARE, max_patches=9), words, patch_size=4, chat_template=turns("<|image|>")
    )
    return processor, _ids(words, image_token_index="<|patch|>", boi_token_index=marks[0], eoi_token_index=marks[1])


def lfm2_vl() -> Made:
    places = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 7) for column in range(1, 7)]
    words = tokenizer(("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *places))
    images = Lfm2VlImageProcessor(
        downsample_factor=2, encoder_patch_size=4, tile_size=16, min_image_tokens=2, max_image_tokens=6, min_tiles=2,
        max_tiles=6, max_num_patches=24, max_pixels_tolerance=1.0,
    )  # fmt: skip
    processor = Lfm2VlProcessor(images, words, chat_template=turns("<image>"))
    return processor, {"image_token_id": processor.image_token_id}


def _of_grids(processor: Any, images: Any, videos: Any, words: Any, around: tuple[str, str], **sizes: Any) -> Any:
    """A processor of grids of 4×4 pixels, of which 2×2 make a token."""
    sizes = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 256, "longest_edge": 4096}} | sizes
    return processor(images(**sizes), words, videos(**sizes), chat_template=turns(*around))


def _qwen(processor: Any, videos: Any) -> Made:
    words = tokenizer(("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"))
    image, video = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
    made = _of_grids(processor, Qwen2VLImageProcessor, videos, words, (image, video), temporal_patch_size=2)
    return made, _ids(words, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>",
                      vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>")  # fmt: skip


def qwen2_vl() -> Made:
    return _qwen(Qwen2VLProcessor, Qwen2VLVideoProcessor)


def qwen2_5_vl() -> Made:
    return _qwen(Qwen2_5_VLProcessor, Qwen2VLVideoProcessor)


def qwen3_5() -> Made:
    return _qwen(Qwen3VLProcessor, Qwen3VLVideoProcessor)


def _glm(processor: Any, images: Any, videos: Any) -> Made:
    marks = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
    words = tokenizer(("<|image|>", "<|video|>", *marks))
    around = f"{marks[0]}<|image|>{marks[1]}", f"{marks[2]}<|video|>{marks[3]}"
    made = _of_grids(processor, images, videos, words, around, temporal_patch_size=2)
    return made, _ids(words, image_token_id="<|image|>", video_token_id="<|video|>", image_start_token_id=marks[0],
                      image_end_token_id=marks[1], video_start_token_id=marks[2], video_end_token_id=marks[3])  # fmt: skip


def glm4v() -> Made:
    return _glm(Glm4vProcessor, Glm4vImageProcessor, Glm4vVideoProcessor)


def glm46v() -> Made:
    return _glm(Glm46VProcessor, Glm46VImageProcessor, Glm46VVideoProcessor)


def exaone4_5() -> Made:
    words = tokenizer(("<|image_pad|>", "<|video_pad|>"))
    processor = _of_grids(
        Exaone4_5_Processor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor, words, ("<|image_pad|>", "<|video_pad|>")
    )
    return processor, _ids(words, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>")


def video_llama_3() -> Made:
    words = tokenizer(("<|image_pad|>", "<|video_pad|>"))
    images, videos = VideoLlama3ImageProcessor, VideoLlama3VideoProcessor
    processor = _of_grids(VideoLlama3Processor, images, videos, words, ("<|image_pad|>", "<|video_pad|>"))
    return processor, _ids(words, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>")


def ernie4_5_vl_moe() -> Made:
    names = {f"{kind}_{end}token": f"<|{kind}_{end}|>" for kind in ("image", "video") for end in ("", "start_", "end_")}
    words = tokenizer(**names)
    images, videos = Ernie4_5_VLMoeImageProcessor, Ernie4_5_VLMoeVideoProcessor
    processor = _of_grids(Ernie4_5_VLMoeProcessor, images, videos, words, (names["image_token"], names["video_token"]))
    return processor, _ids(words, **{f"{name}_id": token for name, token in names.items()})


#: By architecture; several share a processor.
PROCESSORS: dict[str, Callable[[], Made]] = {
    make.__name__: make
    for make in (
        internvl, llava, deepseek_vl, janus, gemma3, gemma4, idefics3, smolvlm, mistral3, llava_onevision, llava_next,
        aya_vision, cohere2_vision, ovis2, llama4, lfm2_vl, exaone4_5, video_llama_3, ernie4_5_vl_moe, glm4v, glm46v,
        qwen2_vl, qwen2_5_vl, qwen3_5,
    )
} | {"glm4v_moe": glm4v, "qwen3_vl": qwen3_5, "qwen3_vl_moe": qwen3_5, "qwen3_5_moe": qwen3_5}  # fmt: skip


def model_for(kind: str, made: Made, local: bool = False, seed: int = 0) -> PreTrainedModel:
    """The tiny model of this architecture, with the processor's tokens.

    Args:
        local: the vision tower mixes its tokens so little that each speaks of its own pixels.
    """
    processor, tokens = made
    sizes, words = VISION[kind][0], processor.tokenizer
    text = {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    if "vocab_size_per_layer_input" in sizes["text_config"]:
        text["vocab_size_per_layer_input"] = len(words)
    vision = sizes["vision_config"] | tokens.get("vision_config", {})
    sizes = sizes | tokens | ({"vocab_size": len(words)} if "vocab_size" in sizes else {})
    sizes |= {"text_config": sizes["text_config"] | text, "vision_config": vision}
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **sizes)).eval().float()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, 0, 0.2)
    for name, parameter in model.named_parameters():
        if local and ("vision" in name or "visual" in name) and ("o_proj" in name or "out_proj" in name):
            parameter.data.mul_(0.02)
    model.generation_config = GenerationConfig(eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    return model
