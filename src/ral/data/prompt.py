"""Turns a record into the model's input: messages, then the processor's tensors for one prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.video_utils import VideoMetadata

from ral.data.answer_boxes import box_hint
from ral.data.media import Video, load_image, load_video
from ral.data.record import IMAGE_MARK, VIDEO_MARK, Record
from ral.data.settings import PromptSettings
from ral.data.templates import adds_special_tokens, opens_think, render, turn_end
from ral.data.wording import MARK, question
from ral.errors import ConfigError, DataError, RalError
from ral.families import family_of_processor
from ral.families.tiles import Encoded, Tile


def build_messages(
    record: Record,
    settings: PromptSettings | None = None,
    *,
    hint: str | None = None,
    think_opened: bool = False,
    **named: Any,
) -> list[dict[str, Any]]:
    """The system turn, if there is one, the record's history, then the question as it is asked (`wording.question`).

    The content of every turn is a list of `{"type": "text", "text": str}`, `{"type": "image", "image": PIL.Image | Path}`
    and `{"type": "video", "video": Path}`. Media stand at their marks, which count from the first turn on; where a kind has
    more media than marks, its first ones open the first turn of the user. The record's own system turn is said where it has
    one, else `system_prompt`. `settings` and `named` are those of `encode_prompt`, `hint` and `think_opened` of
    `wording.question`.

    Raises `DataError` when there are more marks than media.
    """
    settings = replace(settings or PromptSettings(), **named)
    turns = [
        *((turn.role, turn.content) for turn in record.history),
        ("user", question(record, settings, hint, think_opened)),
    ]
    images: list[dict[str, Any]] = [{"type": "image", "image": image} for image in record.images]
    videos: list[dict[str, Any]] = [{"type": "video", "video": video} for video in record.videos]
    lead: list[dict[str, Any]] = []
    for mark, media in ((IMAGE_MARK, images), (VIDEO_MARK, videos)):
        marks = sum(content.count(mark) for _, content in turns)
        unmarked = len(media) - marks
        if unmarked < 0:
            raise DataError(
                f"{record.origin}: {marks} {mark} marks but {len(media)} such media; remove the mark or add the medium"
            )
        lead += media[:unmarked]
        del media[:unmarked]
    queues = {IMAGE_MARK: iter(images), VIDEO_MARK: iter(videos)}
    messages = []
    for role, content in turns:
        pieces = [piece for piece in MARK.split(content) if piece]
        parts = [next(queues[piece]) if piece in queues else {"type": "text", "text": piece} for piece in pieces]
        if role == "user":
            parts, lead = lead + parts, []
        messages.append({"role": role, "content": parts})
    system = settings.system_prompt if record.system is None else record.system
    if system is None:
        return messages
    return [{"role": "system", "content": [{"type": "text", "text": system}]}, *messages]


#: What makes other pixels `[..., H, W, 3]` (uint8) of the same shape: of one image, or of all frames of a video.
ChangeMedia = Callable[[NDArray], NDArray]


def encode_prompt(
    processor: Any,
    record: Record,
    settings: PromptSettings | None = None,
    change_media: ChangeMedia | None = None,
    **named: Any,
) -> Encoded:
    """The processor's tensors for one prompt, ending where the model is to answer.

    Always `input_ids` and `attention_mask` `[1, P]`; with media, what the model's processor adds: for
    Qwen2.5-VL `mm_token_type_ids` `[1, P]`, `pixel_values`, `image_grid_thw` `[images, 3]`,
    `pixel_values_videos`, `video_grid_thw` `[videos, 3]`, `second_per_grid_ts` `[videos]`. What each visual token
    shows, where these do not say it, is the attribute `tiles` of the dict. `min_pixels` and
    `max_pixels` bound one image or one video frame, `video_pixels` all frames of a video together; `num_frames`
    and `fps` are those of `media.frame_times`. Settings can be given by name, too (`think=False`), and win then. `change_media`
    is applied to decoded pixels.
    `processor` may be a bare tokenizer for records without media. The tokens are those of
    `apply_chat_template(…, tokenize=True)`.

    Raises `DataError`, naming the record, for media that cannot be decoded or that the processor cannot use, for text that
    contains one of the model's own special tokens, for turns that its template refuses, and for a prompt above
    `max_prompt_length`; ConfigError for a model that
    cannot be asked so, as `templates.render` says.
    """
    settings = replace(settings or PromptSettings(), **named)
    tokenizer = getattr(processor, "tokenizer", processor)
    said = [record.system or "", *(turn.content for turn in record.history), record.problem, *record.options]
    _refuse_special_tokens(tokenizer, record, [MARK.sub("", text) for text in said])
    _refuse_special_tokens_of(tokenizer, settings)
    if tokenizer is processor and record.has_media:
        raise DataError(f"{record.origin}: has images or videos, but the model reads text only")
    messages = build_messages(
        record,
        settings,
        hint=box_hint(record, processor) if record.problem_type == "box" else None,
        think_opened=opens_think(processor, settings.think),
    )
    try:
        text = render(processor, messages, settings.think)
    except DataError as error:
        raise DataError(f"{record.origin}: {error}") from error
    special = {} if adds_special_tokens(processor, text) else {"add_special_tokens": False}
    if tokenizer is processor:
        return Encoded(_within(dict(processor(text, return_tensors="pt", **special)), record, settings))
    try:
        media = _media(processor, record, messages, settings, change_media)
        inputs = processor(text=[text], return_tensors="pt", **special, **media)
    except RalError:
        raise
    except ValueError as error:  # for example an aspect ratio above 200
        raise DataError(f"{record.origin}: the processor refuses this record: {error}") from error
    encoded = _within({key: torch.as_tensor(value) for key, value in inputs.items()}, record, settings)
    return Encoded(encoded, _tiles(processor, encoded, media))


def _tiles(processor: Any, encoded: Mapping[str, Tensor], media: Mapping[str, Any]) -> tuple[Tile, ...]:
    """What the visual tokens show, images before videos; empty where their grids are among the tensors, or nothing is known."""
    family, found = family_of_processor(processor), []
    if images := media.get("images"):
        sizes = [image.size for image in images]
        found.append(family.tiles(processor, encoded["input_ids"][0], sizes, encoded))
    if videos := media.get("videos"):
        own, first = family.video_tiles(processor, [len(video) for video in videos], encoded), len(images or ())
        each = family.frames_per_picture(processor)
        medium = [first + number for number, video in enumerate(videos) for _ in range(-(-len(video) // each))]
        found.append(own and [replace(t, picture=first + t.picture, medium=medium[t.picture]) for t in own])
    return () if None in found else tuple(tile for tiles in found for tile in tiles or ())


def _within(inputs: dict[str, Tensor], record: Record, settings: PromptSettings) -> dict[str, Tensor]:
    """The encoded prompt, unless it is longer than the settings allow."""
    tokens, most = inputs["input_ids"].shape[1], settings.max_prompt_length
    if most is not None and tokens > most:
        raise DataError(
            f"{record.origin}: the prompt has {tokens:,} tokens, more than max_prompt_length={most:,}; lower max_pixels or num_frames, "
            "leave the record out, or raise max_prompt_length"
        )
    return inputs


def _media(
    processor: Any,
    record: Record,
    messages: list[dict[str, Any]],
    settings: PromptSettings,
    change: ChangeMedia | None,
) -> dict[str, Any]:
    """The decoded images and videos of the turns, in order, and how the processor is to take them."""
    parts, family = [part for turn in messages for part in turn["content"]], family_of_processor(processor)
    media: dict[str, Any] = {}
    images = [load_image(part["image"], record.origin) for part in parts if part["type"] == "image"]
    if images:
        media["images"] = images if change is None else [Image.fromarray(change(np.asarray(image))) for image in images]
        media["images_kwargs"] = family.image_size(processor.image_processor, settings.min_pixels, settings.max_pixels)
    videos = [
        load_video(Path(part["video"]), num_frames=settings.num_frames, fps=settings.fps, origin=record.origin)
        for part in parts
        if part["type"] == "video"
    ]
    if videos and not family.reads_video:
        raise DataError(
            f"{record.origin}: has a video, which models with a {type(processor).__name__} are not shown; leave such records out, or "
            "choose a model that reads videos (docs/models.md)"
        )
    if videos and images and not family.mixes_media:
        raise DataError(
            f"{record.origin}: has images and videos; a model with a {type(processor).__name__} reads frames as images, so a prompt "
            "can hold one of the two. Leave such records out, or choose another model (docs/models.md)"
        )
    if videos:
        longest = max(len(video.frames) for video in videos)
        frame_pixels = settings.frame_pixels(longest)
        frames = [video.frames if change is None else change(video.frames) for video in videos]
        media["videos"] = [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in frames]
        media["videos_kwargs"] = {
            "do_sample_frames": False,
            "input_data_format": "channels_first",
            "video_metadata": [_metadata(video) for video in videos],
            **family.video_size(processor.video_processor, settings.min_pixels, frame_pixels, longest),
        }
        if hasattr(processor.video_processor, "cap_pixels_per_frame"):
            # Without a bound of ours, the reference's bound on the whole clip stands in.
            media["videos_kwargs"]["cap_pixels_per_frame"] = frame_pixels is None
    return media


def decode_prompt(processor: Any, ids: Tensor) -> str:
    """The tokens `[P]` of a prompt as text, control tokens included; one that repeats is written once, with its number:
    `<|image_pad|>×196`."""
    tokenizer = getattr(processor, "tokenizer", processor)
    text: str = tokenizer.decode(ids, skip_special_tokens=False)
    for token in sorted(_special_tokens(tokenizer)):
        if 2 * token in text:
            text = re.sub(f"(?:{re.escape(token)}){{2,}}", partial(_numbered, token), text)
    return text


def _numbered(token: str, run: re.Match[str]) -> str:
    return f"{token}×{len(run[0]) // len(token)}"


def encode_completion(processor: Any, record: Record, settings: PromptSettings | None = None, **named: Any) -> Tensor:
    """The completion tokens `[R]` of a worked example, with the end of the turn.

    `<think>trace</think><answer>solution</answer>`, without the `<think>` that the prompt ends in for some models; or
    (`think=False`) the bare solution. `settings` and `named` are those of `encode_prompt`.

    Raises `DataError`, naming the record, where the trace is missing, and for text with a control token of the model.
    """
    think = replace(settings or PromptSettings(), **named).think
    tokenizer = getattr(processor, "tokenizer", processor)
    taught = [record.trace, record.solution] if think else [record.solution]
    if record.trace is None and think:
        raise DataError(f"{record.origin}: has no trace, the worked thinking to be taught; drop the row or add one")
    _refuse_special_tokens(tokenizer, record, [text for text in taught if text is not None])
    text = record.solution
    if think:
        opening = "" if opens_think(processor) else "<think>"
        text = f"{opening}{record.trace}</think><answer>{record.solution}</answer>"
    end = turn_end(processor)
    return torch.tensor(
        [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id if end is None else end]
    )


def _metadata(video: Video) -> VideoMetadata:
    """When the frames are shown, as transformers counts it: in frames at one rate, or milliseconds where there are several."""
    rate, numbers = video.fps, video.indices
    if np.abs(np.array(numbers) / rate - video.times).max() > 0.5 / rate:
        rate, numbers = 1000.0, [round(1000 * time) for time in video.times]
    return VideoMetadata(
        total_num_frames=round(video.duration * rate), fps=rate, duration=video.duration, frames_indices=numbers
    )


def _refuse_special_tokens(tokenizer: Any, record: Record, texts: Iterable[str]) -> None:
    if found := _control_token(tokenizer, texts):
        raise DataError(
            f"{record.origin}: the text contains {found!r}, a control token of the model; remove it or write it differently"
        )


def _refuse_special_tokens_of(tokenizer: Any, settings: PromptSettings) -> None:
    for name in ("system_prompt", "prompt_template"):
        if found := _control_token(tokenizer, [getattr(settings, name) or ""]):
            raise ConfigError(
                f"{name} contains {found!r}, a control token of the model, whose chat template writes the turns; leave it out"
            )


def _control_token(tokenizer: Any, texts: Iterable[str]) -> str | None:
    """One that a text spells: it would open a turn, or a medium that is not there."""
    special = _special_tokens(tokenizer)
    return next((token for text in texts for token in special if token in text), None)


def _special_tokens(tokenizer: Any) -> set[str]:
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return {*tokenizer.all_special_tokens, *added} - {""}
