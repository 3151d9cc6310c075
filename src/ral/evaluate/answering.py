"""Generates a model's most likely answers to records, and records where it looked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from ral.attention import Prompt, prepare_prompt, vision_features
from ral.attention.heads import heads_of
from ral.attention.models import make_capturable, pretrained, resolve_layers
from ral.data.answer_boxes import as_asked
from ral.data.loading import PromptData, encoded
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.data.shown_media import shown_media
from ral.data.spans import answer_token, passage
from ral.data.templates import think_opening
from ral.errors import UsageError
from ral.evaluate.fixed_text import fixed_completions
from ral.evaluate.looking import LayerLook, Look, look
from ral.evaluate.settings import EvalSettings
from ral.evaluate.sheets import Sheet, sheet, sheet_map
from ral.models.eos_tokens import eos_token_ids
from ral.models.loading import load_model, load_processor
from ral.rewards.answers import extract_answer
from ral.rollouts.engine import PolicyEngine, most_likely
from ral.rollouts.sampling import Completion, Sampling


@dataclass(frozen=True)
class Answered:
    """A record, its prompt, and the model's answer: `completion` as tokens, and `text`, the whole turn
    without its end."""

    record: Record
    prompt: Prompt
    completion: Completion
    text: str


@dataclass(frozen=True)
class Glance:
    """One question about one image or video: its `sheet` at the size that it is decoded at, the model's `text`, the `answer` in it
    (None if there is none), and the `look` of the row that predicts the answer (without one, the first token). `number` is
    the requested decoder layer, counted from 0, and `heads` the chosen ones in it."""

    sheet: Sheet
    text: str
    answer: str | None
    look: Look
    number: int
    heads: list[int] | None = None

    @property
    def layer(self) -> LayerLook:
        """The look of the chosen layer, or of the chosen heads in it."""
        return self.look.at(self.number)

    @property
    def map(self) -> NDArray[np.float64]:
        """Attention of the chosen layer on the sheet: `[h, w]`."""
        return sheet_map(self.layer.maps)


def load_for_answering(name: str | Path) -> tuple[PreTrainedModel, Any]:
    """Model, in evaluation mode and on the GPU if there is one, and processor, from a folder or a hub id."""
    model: Any = load_model(name)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), load_processor(name)


def settled(model: nn.Module, settings: EvalSettings) -> EvalSettings:
    """The settings with the layer's number from 0. Raises ConfigError for a layer or a head that the model does not have."""
    base = make_capturable(model)
    layers = resolve_layers(base, [settings.layer])
    heads_of(base, layers, settings.heads, "heads")
    return replace(settings, layer=layers[0])


def encode(processor: Any, record: Record, settings: EvalSettings) -> dict[str, torch.Tensor]:
    """The processor's tensors for one record, as in training."""
    return encode_prompt(processor, record, settings.prompt)


def answer(
    model: nn.Module,
    processor: Any,
    records: Sequence[Record],
    settings: EvalSettings,
    inputs: Sequence[dict[str, torch.Tensor]] | None = None,
) -> list[Answered]:
    """The most likely completion of every record, generated as one batch, or that of `text_from`.

    `inputs` are the records encoded already. Raises what `fixed_completions` raises.
    """
    if inputs is None:
        inputs = [encode(processor, record, settings) for record in records]
    found = dict(_answered(model, processor, zip(records, inputs, strict=True), settings, len(records)))
    return [found[i] for i in range(len(records))]


def answers(
    model: nn.Module, processor: Any, records: Sequence[Record], settings: EvalSettings, rows: int, workers: int = 0
) -> Iterator[tuple[int, Answered]]:
    """The most likely completion of every record, with its number, as they end: `rows` are generated at a time.

    The media of a record are decoded as its turn comes: no more than `rows` prompts wait to enter. `workers` processes do it;
    without them, the calling one.
    """
    data = PromptData(records, processor, settings.prompt)
    taken = encoded(data, range(len(records)), workers)
    order: list[int] = []

    def asked() -> Iterator[tuple[Record, dict[str, torch.Tensor]]]:
        while waiting := list(islice(taken, rows)):
            # Like lengths enter together: padding is lost work.
            for number, inputs in sorted(waiting, key=lambda one: one[1]["input_ids"].shape[1], reverse=True):
                order.append(number)
                yield records[number], inputs

    for i, answered in _answered(model, processor, asked(), settings, rows):
        yield order[i], answered


@torch.no_grad()
def _answered(
    model: nn.Module,
    processor: Any,
    asked: Iterable[tuple[Record, dict[str, torch.Tensor]]],
    settings: EvalSettings,
    rows: int,
) -> Iterator[tuple[int, Answered]]:
    """The answers to records, with the processor's tensors of their prompts, as they end; each with its number among them."""
    opening = think_opening(processor, settings.think)
    # The features are given, as a tower that could be trained would be run again in every pass.
    prompts = ((record, prepare_prompt(model, inputs, vision_features(model, inputs))) for record, inputs in asked)
    if settings.text_from:
        written = fixed_completions(settings.text_from, prompts, processor, opening)
    else:
        sampling = Sampling(settings.max_completion_length, eos_token_ids(pretrained(model), processor))
        written = most_likely(PolicyEngine(model, rows), prompts, sampling)
    for i, record, prompt, completion in written:
        shown = as_asked(record, processor, prompt.inputs)
        yield i, Answered(shown, prompt, completion, completion.text(processor, opening))


def look_at_answers(
    model: nn.Module,
    processor: Any,
    answered: Sequence[Answered],
    answers: Sequence[str | None],
    settings: EvalSettings,
) -> list[Look | None]:
    """Looks of the rows that predict `answers`, the bodies of the completions' answers, as `settled` settings ask for them.

    None where there is no answer, and for prompts without an image, a video or a document.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    passages = [passage(tokenizer, item.prompt.input_ids, item.record) for item in answered]
    tokens = [
        answer_token(tokenizer, item.completion.ids, body) if body and (item.prompt.tiles or text) else None
        for item, body, text in zip(answered, answers, passages, strict=True)
    ]
    rows = [(item, token) for item, token in zip(answered, tokens, strict=True) if token is not None]
    if not rows:
        return [None] * len(answered)
    prompts, completions = [item.prompt for item, _ in rows], [item.completion.ids for item, _ in rows]
    documents = [
        text.tokens if text else None for text, token in zip(passages, tokens, strict=True) if token is not None
    ]
    at = [token for _, token in rows]
    found = iter(look(model, prompts, completions, at, "heads" in settings.probes, documents, settings.chosen))
    return [None if token is None else next(found) for token in tokens]


def glance(
    model: nn.Module,
    processor: Any,
    question: str,
    settings: EvalSettings,
    *,
    image: Path | Image.Image | None = None,
    video: Path | None = None,
) -> Glance:
    """Ask `question` about the file `image` or `video`; a mark `<image>` or `<video>` in it says where the medium stands,
    which is else the start.

    Raises DataError for a file that cannot be read, ConfigError for a layer the model does not have, UsageError unless one of
    `image` and `video` is given.
    """
    if (image is None) == (video is None):
        raise UsageError("a look needs one image or one video; give either of them")
    settings = settled(model, settings)
    images, videos = () if image is None else (image,), () if video is None else (video,)
    name = "the image" if isinstance(image, Image.Image) else str(image or video)
    record = Record(id=name, problem=question, solution="", images=images, videos=videos, origin=name)
    (item,) = answer(model, processor, [record], settings)
    found = extract_answer(item.text, settings.scorer, settings.think)
    (seen,) = look_at_answers(model, processor, [item], [found], settings)
    if seen is None:
        found = None
        (seen,) = look(model, [item.prompt], [item.completion.ids], [0], heads=settings.chosen)
    shows = shown_media(record, processor, settings.num_frames, settings.fps)
    return Glance(sheet(shows, shows.media[0]), item.text, found, seen, settings.layer, settings.heads)
